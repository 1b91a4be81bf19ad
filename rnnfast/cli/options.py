"""Options that several commands have, and the form that every option has."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from .. import lm
from .._common.errors import DataWarning
from ..lm.data.vocabulary import BPE, LEVELS, WORD
from ..lm.presets import PRESETS
from .output import Output

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Group: TypeAlias = argparse.ArgumentParser | argparse._ArgumentGroup

TEXTS = (
    "A TEXT is a file in UTF-8, which may be compressed with gzip, bzip2, xz or zstd; or a "
    "directory, whose files are read in the order of their paths, except hidden files and the "
    "files of models; or - for standard input."
)
MODEL = "Folder that rnnfast train has made, or ARPA file of an n-gram model, also compressed"
MIN_COUNT = "Replace words that are rarer than this by <unk> (word level)"
MAX_VOCAB = "Keep at most this many tokens (word and BPE level)"
_METAVARS: dict[Callable, str] = {int: "N", float: "X"}
RUN = "Folder that rnnfast train has made"


def as_typed(error: Exception, args: argparse.Namespace) -> str:
    """Return the message of an error, in which the options of the command are named as typed."""
    message = str(error)
    for name in getattr(error, "names", ()):
        if name in args:
            message = re.sub(rf"(?<![\w-]){name}\b", option_name(name), message)
    return message


def option_name(name: str) -> str:
    """Return the option for the attribute `name`, as in `--top-k` for `top_k`."""
    return "--" + name.replace("_", "-")


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace, Output], int],
    about: str,
    *,
    device: bool = True,
    threads: bool = True,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    """Add a command, with the options that every command has, and return its parser.

    The parsed arguments have `run`, and `refuse`, which ends the program with the usage of the
    command and a message.

    Args:
        commands: what `ArgumentParser.add_subparsers` returned.
        name: the command.
        run: the function of the command. It returns the exit status.
        about: what the command does, in one sentence.
        device: whether the command has the option `--device`.
        threads: whether the command has the option `--threads`.
        epilog: text to show after the options.
    """
    sub = commands.add_parser(
        name, help=about, description=about, epilog=epilog, allow_abbrev=False
    )
    sub.set_defaults(run=run, refuse=sub.error)
    sub.add_argument(
        "--json", metavar="PATH", help="Write the result as JSON; - for standard output"
    )
    if threads:
        add_option(sub, "threads", int, "Number of CPU threads", shown="torch's number")
    if device:
        add_option(
            sub, "device", str, "Device to run on: cpu, cuda, cuda:1, ...", "NAME", shown="cpu"
        )
    return sub


def add_option(
    group: Group,
    name: str,
    type_: Callable | None,
    about: str,
    metavar: str | None = None,
    *,
    also: str | None = None,
    shown: object = None,
    **options: Any,
) -> None:
    """Add the option `--name` with its default at the end of its help text.

    Args:
        group: a parser or a group of arguments.
        name: name of the attribute, with underscores.
        type_: a function that makes a value from text. None is for `choices` and `action`.
        about: what the option does.
        metavar: name of the value. None takes N for an int and X for a float.
        also: a second name, with its dashes.
        shown: the default as the help text shows it. None takes `options["default"]`. If that is
            missing as well, the help text shows no default.
        options: further arguments for `add_argument`.
    """
    shown = options.get("default") if shown is None else shown
    if type_ is not None:
        options["type"] = type_
        options["metavar"] = metavar or _METAVARS.get(type_)
    names = [option_name(name), *([also] if also else [])]
    default = "" if shown is None else f" (default: {_text(shown)})"
    group.add_argument(*names, help=about + default, **options)


def add_flag(group: Group, name: str, about: str) -> None:
    """Add the option `--name`, which takes no value and is off by default."""
    group.add_argument(option_name(name), action="store_true", help=about)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def add_setting(
    group: Group,
    name: str,
    type_: Callable | None,
    about: str,
    *,
    note: str | None = None,
    **options: Any,
) -> None:
    """Add an option for a setting of `lm.Config`. Its help text shows the default of each level.

    The value is None if the option is not given. `note` is a further default, and `options` are
    those of `add_option`.
    """
    levels = {level: getattr(lm.Config.defaults(level), name) for level in LEVELS}
    values = dict.fromkeys(value for value in levels.values() if value is not None)
    if len(set(levels.values())) == 1:
        shown = [_text(value) for value in values]
    else:
        names = {value: [n for n, v in levels.items() if v == value] for value in values}
        shown = [f"{_text(value)} for {', '.join(names[value])}" for value in values]
    if note:
        shown.append(note)
    options.setdefault("shown", "; ".join(shown) or None)
    add_option(group, name, type_, about, **options)


def add_preset_option(group: Group) -> None:
    """Add the option `--preset`."""
    about = (
        "Settings of a model and its training for a short, a medium or a long time, the number of "
        "epochs included. Other options override those of the preset"
    )
    add_setting(group, "preset", None, about, choices=PRESETS, shown="none")


def add_text_options(group: Group) -> None:
    """Add the options that say how a text is cut into tokens, with the defaults of `lm.Config`."""
    add_option(group, "level", None, "What a token is", choices=LEVELS, shown="char")
    add_setting(group, "min_count", int, MIN_COUNT)
    add_setting(group, "max_vocab", int, MAX_VOCAB, also="--vocab-size")
    add_vocab_option(group)


def warn_without_effect(args: argparse.Namespace, level: str) -> None:
    """Warn of options of `add_text_options` that were given and have no effect at this level."""
    for name, levels in (("min_count", (WORD,)), ("max_vocab", (WORD, BPE))):
        if getattr(args, name) is not None and level not in levels:
            message = f"{option_name(name)} has no effect at level {level}, only at "
            message += " and ".join(levels)
            warnings.warn(message, DataWarning, stacklevel=2)


def add_vocab_option(group: Group) -> None:
    """Add the option `--vocab`."""
    about = "Text whose words or BPE merges make the vocabulary"
    add_option(group, "vocab", str, about, "TEXT", shown="the training text")


def add_out_options(group: Group, about: str, **options: Any) -> None:
    """Add the options `--out` and `--overwrite` for the folder of a model."""
    add_option(group, "out", str, about, "DIR", **options)
    add_flag(group, "overwrite", "Replace the model in the folder --out")


def plot_path(text: str) -> Path:
    """Return the path of a plot. Raise ArgumentTypeError unless it ends with .png or .svg."""
    path = Path(text)
    if path.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r}: give a name that ends with .png or .svg")
    return path


def add_plot_option(group: Group, about: str) -> None:
    """Add the option `--plot`. `about` says what it draws."""
    add_option(group, "plot", plot_path, f"{about}, in a .png or .svg file", "PATH")
