"""Settings of the site: ``python -m sphinx -W -b html docs docs/_build``.

References to other projects are links where ``DOCS_ONLINE`` is set: their inventories
are on the network, and the site builds without one.
"""

import contextlib
import io
import os

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import sevo_jax
from sevo_jax import cli

project = "sevo_jax"
author = "the sevo_jax authors"
copyright = author
version = release = sevo_jax.__version__
language = "en"

exclude_patterns = ["_build"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

if os.environ.get("DOCS_ONLINE"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "scipy": ("https://docs.scipy.org/doc/scipy", None),
        "jax": ("https://docs.jax.dev/en/latest", None),
        "optax": ("https://optax.readthedocs.io/en/latest", None),
        "flax": ("https://flax.readthedocs.io/en/latest", None),
    }

html_theme = "furo"
html_title = f"sevo_jax {version}"


class Help(SphinxDirective):
    """What ``sevo-jax COMMAND --help`` prints, now."""

    required_arguments = 0
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        os.environ["COLUMNS"] = "88"
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            cli.main([*self.arguments, "--help"])
        block = nodes.literal_block(text=text.getvalue().strip())
        block["language"] = "none"
        return [block]


def setup(app) -> None:
    app.add_directive("help-of", Help)
