"""The paper's experiments: scripts, stored results, and the tables made of them."""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import documents
import every
import figure3
import figure5
import figure6
import figure8
import jax
import jax.numpy as jnp
import jobs
import losses
import numpy as np
import paper
import pending
import points
import pytest
import sampling
import smoothness
import study
import table3
import tables
import tuning

import sevo_jax as sevo
from sevo_jax.data import write
from sevo_jax.data.synthetic import planted
from sevo_jax.evaluation import PAPER_METRICS
from sevo_jax.training import OptimizerConfig, Recipe, Trainer, find_recipe, load
from sevo_jax.training.optimizers import make_optimizer

FOLDER = Path(__file__).parents[1] / "experiments"
NO_SCRIPTS = {"jobs", "paper", "points", "smoothness", "study", "tables"}
SCRIPTS = {path.stem for path in FOLDER.glob("*.py")} - NO_SCRIPTS
STORED = sorted(FOLDER.glob("results/*/*.json"))


def run(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    importlib.import_module(name).main()


# Scripts


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_help(name, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="^0$"):
        run(name, monkeypatch, "--help")
    assert f"python experiments/{name}.py" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_the_page_names_every_script(name):
    assert f"{name}.py" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["table3", "table"], "mean improvement"),
        (["table3", "table", "--markdown"], "| Beauty | SASRec |"),
        (["table3", "table"], "lightgcn"),
        (["tuning", "table"], "the recipe"),
        (["tuning", "table", "--only", "lessr"], "LESSR"),
        (["tuning", "table", "--dataset", "tools", "--markdown"], "| GRU4Rec |"),
        (["sampling", "table"], "the authors, SEvo, 5 seeds"),
        (["sampling", "table", "--backbone", "lessr"], "the paper 0.0088"),
    ],
)
def test_tables_are_printed(arguments, expected, monkeypatch, capsys):
    run(*arguments[:1], monkeypatch, *arguments[1:])
    # The width of a column follows its numbers.
    assert expected in re.sub(" +", " ", capsys.readouterr().out)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The built-in log as Beauty, MF-BPR for two epochs, and nothing done so far."""
    write(planted(), tmp_path / "beauty.txt")
    monkeypatch.setattr(paper, "DATA", tmp_path)
    monkeypatch.setattr(table3, "FOLDER", tmp_path / "table3")
    monkeypatch.setattr(table3, "RESULTS", tmp_path)

    def recipe_of(backbone, dataset, optimizer):
        recipe = paper.recipe_of(backbone, dataset, optimizer)
        return dataclasses.replace(recipe, epochs=2, eval_every=1)

    monkeypatch.setattr(table3, "recipe_of", recipe_of)
    return tmp_path


def test_a_run_is_done_once_and_leaves_its_evidence(tiny, monkeypatch, capsys):
    options = [
        "--only",
        "mf-bpr-ui-beauty",
        "--seeds",
        "3",
        "--work",
        str(tiny / "work"),
    ]
    run("table3", monkeypatch, "run", *options)
    names = [path.name for path in sorted((tiny / "table3").iterdir())]
    assert names == [
        f"mf-bpr-ui-beauty-{optimizer}-seed3.json"
        for optimizer in ("adamw", "sevo_adamw")
    ]
    path = tiny / "table3" / names[1]
    result = json.loads(path.read_text())
    assert Recipe.from_dict(result["recipe"]).optimizer.name == "sevo_adamw"
    assert len(result["losses"]) == 2 and result["seed"] == 3
    assert list(result["valid NDCG@10"]) == ["0", "1", "2"]
    assert result["versions"]["jax"] and result["machine"]["processor"]
    written = path.stat().st_mtime_ns
    run("table3", monkeypatch, "run", *options)
    assert path.stat().st_mtime_ns == written
    monkeypatch.setattr(table3, "DATASETS", {"beauty": "Beauty"})
    run("table3", monkeypatch, "table", "--markdown")
    shown = capsys.readouterr().out
    assert f"| Beauty | MF-BPR (U-I) | 1 | {result['test']['NDCG@10']:.4f} |" in shown
    assert "Not run yet: on Beauty GRU4Rec, prefixes," in shown


def test_a_search_writes_no_test_metrics(tiny):
    job = table3.job("mf-bpr-ui", "beauty", "adamw", 0)
    job = dataclasses.replace(job, name="search", test=False)
    jobs.do([job], tiny / "work")
    result = job.result()
    assert result and "test" not in result and 0 <= result["valid"]["NDCG@10"] <= 1


def test_what_another_process_is_at_is_left_alone(tiny):
    job = table3.job("mf-bpr-ui", "beauty", "adamw", 0)
    (tiny / "work").mkdir()
    with jobs.contextlib.ExitStack() as stack:
        assert jobs._claim(stack, tiny / "work" / f"{job.full_name}.lock")
        jobs.do([job], tiny / "work")
    assert job.result() is None


def test_no_script_patches_the_library():
    for path in FOLDER.glob("*.py"):
        text = path.read_text()
        assert "mock" not in text and "setattr(" not in text, path


def test_missing_data_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(paper, "DATA", tmp_path)
    with pytest.raises(SystemExit, match="tools.txt: no such file, set SEVO_DATA"):
        paper.load("tools")


# Stored results


def test_equal_recipes_have_equal_results():
    found = {}
    for path in STORED:
        result = json.loads(path.read_text())
        if "valid" not in result:  # It diverged, or holds what is drawn alone.
            continue
        recipe = Recipe.from_dict(result["recipe"])
        key = (json.dumps(recipe.to_dict()), result["dataset"], result["seed"])
        numbers = found.setdefault(key, result["valid"])
        assert numbers == result["valid"], path
    assert len(found) > 100


def test_a_stored_recipe_is_that_of_its_job():
    for make, folder in ((table3.job, "table3"), (table3.authors_job, "sampling")):
        paths = {path for path in STORED if path.parent.name == folder}
        for backbone in table3.MODELS:
            if make is table3.authors_job and backbone not in table3.AUTHORS_SAMPLING:
                continue
            for dataset in paper.DATASETS:
                for optimizer in table3.OPTIMIZERS:
                    for seed in table3.SEEDS:
                        job = make(backbone, dataset, optimizer, seed)
                        if result := job.result():
                            paths.remove(job.path)
                            assert Recipe.from_dict(result["recipe"]) == job.recipe
                            assert result["dataset"] == dataset
        assert not paths, "no job makes these"


# Tables


def test_documents_say_what_the_results_say():
    for path in documents.DOCUMENTS:
        text = path.read_text()
        assert documents.filled(text) == text, (
            f"{path.name} is not what the results come to: run "
            "python experiments/documents.py"
        )


def test_the_prose_says_no_number_that_no_script_says():
    """Decimals and percentages, in what people read about results."""
    written = [make() for make in documents.PARTS.values()]
    written += [
        sampling.table(backbone, dataset)
        for backbone in table3.AUTHORS_SAMPLING
        for dataset in ("beauty", "toys", "tools")
    ]
    known = set(re.findall(r"\d+(?:\.\d+)?", "\n".join(written)))
    # Of Python and the licence.
    known |= {"3.11", "2.0"}
    for path in documents.DOCUMENTS:
        text = path.read_text()
        for hidden in (
            r"<!-- begin (\S+) -->.*?<!-- end \1 -->",
            r"```.*?```",
            r"`[^`]*`",
            r"\]\([^)]*\)",
            r"arXiv:\S+",
        ):
            text = re.sub(hidden, "", text, flags=re.DOTALL)
        said = re.findall(r"(?<![\w.])\d+\.\d+|\d+(?= %)", text)
        assert not set(said) - known, path.name


def test_a_part_is_replaced_and_nothing_else(monkeypatch):
    monkeypatch.setitem(documents.PARTS, "numbers", lambda: "1\n2")
    text = "a\n<!-- begin numbers -->\nold\n\nolder\n<!-- end numbers -->\nb"
    expected = "a\n<!-- begin numbers -->\n1\n2\n<!-- end numbers -->\nb"
    assert documents.filled(text) == documents.filled(expected) == expected
    assert documents.filled("no parts") == "no parts"


def test_an_unknown_part_is_named():
    text = "<!-- begin nothing -->\n<!-- end nothing -->"
    with pytest.raises(KeyError, match="nothing"):
        documents.filled(text)


def test_a_part_without_an_end_is_an_error():
    with pytest.raises(ValueError, match="a part that begins does not end"):
        documents.filled("<!-- begin table3 -->\n<!-- end table4 -->")


def test_the_averages_are_those_of_the_paper():
    """The last row of Table 3; MF-BPR (I-I) is not the mean of the authors' logs."""
    rows = {row[0].split(",")[0]: row[2] for row in table3.average_improvements()[1:]}
    assert rows == {
        "MF-BPR (U-I)": "+7.6 %",
        "MF-BPR (I-I)": "+13.2 %",
        "GRU4Rec": "+23.4 %",
        "SASRec": "+12.3 %",
        "STOSA": "+17.5 %",
        "BERT4Rec": "+9.6 %",
    }


def test_changes_compare_the_seeds_that_both_have():
    before, after = {0: 1.0, 1: 2.0, 2: 3.0, 5: 9.0}, {0: 2.0, 1: 3.0, 2: 5.0, 4: 0.0}
    assert tables.change(before, after) == "+66.7 % (p = 0.057)"
    assert tables.change({0: 2.0}, {0: 1.0, 1: 5.0}) == "-50.0 %"
    assert tables.change({0: 2.0}, {1: 1.0}) == "no seed in common"


def test_spreads_are_of_several_seeds():
    assert tables.spread({0: 0.04256}) == "0.0426"
    assert tables.spread({0: 0.04, 3: 0.05}) == "0.0450 ± 0.0071"


def test_the_tuned_recipe_is_described_by_what_differs():
    recipe = find_recipe("stosa-beauty")
    assert tuning.describe_change("stosa", recipe, recipe) == "the recipe"
    other = tuning.with_value(recipe, "dropout", 0.4)
    other = tuning.with_value(other, "learning_rate", 5e-3)
    assert tuning.describe_change("stosa", recipe, other) == "dropout 0.4, rate 0.005"


def test_what_a_search_tried_has_test_metrics_of_whole_runs_alone():
    models = {"lightgcn": paper.GRAPH_MODELS["lightgcn"]}
    head, *rows = tuning.tried("beauty", models)
    assert head[-1] == "test" and len(rows) == 9
    for label, settings, epochs, valid, test in rows:
        assert label == "LightGCN" and "hops" in settings
        assert 0 < float(valid) < 1
        assert bool(test) == (epochs == "1000")


@pytest.mark.parametrize("backbone", tuning.GRIDS)
def test_a_search_changes_what_its_model_has(backbone):
    recipe = paper.recipe_of(backbone, "beauty", "adamw")
    names = set()
    for name, values in tuning.GRIDS[backbone].items():
        if tuning.value_of(recipe, name) is None:
            assert name == "dropout"  # MF-BPR has none.
            continue
        for value in values:
            changed = tuning.with_value(recipe, name, value)
            assert tuning.value_of(changed, name) == value
            assert changed.epochs == recipe.epochs
            names.add(tuning.search_job(backbone, "beauty", changed).name)
    assert len(names) >= 5


def test_graph_models_stand_beside_the_paper():
    head, *rows = table3.graph_models()
    assert len(rows) == 16 and {len(row) for row in rows} == {len(head)}
    assert rows[0][:2] == ["Beauty", "LightGCN"] and rows[0][4] == "0.0240"


@pytest.fixture
def costs(monkeypatch, tmp_path):
    """Two models that are measured; one of them, and another, are trained."""
    seconds = {
        part: {
            f"sevo_jax, {label}": {"median": median}
            for label, median in (("AdamW", 6.0), ("SEvo-AdamW", 12.0))
        }
        for part in ("training", "ranking")
    }
    path = tmp_path / "backbones.json"
    backbones = {"lightgcn": seconds, "sasrec": seconds}
    path.write_text(json.dumps({"results": {"backbones": backbones}}))
    runs = {
        seed: {"test": {"NDCG@10": ndcg}, "best_epoch": epoch}
        for seed, ndcg, epoch in ((0, 0.2, 10), (3, 0.4, 30))
    }
    found = {"lightgcn": ({}, {}), "sasrec": (runs, {}), "stosa": (runs, runs)}
    monkeypatch.setattr(figure3, "SECONDS", path)
    monkeypatch.setattr(figure3, "PICTURE", tmp_path / "figure3.png")
    monkeypatch.setattr(figure3, "cell", lambda name, data: found.get(name, ({}, {})))


def test_quality_stands_beside_what_it_costs(costs, monkeypatch, capsys):
    expected = ["0.3000 ± 0.1414", "12.00", "20", "4.0", "12.00"]
    assert figure3.table()[1:] == [["SASRec, SEvo-AdamW", *expected]]
    assert "not measured yet: LightGCN" in figure3.page()
    run("figure3", monkeypatch, "draw")
    assert figure3.PICTURE.stat().st_size > 1000
    assert "![figure3](results/figure3.png)" in figure3.page()


def test_progress_is_that_of_the_stored_runs():
    _, plain, sevo = table3.progress()
    assert plain[0] == "AdamW" and sevo[0] == "SEvo-AdamW"
    stored = json.loads((table3.FOLDER / "sasrec-beauty-adamw-seed0.json").read_text())
    assert 0.9 < stored["valid NDCG@10"]["200"] / float(plain[-1].split()[0]) < 1.1


def test_both_ways_of_sampling_are_shown():
    shown = sampling.table("bert4rec", "toys")
    assert "by default" in shown and "loaders" in shown


# Studies


TABLES = {"table4", "table5", "multiplex"}
STUDIES = TABLES | {"figure4", "figure5", "figure6", "figure7", "figure8", "every"}


def cells_of(name) -> list[study.Cell]:
    return importlib.import_module(name).CELLS


@pytest.fixture
def tiny_study(tiny, monkeypatch):
    """Cells train for two epochs, and write into a folder of their own."""
    monkeypatch.setattr(study, "recipe_of", table3.recipe_of)
    monkeypatch.setattr(study, "FOLDER", tiny / "studies")
    monkeypatch.setattr(study, "QUICK", tiny / "quick")
    monkeypatch.setattr(study, "RESULTS", tiny)
    return tiny


def test_runs_of_studies_go_by_what_they_change():
    runs = {}
    for name in STUDIES:
        for cell in cells_of(name):
            for seed in (0, 1):
                job = cell.job(seed)
                known = (job.recipe, job.dataset, job.seed)
                assert runs.setdefault(job.path, known) == known
                assert job.seed == seed and job.dataset == cell.dataset
    named = {path.name for path in runs}
    assert "sasrec-beauty-num_layers0-seed1.json" in named
    assert "sasrec-beauty-no-rescale-seed0.json" in named
    assert "sasrec-beauty-iterative-beta0.7-seed0.json" in named
    assert "sasrec-beauty-max_len10-first-seed0.json" in named
    genres = "attributes-ml-1m_item2genres"
    assert f"sasrec-ml-1m-{genres}-beta0.5-seed0.json" in named
    assert f"sasrec-ml-1m-item-item+{genres}-share0.5-seed1.json" in named
    # No run is done under two names.
    assert len(set(runs.values())) == len(runs)


def test_what_is_pending_is_measured(tiny_study, monkeypatch):
    cell = every.cell("mf-bpr-ii", 4)
    jobs.do([cell.job(0)], tiny_study / "work")
    before = sorted((tiny_study / "work").rglob("*"))
    measured = pending.measure(cell, tiny_study / "work")
    assert sorted((tiny_study / "work").rglob("*")) == before
    monkeypatch.setattr(pending, "PATH", tiny_study / "pending.json")
    pending.PATH.write_text(json.dumps({"4": measured}))
    _, missing, (k, steps, *values), *_ = pending.table()
    assert missing == ["2", "1", "not run", ""]
    assert (k, steps) == ("4", "3") and all(0 < float(value) < 1 for value in values)


def test_what_is_pending_is_propagated_whole(tiny):
    """The local part of steps u is there: ψ(Σu) less that of it is what is missing."""
    recipe = every.cell("mf-bpr-ii", 4).recipe
    trainer = Trainer(dataclasses.replace(recipe, epochs=1), paper.load("beauty"))
    state, _ = trainer.train_epoch(
        trainer.start(0),
        jax.tree.map(lambda x: x[:3], trainer.epochs(0)[0]),
        seed=0,
        epoch=0,
    )
    optimizer, graph = recipe.optimizer, trainer.smoothing["item_embedding"]
    is_sevo = lambda x: isinstance(x, sevo.ScaleBySevoState)  # noqa: E731
    leaves = jax.tree.leaves(state.opt_state, is_leaf=is_sevo)
    (inner,) = filter(is_sevo, leaves)
    (local,) = jax.tree.leaves(inner.pending)
    beta, hops = optimizer.beta, optimizer.num_layers
    steps = local * (1 - beta ** (hops + 1)) / (1 - beta)
    missing = sevo.smoothing.neumann(graph, steps, beta, hops) - local
    moved = pending.propagated(trainer, state)
    np.testing.assert_allclose(
        state.params["item_embedding"][...] - moved["item_embedding"][...],
        optimizer.learning_rate * missing,
        rtol=1e-3,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", sorted(STUDIES - {"figure8"}))
def test_what_a_study_shares_with_table_3_is_its_run(name):
    folders = {cell.job(0).folder for cell in cells_of(name)}
    assert folders == {study.FOLDER, table3.FOLDER}


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_the_table_of_a_study_says_what_is_not_run(name, monkeypatch, capsys):
    monkeypatch.setattr(study.Cell, "results", lambda cell, quick=False: {})
    run(name, monkeypatch, "table", "--markdown")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2 + len(cells_of(name))
    assert all("| not run |" in line for line in lines[2:])


@pytest.mark.parametrize("name", sorted(STUDIES - TABLES))
@pytest.mark.parametrize("known", [True, False])
def test_a_study_is_drawn(name, known, monkeypatch, tmp_path):
    metrics = dict.fromkeys(PAPER_METRICS, 0.25)
    points = {str(epoch): 0.5 for epoch in (0, 5)}
    result = {"test": metrics, "valid": metrics, "losses": [2.0, 1.0]}
    result |= dict.fromkeys(("before", "after", "embedding"), points)
    result |= {"points": [[0.0, 1.0], [2.0, 3.0], [4.0, 0.0]], "groups": [0, 5, 5]}
    results = {0: result, 2: result} if known else {}
    monkeypatch.setattr(study.Cell, "results", lambda cell, quick=False: results)
    monkeypatch.setattr(jobs.Job, "result", lambda job: results.get(job.seed))
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(study, "QUICK", tmp_path / "quick")
    (tmp_path / "quick").mkdir()
    run(name, monkeypatch, "draw", *["--quick"] * known)
    folder = tmp_path / "quick" if known else tmp_path
    assert (folder / f"{name}.png").stat().st_size > 1000


def test_a_study_is_run_once_seed_by_seed(tiny_study, capsys):
    changes = {"optimizer.num_layers": 1}
    cells = [
        study.Cell("L = 1", changes, "mf-bpr-ii", paper=0.5),
        study.Cell("L = 3", {"optimizer.num_layers": 3}, "mf-bpr-ii"),
        study.Cell("elsewhere", dataset="toys"),
    ]
    work = tiny_study / "work"
    options = argparse.Namespace(seeds=[0], only=["mf-bpr"], quick=False, work=work)
    study.run(cells, options)
    assert [path.name for path in (tiny_study / "studies").iterdir()] == [
        "mf-bpr-ii-beauty-num_layers1-seed0.json"
    ]
    # What changes nothing is the run of Table 3, and so is what it is compared with.
    assert sorted(path.name for path in (tiny_study / "table3").iterdir()) == [
        "mf-bpr-ii-beauty-sevo_adamw-seed0.json",
        "mf-bpr-ui-beauty-adamw-seed0.json",
    ]
    done = capsys.readouterr().err
    study.run(cells, options)
    assert done and not capsys.readouterr().err
    rows = study.table(cells)
    assert [row[:3] for row in rows[1:]] == [
        ["Beauty", "L = 1", "1"],
        ["Beauty", "L = 3", "1"],
        ["Toys", "elsewhere", "not run"],
    ]
    assert rows[1][-1] == "0.5000" and rows[1][5] != rows[2][5]
    options.quick = True
    study.run(cells[:1], options)
    path = tiny_study / "quick" / "results" / "mf-bpr-ii-beauty-num_layers1-seed0.json"
    assert len(json.loads(path.read_text())["losses"]) == 1
    # What it is compared with is there, too.
    assert study.table(cells[:1], quick=True)[1][-2].endswith(" %")


def test_a_run_that_diverges_is_a_result(tiny_study):
    cell = study.Cell("", {"optimizer.learning_rate": 1e30}, "mf-bpr-ii")
    options = argparse.Namespace(seeds=[0], only=[""], quick=False, work=tiny_study)
    study.run([cell], options)
    result = cell.job(0).result()
    assert result and "the loss is" in result["diverged"]
    assert cell.results() == {} and cell.diverged() == 1
    assert study.table([cell])[1][2] == "diverged"


def test_of_runs_that_train_together_those_that_do_not_diverge_go_on(tiny, monkeypatch):
    run_together = Trainer.run_together

    def failing(self, seeds, **options):
        if 1 in seeds:
            raise FloatingPointError("the loss is nan")
        return run_together(self, seeds, **options)

    monkeypatch.setattr(Trainer, "run_together", failing)
    group = [table3.job("mf-bpr-ui", "beauty", "adamw", seed) for seed in (0, 1, 2)]
    jobs.do(group, tiny / "work")
    assert sorted(jobs.results_of(group)) == [0, 2] and jobs.num_diverged(group) == 1
    monkeypatch.setattr(table3, "DATASETS", {"beauty": "Beauty"})
    assert "| Beauty | MF-BPR (U-I) | not run and 2, 1 diverged |" in (
        table3.table_in_markdown()
    )


def test_smoothness_is_recorded_inside_training(tiny_study, monkeypatch):
    work = tiny_study / "work"
    for beta in (0.0, 0.9):
        cell = study.Cell("", {"optimizer.beta": beta}, "mf-bpr-ii")
        job = dataclasses.replace(cell.job(1), folder=tiny_study / "smoothness")
        jobs.do([job], work, smoothness.record)
        found = job.result()
        assert found and list(found["before"]) == list(found["embedding"]) == list(
            "012"
        )
        for epoch in "012":
            before, after = found["before"][epoch], found["after"][epoch]
            assert before == pytest.approx(after) if beta == 0 else before > 1.1 * after
        # It trains as a run does.
        trained = Trainer(job.recipe, paper.load("beauty")).run(seed=1, progress=False)
        expected = [each["relative_smoothness"] for each in trained.history]
        assert list(found["embedding"].values()) == pytest.approx(expected, rel=1e-5)


def test_the_search_takes_the_best_that_has_not_diverged(monkeypatch):
    scores = {0.3: 0.01, 1.0: 0.02, 3.0: None}

    def result(job):
        score = scores[job.recipe.optimizer.learning_rate]
        return {"diverged": ""} if score is None else {"valid": {"NDCG@10": score}}

    monkeypatch.setattr(jobs.Job, "result", result)
    found = figure5.chosen("beauty", "sevo_sgd", False)
    assert found and found.label == "sevo_sgd, rate 1"
    job = figure5.search_job(found, False)
    assert job.recipe.epochs == 50 and not job.test
    assert job.full_name == "search-sasrec-beauty-sevo_sgd-lr1-seed0"
    monkeypatch.setattr(jobs.Job, "result", lambda job: None)
    assert figure5.chosen("beauty", "sgd", False) is None


def test_what_sevo_adds_to_a_tuned_optimizer_is_over_that(monkeypatch):
    def result(job):
        score = 0.2 if "sevo" in job.recipe.optimizer.name else 0.1
        metrics = dict.fromkeys(PAPER_METRICS, score * (1 + job.seed))
        return {"valid": metrics, "test": metrics}

    monkeypatch.setattr(jobs.Job, "result", result)
    rows = {row[1]: row for row in study.table(figure5.all_cells())[1:]}
    assert rows["sevo_sgd, rate 0.3"][-1].startswith("+100.0 %")
    assert rows["sgd, rate 0.3"][-1] == ""


def test_bars_of_the_correction_are_of_the_seeds_that_all_have(monkeypatch):
    def results(cell, quick=False):
        if cell.dataset != "beauty":
            return {}
        seeds = {"adamw": (0, 1)}.get(cell.recipe.optimizer.name, (1, 2))
        return {
            seed: {"test": dict.fromkeys(PAPER_METRICS, 0.1 * (1 + seed))}
            for seed in seeds
        }

    monkeypatch.setattr(study.Cell, "results", results)
    assert figure6._pairs("sasrec", False) == [[0.0, 0.0]]


@pytest.fixture
def tiny_movies(tiny_study, monkeypatch):
    """The built-in log as MovieLens, each of its items of one or two genres."""
    log = planted()
    write(log, tiny_study / "ml-1m.txt")
    genres = [name for group in figure8.GROUPS for name in group]
    items = log.item_ids.tolist()
    table = {str(item): genres[i % 18 : i % 18 + 2] for i, item in enumerate(items)}
    path = tiny_study / "genres.json"
    path.write_text(json.dumps(table))
    monkeypatch.setattr(figure8, "GENRES", path)
    return path


def on_tiny_movies(cell, path):
    """A cell of MF-BPR on the items that follow each other, or share a genre."""
    changes = dict(cell.changes)
    if "graph.attributes" in changes:
        changes["graph.attributes"] = str(path)
    return dataclasses.replace(cell, changes=changes, backbone="mf-bpr-ii")


@pytest.mark.parametrize("name", ["table5", "multiplex"])
def test_a_study_of_graphs_is_run_quickly(name, tiny_movies, tiny_study):
    cells = cells_of(name)
    if name == "table5":
        cells = [on_tiny_movies(cell, tiny_movies) for cell in cells]
    else:
        kept = [cell for cell in cells if cell.backbone == "mf-bpr-ui"]
        summed = [cell for cell in cells if cell.changes.get("graph.share") == 0.5]
        directed = [cell for cell in cells if cell.label.endswith("of a walk")]
        cells = kept[:2] + [
            on_tiny_movies(cell, tiny_movies) for cell in (summed[0], *directed)
        ]
    options = argparse.Namespace(seeds=[0], only=[""], quick=True, work=tiny_study)
    study.run(cells, options)
    rows = study.table(cells, quick=True)
    assert [row[2] for row in rows[1:]] == ["1"] * len(cells)
    for path in (tiny_study / "quick" / "results").iterdir():
        graph = json.loads(path.read_text())["recipe"]["graph"]
        assert graph["attributes"] in (None, "genres.json"), "a folder of this machine"


def test_items_are_projected_by_their_embeddings(tiny_movies, tiny_study, monkeypatch):
    """With a stand-in for UMAP: the points are the first two columns of the table."""

    class FirstTwo:
        def __init__(self, **options):
            assert options == {"random_state": 0, "n_jobs": 1}

        def fit_transform(self, table):
            return table[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=FirstTwo))
    cell = on_tiny_movies(figure8.CELLS[-1], tiny_movies)
    job = figure8.umap_job(cell, 0, quick=True)
    work = tiny_study / "work"
    work.mkdir()
    with jobs.contextlib.ExitStack() as stack:
        # Another process is at the run.
        jobs._claim(stack, work / f"{cell.job(0, quick=True).full_name}.lock")
        jobs.do([job], work, figure8.project)
    assert job.result() is None
    jobs.do([job], work, figure8.project)
    result = job.result()
    model = load(tiny_study / "work" / cell.job(0, quick=True).full_name).model
    assert result and result["groups"][:5] == [0, 0, 0, 0, 1]
    np.testing.assert_allclose(
        result["points"], model.item_embedding[:, :2], atol=0.0051
    )


def test_a_movie_is_of_the_group_of_most_of_its_genres():
    assert figure8.group_of(["Drama", "Sci-Fi", "War"]) == 2
    assert figure8.group_of(["Action", "Drama"]) == 0
    assert figure8.group_of(["Documentary"]) == 5


def test_umap_is_asked_for_before_anything_is_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="UMAP is missing: pip install"):
        run("figure8", monkeypatch, "run")


# Losses


@pytest.fixture
def invented(monkeypatch):
    """Results of all runs, made up from their names; the runs that were asked for."""
    asked = {}

    def result(job):
        same = asked.setdefault(job.full_name, job)
        assert same == job, "two runs of one name"
        name = job.full_name
        score = 0.1 + 0.05 * ("lr0.002" in name) + 0.001 * ("sevo" in name)
        metrics = dict.fromkeys(PAPER_METRICS, score + job.seed / 1000)
        valid = {"0": 0.0, "5": score, "10": score / 2}
        return {
            "valid": metrics,
            "test": metrics,
            "valid NDCG@10": valid,
            "seconds_per_epoch": 2.0,
            losses.BY_POPULARITY: [score * group for group in range(1, 6)],
        }

    monkeypatch.setattr(jobs.Job, "result", result)
    return asked


def test_both_optimizers_have_as_many_trials(invented):
    for point in points.all_points():
        numbers = []
        for kind in points.KINDS:
            invented.clear()
            recipe = point.chosen(kind, False)
            assert recipe and recipe.optimizer.learning_rate == 2e-3
            start, ends, trials = point.recipe(kind), [], []
            for name, job in invented.items():
                (trials if name.startswith("search-") else ends).append(job)
                assert job.recipe.batch_size == start.batch_size and job.seed == 0
            numbers.append(len(trials))
            for job in trials:
                assert job.name.startswith(f"search-{point.name}-{kind}-lr")
                assert job.recipe.epochs == start.epochs // 2 and not job.test
            # Where it began and what it found, to the end.
            assert [job.recipe for job in ends] == [start, recipe]
            assert all(job.test for job in ends)
        assert numbers[0] == numbers[1] >= 9, point.name
    assert {point.recipe("plain").model for point in points.TUNED} == {
        "sasrec",
        "gru4rec",
        "zero-block",
        "bsarec",
    }


def test_what_short_runs_find_is_not_chosen_over_a_better_start(invented, monkeypatch):
    result: Any = jobs.Job.result

    def misled(job):
        values = result(job)
        if not job.name.startswith("search-") and "lr0.002" in job.name:
            values["valid"] = dict.fromkeys(PAPER_METRICS, 0.01)
        return values

    monkeypatch.setattr(jobs.Job, "result", misled)
    of_tools = points.by_negatives("tools")
    for point in (of_tools["BCE, 1"], of_tools["64"]):
        assert point.chosen("sevo", False) == point.recipe("sevo")
    # The paper's own is the run of Table 3.
    job = of_tools["BCE, 1"].job("sevo", of_tools["BCE, 1"].recipe("sevo"), 2, False)
    assert job == table3.job("sasrec", "tools", "sevo_adamw", 2)
    assert len(of_tools["BCE, 1"].results("sevo")) == 5
    # Until both are there, nothing is chosen.
    monkeypatch.setattr(
        jobs.Job,
        "result",
        lambda job: misled(job) if job.name.startswith("search-") else None,
    )
    assert of_tools["64"].chosen("sevo", False) is None


def test_a_plain_run_differs_from_one_with_sevo_in_the_optimizer_alone():
    for point in points.all_points():
        plain, ours = map(point.recipe, points.KINDS)
        assert plain != ours
        assert dataclasses.replace(plain, optimizer=ours.optimizer) == ours
    of_bsarec = points.Point("", "bsarec", "beauty")
    assert of_bsarec.recipe("plain").optimizer.name == "adam_l2"
    assert of_bsarec.recipe("sevo").optimizer.name == "sevo_adam"


def test_the_table_and_the_map_of_losses(invented, monkeypatch, tmp_path, capsys):
    run("losses", monkeypatch, "table", "--markdown")
    shown = capsys.readouterr().out
    assert (
        "| Tools | SASRec, 64 drawn | 0." in shown
        and "drop0.5; seeds 0 1 2 3 4" in shown
    )
    assert "| epoch 5, 5, 5, 5, 5; SEvo 5, 5, 5, 5, 5 |" in shown
    assert "| Beauty | SASRec, β cosine to 0 | | 0.15" in shown
    assert "| Beauty | SASRec, Muon on matrices | | 0.15" in shown
    (name,) = {name for name in invented if name.endswith("-linear-seed3")}
    optimizer = invented[name].recipe.optimizer
    assert optimizer.beta_schedule == "linear" and optimizer.beta_epochs == 200
    assert invented[name].recipe.patience is None
    for module in (losses, study):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    run("losses", monkeypatch, "draw")
    assert (tmp_path / "losses.png").stat().st_size > 1000
    assert losses.page().startswith("![losses](results/losses.png)")


def test_the_map_shows_the_gain_of_means_and_of_each_seed(invented, monkeypatch):
    of_tools, result = points.with_all("tools"), jobs.Job.result
    plain, sevo, seeds = 0.15, 0.151, np.arange(5) / 1000
    np.testing.assert_allclose(losses.scores(of_tools), [plain + seeds, sevo + seeds])
    np.testing.assert_allclose(
        losses.scores(of_tools, 2), [[3 * plain] * 5, [3 * sevo] * 5]
    )
    monkeypatch.setattr(
        jobs.Job, "result", lambda job: result(job) if job.dataset == "tools" else None
    )
    # Of Beauty nothing is known.
    panels = losses.draw(False).axes
    assert len(panels) == 3
    curves = (np.asarray(line.get_xydata()) for line in panels[0].lines)
    (curve,) = (curve for curve in curves if len(curve) == 6)
    gain = 100 * (sevo + 0.002) / (plain + 0.002) - 100
    np.testing.assert_allclose(curve[:, 1], gain)
    dots = np.asarray(panels[0].collections[0].get_offsets())
    np.testing.assert_allclose(dots[:, 1], 100 * (sevo + seeds) / (plain + seeds) - 100)


def test_muon_takes_the_matrices_and_sevo_the_rest():
    rng = np.random.default_rng(0)
    shapes = {"item_embedding": (9, 4), "position_embedding": (3, 4)}
    shapes |= {"kernel": (4, 12), "bias": (12,)}
    params, gradients = (
        {k: jnp.asarray(rng.normal(size=v), jnp.float32) for k, v in shapes.items()}
        for _ in range(2)
    )
    graph = sevo.graphs.cooccurrence([[0, 1, 2, 3], [4, 5, 6, 7, 8]], 9)
    graphs: dict[Any, Any] = {"item_embedding": graph}
    rate, decay = 1e-3, 0.1

    def first_update(optimizer, params, gradients) -> Any:
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    config = OptimizerConfig("sevo_adamw_muon", rate, weight_decay=decay)
    found = first_update(make_optimizer(config, graphs), params, gradients)
    expected = first_update(
        sevo.sevo_adamw(rate, graphs, weight_decay=decay), params, gradients
    )
    # In float64: five steps towards the nearest orthogonal matrix, of the momentum.
    x = np.asarray(gradients["kernel"], np.float64)
    x /= np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    expected["kernel"] = -rate * (0.2 * 12**0.5 * x + decay * params["kernel"])
    for name in shapes:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-7)


def test_what_of_the_losses_is_not_run_is_said(monkeypatch):
    monkeypatch.setattr(jobs.Job, "result", lambda job: None)
    assert "Not run yet: Beauty, SASRec; Beauty, GRU4Rec;" in losses.page()
    assert losses.scores(points.all_points()[0]).shape == (2, 0)
    assert len(losses.draw(False).axes) == 6


def test_sevo_reaches_the_best_of_adamw_or_never():
    def result(*values):
        curve = {str(5 * i): value for i, value in enumerate(values)}
        return {"valid NDCG@10": curve}

    plain = {0: result(0.0, 0.2, 0.3, 0.1), 2: result(0.0, 0.1)}
    sevo = {0: result(0, 0.3, 0.9), 2: result(0, 0, 0)}
    assert losses.when_reached(plain, sevo) == "epoch 10, 5; SEvo 5, never"
    assert losses.when_reached(plain, {0: result(0, 0.2)}) == "epoch 10; SEvo never"
    assert losses.when_reached(plain, {1: result(0, 0.2)}) == ""


def test_the_users_of_a_share_are_among_those_of_a_larger_one(tiny):
    logs = {p: paper.load(f"beauty-users{p}").log for p in (10, 30, 100)}
    sizes = [log.num_users for log in logs.values()]
    assert sizes[0] * 10 == pytest.approx(sizes[2], abs=10) and sizes[1] < sizes[2]
    assert set(logs[10].user_ids) < set(logs[30].user_ids) < set(logs[100].user_ids)
    whole, part = paper.load("beauty").log, logs[10]
    assert whole.num_users == sizes[2]
    for user, items in zip(part.user_ids, part.sequences, strict=True):
        row = whole.sequences[int(np.flatnonzero(whole.user_ids == user)[0])]
        assert whole.item_ids[row].tolist() == part.item_ids[items].tolist()


def test_runs_of_the_map_have_the_metric_by_popularity(tiny, monkeypatch):
    monkeypatch.setattr(points, "FOLDER", tiny / "losses")
    recipe = dataclasses.replace(find_recipe("zero-block-synthetic"), epochs=1)
    point = points.Point("", "zero-block", "beauty", percent=50)
    job = point.job("sevo", recipe, 1, False)
    jobs.do([job], tiny / "work", losses.train_by_popularity)
    result = job.result()
    assert result and result["dataset"] == "beauty-users50"
    groups = result[losses.BY_POPULARITY]
    assert len(groups) == 5 and len(set(groups)) > 1
    assert np.mean(groups) == pytest.approx(result["test"]["NDCG@10"], rel=0.02)
    # By hand, of the group of the most popular targets.
    split = paper.load(job.dataset)
    model = load(tiny / "work" / job.full_name).model
    counts = np.bincount(split.train.values, minlength=split.num_items)[split.test]
    most = np.argsort(counts, kind="stable")[-(len(counts) // 5) :]
    inputs = model.inputs(split.train.append(split.valid))
    scores = np.array(model.score(inputs))
    for user in range(split.num_users):
        scores[user, [*split.train[user], split.valid[user]]] = -np.inf
    own = scores[np.arange(len(scores)), split.test][:, None]
    ranks = 1 + (scores > own).sum(1)
    gains = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0)
    assert groups[-1] == pytest.approx(gains[most].mean(), abs=1e-6)
