"""The folder of a model: locks, replacing an old model, and tensors on disk.

A model is a folder of safetensors and JSON files, never a pickle. Each file is replaced at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from .errors import UserError
from .files import corrupted, sync, write_atomic, writing

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
VOCAB = "vocab.json"
CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
BOARD = "tensorboard"  # a folder

# What every model has, and what a folder may hold besides if it holds a model of rnnfast.
MODEL_FILES = frozenset({WEIGHTS, CONFIG, VOCAB})
RUN_FILES = MODEL_FILES | {CHECKPOINT, LOG}
RUN_FOLDERS = frozenset({BOARD})


def is_model(folder: Path) -> bool:
    """Return whether `folder` holds a model, or a run that has so far written its settings."""
    has = {name: (folder / name).exists() for name in MODEL_FILES}
    return has[WEIGHTS] or (has[CONFIG] and has[VOCAB])


_Folder = TypeVar("_Folder", bound="Folder")


class Folder:
    """The folder that a run writes to: a new folder, or one that replaces an old model.

    With `overwrite` the run is written beside the old model and takes its name at the first
    `publish`, when it has weights. Until then the old model is not changed. A symbolic link stays a
    link, to the new folder. The new folder has the mode of the old one.

    A folder is locked until `close`, so that no other run, of any process, writes to it. Some file
    systems, such as NFS, cannot lock folders.

    Args:
        path: The folder.
        overwrite: Replace a model that the folder holds.
        resume: Go on in the folder of an earlier run.
        files: The names of the files that the folder may hold. By default they are those of any
            model of rnnfast, so that one kind of model may replace another.
        folders: The names of the folders that the folder may hold, in the same way.
        checkpoint: The name of the file that a model needs to be resumed, for messages.

    Raises:
        UserError: The folder holds other files, it holds a model and `overwrite` is false, another
            run is writing there, or it cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        overwrite: bool = False,
        resume: bool = False,
        *,
        files: Collection[str] = RUN_FILES,
        folders: Collection[str] = RUN_FOLDERS,
        checkpoint: str | None = None,
    ):
        self.path = self.final = Path(path)
        # The folder to rename. Messages have the name that was given.
        self._real = Path(os.path.realpath(path))
        self._files, self._folders, self._checkpoint = files, folders, checkpoint
        self._locks: list[int] = []  # the descriptors of locked folders
        weakref.finalize(self, _unlock, self._locks)
        try:
            if resume:
                self.lock()
                for entry in self.path.iterdir():
                    if _is_temporary(entry.name):  # left by a run that was killed while it wrote
                        entry.unlink(missing_ok=True)
                return
            with writing(self.final):
                if not self.final.exists():
                    self._real.mkdir(parents=True, exist_ok=True)
                elif not self.final.is_dir():
                    raise UserError(f"{self.final} is a file: give --out another name")
                self.lock()
                self._check_replaceable(overwrite)
                if (self.final / WEIGHTS).exists():
                    self.path = self._beside()
                    self._locks.append(_lock(self.path))
                else:
                    self._clear()  # files of a run that was killed before it saved a model
        except BaseException:
            self.close()
            raise

    def _check_replaceable(self, overwrite: bool) -> None:
        names = sorted(entry.name for entry in self.final.iterdir())
        own = {*self._files, *self._folders}
        foreign = [name for name in names if name not in own and not _is_temporary(name)]
        if foreign:
            raise UserError(
                f"{self.final} holds files that are not a model's ({foreign[0]}"
                f"{', ...' if len(foreign) > 1 else ''}): give --out another folder"
            )
        if WEIGHTS in names and not overwrite:
            resumable = self._checkpoint in names
            resume = f", --resume {self.final} to go on with it" if resumable else ""
            raise UserError(
                f"{self.final} holds a model: give --out another folder, --overwrite to replace "
                f"it{resume}"
            )

    def _beside(self) -> Path:
        path = Path(tempfile.mkdtemp(".new", f".{self._real.name}.", self._real.parent))
        shutil.copymode(self._real, path)
        return path

    @classmethod
    def fresh(cls: type[_Folder], name: str = "rnnfast-model") -> _Folder:
        """Make the first folder of name, name-2, name-3, ... that does not exist yet."""
        number = 1
        while True:
            path = Path(name if number == 1 else f"{name}-{number}")
            with writing(path):
                try:
                    path.mkdir()
                    return cls(path)
                except FileExistsError:
                    number += 1

    def write_weights(self, tensors: dict[str, torch.Tensor]) -> None:
        """Write the weights by name, and give the folder its final name."""
        write_atomic(self.path / WEIGHTS, to_bytes(tensors, {"format": "pt"}))
        self.publish()

    def publish(self) -> None:
        """Rename the folder to its final name, if it was written beside an old model."""
        if self.path == self.final:
            return
        self._close_files()  # the path of open files is about to change
        with writing(self.final):
            old = self.path.with_suffix(".old")
            os.rename(self._real, old)
            try:
                os.rename(self.path, self._real)
            except BaseException as error:
                os.rename(old, self._real)
                if isinstance(error, OSError):
                    why = f"{error.strerror}; the new model is in {self.path}"
                    raise UserError(f"cannot write {self.final}: {why}") from error
                raise
            sync(self._real.parent)
        self.path = self.final
        shutil.rmtree(old, ignore_errors=True)
        _unlock(self._locks[:-1])  # the lock of the old folder, which no longer exists
        del self._locks[:-1]

    def discard(self) -> None:
        """End the run, and remove what it has written if it never had weights."""
        self._close_files()
        try:
            if not (self.path / WEIGHTS).exists():
                self._clear()
                with contextlib.suppress(OSError):
                    self.path.rmdir()
        finally:
            self.close()

    def _clear(self) -> None:
        for name in self._folders:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for entry in self.path.iterdir():
            if entry.name in self._files or _is_temporary(entry.name):
                entry.unlink(missing_ok=True)

    def lock(self) -> None:
        """Keep other runs out until `close`. A new Folder is already locked."""
        if not self._locks:
            folders = dict.fromkeys((self.final, self.path))
            with writing(self.final):
                self._locks.extend(_lock(folder) for folder in folders)

    def close(self) -> None:
        """End the run. To write on, `lock` the folder again."""
        self._close_files()
        _unlock(self._locks)

    def _close_files(self) -> None:
        """Close the files that a subclass keeps open in the folder."""


def _lock(folder: Path) -> int:
    """Return a descriptor that keeps every other caller out until it is closed.

    The system closes it when the process ends, however it ends.
    """
    while True:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(
                f"another run is writing to {folder}: let it end, or give --out another folder"
            ) from error
        except OSError:  # some file systems have no locks
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                return descriptor
        os.close(descriptor)  # another process has just replaced this folder


def _unlock(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def read_tensors(
    path: Path, shapes: dict[str, torch.Size] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    With `shapes` the file must have exactly these names and shapes. Raises UserError, which names
    the file, if it is missing, corrupted, does not match or holds a value that is not finite.
    """
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            if shapes is not None:
                for name in sorted(names ^ shapes.keys()):
                    raise UserError(f"{path} and {CONFIG} do not match: {name} is only in one")
                for name, shape in shapes.items():
                    found = tuple(file.get_slice(name).get_shape())
                    if found != tuple(shape):
                        raise UserError(
                            f"{path} and {CONFIG} with {VOCAB} do not match: {name} is {found}, "
                            f"and it should be {tuple(shape)}"
                        )
            tensors = {name: file.get_tensor(name) for name in names}
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {path.parent} is not a whole model") from error
    except SafetensorError as error:
        raise UserError(corrupted(path, str(error).splitlines()[0])) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(corrupted(path, f"{name} is not finite"))
    return tensors, metadata
