"""A recipe on a split, put together: graphs, optimizer, model, compiled programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

import sevo_jax as sevo
from sevo_jax._digests import digest
from sevo_jax._leaves import LeafName, by_name
from sevo_jax.data.split import LeaveOneOut
from sevo_jax.evaluation import Evaluator, describe
from sevo_jax.graphs import kinds
from sevo_jax.models import MODELS, Recommender
from sevo_jax.samples import Epochs
from sevo_jax.training.epoch import (
    Graphs,
    Program,
    TrainState,
    split_model,
    train_epoch,
    train_epoch_together,
)
from sevo_jax.training.identity import (
    fingerprint,
    program_digest,
    settings,
    versions,
)
from sevo_jax.training.mesh import make_mesh, row_sharding, split_tables
from sevo_jax.training.optimizers import SEVO, make_optimizer
from sevo_jax.training.recipe import GraphConfig, OptimizerConfig, Recipe
from sevo_jax.training.rows import CutToSize, Rows, split_rows, table_names
from sevo_jax.training.smoothed import GivenGraphs, find_smoothed, read_graphs


class Assembly:
    """What the runs of a recipe on a split have in common; `Trainer` runs it.

    Graphs, evaluators and compiled programs are made once and serve all seeds.

    Args:
      recipe: as `Trainer` takes it, and so is the rest.

    Attributes:
      recipe: the recipe.
      split: the data.
      mesh: the devices.
      protocol: how it is measured, in words.
      smoothing: the operators that SEvo smooths over, by leaf name.
      tables: the tables that they name.
      optimizer: the optax transformation.
      optimizer_name: the recipe's, or "custom".
      program: the static part of the compiled epoch.
      graphs: its graphs, those of the optimizer and those of the model.
    """

    def __init__(
        self,
        recipe: Recipe,
        split: LeaveOneOut,
        *,
        graphs: GivenGraphs | None = None,
        optimizer: Any = None,
        mesh: Mesh | None = None,
    ):
        if not isinstance(split, LeaveOneOut):
            raise TypeError(
                f"split is of the type {type(split).__name__}: make one of the log, "
                "sevo_jax.data.leave_one_out(log)"
            )
        self.recipe = recipe
        self.split = split
        self.optimizer_name = recipe.optimizer.name if optimizer is None else "custom"
        self.mesh = make_mesh() if mesh is None else mesh
        config = recipe.evaluation
        self.protocol = describe(
            split, config, eval_every=recipe.eval_every, patience=recipe.patience
        )
        kind = MODELS[recipe.model]
        propagated = kind.propagated(recipe.architecture)
        if propagated and split_rows(self.mesh):
            raise ValueError(
                f"the model {recipe.model!r} propagates its whole tables over a graph "
                "in each step, so their rows cannot be split: split their width, or "
                "batches alone"
            )
        smoothed = self._smoothed(kind, graphs)
        operators = read_graphs(smoothed, split.log)
        self._propagated = {
            name: split_tables(self.mesh, sevo.prepare(self._build(config)), ())
            for name, config in propagated.items()
        }
        model = self._outline()
        graphdef, params, model_graphs, _ = split_model(model)
        self.tables = find_smoothed(params, operators, smoothed)
        self.rows = Rows.of(self.mesh, params, self.tables, table_names(kind))
        self.smoothing = self.rows.split(operators, self.tables, params)
        self.optimizer = self._make_optimizer(optimizer)
        self.program = Program(graphdef, self.optimizer.update, self.rows)
        self.graphs = Graphs(self.smoothing, model_graphs)
        self._ranking = nnx.graphdef(model.for_ranking())
        rows = row_sharding(self.mesh)
        self._valid = Evaluator(model, split, "valid", config, sharding=rows)
        self._test = Evaluator(model, split, "test", config, sharding=rows)
        self._given = self._identify_given(graphs, optimizer)

    def new_model(self, seed: int) -> Recommender:
        """The model that a run with `seed` starts from."""
        return self._model(jax.random.key(seed))

    def _model(self, key: jax.Array) -> Recommender:
        return MODELS[self.recipe.model].for_data(
            self.split,
            self.recipe.architecture,
            graphs=self._propagated,
            rngs=nnx.Rngs(key),
        )

    def optimizer_of(
        self, config: OptimizerConfig
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer that `config` names, over the graphs and epochs of this one."""
        steps = self.epochs(0).num_steps if config.follows_schedule else None
        return make_optimizer(config, self.smoothing, steps_per_epoch=steps)

    def start(self, seed: int, optimizer: Any = None) -> TrainState:
        """The state that training starts from, with another optimizer if given."""

        def make(key: jax.Array) -> TrainState:
            _, params, _, carried = split_model(self._model(key))
            params = self.rows.fill(params)
            state = (optimizer or self.optimizer).init(params)
            return _without_aliases(TrainState(params, carried, state))

        return self.rows.make(make, jax.random.key(seed))

    def epochs(self, seed: int) -> Epochs:
        """The epochs that a run with `seed` trains on."""
        return self._outline(seed).epochs(
            self.split.train, batch_size=self.recipe.batch_size, seed=seed
        )

    def train_epoch(
        self,
        state: TrainState,
        batches: Any,
        *,
        seed: int,
        epoch: int,
        program: Program | None = None,
    ) -> tuple[TrainState, dict[str, Float[Array, " steps"]]]:
        """Trains over the batches of an epoch.

        Args:
          state: donated.
          batches: an entry of `epochs`, or one put on the devices by `split_batches`.
          seed: seed of the run.
          epoch: number of the epoch.
          program: in place of the trainer's own.

        Returns:
          The new state, and `"loss"` and its parts at each step, by name.
        """
        state, losses = train_epoch(
            program or self.program,
            state,
            batches,
            self.graphs,
            np.uint32(seed),
            np.int32(epoch),
        )
        # Where the compiler has split more than the tables, undo it: the next epoch is
        # compiled for the placement of the first.
        return self.place(state), losses

    def train_epoch_together(
        self,
        states: Sequence[TrainState],
        batches: Sequence[Any],
        *,
        seeds: Sequence[int],
        epoch: int,
    ) -> tuple[list[TrainState], dict[str, Float[Array, "runs steps"]]]:
        """As `train_epoch` of several runs, in one compiled program."""
        states, losses = train_epoch_together(
            self.program,
            states,
            batches,
            self.graphs,
            np.array(seeds, np.uint32),
            np.int32(epoch),
        )
        return [self.place(state) for state in states], losses

    def model(self, state: TrainState) -> Recommender:
        """The model in a state of its training."""
        graphdef, graphs = self.program.graphdef, self.graphs.model
        return nnx.merge(graphdef, state.params, graphs, state.carried)

    def place(self, tree: Any) -> Any:
        """Puts parameters, or what is shaped like them, on the devices of the run."""
        return self.rows.place(tree)

    def measure(self, model: Recommender) -> dict[str, Any]:
        """What an evaluation measures: an entry of `RunResult.history`, in part."""
        ranking = self.as_ranked(model.for_ranking())
        return {"valid": self._valid(ranking), **self._smoothness(model)}

    def as_ranked(self, model: Any) -> Any:
        """What `for_ranking` returned, ready to rank where tables are split by rows."""
        return CutToSize(model, self.rows) if self.rows.num_rows else model

    def ranking_state(self, state: TrainState) -> nnx.State:
        """What is kept of a state: a copy of what the model ranks with.

        The next epoch takes the buffers of the state over.
        """
        return jax.tree.map(jnp.copy, nnx.state(self.model(state).for_ranking()))

    def identity(self, seed: int) -> dict[str, Any]:
        """What determines the numbers of a run, as JSON values."""
        return {
            "recipe": self.recipe.to_dict(),
            "seed": seed,
            "dataset": fingerprint(self.split),
            "versions": versions(),
            "settings": settings(),
            "propagated": {
                name: {"num_nodes": graph.num_nodes, "num_entries": graph.num_entries}
                for name, graph in self._propagated.items()
            },
            **self._given,
        }

    def _outline(self, seed: int = 0) -> Recommender:
        """A model without the arrays of its tables, where they are split by rows."""
        if split_rows(self.mesh):
            return nnx.eval_shape(lambda: self.new_model(seed))
        return self.new_model(seed)

    def _build(self, config: GraphConfig) -> Any:
        return kinds.build(config, self.split, MODELS[self.recipe.model].item_offset)

    def _smoothed(self, kind: type[Recommender], graphs: Any) -> Mapping[LeafName, Any]:
        """The graphs that SEvo smooths over, by leaf name."""
        if by_name(graphs):
            return graphs
        leaves = kind.smoothed.get(self.recipe.graph.links, ())
        if not leaves and graphs is not None:
            raise ValueError(
                f"the model {self.recipe.model!r} names no table for a graph without a "
                "name: give graphs by leaf name"
            )
        if leaves and graphs is None:
            graphs = self._build(self.recipe.graph)
        return dict.fromkeys(leaves, graphs)

    def _make_optimizer(self, given: Any) -> optax.GradientTransformationExtraArgs:
        name = self.recipe.optimizer.name
        if given is None and name in SEVO and not self.smoothing:
            raise ValueError(
                f"optimizer {name!r} has nothing to smooth, as the model "
                f"{self.recipe.model!r} names no table: choose another optimizer, or "
                "give graphs by leaf name"
            )
        if given is None:
            return self.optimizer_of(self.recipe.optimizer)
        if not hasattr(given, "update"):
            if not callable(given):
                raise TypeError(
                    f"optimizer is {given!r}: it must be a gradient transformation, or "
                    "a function that makes one of the graphs by leaf name; the name of "
                    "one goes into the recipe"
                )
            return _transformation(given(self.smoothing))
        given = _transformation(given)

        def init(params):
            try:
                return given.init(params)
            except ValueError as error:
                if not self.rows.num_rows:
                    raise
                raise ValueError(
                    f"the optimizer does not fit tables whose rows are split: {error}; "
                    "or give a function that makes it of the graphs by leaf name, "
                    "which are split likewise"
                ) from error

        def update(updates, state, params=None, *, graphs=None, **extra_args):
            # It has graphs of its own, under names of its own.
            del graphs
            return given.update(updates, state, params, **extra_args)

        return optax.GradientTransformationExtraArgs(init, update)

    def _identify_given(self, graphs: Any, optimizer: Any) -> dict[str, Any]:
        """The part of `identity` that comes from files and from Python."""
        built = dict(MODELS[self.recipe.model].propagated(self.recipe.architecture))
        if graphs is None:
            built["smoothing"] = self.recipe.graph
        given: dict[str, Any] = {
            "graph_files": {
                name: kinds.checksum(config) for name, config in built.items()
            }
        }
        if graphs is not None:
            given["graphs"] = {
                str(name): digest(*jax.tree.leaves(graph))
                for name, graph in self.smoothing.items()
            }
        if optimizer is not None:
            state = jax.eval_shape(lambda: self.start(0))
            # What optax.inject_hyperparams injects stands in the first alone.
            programs = (
                program_digest(self.optimizer.init, state.params),
                program_digest(
                    self.optimizer.update,
                    state.params,
                    state.opt_state,
                    state.params,
                    graphs=self.smoothing,
                ),
            )
            given["optimizer"] = " ".join(programs)
        return given

    def _smoothness(self, model: Any) -> dict[str, float | None]:
        leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
        measured = [
            _smoothness_and_norm(graph, rows)
            for graph, rows in (
                (graph, table.stack(leaves, graph))
                for table in self.tables
                for graph in [self.smoothing[table.key]]
            )
            # An optimizer that is given may smooth along another axis.
            if rows.shape[-2] == graph.num_nodes
        ]
        if not measured:
            return {"smoothness": None, "relative_smoothness": None}
        smoothness, norm = np.sum(measured, axis=0).tolist()
        # A table of zeros has no shape that could be smooth.
        relative = smoothness / norm if norm else None
        return {"smoothness": smoothness, "relative_smoothness": relative}


def _without_aliases(tree: Any) -> Any:
    """Each leaf an array of its own, as their buffers are donated.

    Some optimizers keep the initial parameters.
    """
    known: set[int] = set()
    leaves, treedef = jax.tree.flatten(tree)
    for i, leaf in enumerate(leaves):
        if id(leaf) in known:
            leaves[i] = jnp.copy(leaf)
        known.add(id(leaf))
    return treedef.unflatten(leaves)


def _transformation(given: Any) -> optax.GradientTransformationExtraArgs:
    """Also of `optax.MultiSteps` and the like, which have the methods alone."""
    if not isinstance(given, optax.GradientTransformation):
        given = optax.GradientTransformationExtraArgs(given.init, given.update)
    return optax.with_extra_args_support(given)


@jax.jit
def _smoothness_and_norm(graph: Any, table: Float[Array, "*_ n d"]):
    return sevo.smoothing.smoothness(graph, table), jnp.sum(jnp.square(table))
