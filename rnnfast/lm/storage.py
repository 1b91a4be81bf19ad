"""A model on disk: a folder of safetensors and JSON, never a pickle, every file replaced at once.

model.safetensors       the weights of the best validation so far
config.json             the settings, and which corpus
vocab.json              the tokens
checkpoint.safetensors  all that a resume needs; its metadata holds the numbers as JSON, so
                        that tensors and numbers can never be of two different moments
log.jsonl               one line every log interval and every validation
tensorboard             the same numbers for TensorBoard, on request
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import weakref
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from .._version import __version__
from . import arpa
from .board import Board
from .config import Config
from .errors import MissingPackage, UserError, check_device
from .files import CONFIG, VOCAB, WEIGHTS, sync, write_atomic, writing
from .model import NeuralLM, build
from .ngram import NgramLM
from .vocab import Vocabulary

FORMAT = 1
CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
FILES = {WEIGHTS, CONFIG, VOCAB, CHECKPOINT, LOG}
BOARD = "tensorboard"


def to_json(data) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "surrogatepass")


class Folder:
    """Where a run writes: a fresh folder, or one that takes an old model's place.

    With `overwrite` the run is written beside the old model and takes its name at the first
    `publish`, when it has a model to show; until then the old one stays as it is. A link stays one,
    to the new folder, which has the old one's mode. Raises UserError if `path` holds anything but a
    model, a model and `overwrite` is false, or if another run, of any process, is writing there: it
    has the folder locked until `close`, where the file system has locks of folders (NFS has none).
    """

    def __init__(self, path: str | Path, overwrite: bool = False, resume: bool = False):
        self.path = self.final = Path(path)
        self._real = Path(os.path.realpath(path))  # is renamed; messages have the name given
        self._board: Board | None = None
        self._locks: list[int] = []  # descriptors of folders
        weakref.finalize(self, _unlock, self._locks)
        try:
            if resume:
                self.lock()
                for entry in self.path.iterdir():
                    if _is_temporary(entry.name):  # of a run that was killed while it wrote
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
                    self._clear()  # of a run that was killed before it saved a model
        except BaseException:
            self.close()
            raise

    def _check_replaceable(self, overwrite: bool) -> None:
        names = sorted(entry.name for entry in self.final.iterdir())
        foreign = [n for n in names if n not in FILES | {BOARD} and not _is_temporary(n)]
        if foreign:
            raise UserError(
                f"{self.final} holds files that are not a model's ({foreign[0]}"
                f"{', ...' if len(foreign) > 1 else ''}): give --out another folder"
            )
        if WEIGHTS in names and not overwrite:
            resume = f", --resume {self.final} to go on with it" if CHECKPOINT in names else ""
            raise UserError(
                f"{self.final} holds a model: give --out another folder, --overwrite to replace "
                f"it{resume}"
            )

    def _beside(self) -> Path:
        path = Path(tempfile.mkdtemp(".new", f".{self._real.name}.", self._real.parent))
        shutil.copymode(self._real, path)
        return path

    @classmethod
    def fresh(cls, name: str = "rnnfast-model") -> Folder:
        """The first of name, name-2, name-3, ... that is not there yet, made now."""
        number = 1
        while True:
            path = Path(name if number == 1 else f"{name}-{number}")
            with writing(path):
                try:
                    path.mkdir()
                    return cls(path)
                except FileExistsError:
                    number += 1

    def publish(self) -> None:
        """Give the run its name, if it was written beside an old model."""
        if self.path == self.final:
            return
        self._close_board()  # it writes to a path that is about to go
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
        _unlock(self._locks[:-1])  # what is gone
        del self._locks[:-1]

    def discard(self) -> None:
        """The end of a run; what it has written is removed if it never had a model to show."""
        self._close_board()
        try:
            if not (self.path / WEIGHTS).exists():
                self._clear()
                with contextlib.suppress(OSError):
                    self.path.rmdir()
        finally:
            self.close()

    def _clear(self) -> None:
        shutil.rmtree(self.path / BOARD, ignore_errors=True)
        for entry in self.path.iterdir():
            if entry.name in FILES or _is_temporary(entry.name):
                entry.unlink(missing_ok=True)

    def write_settings(self, config: Config, vocab: Vocabulary, corpus: dict) -> None:
        """`config.json` and `vocab.json`; `corpus` says what was read and its fingerprint."""
        write_atomic(self.path / VOCAB, to_json(vocab.to_json()))
        about = {"format": FORMAT, "rnnfast": __version__, "torch": torch.__version__}
        settings = {**about, "config": config.to_json(), "corpus": corpus}
        write_atomic(self.path / CONFIG, to_json(settings))

    def write_weights(self, tensors: dict[str, torch.Tensor]) -> None:
        write_atomic(self.path / WEIGHTS, to_bytes(tensors, {"format": "pt"}))
        self.publish()

    def write_checkpoint(self, tensors: dict[str, torch.Tensor], state: dict) -> None:
        write_atomic(self.path / CHECKPOINT, to_bytes(tensors, {"state": json.dumps(state)}))

    def log(self, record: dict, tensorboard: bool = False) -> None:
        path = self.path / LOG
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if tensorboard:
            with writing(self.path / BOARD):
                self._board = self._board or Board(self.path / BOARD, record["step"])
                self._board.log(record)

    def lock(self) -> None:
        """Keep other runs out until `close`, as a new Folder does already."""
        if not self._locks:
            folders = dict.fromkeys((self.final, self.path))
            with writing(self.final):
                self._locks.extend(_lock(folder) for folder in folders)

    def close(self) -> None:
        """The end of a run. Who goes on to write has to `lock` again."""
        self._close_board()
        _unlock(self._locks)

    def _close_board(self) -> None:
        # Writes out what TensorBoard is to show. The next `log` begins another file of it.
        if self._board is not None:
            self._board.close()
            self._board = None

    def cut_log(self, step: int, validated_step: int) -> None:
        """Drop what was logged after the last step and validation: a resumed run logs it anew."""
        path = self.path / LOG
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        kept = []
        for line in lines:
            # The last line of a killed run may be half a line.
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if record["step"] <= (validated_step if "valid_loss" in record else step):
                    kept.append(line)
        write_atomic(path, "".join(kept).encode("utf-8"))


def _lock(folder: Path) -> int:
    """A descriptor that keeps out everyone else who asks for one, until it is closed.

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
        except OSError:  # there are file systems without locks
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                return descriptor
        os.close(descriptor)  # of a folder that has just been replaced


def _unlock(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def weights(model: NeuralLM) -> dict[str, torch.Tensor]:
    """Copies of the parameters by name, on the CPU; a shared one (tied) once."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


def save(model: NeuralLM, config: Config, path: str | Path, overwrite: bool = False) -> None:
    """Save a model as a folder that `load` reads. An existing model is kept unless `overwrite`."""
    with contextlib.closing(Folder(path, overwrite)) as folder:
        folder.write_settings(config, model.vocab, {})
        folder.write_weights(weights(model))


def load(path: str | Path, device: str = "cpu") -> NeuralLM | NgramLM:
    """The model of a folder, or of an ARPA file, ready to evaluate, score and generate.

    A NeuralLM is on `device` and in eval mode. Raises UserError, with the file's name, for a file
    that is missing, corrupted or does not match the others, and for a device that is not there.
    """
    check_device(device)
    if Path(path).is_file():
        return arpa.read(path)
    if not Path(path).is_dir():
        raise UserError(
            f"there is no model {path}: give a folder that rnnfast train made, or an ARPA file"
        )
    config, vocab, _ = read_settings(path)
    try:
        # The shapes come first, and cost nothing: a wrong config could ask for any memory.
        with torch.device("meta"):
            shapes = {name: p.shape for name, p in _build(config, vocab).named_parameters()}
        tensors, _ = read_tensors(Path(path) / WEIGHTS, shapes)
    except RuntimeError as error:
        raise UserError(f"{Path(path) / CONFIG}: no model can have these sizes") from error
    model = _build(config, vocab)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
    return model.to(device).eval()


def _build(config: Config, vocab: Vocabulary) -> NeuralLM:
    # Not the caller's random numbers: loading a model must not change what comes after.
    with torch.random.fork_rng(devices=[]):
        return build(config, vocab)


def read_settings(path: str | Path) -> tuple[Config, Vocabulary, dict]:
    """Config, vocabulary and the record of the corpus. Raises UserError as `load` does."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"there is no model folder {path}: give one that rnnfast train made")
    settings = read_json(path / CONFIG)
    if isinstance(settings, dict) and "estimator" in settings:
        raise UserError(
            f"{path} holds a {settings['estimator']}, not a language model: give a folder that "
            "rnnfast train made"
        )
    try:
        if settings["format"] != FORMAT:
            raise UserError(f"format {settings['format']} is not {FORMAT}, which this reads")
        config = Config.from_json(settings["config"])
        corpus = settings["corpus"]
    except (KeyError, TypeError, UserError) as error:
        raise UserError(corrupted(path / CONFIG, error)) from error
    try:
        vocab = Vocabulary.from_json(read_json(path / VOCAB))
        if vocab.level != config.level:
            raise UserError(f"level {vocab.level} is not the {config.level} of {CONFIG}")
    except MissingPackage:
        raise
    except UserError as error:
        message = str(error)
        if str(path) not in message:
            message = corrupted(path / VOCAB, error)
        raise UserError(message) from error
    return config, vocab, corpus


def corrupted(path: Path, why: object) -> str:
    return f"{path} is corrupted ({why}): restore it, or train the model again"


def read_json(path: Path):
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {path.parent} is not a whole model") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(corrupted(path, "not JSON")) from error


def read_tensors(
    path: Path, shapes: dict[str, torch.Size] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, which must have the names and `shapes` given."""
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
                            f"they say {tuple(shape)}"
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


def read_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and state of a run; see `Trainer.checkpoint`."""
    file = Path(path) / CHECKPOINT
    if not file.exists():
        raise UserError(f"{file} is missing: {path} has no run to go on with")
    tensors, metadata = read_tensors(file)
    try:
        return tensors, json.loads(metadata["state"])
    except (KeyError, ValueError) as error:
        raise UserError(corrupted(file, "no state")) from error
