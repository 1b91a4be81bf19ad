"""Write files completely or not at all, and read and write JSON files."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import UserError

STREAMS = ("/dev/stdin", "/dev/stdout", "/dev/stderr")  # in the order of their descriptors


def write_atomic(path: str | Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file so that its name has either the old content or the new content at any time.

    The data, all at once or in pieces, is written to a temporary file in the same folder and synced
    to the disk. Then that file is renamed. A symbolic link stays a link, to the new file. A pipe or
    a device is written to directly. So is a file that this process has open, such as /dev/stdout,
    in the right order with the rest of the output. Raises UserError if the file cannot be written.
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
    """Raise UserError if a file cannot be written.

    Commands call this before they start, so that an hour of work is not lost. `option` is the name
    of the option that named the file.
    """
    place = path if _is_special(path) else os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path) or not os.access(place, os.W_OK):
        raise UserError(
            f"cannot write {path}: give {option} a file in a folder that can be written"
        )


def _is_special(path: str | Path) -> bool:
    """Return whether `path` exists and is not a regular file, so that it cannot be replaced."""
    if _open_descriptor(path) is not None:
        return True
    return os.path.exists(path) and not os.path.isfile(path)


def _open_descriptor(path: str | Path) -> int | None:
    """Return the descriptor that a name such as /dev/stdout stands for, or None."""
    name = os.path.abspath(path)
    if name in STREAMS:
        return STREAMS.index(name)
    match = re.fullmatch(r"(?:/dev|/proc/self)/fd/(\d+)", name)
    return int(match[1]) if match else None


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError in the body of a `with` statement into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def sync(folder: Path) -> None:
    """Sync a folder to the disk, which makes the renames in it permanent."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finite(data: Any) -> Any:
    """Return `data` with None for each float that JSON has no number for: infinity and NaN."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def to_json(data: object) -> bytes:
    """Return `data` as the bytes of a JSON file: UTF-8, indented by one space."""
    return (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "surrogatepass")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of a model. Raise UserError if it cannot be read."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {path.parent} is not a whole model") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(corrupted(path, "not JSON")) from error


def corrupted(path: Path, why: object) -> str:
    """Return the message for a file of a model whose content is wrong."""
    return f"{path} is corrupted ({why}): restore it, or train the model again"
