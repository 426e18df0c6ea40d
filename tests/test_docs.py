"""The site builds without a warning, its links lead somewhere, its examples run."""

import contextlib
import doctest
import html.parser
import os
import re
import shlex
import subprocess
import sys
import textwrap
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

import sevo_jax as sevo
from sevo_jax import cli, data, evaluation, models, samples, training
from sevo_jax.data.formats import FORMATS
from sevo_jax.evaluation import METRICS
from sevo_jax.graphs.kinds import KINDS
from sevo_jax.models import MODELS
from sevo_jax.training.optimizers import SEVO

for _name in ("sphinx", "furo", "myst_parser"):
    pytest.importorskip(_name, reason="needs sevo-jax[docs]")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = (
    *(sevo, sevo.graphs, sevo.smoothing),
    *(data, samples, models, evaluation, training),
)
PAGES = sorted(DOCS.glob("*.md"))
FENCE = re.compile(r"^( *)(`{3,})(\S+)\n(.*?)^\1\2$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E"]
    environment = {k: v for k, v in os.environ.items() if k != "DOCS_ONLINE"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [*command, "-b", "html", "-d", out / "doctrees", DOCS, out / "html"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    return out / "html"


class Links(html.parser.HTMLParser):
    """What a page links to, and what of it can be linked to."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.anchors = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and value is not None:
                self.targets.append(value)
            elif name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)


def test_every_link_inside_leads_somewhere(site):
    pages = {path: Links(path) for path in site.rglob("*.html")}
    assert {path.stem for path in PAGES} <= {path.stem for path in pages}
    lost = []
    for path, page in pages.items():
        for target in page.targets:
            parts = urllib.parse.urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            to = path
            if parts.path:
                to = (path.parent / urllib.parse.unquote(parts.path)).resolve()
            anchor = urllib.parse.unquote(parts.fragment)
            found = to.is_file()
            if found and anchor and to in pages:
                found = anchor in pages[to].anchors
            if not found:
                lost.append(f"{path.relative_to(site)}: {target}")
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "experiments/README.md"]
)
def test_links_to_files_of_the_repository(name):
    document = ROOT / name
    text = re.sub(
        r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        parts = urllib.parse.urlsplit(target)
        if not parts.scheme and parts.path:
            assert (document.parent / parts.path).exists(), target


def test_the_command_line_is_that_of_today(site):
    text = (site / "command-line.html").read_text()
    for command in (*cli._COMMANDS, "data fetch"):
        assert f"usage: sevo-jax {command} " in text


def test_every_public_name_has_its_place(site):
    anchors = set()
    for path in (site / "api").rglob("*.html"):
        anchors |= Links(path).anchors
    for package in PACKAGES:
        for name in package.__all__:
            full = f"{package.__name__}.{name}"
            assert full in anchors or f"module-{full}" in anchors, full


# ---------------------------------------------------------------- examples


def blocks(path):
    """Language, text and line of each fenced block of a page."""
    text = path.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        yield match[3], textwrap.dedent(match[4]), line


@pytest.fixture
def tables():
    """What a page adds to the tables of models and the like is gone after it."""
    tables: list[dict[str, Any]] = [MODELS, METRICS, KINDS, SEVO, FORMATS]
    originals = [dict(table) for table in tables]
    yield
    for table, original in zip(tables, originals, strict=True):
        table.clear()
        table.update(original)


class Parsed(Exception):
    """The options of a command were read."""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
@pytest.mark.usefixtures("tables")
def test_examples(path, tmp_path, monkeypatch, capsys):
    """Runs `python`, `pycon` and `console` blocks in turn, in an empty folder.

    Blocks of a page share a namespace. A `python` block that begins with the comment
    ``# NAME.py`` is a file. Of `bash` blocks the options of the command are read.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = {"__name__": "__main__"}
    for language, text, line in blocks(path):
        where = f"{path.name}:{line}"
        if language == "python":
            if file := re.match(r"# (\w+\.py)\n", text):
                Path(file[1]).write_text(text)
                monkeypatch.delitem(sys.modules, file[1][:-3], raising=False)
                continue
            exec(compile("\n" * (line - 1) + text, path, "exec"), names)
        elif language == "pycon":
            test = doctest.DocTestParser().get_doctest(
                text, names, where, str(path), line
            )
            runner, said = doctest.DocTestRunner(verbose=False), []
            runner.run(test, out=said.append, clear_globs=False)
            names.update(test.globs)
            assert not runner.failures, "".join(said)
        elif language == "console":
            for command in commands(text):
                status = cli.main(command)
                assert status == 0, f"{where}: {command}: {capsys.readouterr().err}"
        elif language == "bash":
            for command in commands(text):
                check_options(command, where, monkeypatch)


def commands(text):
    """The arguments of each call of ``sevo-jax`` in a block."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\||&&", line.partition(" #")[0].removeprefix("$ ")):
            words = shlex.split(part)
            if words[:1] == ["sevo-jax"]:
                yield words[1:]


def check_options(command, where, monkeypatch):
    """Makes sure that a command takes its options, without running it."""
    import tyro

    read = tyro.cli

    def stop(*args, **kwargs):
        read(*args, **kwargs)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(tyro, "cli", stop)
        try:
            with contextlib.suppress(Parsed):
                status = cli.main(command)
                pytest.fail(f"{where}: {command} gives {status}")
        except SystemExit:
            pytest.fail(f"{where}: {command}: its options are not understood")
