"""The command `sevo-jax`: finds the subcommand, and turns failures into one line.

A subcommand's module is imported when it is called, and with it JAX: the overview
needs none of them.
"""

import importlib
import io
import os
import shlex
import sys
import traceback
from collections.abc import Sequence

_COMMANDS = {
    "compare": "_compare",
    "train": "_train",
    "evaluate": "_evaluate",
    "recommend": "_recommend",
    "export": "_export",
    "graph": "_graph",
    "data": "_data",
}
_RESUMABLE = ("compare", "train")

# In characters.
_LONGEST_MESSAGE = 2000
_LONGEST_OPTION = 1000

_OVERVIEW = """\
usage: sevo-jax COMMAND [OPTIONS]

Trains recommenders with and without SEvo, the optimizer that smooths the updates of
an embedding table over a graph of its rows.

commands:
  compare    train one recipe with several optimizers and seeds: a table of means,
             spreads and paired t-tests, results.json, and pictures
  train      train one model, with checkpoints
  evaluate   validation and test metrics of a trained model
  recommend  the best items for users, from a trained model
  export     embeddings and the scorer of a trained model, for use without sevo_jax
  graph      build, look at and save the item graph that SEvo smooths over
  data       statistics of an interaction log; conversion between file formats

examples:
  sevo-jax compare                      both optimizers on the built-in log, in minutes
  sevo-jax compare --data beauty.txt --recipe sasrec-beauty --output runs/beauty
  sevo-jax train --data ratings.csv --optimizer sevo_adamw --beta 0.9 --epochs 50
  sevo-jax recommend runs/beauty/sevo_adamw-seed0 --users 17 42 --top 5

Each command explains its options: sevo-jax COMMAND --help. Without --data, commands
use a synthetic log that is built in.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments after the program's name; those of the process by default.

    Returns:
      The exit status: 0; 2 after an error of the user, 1 after training that
      diverged, each with one line on stderr; 130 after an interrupt, 141 where nobody
      reads the output.

    Raises:
      SystemExit: from ``--help`` (0) and options that do not parse (2).
    """
    args = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    try:
        _run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _interrupted(args)
    except BrokenPipeError:
        # Whoever read our output has had enough.
        _drop_output()
        return 141
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "sevo_jax":
            raise
        if error.name is None:  # Ours, which says what to install.
            return _fail(str(error))
        return _fail(
            f'{error.name} is not installed: pip install "sevo-jax[train]" has all '
            "that the commands need"
        )
    except FloatingPointError as error:
        return _fail(str(error), status=1)
    except OSError as error:
        if error.filename is not None:
            return _fail(f"{error.filename}: {error.strerror}")
        if error.errno is None or not _is_ours(error):
            return _fail(str(error))
        # Files have names.
        _drop_output()
        return _fail(f"standard output: {error.strerror}")
    except (TypeError, ValueError) as error:
        if not _is_ours(error):
            raise
        return _fail(str(error))
    return 0


def _run(args: Sequence[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(_OVERVIEW, end="")
    elif args[0] == "--version":
        from sevo_jax import __version__

        print(f"sevo-jax {__version__}")
    elif args[0] in _COMMANDS:
        name, *rest = args
        for arg in rest:
            # The parser of options would print it whole.
            if len(arg) > _LONGEST_OPTION:
                raise ValueError(
                    f"{arg!r:.80}... has {len(arg)} characters: an option has "
                    f"{_LONGEST_OPTION} at most"
                )
        if any(arg.startswith("--plugin") for arg in rest):
            from sevo_jax.cli._plugin import load_plugin

            load_plugin(rest)
        module = importlib.import_module(f"{__name__}.{_COMMANDS[name]}")
        getattr(module, name)(rest)
    else:
        raise ValueError(
            f"there is no command {args[0]!r:.80}: choose {', '.join(_COMMANDS)}"
        )


def _open_streams() -> None:
    """Makes sure that output can be written, whatever the process was given."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # Closed.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            # Where there is no "±", a code for it is better than no table.
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Spares what is left of the output the flush at exit, which would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupted(args: list[str]) -> int:
    message = "interrupted"
    if args[0] in _RESUMABLE:
        again = [arg for arg in args if arg != "--resume"] + ["--resume"]
        message += f"; to continue: sevo-jax {shlex.join(again)}"
    print(f"\nsevo-jax: {message}", file=sys.stderr)
    return 130


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised the error: its own messages are for users.

    One that surfaces from deep inside another library is a defect, and its traceback
    is what we want to see.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] == "sevo_jax"


def _fail(message: str, status: int = 2) -> int:
    line = " ".join(message[:_LONGEST_MESSAGE].split())
    if len(message) > _LONGEST_MESSAGE:
        line += " ..."
    print(f"sevo-jax: error: {line}", file=sys.stderr)
    return status
