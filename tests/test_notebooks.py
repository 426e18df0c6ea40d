"""Every notebook runs, has no stored outputs, and equals its text twin."""

from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="needs sevo-jax[notebooks]")
nbclient = pytest.importorskip("nbclient", reason="needs sevo-jax[notebooks]")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_twin_and_no_outputs(path):
    notebook = jupytext.read(path)
    twin = jupytext.read(path.with_suffix(".py"))
    sources = [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert sources == [(cell.cell_type, cell.source) for cell in twin.cells]
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.filterwarnings("default")  # The kernel's own libraries warn.
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path):
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
    assert "SEvo-AdamW  best validation NDCG@10" in text
