"""Settings of the site: ``python -m sphinx -W -b html docs docs/_build``.

References to other projects are links where ``DOCS_ONLINE`` is set: their inventories
are on the network, and the site builds without one.
"""

import contextlib
import functools
import importlib
import io
import os
import re
import sys
from pathlib import Path

# The checkout that the pages stand in, whatever is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from flax import nnx  # noqa: E402
from sphinx.util import inspect  # noqa: E402

import sevo_jax  # noqa: E402
from sevo_jax import cli, models  # noqa: E402

project = "sevo_jax"
author = "the sevo_jax authors"
copyright = author
version = release = sevo_jax.__version__
language = "en"

exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
# What stands in single backticks in a docstring.
default_role = "py:obj"
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

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# As the signatures write them; docstrings say what they are.
autodoc_type_aliases = {
    name: name
    for name in (
        "Adjacency",
        "AdjacencyLike",
        "Graphs",
        "RowAxis",
        "optax.ScalarOrSchedule",
        "jax.typing.ArrayLike",
    )
}
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

# A reference to what we do not have is a warning. What others have is plain text where
# their inventories are not fetched.
nitpicky = True
nitpick_ignore_regex = [(".*", r"(?!sevo_jax\b).*")]
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
html_show_sourcelink = False
# The colours of the pictures, `sevo_jax.reports.plots.COLOURS`.
html_theme_options = {
    f"{scheme}_css_variables": {
        "color-brand-primary": colour,
        "color-brand-content": colour,
    }
    for scheme, colour in (("light", "#0072B2"), ("dark", "#56B4E9"))
}

PACKAGES = (
    "sevo_jax",
    "sevo_jax.graphs",
    "sevo_jax.smoothing",
    "sevo_jax.data",
    "sevo_jax.samples",
    "sevo_jax.models",
    "sevo_jax.evaluation",
    "sevo_jax.training",
)


@functools.cache
def public_names() -> dict[str, str]:
    """Where an object is exported, by where it is defined."""
    names = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            defined_in = getattr(getattr(module, name), "__module__", package)
            names.setdefault(f"{defined_in}.{name}", f"{package}.{name}")
    return names


def resolve(app, env, node, contnode):
    """Finds what a signature names by where it is defined.

    What is exported there becomes a link, what is not stays as it is.
    """
    target = node.get("reftarget", "")
    module, _, name = target.rpartition(".")
    if target in public_names():
        where = env, node["refdoc"], app.builder, "obj", public_names()[target]
        return env.domains["py"].resolve_xref(*where, node, contnode)
    if module in sys.modules and hasattr(sys.modules[module], name):
        return contnode
    return None


def skip_member(app, kind, name, obj, skip, options):
    """Leaves out what is said elsewhere.

    Of a NamedTuple the "alias for field number 0", since its docstring says more; of a
    reference model the methods of the contract.
    """
    if type(obj).__name__ == "_tuplegetter":
        return True
    owner = getattr(obj, "__qualname__", "").partition(".")[0]
    of_a_model = owner in {model.__name__ for model in models.MODELS.values()}
    return True if of_a_model and hasattr(models.Recommender, name) else None


def plain_signature(app, kind, name, obj, options, signature, returns):
    """Gives a Flax module the signature of its own, and arrays their short name."""
    if kind == "class" and issubclass(obj, nnx.Module):
        own = inspect.signature(obj.__init__, bound_method=True)
        signature = inspect.stringify_signature(own, unqualified_typehints=True)
    return tuple(
        each and each.replace("jaxlib._jax.", "").replace("numpy.ndarray", "ndarray")
        for each in (signature, returns)
    )


def keep_returns_whole(app, kind, name, obj, options, lines):
    """Keeps a colon in the first line of "Returns" from making a type of that line.

    Types stand in signatures here. The reader of these sections looks no further than
    the first line, so the first word gets one to itself.
    """
    for number, line in enumerate(lines[:-1]):
        if line.strip() == "Returns:":
            following = lines[number + 1]
            indent = following[: len(following) - len(following.lstrip())]
            first, _, rest = following.strip().partition(" ")
            lines[number + 1 : number + 2] = [indent + first, indent + rest]
            return


def help_of(*command: str) -> str:
    """What ``sevo-jax COMMAND --help`` prints, now."""
    os.environ["COLUMNS"] = "88"
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        cli.main([*command, "--help"])
    lines = (line.rstrip() for line in text.getvalue().splitlines())
    return "```text\n{}\n```\n".format("\n".join(lines))


def add_help(app, docname, source):
    """Adds to the page of the command what it says of itself."""
    if docname != "command-line":
        return
    source[0] += f"\n{help_of()}"
    for name in cli._COMMANDS:
        text = help_of(name)
        source[0] += f"\n## sevo-jax {name}\n\n{text}"
        # What a command has of its own commands, its help names: "data fetch".
        for own in dict.fromkeys(re.findall(rf"sevo-jax {name} ([a-z]+) ", text)):
            source[0] += f"\n## sevo-jax {name} {own}\n\n{help_of(name, own)}"


def setup(app) -> None:
    # Before napoleon reads the sections.
    app.connect("autodoc-process-docstring", keep_returns_whole, priority=400)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("missing-reference", resolve)
    app.connect("source-read", add_help)
