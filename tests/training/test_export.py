import importlib
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import jax
import newcomer  # noqa: F401
import numpy as np
import pytest
from flax import nnx

from sevo_jax.cli import main
from sevo_jax.data import Sequences
from sevo_jax.models import MODELS, SASRecConfig
from sevo_jax.testing import make_trainer
from sevo_jax.training import export, load
from sevo_jax.training.export import _tables

# It knows what is written, not what wrote it.
SCORER = """
import json, sys
sys.modules["sevo_jax"] = sys.modules["flax"] = None
import jax, numpy as np
folder, histories = sys.argv[1], json.loads(sys.argv[2])
about = json.load(open(f"{folder}/scorer.json"))
with np.load(f"{folder}/items.npz") as tables:
    ids = tables["id"].tolist()
program = jax.export.deserialize(bytearray(open(f"{folder}/scorer.bin", "rb").read()))
rows = np.zeros((len(histories), about["cells"]), np.int32)
for row, history in zip(rows, histories):
    items = [ids.index(item) + about["first_item"] for item in history]
    cells = [*items, *about["last_cells"]][-about["cells"]:]
    row[len(row) - len(cells):] = cells
print(json.dumps(np.asarray(program.call(rows)).tolist()))
"""


# Of each kind of inputs, and one that propagates as it scores.
@pytest.mark.parametrize("name", ["bert4rec", "mf-bpr", "sr-gnn", "newcomer"])
def test_a_program_scores_as_the_model(name, tiny_split, tmp_path):
    trainer = make_trainer(name, tiny_split)
    model = trainer.model(trainer.start(0)).for_ranking()
    log = tiny_split.log
    known = SimpleNamespace(user_ids=log.user_ids, item_ids=log.item_ids)
    saved: Any = SimpleNamespace(model=model, known=known)
    export(saved, tmp_path / "out")
    data = (tmp_path / "out/scorer.bin").read_bytes()
    program = jax.export.deserialize(bytearray(data))
    about = json.loads((tmp_path / "out/scorer.json").read_text())
    users = np.arange(5)
    histories = tiny_split.train.take(users)
    inputs = model.inputs(histories, users=users)
    if about["inputs"] == "users":
        np.testing.assert_array_equal(inputs[:, 0], users)
    else:
        wide = np.zeros((5, about["cells"]), np.int32)
        wide[:, wide.shape[1] - inputs.shape[1] :] = inputs
        inputs = wide
        end = [histories.values[histories.offsets[1] - 1] + about["first_item"]]
        assert inputs[0, -1 - len(about["last_cells"]) :].tolist() == (
            end + about["last_cells"]
        )
    for size in (5, 2):
        np.testing.assert_allclose(
            program.call(inputs[:size]),
            model.score(inputs[:size]),
            rtol=1e-5,
            atol=1e-5,
        )


def test_a_program_runs_without_this_package(finished, tmp_path):
    _, run = finished
    assert main(["export", f"{run}", "--output", f"{tmp_path / 'out'}"]) == 0
    saved = load(run)
    export(saved, tmp_path / "npz", format="npz")
    histories = [[1, 2, 3], [7]]
    command = [sys.executable, "-c", SCORER, tmp_path / "npz", json.dumps(histories)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = Sequences.from_lists([saved.known.items(each) for each in histories])
    scores = saved.model.score(saved.model.inputs(rows))
    np.testing.assert_allclose(json.loads(result.stdout), scores, rtol=1e-5, atol=1e-5)


def test_tables_carry_the_ids(finished, tmp_path):
    from pyarrow import parquet

    _, run = finished
    saved = load(run)
    for format in ("parquet", "npz"):
        export(saved, tmp_path / format, format=format)
    table = parquet.read_table(tmp_path / "parquet/items.parquet")
    with np.load(tmp_path / "npz/items.npz") as archive:
        arrays = dict(archive)
    assert table.column_names == list(arrays) == ["id", "item_embedding"]
    assert table["id"].to_pylist() == list(saved.known.item_ids)
    expected = saved.model.item_embedding[...][1:]
    np.testing.assert_array_equal(table["item_embedding"].to_pylist(), expected)
    np.testing.assert_array_equal(arrays["item_embedding"], expected)
    assert not (tmp_path / "npz/users.npz").exists()


def test_the_table_of_a_layer_is_one(tiny_split, tmp_path):
    base: Any = MODELS["sasrec"]

    class Model(base):
        def __init__(self, *args, rngs, **options):
            super().__init__(*args, rngs=rngs, **options)
            rows: Any = self.item_embedding
            self.item_embedding = nnx.Embed(*rows[...].shape, rngs=rngs)
            # No table, whatever it is called.
            self.item_tower = nnx.Linear(4, 4, rngs=rngs)

    model = Model(
        tiny_split.num_items, Model.Config(max_len=8, width=4), rngs=nnx.Rngs(0)
    )
    tables = _tables(model, "items")
    assert list(tables) == ["item_embedding/embedding"]
    assert tables["item_embedding/embedding"].shape == (tiny_split.num_items, 4)


def test_a_table_of_as_many_rows_is_not_taken_for_items(tiny_split, tmp_path):
    config = SASRecConfig(max_len=tiny_split.num_items + 1, width=4, num_blocks=1)
    trainer = make_trainer("sasrec", tiny_split, config)
    model = trainer.model(trainer.start(0))
    known = SimpleNamespace(user_ids=[], item_ids=tiny_split.log.item_ids)
    saved: Any = SimpleNamespace(model=model, known=known)
    export(saved, tmp_path / "out", format="npz")
    with np.load(tmp_path / "out/items.npz") as archive:
        assert list(archive) == ["id", "item_embedding"]


def test_a_part_of_an_export_does_not_stay(finished, tmp_path, monkeypatch):
    def full(path, text):
        raise OSError("No space left on device")

    module = importlib.import_module("sevo_jax.training.export")
    monkeypatch.setattr(module, "replace_text", full)
    with pytest.raises(OSError, match="No space"):
        export(load(finished[1]), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_what_cannot_be_written_is_refused(finished, tmp_path, capsys):
    saved = load(finished[1])
    with pytest.raises(ValueError, match="format is 'csv': choose parquet or npz"):
        export(saved, tmp_path / "out", format="csv")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine.txt").write_text("")
    assert main(["export", f"{finished[1]}", "--output", f"{tmp_path}"]) == 2
    assert "is not empty: choose another folder" in capsys.readouterr().err
