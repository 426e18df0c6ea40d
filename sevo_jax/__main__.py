"""``python -m sevo_jax`` is the command ``sevo-jax``."""

import sys

from sevo_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
