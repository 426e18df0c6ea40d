import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from pyarrow import parquet

import sevo_jax
from sevo_jax import graphs
from sevo_jax.cli import _compare, _data, _options, _runs, _train, main
from sevo_jax.data import InteractionLog, leave_one_out, planted, read, write
from sevo_jax.evaluation import PAPER_METRICS
from sevo_jax.models import MODELS, SASRec, SASRecConfig
from sevo_jax.reports.comparison import RUN_KEYS, format_table, read_results
from sevo_jax.training import RECIPES, GraphConfig, Recipe, assembly, load

SMALL = "--width 8 --max-len 6 --batch-size 64 --epochs 2 --eval-every 1".split()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A small log with text for ids."""
    log = planted(num_users=120, num_items=40, num_groups=4, seed=1)
    named = InteractionLog(
        log.sequences,
        np.array([f"u{user}" for user in log.user_ids]),
        np.array([f"i{item}" for item in log.item_ids]),
        "tiny",
    )
    path = tmp_path_factory.mktemp("data") / "tiny.txt"
    write(named, path)
    return path


@pytest.fixture(scope="module")
def compared(path, tmp_path_factory):
    """The output folder of a comparison of two optimizers and two seeds."""
    output = tmp_path_factory.mktemp("runs") / "tiny"
    status = main(
        ["compare", "--data", f"{path}", "--output", f"{output}", "--seeds", "3", "1"]
        + SMALL
    )
    assert status == 0
    return output


def _fails(capsys, args, *parts):
    """Runs a command that is to fail with one line that holds `parts`."""
    assert main([str(arg) for arg in args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("sevo-jax: error: ")
    for part in parts:
        assert str(part) in line


def _help(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main([*args, "--help"])
    assert stop.value.code == 0
    return _unboxed(capsys.readouterr().out)


def _unboxed(text):
    """What a box says, without its sides and wherever its lines are broken."""
    return " ".join(text.replace("│", " ").split())


# The overview


def test_overview_names_every_command(capsys):
    for args in ([], ["--help"], ["-h"]):
        assert main(args) == 0
        text = capsys.readouterr().out
        for name in ("compare", "train", "evaluate", "recommend", "graph", "data"):
            assert f"\n  {name} " in text
        assert "sevo-jax compare --data beauty.txt --recipe sasrec-beauty" in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sevo-jax {sevo_jax.__version__}\n"


def test_unknown_command(capsys):
    _fails(capsys, ["comparee"], "'comparee'", "compare, train")


def test_overview_loads_no_framework():
    code = (
        "import sys; from sevo_jax.cli import main; main(['--help']);"
        "print({'flax', 'orbax', 'matplotlib', 'tyro'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


def _process(*args, **options):
    """Runs the command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "sevo_jax", *map(str, args)], text=True, **options
    )


def test_a_value_that_is_too_long_is_not_printed(capsys):
    for args in (["--optimizer", "x" * 5000], ["--epochs=" + "9" * 5000]):
        assert main(["train", *args]) == 2
        error = capsys.readouterr().err
        assert "has 500" in error and len(error) < 300


def test_the_package_is_the_command():
    done = _process("--version", capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"sevo-jax {sevo_jax.__version__}\n"


@pytest.mark.parametrize("missing", ["flax", "tyro", "orbax", "pyarrow", "tqdm"])
def test_without_the_extra_the_remedy_is_one_line(missing, monkeypatch, capsys):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    monkeypatch.setattr("importlib.import_module", import_module)
    _fails(capsys, ["train"], missing, 'pip install "sevo-jax[train]"')


def test_output_that_nobody_takes_is_no_traceback(path):
    for output, status, message in [
        ("/dev/full", 2, "sevo-jax: error: standard output: No space left on device\n"),
        ("&-", 0, ""),
    ]:
        done = subprocess.run(
            f"{sys.executable} -m sevo_jax data --data {path} >{output}",
            shell=True,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert (done.returncode, done.stderr) == (status, message)


def test_output_that_is_not_unicode(compared, path, tmp_path, monkeypatch):
    """A table has codes in place of its signs; ids are not changed in silence."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    args = ["--data", f"{path}", "--output", f"{compared}", "--seeds", "3", "1"]
    assert main(["compare", *args, "--resume", *SMALL]) == 0
    text = output.buffer.getvalue().decode()
    table = (compared / "table.txt").read_text()
    assert text == table.replace("±", "\\xb1")


def test_a_message_is_a_line_however_long_its_value(capsys):
    _fails(capsys, ["x" * 1_000_000])
    assert main(["recommend", "x" * 100_000]) == 2
    assert len(capsys.readouterr().err) < 2200


# Help and options


@pytest.mark.parametrize(
    "command, options",
    [
        ("compare", "--optimizers --seeds --recipe --model --epochs --output --resume"),
        ("train", "--optimizer --seed --recipe --model --epochs --output --profile"),
        ("evaluate", "RUN --output"),
        ("recommend", "RUN --users --top --output"),
        ("graph", "--load --output --item-offset --max-len --max-hop --weighting"),
        ("data", "--output"),
    ],
)
def test_help_shows_the_options_and_examples(capsys, command, options):
    text = _help(capsys, command)
    for option in [*options.split(), "--data", "--k-core"]:
        assert f" {option} " in text
    assert f"sevo-jax {command} " in text.partition("example")[2]


@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_default_of_a_switch_is_that_of_its_first_name(capsys, command):
    for recipe in ("sasrec-beauty", "stosa-beauty"):
        text = _help(capsys, command, "--recipe", recipe)
        switches = re.findall(r"--([\w.-]+), --no-([\w.-]+)", text)
        assert ("rescale", "rescale") in switches
        assert all(name == opposite for name, opposite in switches)
        assert len(re.findall("--no-", text)) == len(switches)


def test_help_shows_the_values_of_the_recipe(capsys):
    text = _help(capsys, "train", "--recipe", "sasrec-ml-1m")
    assert "--batch-size INT Samples of a step: users, prefixes or triplets" in text
    assert "(default: 128)" in text and "(default: 200)" in text
    assert "beta" in text and "(default: 0.99)" in text
    assert "(default: sasrec-ml-1m)" in text
    assert "(default: 128)" not in _help(capsys, "train", "--recipe=sasrec-tools")
    for name in RECIPES:
        assert name in text


@pytest.mark.parametrize(
    "args, name",
    [
        ("", "sasrec-synthetic"),
        ("--data beauty.txt", "sasrec-beauty"),
        ("--data=beauty.txt --model sasrec", "sasrec-beauty"),
        ("--data beauty.txt --recipe sasrec-toys", "sasrec-toys"),
        ("--recipe=sasrec-toys --epochs 3", "sasrec-toys"),
        ("--model mf-bpr", "mf-bpr-synthetic"),
        ("--model mf-bpr --data beauty.txt", "mf-bpr-ii-beauty"),
        ("--model mf-bpr --recipe mf-bpr-ui-toys", "mf-bpr-ui-toys"),
    ],
)
def test_the_recipe_to_start_from(args, name):
    assert _runs.preset(args.split()) == (name, RECIPES[name])


def test_a_recipe_to_start_from_may_be_a_file(compared, capsys, tmp_path):
    folder = compared / "adamw-seed1"
    for source in (folder, folder / "run.json"):
        args = ["--recipe", str(source), "--beta", "0.5"]
        recipe = _build(_train.Train, _train.NamedOptimizer, args).build()
        assert recipe.optimizer.beta == 0.5 and recipe.architecture.width == 8
        assert recipe.optimizer.name == "adamw" and recipe.epochs == 2
    _fails(capsys, ["train", "--recipe", "no.json"], "no.json", "No such file")
    _fails(capsys, ["train", "--recipe", compared / "results.json"], "holds no recipe")
    _fails(capsys, ["train", "--patience", "0"], "patience", "at least 1")


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_recipes_to_start_from(model):
    for args in (["--model", model], ["--model", model, "--data", "x.txt"]):
        assert _runs.preset(args)[1].model == model


class Mine(SASRec):
    Config = type("MyConfig", (SASRecConfig,), {})


def test_a_model_without_a_recipe_starts_from_its_defaults(monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "mine", Mine)
    for args in (["--model", "mine"], ["--model=mine", "--data", "x.txt"]):
        assert _runs.preset(args) == ("mine", Recipe("mine"))
    assert _build(_train.Train, _train.NamedOptimizer, args).build() == Recipe("mine")
    monkeypatch.setattr(Mine, "smoothed", {"user-item": (("users", "items"),)})
    assert _runs.preset(args)[1].graph == GraphConfig("user-item")
    monkeypatch.setattr(Mine, "smoothed", {})
    assert _runs.preset(args)[1] == Recipe("mine").with_optimizer("adamw")
    wrong = ["train", "--model", "mine", "--optimizer", "sevo_sgd"]
    _fails(
        capsys, wrong, "'sevo_sgd' has nothing to smooth", "choose another optimizer"
    )


@pytest.mark.parametrize(
    "args, parts",
    [
        ("--model xyz", ["model 'xyz'", *MODELS]),
        ("--recipe sasrec-beuty", ["did you mean sasrec-beauty"]),
        ("--recipe xyz", ["choose from ", "stosa-toys"]),
        ("--recipe sasrec-toys --model stosa", ["is for the model 'sasrec'"]),
    ],
)
def test_a_wrong_model_or_recipe_is_told_what_there_is(args, parts, capsys):
    for command in ("train", "compare", "graph"):
        _fails(capsys, [command, *args.split()], *parts)


def _build(command, shared, args):
    name, recipe = _runs.preset(args)
    default = command(recipe=name, **_runs.as_options(recipe, shared))
    return _options.parse(command, "test", args, default)


@pytest.mark.parametrize("name", RECIPES)
def test_without_options_the_recipe_is_what_is_trained(name):
    args = ["--recipe", name]
    train = _build(_train.Train, _train.NamedOptimizer, args)
    compare = _build(_compare.Compare, _compare.SharedOptimizer, args)
    assert train.build() == compare.build() == RECIPES[name]


def test_options_change_the_recipe():
    args = (
        "--epochs 7 --batch-size 9 --eval-every 2 --learning-rate 0.5 --dropout 0.25 "
        "--max-len 11 --beta 0.5 --optimizer lion --no-rescale --momentum 0.5 "
        "--graph.max-len None --graph.max-hop 2"
    ).split()
    recipe = _build(_train.Train, _train.NamedOptimizer, args).build()
    start = RECIPES["sasrec-synthetic"]
    assert recipe == dataclasses.replace(
        start,
        epochs=7,
        batch_size=9,
        eval_every=2,
        architecture=dataclasses.replace(start.architecture, dropout=0.25, max_len=11),
        optimizer=dataclasses.replace(
            start.optimizer,
            name="lion",
            learning_rate=0.5,
            beta=0.5,
            momentum=0.5,
            rescale=False,
        ),
        graph=GraphConfig(max_len=None, max_hop=2),
    )


@pytest.mark.parametrize(
    "option",
    [
        "--dropout 2",
        "--beta 1",
        "--epochs 0",
        "--epochs x",
        "--optimzer lion",
        "--optimizer lionn",
        "--beta-warmup 2 --optimizer adamw",
        "--weight-decay 0.5 --optimizer adam",
        "--seed -1",
    ],
)
def test_bad_options_exit_with_2_and_train_nothing(
    option, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["train", *option.split()])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert option.split()[0].strip("-") in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


# compare


def test_results_hold_every_run(compared):
    runs = json.loads((compared / "results.json").read_text())
    assert [(run["optimizer"], run["seed"]) for run in runs] == [
        ("adamw", 3),
        ("sevo_adamw", 3),
        ("adamw", 1),
        ("sevo_adamw", 1),
    ]
    for run in runs:
        assert tuple(run) == RUN_KEYS
        assert run["model"] == "sasrec" and run["dataset"] == "tiny"
        assert "leave-one-out" in run["protocol"]
        assert run["best_epoch"] in (0, 1, 2) and run["seconds_per_epoch"] > 0
        for part in ("valid", "test"):
            assert tuple(run[part]) == PAPER_METRICS
            assert all(0 <= value <= 1 for value in run[part].values())
            assert run[part]["HR@1"] <= run[part]["NDCG@10"] <= run[part]["HR@10"]


def test_the_optimizers_start_alike_and_end_apart(compared):
    history, losses = [
        [
            json.loads((compared / f"{name}-seed3" / "result.json").read_text())[key]
            for name in ("adamw", "sevo_adamw")
        ]
        for key in ("history", "losses")
    ]
    assert history[0][0]["valid"] == history[1][0]["valid"]
    assert losses[0] != losses[1]


def test_everything_is_written(compared):
    table = (compared / "table.txt").read_text()
    assert table == format_table(read_results(compared / "results.json")) + "\n"
    for name in ("training_loss", "validation", "smoothness"):
        assert (compared / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not list(compared.rglob("*.tmp"))


def test_pictures_show_the_losses_the_metric_that_selects_and_the_smoothness(
    tmp_path, monkeypatch
):
    def result(name, at):
        record = {"valid": {"HR@1": 9.0, "MRR": 1.0 + at}, "smoothness": 9.0}
        return SimpleNamespace(
            model="sasrec",
            dataset="tiny",
            optimizer=name,
            losses=[5.0 + at, 4.0 + at],
            history=[
                {**record, "epoch": 0, "relative_smoothness": 0.5 + at},
                {**record, "epoch": 2, "relative_smoothness": 0.25 + at},
            ],
        )

    figures = {}
    monkeypatch.setattr(
        _compare.plots, "save", lambda figure, path: figures.update({path.stem: figure})
    )
    results: Any = [result(*each) for each in (("adamw", 0), ("lion", 8), ("adamw", 2))]
    _compare._draw(results, "MRR", tmp_path)
    drawn = {
        name: {
            line.get_label(): line.get_xydata().tolist()
            for line in figure.axes[0].get_lines()
        }
        for name, figure in figures.items()
    }
    # Means of the seeds, over how many epochs are trained.
    assert drawn == {
        "training_loss": {"adamw": [[1, 6], [2, 5]], "lion": [[1, 13], [2, 12]]},
        "validation": {"adamw": [[0, 2], [2, 2]], "lion": [[0, 9], [2, 9]]},
        "smoothness": {"adamw": [[0, 1.5], [2, 1.25]], "lion": [[0, 8.5], [2, 8.25]]},
    }
    (axes,) = figures["validation"].axes
    assert axes.get_ylabel().startswith("MRR")
    assert axes.get_title(loc="left").endswith(": sasrec, tiny")


def test_each_run_goes_on_where_it_has_a_checkpoint():
    """The others of a comparison that was stopped begin."""
    trainer: Any = SimpleNamespace(run=lambda **options: options)
    left = {("adamw", 3): True, ("lion", 3): True, ("adamw", 1): True}

    def folder_of(*run) -> Any:
        return SimpleNamespace(has_checkpoint=left.get(run, False))

    runs: Any = _compare._train({"adamw": trainer, "lion": trainer}, [3, 1], folder_of)
    assert [(run["label"], run["resume"]) for run in runs] == [
        ("[1/4] adamw, seed 3", True),
        ("[2/4] lion, seed 3", True),
        ("[3/4] adamw, seed 1", True),
        ("[4/4] lion, seed 1", False),
    ]


def test_a_finished_comparison_is_not_overwritten(compared, path, capsys):
    before = (compared / "results.json").read_bytes()
    args = ["compare", "--data", path, "--output", compared, *SMALL]
    _fails(capsys, args, compared, "exists already", "--resume", "--output")
    assert (compared / "results.json").read_bytes() == before


def test_resume_skips_finished_runs(compared, path, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("a finished run is trained again")

    monkeypatch.setattr(assembly, "train_epoch", refuse)
    before = read_results(compared / "results.json")
    args = ["--data", f"{path}", "--output", f"{compared}", "--seeds", "3", "1"]
    assert main(["compare", *args, "--resume", *SMALL]) == 0
    assert read_results(compared / "results.json") == before
    assert capsys.readouterr().out == format_table(before) + "\n"


@pytest.mark.parametrize("name, left", [("seeds", "1"), ("optimizers", "adamw")])
def test_resume_keeps_the_runs_that_are_there(compared, path, capsys, name, left):
    before = (compared / "results.json").read_bytes()
    args = ["compare", "--data", path, "--output", compared, "--resume", *SMALL]
    seeds = [] if name == "seeds" else ["--seeds", 3, 1]
    assert main([str(arg) for arg in [*args, *seeds, f"--{name}", left]]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"has runs of the {name} " in line and f"give them too, --{name}" in line
    assert (compared / "results.json").read_bytes() == before


def test_resume_refuses_another_recipe(compared, path, capsys):
    args = ["compare", "--data", path, "--output", compared, "--resume", *SMALL]
    assert main([str(arg) for arg in [*args, "--seeds", 3, 1, "--beta", 0.5]]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "another run" in line and "beta was 0.99 and is 0.5" in line


@pytest.mark.parametrize(
    "args, parts",
    [
        ("--optimizers adamw adammw", ["'adammw'"]),
        ("--recipe sasrec-beuaty", ["'sasrec-beuaty'", "sasrec-beauty"]),
        ("--model sasrek", ["'sasrek'", "did you mean sasrec"]),
        ("--data nowhere.txt", ["nowhere.txt: No such file"]),
        ("--format csv", ["add --data"]),
        ("--optimizers adamw sgd --beta 0.5", ["--beta has no effect with adamw or"]),
        ("--seeds 0 -1", ["seed is -1"]),
        ("--seeds 0 4294967296", ["seed is 4294967296", "0 to 4294967295"]),
    ],
)
def test_compare_refuses_before_it_writes(args, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _fails(capsys, ["compare", *args.split()], *parts)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("args", ["--seeds 1 1", "--optimizers adamw adamw"])
def test_compare_refuses_repeats(args, capsys):
    try:
        status = main(["compare", *args.split()])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert "none twice" in _unboxed(capsys.readouterr().err)


def test_an_interrupt_says_how_to_continue(path, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_compare.Trainer, "run", interrupt)
    args = ["compare", "--data", f"{path}", "--output", "my run", *SMALL]
    assert main(args) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"sevo-jax: interrupted; to continue: sevo-jax compare --data {path} "
        f"--output 'my run' {' '.join(SMALL)} --resume"
    )


def test_divergence_exits_with_1(path, tmp_path, monkeypatch, capsys):
    def diverge(*_, **__):
        raise FloatingPointError("the loss is nan")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_compare.Trainer, "run", diverge)
    assert main(["compare", "--data", f"{path}", *SMALL]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "sevo-jax: error: the loss is nan"
    )


def test_a_defect_keeps_its_traceback(monkeypatch):
    def broken(_):
        raise ValueError("not a message for users")

    monkeypatch.setattr(_data, "statistics", broken)
    with pytest.raises(ValueError, match="not a message"):
        main(["data"])


# train


def test_train_equals_the_run_of_compare(compared, path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = ["train", "--data", f"{path}", "--optimizer", "adamw", "--seed", "3", *SMALL]
    assert main(args) == 0
    text = capsys.readouterr().out
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == "sasrec-tiny-adamw-seed3"
    expected = read_results(compared / "results.json")[0]
    result = json.loads((run / "result.json").read_text())
    assert result["test"] == expected["test"]
    assert f"protocol: {expected['protocol']}" in text
    assert " ".join(f"{expected['test'][name]:.4f}" for name in PAPER_METRICS) in (
        " ".join(text.split())
    )
    _fails(capsys, args, "exists already", "--resume")
    assert main([*args, "--resume"]) == 0
    assert capsys.readouterr().out == text


def test_a_profile_is_written_before_the_run(compared, path, tmp_path, capsys):
    folder, run = tmp_path / "profile", tmp_path / "run"
    args = ["train", "--data", path, "--output", run, "--seed", "3", *SMALL]
    assert main([*map(str, args), "--profile", str(folder)]) == 0
    captured = capsys.readouterr()
    assert f"profiling to {folder}" in captured.err
    measured = json.loads((folder / "phases.json").read_text())
    assert measured["seed"] == 3 and measured["dataset"] == "tiny"
    shown = [line.split("  ")[0] for line in captured.out.splitlines()]
    assert shown[1 : len(measured["phases"]) + 1] == [*measured["phases"]]
    assert shown[0].startswith("an epoch of sasrec on tiny, sevo_adamw, ")
    assert measured["method"] in captured.out
    assert list(folder.glob("plugins/profile/*/*.xplane.pb"))
    mine, other = (
        json.loads((each / "result.json").read_text())
        for each in (run, compared / "sevo_adamw-seed3")
    )
    for key in ("losses", "valid", "test", "best_epoch"):
        assert mine[key] == other[key]
    _fails(capsys, [*args, "--resume", "--profile", path], "a file: choose a folder")


# evaluate


def test_evaluate_finds_its_data_and_the_metrics(compared, tmp_path, capsys):
    file = tmp_path / "metrics.json"
    run = compared / "sevo_adamw-seed3"
    assert main(["evaluate", f"{run}", "--output", f"{file}"]) == 0
    expected = read_results(compared / "results.json")[1]
    (entry,) = json.loads(file.read_text())
    assert entry == {key: expected[key] for key in entry}
    assert {"valid", "test", "protocol", "best_epoch"} <= entry.keys()
    text = capsys.readouterr().out
    assert f"{expected['test']['NDCG@10']:.4f}" in text
    assert expected["protocol"] in text


def test_evaluate_refuses_other_data(compared, tmp_path, capsys):
    other = tmp_path / "other.txt"
    write(planted(num_users=50, num_items=40, num_groups=4), other)
    run = compared / "adamw-seed3"
    _fails(capsys, ["evaluate", run, "--data", other], "knows no item of 'other'")


def test_evaluate_refuses_what_is_no_run(compared, tmp_path, capsys):
    inside = f"of a run such as {compared / 'adamw-seed1'}"
    _fails(capsys, ["evaluate", compared], compared, "no checkpoint", inside)
    _fails(capsys, ["evaluate", tmp_path / "none"], "none", "no checkpoint")


# recommend


def _rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def _brute_force(run, path, top):
    log = read(path)
    model = load(run).model
    scores = np.array(model.score(model.inputs(log.sequences)))
    best = {}
    for row, user in enumerate(log.user_ids.tolist()):
        scores[row, log.sequences[row]] = -np.inf
        order = np.argsort(-scores[row], kind="stable")[:top]
        best[user] = [
            (log.item_ids[item], scores[row, item])
            for item in order
            if np.isfinite(scores[row, item])
        ]
    return best


def test_recommend_is_the_brute_force(compared, path, capsys):
    run = compared / "adamw-seed1"
    assert main(["recommend", f"{run}", "--top", "30"]) == 0
    captured = capsys.readouterr()
    rows = _rows(captured.out)
    best = _brute_force(run, path, 30)
    assert list(dict.fromkeys(row["user"] for row in rows)) == list(best)
    for user, expected in best.items():
        mine = [row for row in rows if row["user"] == user]
        assert [row["item"] for row in mine] == [item for item, _ in expected]
        assert [int(row["rank"]) for row in mine] == list(range(1, len(mine) + 1))
        np.testing.assert_allclose(
            [float(row["score"]) for row in mine],
            [score for _, score in expected],
            rtol=1e-5,
            atol=1e-6,
        )
    # Some have seen so much that fewer than 30 of the 40 items are left.
    few = sum(len(expected) < 30 for expected in best.values())
    assert few
    assert f"{few} of {len(best)} users get fewer than 30 items" in captured.err


def test_recommend_for_some_users_to_files(compared, path, tmp_path, capsys):
    run = compared / "adamw-seed1"
    best = _brute_force(run, path, 3)
    chosen = list(best)[5], list(best)[2]
    args = ["recommend", f"{run}", "--top", "3", "--users", *chosen]
    assert main([*args, "--output", f"{tmp_path / 'top.csv'}"]) == 0
    assert main([*args, "--output", f"{tmp_path / 'top.parquet'}"]) == 0
    assert capsys.readouterr().out == ""
    expected = [(user, item) for user in chosen for item, _ in best[user]]
    rows = _rows((tmp_path / "top.csv").read_text())
    assert [(row["user"], row["item"]) for row in rows] == expected
    table = parquet.read_table(tmp_path / "top.parquet").to_pylist()
    assert [(row["user"], row["item"]) for row in table] == expected
    assert [row["rank"] for row in table] == [1, 2, 3] * 2
    assert [np.float32(row["score"]) for row in rows] == [
        np.float32(row["score"]) for row in table
    ]
    assert sorted(item.name for item in tmp_path.iterdir()) == [
        "top.csv",
        "top.parquet",
    ]


def test_recommend_refuses_bad_requests(compared, tmp_path, capsys):
    run = compared / "adamw-seed1"
    users = ["--users", "u0", "nobody", "u999999"]
    _fails(capsys, ["recommend", run, *users], "nobody, u999999", "tiny")
    _fails(capsys, ["recommend", run, "--top", 0], "--top is 0", "1 to")
    _fails(
        capsys, ["recommend", run, "--output", tmp_path / "top.xls"], ".csv or .parquet"
    )


# graph


def _dense(path, item_offset):
    split = leave_one_out(read(path))
    size = split.num_items + item_offset
    dense = np.zeros((size, size))
    for row in split.train:
        for first, second in zip(row + item_offset, row[1:] + item_offset):
            dense[first, second] += 1
            dense[second, first] += 1
    return dense, split.log


def test_graph_describes_and_saves(path, tmp_path, capsys):
    file = tmp_path / "items.npz"
    args = ["graph", "--data", f"{path}", "--max-len", "None", "--pairs", "4"]
    assert main([*args, "--output", f"{file}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    dense, log = _dense(path, 1)
    np.testing.assert_array_equal(graphs.load(file).todense(), dense)

    words = {line.split("  ")[0]: line.split() for line in lines if line}
    edges = np.triu(dense)[np.triu(dense) > 0]
    assert words["nodes"][1] == str(len(dense))
    assert words["edges"][1] == str(len(edges))
    neighbours = (dense > 0).sum(axis=1)[1:]
    assert words["isolated"][1] == str((neighbours == 0).sum())
    for label, values in [
        ("neighbours", neighbours),
        ("degree", dense.sum(axis=1)[1:]),
        ("edge weight", edges),
    ]:
        numbers = [float(word) for word in words[label][-6:]]
        expected = [*np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), values.mean()]
        np.testing.assert_allclose(numbers, expected, rtol=1e-3)

    start = lines.index("heaviest pairs") + 2
    pairs = [line.split() for line in lines[start:]]
    assert len(pairs) == 4
    assert [float(pair[2]) for pair in pairs] == sorted(edges, reverse=True)[:4]
    nodes = {name: node for node, name in enumerate(log.item_ids.tolist(), start=1)}
    for first, second, weight in pairs:
        assert dense[nodes[first], nodes[second]] == float(weight)


def test_graph_of_users_and_items_leaves_the_padding_between_them_out(path, capsys):
    args = ["graph", "--data", f"{path}", "--kind", "user-item", "--pairs", "1"]
    assert main([*args, "--item-offset", "0"]) == 0
    plain = capsys.readouterr().out.splitlines()
    assert main([*args, "--item-offset", "1"]) == 0
    padded = capsys.readouterr().out.splitlines()
    num_users = read(path).num_users
    assert f"({num_users} users, 0 in front of the items)" in plain[1]
    assert f"({num_users} users, 1 in front of the items)" in padded[1]
    assert padded[2:] == plain[2:]
    assert plain[-2].split() == ["user", "item", "weight"]


def test_graph_loads_with_and_without_ids(path, tmp_path, capsys):
    file = tmp_path / "items.npz"
    build = ["graph", "--data", f"{path}", "--item-offset", "0", "--pairs", "3"]
    assert main([*build, "--output", f"{file}"]) == 0
    built = capsys.readouterr().out.splitlines()
    assert main([*build, "--load", f"{file}"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == built[1:]
    load = ["graph", "--load", f"{file}", "--item-offset", "0", "--pairs", "3"]
    assert main(load) == 0
    names = read(path).item_ids
    for mine, other in zip(capsys.readouterr().out.splitlines()[-3:], built[-3:]):
        *nodes, weight = mine.split()
        assert [*names[[int(node) for node in nodes]], weight] == other.split()


def test_graph_refuses_what_does_not_fit(path, tmp_path, capsys):
    file = tmp_path / "items.npz"
    graphs.save(file, graphs.cooccurrence([[0, 1, 2]], 3))
    _fails(capsys, ["graph", "--load", file, "--data", path], "3 nodes", "tiny")
    (tmp_path / "bad.npz").write_text("no")
    _fails(capsys, ["graph", "--load", tmp_path / "bad.npz"], "bad.npz")
    _fails(capsys, ["graph", "--load", tmp_path / "none.npz"], "none.npz: No such file")
    _fails(capsys, ["graph", "--load", file, "--output", file], "leave out --output")
    for offset in (-1, 3):
        args = ["graph", "--load", file, "--item-offset", offset]
        _fails(capsys, args, f"--item-offset is {offset}", "0 to 2")


@pytest.mark.parametrize("command", [["graph"], ["data"], ["graph", "--stream"]])
def test_a_missing_folder_is_found_before_the_data(tmp_path, capsys, command):
    args = [*command, "--data", "nowhere.csv", "--output", tmp_path / "none" / "x.csv"]
    _fails(capsys, args, f"there is no folder {tmp_path / 'none'}, create it first")


# data


def test_data_describes_a_log(path, capsys):
    assert main(["data", "--data", f"{path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny, split by leave-one-out"
    log = read(path)
    shown = {line[:22].strip(): line[22:] for line in lines[1:]}
    assert shown["users"] == str(log.num_users)
    assert shown["interactions"] == str(log.num_interactions)
    assert shown["train interactions"] == str(log.num_interactions - 2 * log.num_users)
    assert shown["density"] == (
        f"{log.num_interactions / log.num_users / log.num_items:.4%}"
    )


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.parquet", "out.inter"])
def test_data_converts_and_back(name, path, tmp_path, capsys):
    there, back = tmp_path / name, tmp_path / "back.txt"
    assert main(["data", "--data", f"{path}", "--output", f"{there}"]) == 0
    assert main(["data", "--data", f"{there}", "--output", f"{back}"]) == 0
    # Text ids are sorted as text, which the numbered users of the log are not.
    assert sorted(back.read_text().splitlines()) == sorted(
        path.read_text().splitlines()
    )


def test_data_does_not_replace_the_log_that_it_reads(tmp_path, capsys):
    table = tmp_path / "log.csv"
    table.write_text("user,item,time,stars\na,x,100,5\n")
    (tmp_path / "same.csv").symlink_to(table)
    for output in (table, tmp_path / "same.csv"):
        _fails(capsys, ["data", "--data", table, "--output", output], "the log itself")
    assert "stars" in table.read_text()


def test_data_filters_and_takes_named_columns(tmp_path, capsys):
    table = tmp_path / "log.csv"
    table.write_text("who,what,when\na,x,1\na,y,2\nb,y,1\nb,x,2\nc,x,1\n")
    columns = "--user-column who --item-column what --timestamp-column when".split()
    core = tmp_path / "core.txt"
    args = ["--data", f"{table}", *columns, "--k-core", "2", "--output", f"{core}"]
    assert main(["data", *args]) == 0
    assert core.read_text() == "a x y\nb y x\n"


def test_data_names_columns_by_number_and_the_options_that_do_so(tmp_path, capsys):
    table = tmp_path / "log.data"
    table.write_text("a~x~5\nb~y~6\na~y~4\n")
    args = ["data", "--data", f"{table}", "--format", "csv", "--delimiter", "~"]
    _fails(capsys, args, f"{table}:1:", "--user-column", "--timestamp-column", "from 0")
    args += "--user-column 0 --item-column 1 --timestamp-column 2".split()
    assert main([*args, "--output", f"{tmp_path}/log.txt"]) == 0
    assert (tmp_path / "log.txt").read_text() == "a y x\nb y\n"


def test_data_tells_what_it_skips_and_how_it_reads(tmp_path, capsys, caplog):
    table = tmp_path / "log.csv"
    table.write_text("user,item,when\na,x,1\na\na,y,2\n# b\n")
    _fails(capsys, ["data", "--data", table], f"{table}:3: 1 fields", "--skip-bad")
    assert main(["data", "--data", f"{table}", "--skip-bad"]) == 0
    order, skipped = (record.getMessage() for record in caplog.records)
    assert "user, item, when" in order and "--timestamp-column" in order
    assert "skipped 2 " in skipped and f"{table}:3: 1 fields" in skipped
    assert "interactions          2" in capsys.readouterr().out


def test_data_reads_standard_input(monkeypatch, capsys):
    text = "user,item,time\n1,3,3\n1,3,1\n1,2,2\n1,3,4\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["data", "--data", "-", "--format", "csv"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("stdin, ")
    assert "repeats               50 %" in printed


def test_data_names_the_malformed_line(tmp_path, capsys):
    table = tmp_path / "log.csv"
    table.write_text("user,item,time\na,x,1\na,y\n")
    _fails(capsys, ["data", "--data", table], f"{table}:3:")
    _fails(capsys, ["data", "--data", tmp_path], "a folder without Parquet files")
    _fails(capsys, ["data", "--data", tmp_path / "x.xls"], "'.xls'", "--format")
    _fails(capsys, ["data", "--output", tmp_path / "x.dat"], "x.dat")


def test_on_an_accelerator_seeds_train_together(compared, path, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    args = ["compare", "--data", f"{path}", "--output", f"{tmp_path}/both", *SMALL]
    assert main([*args, "--seeds", "3"]) == 0
    # A seed that joins starts by itself.
    assert main([*args, "--seeds", "3", "1", "--resume"]) == 0
    runs = read_results(tmp_path / "both" / "results.json")
    assert [(run["optimizer"], run["seed"]) for run in runs] == [
        (optimizer, seed) for optimizer in ("adamw", "sevo_adamw") for seed in (3, 1)
    ]
    for run in runs:
        name = f"{run['optimizer']}-seed{run['seed']}"
        losses = [
            json.loads((folder / name / "result.json").read_text())["losses"]
            for folder in (compared, tmp_path / "both")
        ]
        np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_mesh_may_be_asked_for(compared, path, tmp_path, capsys):
    args = ["train", "--data", path, "--output", tmp_path / "run", "--seed", 3, *SMALL]
    assert main([*map(str, args), "--mesh", "data=2,width=2"]) == 0
    losses = [
        json.loads((folder / "result.json").read_text())["losses"]
        for folder in (compared / "sevo_adamw-seed3", tmp_path / "run")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    capsys.readouterr()
    args[4] = tmp_path / "none"
    _fails(capsys, [*args, "--mesh", "data=16"], "data=16", "there are 8 devices")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "mesh",
    ["", "2", "data", "data=", "data=0", "data=-1", "rows=two", "data=2;rows=2"]
    + ["columns=2", "data=2,data=2", "data=2,"],
)
def test_a_mesh_that_is_none_is_refused(mesh, tmp_path, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        main(["train", "--output", str(tmp_path / "run"), "--mesh", mesh])
    message = _unboxed(capsys.readouterr().err)
    assert f"--mesh is {mesh!r}" in message and "data, width, rows, each" in message
    assert not (tmp_path / "run").exists()


def test_graph_of_users_and_items(path, tmp_path, capsys):
    file = tmp_path / "graph.npz"
    args = ["graph", "--data", path, "--recipe", "mf-bpr-ui-beauty", "--output", file]
    assert main([str(arg) for arg in args]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("user-item graph of tiny\n")
    split = leave_one_out(read(path))
    assert f"edges         {len(split.train.values):,} undirected" in printed
    heaviest = printed.splitlines()[-1].split()
    assert heaviest[0].startswith("u") and heaviest[1].startswith("i")
    loaded = graphs.load(file)
    assert loaded.shape == (split.num_users + split.num_items,) * 2
