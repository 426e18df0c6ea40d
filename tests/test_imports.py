"""The arrows between the parts of the package point one way."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import sevo_jax

ROOT = Path(sevo_jax.__file__).parent

# From the ground up: a part imports those before it, and itself.
LAYERS = [
    ("_checks", "_digests", "_files", "_messages", "_timing"),
    ("operators",),
    ("smoothing",),
    ("graphs",),
    ("_tables",),
    ("_leaves",),
    ("transforms", "moments"),
    ("optimizers", "states"),
    ("data",),
    ("samples",),
    ("models",),
    ("evaluation",),
    ("training", "reports"),
    ("testing", "cli"),
    ("__main__",),
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
# What a recipe says of a graph is about a split log.
EXCEPT = {("graphs.kinds", "data")}


def imports():
    """Every import of ours and of JAX's sparse package: `(module, what)`."""
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = module.removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((module, name.name) for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.module and not node.level, f"{path}: a relative import"
                for name in node.names:
                    yield module, f"{node.module}.{name.name}"


def test_imports_are_found():
    assert ("smoothing", "sevo_jax.operators.prepare") in set(imports())


def test_parts_import_only_those_below():
    wrong = []
    for module, what in imports():
        package, *path = what.split(".")
        if package != "sevo_jax" or module == "__init__":
            continue
        part, other = module.split(".")[0], path[0] if path else "__init__"
        if other not in LEVEL:
            # The package's face, or what stands there by name.
            named = getattr(sevo_jax, other, None)
            home = getattr(named, "__module__", "sevo_jax.optimizers")
            other = home.split(".")[1]
        if part != other and (module, other) not in EXCEPT:
            if LEVEL[other] >= LEVEL[part]:
                wrong.append(f"{module} imports {what}")
    assert not wrong


def test_one_module_has_to_do_with_jax_sparse():
    using = {
        (module, what)
        for module, what in imports()
        if what.startswith("jax.experimental.sparse")
    }
    elsewhere = {(m, what) for m, what in using if m != "operators._kernels"}
    assert {what for _, what in elsewhere} == {"jax.experimental.sparse.BCOO"}
    assert using - elsewhere


def test_every_part_has_its_layer():
    parts = {
        path.stem
        for path in ROOT.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts - {"__init__"} == set(LEVEL)


def test_only_training_needs_what_posix_alone_has():
    code = (
        "import sys; sys.modules['fcntl'] = None; import sevo_jax, sevo_jax.evaluation"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
