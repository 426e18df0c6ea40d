"""The examples in the docstrings run, and every public name of the library has one."""

import doctest
import importlib.util
import inspect
import pkgutil
import re

import pytest

import sevo_jax as sevo

MODULES = [
    "sevo_jax",
    *(module.name for module in pkgutil.walk_packages(sevo.__path__, "sevo_jax.")),
]
if importlib.util.find_spec("pyarrow") is None:  # without the extra "train"
    needing_it = re.compile(
        r"sevo_jax\.(cli|data|evaluation|models|reports|samples|testing|training)\b"
    )
    MODULES = [name for name in MODULES if not needing_it.match(name)]
MISSING = [name for name in ("ibis", "pyarrow") if not importlib.util.find_spec(name)]
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (sevo, sevo.smoothing, sevo.graphs)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    for test in doctest.DocTestFinder().find(module, name):
        # What an extra is for is shown with it; the rest of the module runs without.
        if not any(extra in (test.docstring or "") for extra in MISSING):
            runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_function_has_an_example(name):
    documentation = inspect.getdoc(PUBLIC[name]) or ""
    assert "Args:" in documentation
    _, _, example = documentation.partition("Examples:")
    elsewhere = re.search(r"See :func:`(\w+)`", example)
    if elsewhere:
        example = inspect.getdoc(PUBLIC[f"{name.rpartition('.')[0]}.{elsewhere[1]}"])
    assert doctest.DocTestParser().get_examples(example or "")


def test_modules_and_public_functions_are_found():
    assert {"sevo_jax._leaves", "sevo_jax.graphs._cooccurrence"} <= set(MODULES)
    if importlib.util.find_spec("pyarrow"):
        assert "sevo_jax.training.trainer" in MODULES
    assert "sevo_jax.sevo_adamw" in PUBLIC
    assert "sevo_jax.smoothing.neumann" in PUBLIC
    assert "sevo_jax.graphs.cooccurrence" in PUBLIC
