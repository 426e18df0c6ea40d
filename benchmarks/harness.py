"""What the benchmarks share: the data, and where results go."""

import json
import os
import platform
from pathlib import Path

import jax
import numpy as np

from sevo_jax.data import LeaveOneOut, leave_one_out, read

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("SEVO_DATA", Path(__file__).parents[2] / "shared" / "data"))


def load(name: str) -> LeaveOneOut:
    """A dataset of the paper by file name, from the folder in ``SEVO_DATA``."""
    path = DATA / f"{name}.txt"
    if not path.exists():
        raise SystemExit(f"{path} is not there: set SEVO_DATA to the folder of {name}")
    return leave_one_out(read(path))


def save(name: str, results: object) -> Path:
    """Writes results with the machine and the versions they were measured on."""
    import scipy

    versions = {"jax": jax.__version__, "numpy": np.__version__}
    versions |= {"scipy": scipy.__version__, "python": platform.python_version()}
    try:
        import torch
    except ImportError:
        pass
    else:
        versions["torch"] = torch.__version__
    machine = {
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "versions": versions,
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    content = json.dumps({"machine": machine, "results": results}, indent=2) + "\n"
    path.write_text(content)
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()
