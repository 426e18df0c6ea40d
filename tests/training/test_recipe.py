import dataclasses
import json
from typing import Any

import pytest

from sevo_jax.evaluation import EvaluationConfig
from sevo_jax.models import (
    MODELS,
    BSARecConfig,
    GRU4RecConfig,
    MFBPRConfig,
    SASRec,
    SASRecConfig,
)
from sevo_jax.training import (
    RECIPES,
    GraphConfig,
    OptimizerConfig,
    Recipe,
    find_recipe,
    read_recipe,
)


def test_how_a_run_is_measured_is_read_back():
    config = EvaluationConfig(("HR@3", "MRR"), selection="MRR", seen="keep")
    recipe = dataclasses.replace(find_recipe("sasrec-beauty"), evaluation=config)
    values = json.loads(json.dumps(recipe.to_dict()))
    assert values == recipe.to_dict()
    assert Recipe.from_dict(values) == recipe
    del values["evaluation"]
    assert Recipe.from_dict(values) == find_recipe("sasrec-beauty")
    for wrong in ("HR@3", 3, [3]):
        with pytest.raises(ValueError, match=r"evaluation\.metrics"):
            Recipe.from_dict({"evaluation": {"metrics": wrong}})


@pytest.mark.parametrize(
    ("name", "dropout", "batch_size", "max_len"),
    [
        ("sasrec-beauty", 0.3, 512, 50),
        ("sasrec-toys", 0.3, 512, 50),
        ("sasrec-tools", 0.7, 512, 50),
        ("sasrec-ml-1m", 0.1, 128, 200),
    ],
)
def test_recipes_of_the_paper(name, dropout, batch_size, max_len):
    assert find_recipe(name) == Recipe(
        model="sasrec",
        architecture=SASRecConfig(
            max_len=max_len, width=64, num_heads=1, num_blocks=2, dropout=dropout
        ),
        optimizer=OptimizerConfig(
            name="sevo_adamw",
            learning_rate=1e-3,
            weight_decay=0.1,
            b1=0.9,
            b2=0.98,
            beta=0.99,
            num_layers=3,
            approximation="neumann",
            rescale=True,
            moment_correction=True,
        ),
        graph=GraphConfig(max_len=max_len, keep="last", max_hop=1),
        batch_size=batch_size,
        epochs=200,
        eval_every=5,
    )


@pytest.mark.parametrize(
    ("name", "learning_rate", "weight_decay", "dropout", "max_len"),
    [
        ("gru4rec-beauty", 1e-3, 0.1, 0.4, 50),
        ("gru4rec-toys", 1e-3, 0.1, 0.4, 50),
        ("gru4rec-tools", 5e-3, 0.1, 0.5, 50),
        ("gru4rec-ml-1m", 1e-3, 0.01, 0.3, 200),
    ],
)
def test_recipes_of_the_paper_for_gru4rec(
    name, learning_rate, weight_decay, dropout, max_len
):
    assert find_recipe(name) == Recipe(
        model="gru4rec",
        architecture=GRU4RecConfig(
            max_len=max_len, width=64, hidden_width=64, dropout=dropout
        ),
        optimizer=OptimizerConfig(
            name="sevo_adamw",
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            b1=0.9,
            b2=0.999,
            beta=0.99,
            num_layers=3,
        ),
        graph=GraphConfig(max_len=max_len, keep="last", max_hop=1),
        batch_size=512,
        epochs=300,
        eval_every=5,
    )


@pytest.mark.parametrize("dataset", ["beauty", "toys", "tools", "ml-1m"])
@pytest.mark.parametrize("base", ["sasrec-ce", "gru4rec-ce", "zero-block"])
def test_recipes_with_the_softmax_over_all_items(base, dataset):
    recipe = find_recipe(f"{base}-{dataset}")
    assert recipe.architecture.loss == "ce" and recipe.model == base.removesuffix("-ce")
    assert recipe.optimizer.name == "sevo_adamw"
    assert recipe.optimizer.learning_rate == 5e-4
    assert recipe.architecture.dropout == {"tools": 0.6, "ml-1m": 0.2}.get(dataset, 0.5)
    max_len = 200 if dataset == "ml-1m" else 50
    assert recipe.architecture.max_len == recipe.graph.max_len == max_len
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(("dataset", "dropout"), [("beauty", 0.0), ("toys", 0.3)])
def test_recipes_of_recboard_for_bsarec(dataset, dropout):
    assert find_recipe(f"bsarec-{dataset}") == Recipe(
        model="bsarec",
        architecture=BSARecConfig(50, 64, 1, 2, 0.5, dropout, alpha=0.7, cutoff=5),
        optimizer=OptimizerConfig(
            name="adam_l2", learning_rate=1e-4, weight_decay=1e-4
        ),
        batch_size=256,
        epochs=200,
        patience=6,
    )


@pytest.mark.parametrize(
    ("name", "kind", "beta", "weight_decay"),
    [
        ("mf-bpr-ui-beauty", "user-item", 0.99, 0.1),
        ("mf-bpr-ui-toys", "user-item", 0.7, 0.1),
        ("mf-bpr-ui-tools", "user-item", 0.7, 0.5),
        ("mf-bpr-ui-ml-1m", "user-item", 0.7, 0.05),
        ("mf-bpr-ii-beauty", "item-item", 0.9, 0.1),
        ("mf-bpr-ii-toys", "item-item", 0.99, 0.1),
        ("mf-bpr-ii-tools", "item-item", 0.5, 0.5),
        ("mf-bpr-ii-ml-1m", "item-item", 0.99, 0.05),
    ],
)
def test_recipes_of_the_paper_for_mf_bpr(name, kind, beta, weight_decay):
    assert find_recipe(name) == Recipe(
        model="mf-bpr",
        architecture=MFBPRConfig(width=64),
        optimizer=OptimizerConfig(
            name="sevo_adamw",
            learning_rate=1e-3,
            weight_decay=weight_decay,
            b1=0.9,
            b2=0.999,
            beta=beta,
            num_layers=3,
        ),
        graph=GraphConfig(
            kind, max_len=10 if name == "mf-bpr-ii-ml-1m" else 50, max_hop=1
        ),
        batch_size=2048,
        epochs=1000,
        eval_every=5,
    )


@pytest.mark.parametrize("model", ["gru4rec", "sasrec", "bert4rec", "stosa"])
def test_recipes_of_plain_backbones_that_keep_what_sevo_has(model):
    plain = find_recipe(f"{model}-adamw-beauty")
    assert plain.optimizer.name == "adamw"
    assert plain.with_optimizer("sevo_adamw") == find_recipe(f"{model}-beauty")


def test_the_recipe_of_plain_mf_bpr_has_the_tuned_decay_and_rate():
    sevo = find_recipe("mf-bpr-ui-beauty")
    optimizer = dataclasses.replace(
        sevo.optimizer, name="adamw", weight_decay=0.5, learning_rate=5e-3
    )
    plain = dataclasses.replace(sevo, optimizer=optimizer)
    assert find_recipe("mf-bpr-adamw-beauty") == plain


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_json_gives_the_recipe_back(name):
    recipe = RECIPES[name]
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@dataclasses.dataclass(frozen=True)
class Tower:
    """What `Towers` has of its own."""

    widths: tuple[int, ...] = (8, 4)
    names: tuple[str, float] | None = None
    note: Any = None


@dataclasses.dataclass(frozen=True)
class TowersConfig(SASRecConfig):
    """A configuration with a table, lists and a choice in it."""

    tower: Tower = Tower()
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


class Towers(SASRec):
    Config = TowersConfig


def test_json_gives_every_field_back(monkeypatch):
    monkeypatch.setitem(MODELS, "towers", Towers)
    recipe = Recipe(
        model="towers",
        architecture=TowersConfig(
            tower=Tower((3, 2, 1), ("a", 0.5), "b"), extra={"a": [1]}
        ),
        optimizer=OptimizerConfig(
            learning_rate_schedule="cosine",
            learning_rate_epochs=9.5,
            learning_rate_warmup=2,
            learning_rate_end=1e-5,
            beta_schedule="linear",
            beta_epochs=3,
            beta_end=0.5,
            clip_norm=1.5,
        ),
        graph=GraphConfig(max_len=None),
    )
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    for value in ([3, "a"], [True], 3, "ab"):
        with pytest.raises(
            ValueError, match=r"architecture.tower.widths is .* must be"
        ):
            Recipe.from_dict(
                {"model": "towers", "architecture": {"tower": {"widths": value}}}
            )


@pytest.mark.parametrize("model", MODELS)
def test_a_model_alone_has_the_defaults_of_its_config(model):
    recipe = Recipe(model)
    assert recipe.architecture == MODELS[model].Config()
    assert Recipe.from_dict({"model": model}) == recipe


def test_left_out_fields_have_their_defaults():
    expected = Recipe(epochs=3, optimizer=OptimizerConfig(beta=0.5))
    assert Recipe.from_dict({"epochs": 3, "optimizer": {"beta": 0.5}}) == expected


def test_with_optimizer_changes_the_name_alone():
    recipe = find_recipe("sasrec-beauty")
    other = recipe.with_optimizer("adamw")
    assert other.optimizer.name == "adamw"
    assert other.with_optimizer("sevo_adamw") == recipe


def test_a_recipe_is_read_from_what_a_run_writes(finished, tiny_recipe, tmp_path):
    _, output = finished
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(tiny_recipe.to_dict()))
    for source in (path, output, output / "run.json", str(output / "result.json")):
        assert read_recipe(source) == tiny_recipe


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "mine.json is not JSON"),
        ("[1]", "mine.json holds no recipe: give run.json"),
        ('{"epochs": 3}', "holds no recipe"),
        ('{"recipe": {"model": "sasrec", "epoch": 3}}', "mine.json: epoch: .*epochs"),
        ('{"model": "sasrex"}', "mine.json: model is 'sasrex'.*sasrec"),
        (
            '{"model": "sasrec", "patience": 0}',
            "mine.json: Recipe.patience is 0: it must be at least 1 or None",
        ),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(text, message, tmp_path):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "mine.json")


def test_an_unknown_recipe_lists_the_like_ones():
    with pytest.raises(ValueError, match="did you mean sasrec-beauty"):
        find_recipe("sasrec-beuty")
    with pytest.raises(ValueError, match="choose from .*, sasrec-beauty, "):
        find_recipe("xyz")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "epoch: there is none of this name, did you mean epochs"),
        ({"optimizer": {"betta": 0.1}}, r"optimizer\.betta: .* did you mean beta"),
        ({"epochs": "3"}, "epochs is '3': it must be int"),
        ({"epochs": True}, "epochs is True: it must be int"),
        ({"optimizer": {"rescale": 1}}, r"optimizer\.rescale is 1: it must be bool"),
        ({"optimizer": {"momentum": "x"}}, r"momentum is 'x': it must be .*None"),
        ({"graph": {"keep": "middle"}}, r"graph\.keep is 'middle'"),
        ({"optimizer": 3}, "optimizer.* is 3: it must be a table"),
        ({"model": "sasrek"}, "model is 'sasrek': .* did you mean sasrec"),
        ({"model": "mine"}, "choose from bert4rec, .* once the module"),
        ({"model": ["sasrec"]}, r"model is \['sasrec'\]: it must be str"),
        ({"model": "gru4rec", "architecture": {"num_heads": 1}}, "ture.num_heads: "),
        ([1], r"the recipe is \[1\]: it must be a table"),
    ],
)
def test_from_dict_refuses_what_is_no_recipe(values, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict(values)


@pytest.mark.parametrize(
    ("kind", "field", "value", "range_"),
    [
        (OptimizerConfig, "learning_rate", 0.0, "above 0"),
        (OptimizerConfig, "learning_rate", float("nan"), "above 0"),
        (OptimizerConfig, "weight_decay", -0.1, "at least 0"),
        (OptimizerConfig, "b1", 1.0, r"in \[0, 1\)"),
        (OptimizerConfig, "b2", -0.1, r"in \[0, 1\)"),
        (OptimizerConfig, "beta", 1.0, r"in \[0, 1\)"),
        (OptimizerConfig, "momentum", 1.0, r"in \[0, 1\) or None"),
        (OptimizerConfig, "clip_norm", 0.0, "above 0 or None"),
        (OptimizerConfig, "learning_rate_end", -1.0, "at least 0"),
        (OptimizerConfig, "learning_rate_warmup", -1.0, "at least 0"),
        (OptimizerConfig, "learning_rate_schedule", "step", "one of constant, lin"),
        (OptimizerConfig, "learning_rate_epochs", 9.0, "left out, as .* is constant"),
        (OptimizerConfig, "beta_end", 1.0, r"in \[0, 1\)"),
        (OptimizerConfig, "beta_end", 0.5, "left out, as .* is constant"),
        (OptimizerConfig, "num_layers", -1, "at least 0"),
        (OptimizerConfig, "approximation", "exact", "one of neumann, iterative"),
        (GraphConfig, "max_len", 1, "at least 2"),
        (GraphConfig, "max_hop", 0, "at least 1"),
        (GraphConfig, "keep", "both", "one of first, last"),
        (GraphConfig, "weighting", "none", "one of frequency, distance"),
        (Recipe, "batch_size", 0, "at least 1"),
        (Recipe, "epochs", 0, "at least 1"),
        (Recipe, "eval_every", 0, "at least 1"),
        (Recipe, "model", "bert", "one of bert4rec"),
        (Recipe, "optimizer", "adamw", "of the type OptimizerConfig"),
        (Recipe, "graph", "user-item", "of the type GraphConfig"),
        (Recipe, "evaluation", {"selection": "MRR"}, "of the type EvaluationConfig"),
    ],
)
def test_values_out_of_range_are_refused(kind, field, value, range_):
    with pytest.raises(ValueError, match=f"{kind.__name__}.{field} is .*{range_}"):
        dataclasses.replace(kind(), **{field: value})


def test_the_end_of_a_schedule_follows_its_warm_up():
    for epochs in (None, 5.0, float("inf")):
        with pytest.raises(
            ValueError, match=f"epochs is {epochs}: .* above beta_warmup, as .* linear"
        ):
            OptimizerConfig(beta_schedule="linear", beta_warmup=5.0, beta_epochs=epochs)
    with pytest.raises(ValueError, match="beta is 0.0: .* above 0, as .* is cosine"):
        OptimizerConfig(beta=0.0, beta_schedule="cosine", beta_epochs=1.0)


def test_the_architecture_must_be_of_the_model():
    with pytest.raises(ValueError, match="'sasrec' takes a SASRecConfig"):
        Recipe(architecture=GraphConfig())  # pyright: ignore
