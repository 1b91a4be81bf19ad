"""Files that are whole or not there; the folder of a model."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import UserError

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
VOCAB = "vocab.json"

STREAMS = ("/dev/stdin", "/dev/stdout", "/dev/stderr")  # by the numbers of their descriptors


def is_model(folder: Path) -> bool:
    """Whether a run writes, or has written, a model there: it begins with settings alone."""
    has = {name: (folder / name).exists() for name in (WEIGHTS, CONFIG, VOCAB)}
    return has[WEIGHTS] or (has[CONFIG] and has[VOCAB])


def write_atomic(path: str | Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file so that its name holds the old content or the new, whatever happens.

    The data, all at once or in pieces, goes to a temporary name beside it, to the disk (fsync),
    and is then renamed. A link stays one to the new file. What is there and no regular file, such
    as a pipe or a device, is written to; so is what this process has open, /dev/stdout for one,
    whatever that is, between what it writes there before and after.
    """
    pieces = [data] if isinstance(data, bytes) else data
    with writing(path):
        if _is_special(path):
            descriptor = _open_descriptor(path)
            if descriptor is not None:
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
            with open(path if descriptor is None else os.dup(descriptor), "wb") as file:
                file.writelines(pieces)
            return
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(target.parent)


def check_writable(path: str | Path, option: str) -> None:
    """Raise UserError for a file that cannot be: before the work, not after an hour of it."""
    place = path if _is_special(path) else os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path) or not os.access(place, os.W_OK):
        raise UserError(f"cannot write {path}: give {option} a file in a folder")


def _is_special(path: str | Path) -> bool:
    """Whether it is there, links followed, and no regular file, which alone can be replaced."""
    if _open_descriptor(path) is not None:
        return True
    return os.path.exists(path) and not os.path.isfile(path)


def _open_descriptor(path: str | Path) -> int | None:
    """The number of what is open already, if that is what the name stands for."""
    name = os.path.abspath(path)
    if name in STREAMS:
        return STREAMS.index(name)
    match = re.fullmatch(r"(?:/dev|/proc/self)/fd/(\d+)", name)
    return int(match[1]) if match else None


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """A full disk or a missing permission is for the user to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def sync(folder: Path) -> None:
    """A rename is on the disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
