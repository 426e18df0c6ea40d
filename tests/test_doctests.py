"""The examples in the docstrings of the library run, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import sevo_jax as sevo

MODULES = [
    "sevo_jax",
    *(f"sevo_jax.{name}" for name in ("_leaves", "_sparse", "_sharded")),
    *(f"sevo_jax.{name}" for name in ("smoothing", "transforms")),
    *(f"sevo_jax.{name}" for name in ("optimizers", "graphs")),
    *(
        module.name
        for module in pkgutil.iter_modules(sevo.graphs.__path__, "sevo_jax.graphs.")
    ),
]
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


def test_public_functions_are_found():
    assert "sevo_jax.sevo_adamw" in PUBLIC
    assert "sevo_jax.smoothing.neumann" in PUBLIC
    assert "sevo_jax.graphs.cooccurrence" in PUBLIC
