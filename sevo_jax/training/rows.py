"""Tables split by their rows, which are filled up so that each device has as many.

JAX places no array whose rows do not divide evenly among the devices. So the tables of
a run, their moments and all that is shaped like them end in a few rows of zeros, which
no sample reads and no gradient reaches. A model is given its tables without these.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from sevo_jax import GraphOperator, shard_rows
from sevo_jax._leaves import LeafName, is_named, names_in
from sevo_jax._tables import Table
from sevo_jax.models import Recommender, layers
from sevo_jax.training.mesh import split_tables, table_spec


@dataclasses.dataclass(frozen=True)
class Rows:
    """The tables of a run, and which of them are split by their rows.

    Where none is, what `fill`, `cut` and `keep` return is what they were given.

    Attributes:
      mesh: the devices.
      smoothed: paths of the smoothed tables, whose width may be split.
      num_rows: for the path of each table that is split by its rows, how many rows
        the model has.
    """

    mesh: Mesh
    smoothed: tuple[str, ...]
    num_rows: tuple[tuple[str, int], ...]

    @classmethod
    def of(
        cls, mesh: Mesh, params: Any, smoothed: Sequence[Table], names: Iterable[str]
    ) -> Rows:
        """Finds the tables of a model.

        Args:
          mesh: the devices.
          params: parameters of the model, or their shapes.
          smoothed: those of its tables that graphs name.
          names: of the others.
        """
        paths = [path for table in smoothed for path in table.paths]
        leaves = jax.tree_util.tree_leaves_with_path(params)
        num_rows = [
            (jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape[-2])
            for path, leaf in leaves
            if is_named(path, [*paths, *names]) and leaf.ndim >= 2
        ]
        return cls(mesh, tuple(paths), tuple(num_rows if split_rows(mesh) else ()))

    @property
    def parts(self) -> int:
        """Over how many devices rows are split."""
        return self.mesh.shape["rows"] if self.num_rows else 1

    def place(self, tree: Any) -> Any:
        """Puts parameters, or what is shaped like them, on the devices."""
        return split_tables(self.mesh, tree, self.smoothed, self._paths)

    def make(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function returns, made where `place` would put it."""
        if not self.num_rows:
            return self.place(function(*args))
        shapes = jax.eval_shape(function, *args)
        shardings = jax.tree_util.tree_map_with_path(
            lambda path, leaf: NamedSharding(self.mesh, self._spec(path, leaf)), shapes
        )
        return jax.jit(function, out_shardings=shardings)(*args)

    def fill(self, params: Any) -> Any:
        """Parameters as the model has them, each table with its rows of zeros."""

        def filled(path: Any, leaf: jax.Array, rows: int) -> jax.Array:
            pads = [(0, 0)] * leaf.ndim
            pads[-2] = (0, -rows % self.parts)
            leaf = jnp.pad(leaf, pads)
            return self._constrained(leaf, self._spec(path, leaf))

        return self._each(params, filled)

    def cut(self, params: Any) -> Any:
        """Undoes `fill`. Only a compiled program can hold what does not divide."""

        def cut(path: Any, leaf: jax.Array, rows: int) -> jax.Array:
            # Not as many rows on each device, but placed as before.
            spec = self._spec(path, leaf)
            leaf = jax.lax.slice_in_dim(leaf, 0, rows, axis=-2)
            return self._constrained(leaf, spec)

        return self._each(params, cut)

    def whole(self, model: Any) -> Any:
        """A model whose tables `cut` would cut, on the host if this process has all."""
        graphdef, state = nnx.split(model)
        if not self.num_rows:
            return model
        if not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(state)):
            return CutToSize(model, self)
        host = jax.tree.map(np.asarray, state)
        return nnx.merge(
            graphdef, self._each(host, lambda path, leaf, rows: leaf[..., :rows, :])
        )

    def keep(self, tree: Any) -> Any:
        """In a compiled program: a tree whose tables stay where `place` put them."""

        def keep(path: Any, leaf: jax.Array) -> jax.Array:
            spec = self._spec(path, leaf)
            return self._constrained(leaf, spec) if any(spec) else leaf

        return jax.tree_util.tree_map_with_path(keep, tree) if self.num_rows else tree

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Tells a model that is traced in the block whether its tables are split."""
        token = layers.split_by_rows.set(bool(self.num_rows))
        try:
            yield
        finally:
            layers.split_by_rows.reset(token)

    def split(
        self,
        graphs: Mapping[LeafName, GraphOperator],
        tables: Sequence[Table],
        params: Any,
    ) -> Mapping[LeafName, GraphOperator]:
        """Puts the graphs of tables on the devices; what has several names, once."""
        if not self.num_rows:
            return split_tables(self.mesh, graphs, ())
        leaves = jax.tree_util.tree_leaves_with_path(params)
        made: dict[Any, GraphOperator] = {}
        of_name: dict[LeafName, GraphOperator] = {}
        for table in tables:
            sizes = tuple(leaves[i][1].shape[-2] for i in table.leaves)
            spec = self._spec(*leaves[table.leaves[0]])
            width = spec[-1] if len(spec) > 1 else None
            graph = graphs[table.key]
            key = id(graph), sizes, width
            if key not in made:
                sharding = NamedSharding(self.mesh, P("rows", width))
                made[key] = shard_rows(graph, sharding, leaves=sizes)
            of_name[table.key] = made[key]
        return OrderedDict((name, of_name[name]) for name in graphs)

    @property
    def _paths(self) -> list[str]:
        return [path for path, _ in self.num_rows]

    def _spec(self, path: Any, leaf: Any) -> P:
        return table_spec(self.mesh, path, leaf, self.smoothed, self._paths)

    def _constrained(self, leaf: jax.Array, spec: P) -> jax.Array:
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(self.mesh, spec))

    def _each(self, params: Any, change: Callable[..., jax.Array]) -> Any:
        def changed(path: Any, leaf: Any) -> Any:
            for name, rows in self.num_rows:
                if is_named(path, [name]):
                    return change(path, leaf, rows)
            return leaf

        return jax.tree_util.tree_map_with_path(changed, params)


def split_rows(mesh: Mesh) -> bool:
    """Whether a mesh splits tables by their rows."""
    return mesh.shape["rows"] > 1


def table_names(kind: type[Recommender]) -> list[str]:
    """The tables of a kind of model: what SEvo may smooth, over whichever graph."""
    keys = [key for keys in kind.smoothed.values() for key in keys]
    return [name for key in keys for name in names_in(key)]


class CutToSize(nnx.Module):
    """A model whose tables are split by their rows, as it ranks.

    Args:
      model: with the rows of zeros.
      rows: how it is split.
    """

    def __init__(self, model: Any, rows: Rows):
        self.model = model
        self.rows = rows

    @property
    def num_items(self) -> int:
        return self.model.num_items

    def inputs(self, sequences: Any, users: np.ndarray | None = None) -> Any:
        """As the model's."""
        return self.model.inputs(sequences, users)

    def score(self, inputs: Any) -> Float[Array, "b num_items"]:
        """Scores of all items; only in a compiled program."""
        graphdef, state = nnx.split(self.model)
        return nnx.merge(graphdef, self.rows.cut(state)).score(inputs)
