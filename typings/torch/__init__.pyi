# PyTorch, beside which the benchmarks measure: checked where it is not installed, too.
from typing import Any

def __getattr__(name: str) -> Any: ...
