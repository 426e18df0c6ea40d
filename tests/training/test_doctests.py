"""The examples in the docstrings of data, models, evaluation and training run."""

import doctest
import importlib
import pkgutil

import pytest

from sevo_jax import data, evaluation, models, training

MODULES = [
    module.name
    for package in (data, evaluation, models, training)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    for test in doctest.DocTestFinder().find(module, name):
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
