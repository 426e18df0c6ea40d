"""What a release consists of says the same thing everywhere."""

import tomllib
from pathlib import Path

import pytest

import sevo_jax

yaml = pytest.importorskip("yaml", reason="needs sevo-jax[test]")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FORMS = sorted(ROOT.glob(".github/**/*.yml"))


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == sevo_jax.__version__
    assert citation["license"] == PROJECT["license"]
    paper = citation["preferred-citation"]
    assert paper["identifiers"][0]["value"] == "arXiv:2310.03032"
    # The format forbids equal entries, and two of the authors are J. Wang.
    names = {tuple(author.values()) for author in paper["authors"]}
    assert len(names) == len(paper["authors"]) == 4


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_and_workflows_can_be_read(path):
    assert yaml.safe_load(path.read_text())


def test_every_python_that_is_promised_is_tested():
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    cases = workflow["jobs"]["core"]["strategy"]["matrix"]["include"]
    prefix = "Programming Language :: Python :: 3."
    promised = {
        f"3.{each.removeprefix(prefix)}"
        for each in PROJECT["classifiers"]
        if each.startswith(prefix)
    }
    assert {case["python"] for case in cases} == promised
    assert {"python": "3.11", "constraint": ".ci/oldest.txt"} in cases


def test_the_oldest_releases_are_the_lower_bounds():
    pinned = dict(
        line.split("==")
        for line in (ROOT / ".ci/oldest.txt").read_text().splitlines()
        if "==" in line
    )
    for bound in PROJECT["dependencies"]:
        name, version = bound.split(">=")
        release = pinned[name]
        assert release == version or release.startswith(f"{version}."), name
