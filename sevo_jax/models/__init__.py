"""Reference recommenders, one a file, by the name they go by on the command line."""

from sevo_jax.models.sasrec import SASRec, SASRecConfig

MODELS = {"sasrec": SASRec}

__all__ = ["MODELS", "SASRec", "SASRecConfig"]
