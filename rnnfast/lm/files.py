"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import UserError


def write_atomic(path: str | Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file so that its name holds the old content or the new, whatever happens.

    The data, all at once or in pieces, goes to a temporary name beside it, to the disk (fsync),
    and is then renamed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                file.writelines([data] if isinstance(data, bytes) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def check_writable(path: str | Path, option: str) -> None:
    """Raise UserError for a file that cannot be: before the work, not after an hour of it."""
    path = Path(path)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: give {option} a file in a folder")


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
