"""Hashes that tell arrays, texts and lists of ids from others."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
from jaxtyping import ArrayLike


def digest(*parts: ArrayLike | str) -> str:
    """The SHA-256 of arrays and texts."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode())
        else:
            array = np.ascontiguousarray(part)
            found.update(f"{array.dtype}{array.shape}".encode())
            found.update(array.tobytes())
    return found.hexdigest()


def id_digest(*ids: Iterable[int | str]) -> str:
    """A hash of ids in their order, which are the same as numbers and as text."""
    return digest(json.dumps([list(map(str, names)) for names in ids]))
