"""Every notebook runs, has no stored outputs, and equals its text twin."""

import tomllib
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="needs sevo-jax[notebooks]")
nbclient = pytest.importorskip("nbclient", reason="needs sevo-jax[notebooks]")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = PROJECT["urls"]["Repository"]

# What each prints that it has come to.
RESULTS = {
    "drop_in": "SEvo-AdamW  best validation NDCG@10",
    "own_graph": "SEvo, genres         test NDCG@10",
    "reproduce": "SEvo-AdamW  best epoch",
    "serve": "of the items have their group in the most similar one",
    "words": "SEvo-AdamW, not corrected  test perplexity",
}


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == set(RESULTS)
    texts = (ROOT / "notebooks").glob("*.py")
    assert {path.stem for path in texts} == set(RESULTS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_twin_and_no_outputs(path):
    notebook = jupytext.read(path)
    twin = jupytext.read(path.with_suffix(".py"))
    sources = [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert sources == [(cell.cell_type, cell.source) for cell in twin.cells]
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_badge_and_install_cell_have_the_address(path):
    title, install, *_ = (cell.source for cell in jupytext.read(path).cells)
    colab = "https://colab.research.google.com"
    place = ADDRESS.removeprefix("https://")
    page = f"{colab}/{place.replace('.com', '')}/blob/main/notebooks/{path.name}"
    badge = f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({page})"
    assert badge in title.splitlines()
    assert install == f'%pip install -q "sevo-jax[train] @ git+{ADDRESS}"'


@pytest.mark.filterwarnings("default")  # The kernel's own libraries warn.
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch):
    # On the built-in log, whatever else is on this machine.
    monkeypatch.delenv("SEVO_DATA", raising=False)
    notebook = jupytext.read(path)
    for cell in notebook.cells:
        # The tests run in an environment that has the package.
        if cell.source.startswith("%pip"):
            cell.source = ""
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    text = "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert RESULTS[path.stem] in text
