"""Training of the reference recommenders: recipes, the loop, checkpoints."""

from sevo_jax.training.checkpoint import CheckpointError
from sevo_jax.training.export import export
from sevo_jax.training.folder import RunFolder
from sevo_jax.training.identity import fingerprint
from sevo_jax.training.optimizers import make_optimizer, optimizer_names
from sevo_jax.training.processes import connect
from sevo_jax.training.recipe import GraphConfig, OptimizerConfig, Recipe
from sevo_jax.training.recipes import RECIPES, find_recipe, read_recipe
from sevo_jax.training.run import RunResult
from sevo_jax.training.saved import SavedRun, load
from sevo_jax.training.trainer import Trainer, train

__all__ = [
    "RECIPES",
    "CheckpointError",
    "GraphConfig",
    "OptimizerConfig",
    "Recipe",
    "RunFolder",
    "RunResult",
    "SavedRun",
    "Trainer",
    "connect",
    "export",
    "find_recipe",
    "fingerprint",
    "load",
    "make_optimizer",
    "optimizer_names",
    "read_recipe",
    "train",
]
