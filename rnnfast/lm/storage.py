"""Language models on disk.

A model is a folder of these files:

- `model.safetensors`: the weights of the best validation so far.
- `config.json`: the settings, and where the corpus came from.
- `vocab.json`: the tokens.
- `checkpoint.safetensors`: everything that a resumed run needs. The numbers are JSON in its
  metadata, so that tensors and numbers are always those of the same moment.
- `log.jsonl`: one line for every log interval and every validation.
- `tensorboard`: a folder with the log for TensorBoard, on request.

There is no pickle, and each file is replaced at once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save as to_bytes

from .._common.errors import MissingPackage, UserError
from .._common.files import corrupted, read_json, to_json, write_atomic, writing
from .._common.runtime import check_device
from .._common.storage import (
    BOARD,
    CHECKPOINT,
    CONFIG,
    LOG,
    RUN_FILES,
    VOCAB,
    WEIGHTS,
    Folder,
    read_tensors,
)
from .._version import __version__
from .config import Config
from .data.vocabulary import Vocabulary
from .neural.join import join
from .neural.models import RNNLM, NeuralLM, build
from .ngram import arpa
from .ngram.model import NgramLM

FORMAT = 1


class Board(Protocol):
    """A second place where the records of a run are shown."""

    def log(self, record: dict) -> None:
        """Show one record of the log."""

    def close(self) -> None:
        """Write what is still in memory."""


class RunFolder(Folder):
    """The folder of a language model and of the run that trains it."""

    _board: Board | None = None

    def __init__(self, path: str | Path, overwrite: bool = False, resume: bool = False):
        super().__init__(path, overwrite, resume, checkpoint=CHECKPOINT)

    def write_settings(self, config: Config, vocab: Vocabulary, corpus: dict) -> None:
        """Write `config.json` and `vocab.json`.

        `corpus` says where the text came from ("source") and has its fingerprint ("sha256").
        """
        write_atomic(self.path / VOCAB, to_json(vocab.to_json()))
        about = {"format": FORMAT, "rnnfast": __version__, "torch": torch.__version__}
        settings = {**about, "config": config.to_json(), "corpus": corpus}
        write_atomic(self.path / CONFIG, to_json(settings))

    def write_checkpoint(self, tensors: dict[str, torch.Tensor], state: dict) -> None:
        """Write what `Trainer.checkpoint` returns."""
        write_atomic(self.path / CHECKPOINT, to_bytes(tensors, {"state": json.dumps(state)}))

    def log(self, record: dict, board: Callable[[Path, int], Board] | None = None) -> None:
        """Append a record to the log.

        `board`, if it is given, makes the board in the folder `tensorboard` that shows the record
        as well. It is called with the path of that folder and the step at which the board begins.
        """
        path = self.path / LOG
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if board is not None:
            with writing(self.path / BOARD):
                self._board = self._board or board(self.path / BOARD, record["step"])
                self._board.log(record)

    def _close_files(self) -> None:
        # The next `log` makes another board, which begins a new event file.
        if self._board is not None:
            self._board.close()
            self._board = None

    def abandon(self, good: dict[str, torch.Tensor] | None = None) -> str:
        """End a run whose loss or gradient is not finite. Return what is left of it, as a phrase.

        `good` are weights to save if the folder has none. They do not replace an older model.
        """
        replaces = self.path != self.final
        if good is not None and not replaces:
            self.write_weights(good)
        self.discard()  # removes the folder only if it has no weights
        if replaces:
            return f"the model in {self.final} is as it was"
        if (self.final / WEIGHTS).exists():
            return f"the last good weights are in {self.final}"
        return "there was no good model to save yet"

    def cut_log(self, step: int, validated_step: int) -> None:
        """Drop the records after `step`, and the validations after `validated_step`.

        A resumed run makes these steps again, and logs them again.
        """
        path = self.path / LOG
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        kept = []
        for line in lines:
            # The last line of a run that was killed may be incomplete.
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if record["step"] <= (validated_step if "valid_loss" in record else step):
                    kept.append(line)
        write_atomic(path, "".join(kept).encode("utf-8"))


def weights(model: NeuralLM) -> dict[str, torch.Tensor]:
    """Return copies of the parameters by name, on the CPU. A shared parameter occurs once."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


def save(model: NeuralLM, config: Config, path: str | Path, overwrite: bool = False) -> None:
    """Save a model as a folder that `load` reads.

    Args:
        model: The model.
        config: The settings that the model was built with.
        path: The folder. It is created if it does not exist.
        overwrite: Replace a model that the folder already holds.

    Raises:
        UserError: The folder holds a model and `overwrite` is false, it holds other files, or it
            cannot be written.
    """
    with contextlib.closing(RunFolder(path, overwrite)) as folder:
        folder.write_settings(config, model.vocab, {})
        folder.write_weights(weights(model))


def load(path: str | Path, device: str = "cpu") -> NeuralLM | NgramLM:
    """Load a model to evaluate, score or generate with.

    Args:
        path: A folder that `train` or `save` made, or an ARPA file of an n-gram model, which may be
            compressed.
        device: Where a neural model goes.

    Returns:
        A `NeuralLM` in eval mode for a folder, an `NgramLM` for an ARPA file.

    Raises:
        UserError: A file is missing, corrupted or does not match the others, or the device is not
            available. The message names the file.

    Example:
        >>> import tempfile
        >>> from rnnfast import lm
        >>> config = lm.Config.defaults("char", emsize=8, nhid=8, epochs=1)
        >>> model = lm.RNNLM(lm.Vocabulary.build("char", ["abc\\n"]), emsize=8, nhid=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lm.save(model, config, folder)
        ...     loaded = lm.load(folder)
        >>> loaded.score("abc") == model.score("abc")
        True
    """
    check_device(device)
    if Path(path).is_file():
        if Path(path).name in RUN_FILES:
            raise UserError(f"{path} is a part of a model: give the folder, {Path(path).parent}")
        return arpa.read(path)
    if not Path(path).is_dir():
        raise UserError(
            f"there is no model {path}: give a folder that rnnfast train made, or an ARPA file"
        )
    return load_folder(path, device)


def load_folder(path: str | Path, device: str = "cpu") -> NeuralLM:
    """Load a neural model as `load` does."""
    config, vocab, _ = read_settings(path)
    try:
        # A corrupted config could ask for any amount of memory. Models on the device "meta" need
        # none, so the shapes are compared with those of the file before the model is built.
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
    # Loading a model must not change the random numbers that the caller draws afterwards.
    with torch.random.fork_rng(devices=[]):
        return build(config, vocab)


def join_folders(paths: Sequence[str | Path]) -> tuple[RNNLM, Config]:
    """Join saved models as `join` does. Return the model, and settings to save it with.

    Raises UserError as `load` and `join` do.
    """
    joined = join([load(path) for path in paths])
    config, _, _ = read_settings(paths[0])
    emsize, nhid = joined.encoder.embedding_dim, joined.rnn.hidden_size
    return joined, replace(config, tied=False, emsize=emsize, nhid=nhid)


def read_settings(path: str | Path) -> tuple[Config, Vocabulary, dict]:
    """Return the settings, the vocabulary and the record of the corpus of a model's folder.

    Raises UserError as `load` does.
    """
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
            raise UserError(f"its format is {settings['format']}, this version reads {FORMAT}")
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


def read_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the tensors and the state of a run, as `Trainer.checkpoint` made them.

    Raises UserError if the file is missing or corrupted.
    """
    file = Path(path) / CHECKPOINT
    if not file.exists():
        raise UserError(f"{file} is missing: {path} has no run that can be resumed")
    tensors, metadata = read_tensors(file)
    try:
        return tensors, json.loads(metadata["state"])
    except (KeyError, ValueError) as error:
        raise UserError(corrupted(file, "no state")) from error
