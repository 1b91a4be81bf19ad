"""Start a run, resume a run, or train a model in one call."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from ..._common.errors import UserError
from ..._common.runtime import rank, set_up
from ..._common.text import Text, parts
from ..config import Config
from ..data.batches import memory_map
from ..data.corpus import Corpus, Fingerprint, read
from ..data.vocabulary import CHAR, Vocabulary
from ..neural import width
from ..neural.models import NeuralLM, build
from ..storage import RunFolder, load_folder, read_checkpoint, read_settings, weights
from . import board
from .report import report
from .trainer import Trainer

# The settings that a resumed run may change: the budget, and settings that have no influence on the
# result. The number of threads, the device, torch.compile and a CUDA graph change it only by
# rounding.
RESUMABLE = {"epochs", "max_seconds", "log_interval", "checkpoint_interval", "tensorboard"}
RESUMABLE |= {"threads", "device", "compile", "cuda_graph"}

# The end of messages about a run without a source. `rnnfast compare` makes some of them, because it
# divides one text into three, which `rnnfast train` cannot do.
_COMPARED = ". rnnfast compare goes on with its own runs: give it the same text and --out"


@dataclass(frozen=True)
class Streams:
    """The texts of a corpus as token numbers, which several runs may share.

    Attributes:
        vocab: The vocabulary.
        train: The stream to train on, integers (n,). It may be a memory map.
        valid: The stream to validate on, int64 (n,).
        test: The stream to test on, int64 (n,), or None.
        sha256: The fingerprint of the corpus.
    """

    vocab: Vocabulary
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray | None
    sha256: str


def prepare(
    config: Config,
    corpus: Corpus,
    folder: RunFolder | None = None,
    streams: Streams | None = None,
) -> Trainer:
    """Prepare a new run: build the vocabulary, encode the texts and make a model.

    `train` does this and runs the trainer. Use `prepare` to watch the run or to stop it.

    Args:
        config: The settings. `config.seed` seeds torch's generator, which initialises the model.
        corpus: The texts.
        folder: The folder of the run; see `lm.train` for what is written there. It is removed again
            if the run cannot be prepared.
        streams: What `encode` returned for these texts and settings. None reads the texts.

    Returns:
        A `Trainer`, whose method `run` trains the model. `lm.report(trainer)` then returns the
        figures of the run.

    Raises:
        UserError: The device is not available, a text is too short, a package is missing, or an
            argument is of another type.
    """
    try:
        if not isinstance(config, Config):
            raise UserError(
                "config must be a Config, as lm.Config.defaults(level) makes one, not "
                f"{type(config).__name__}"
            )
        if not isinstance(corpus, Corpus):
            raise UserError(
                "corpus must be a Corpus, as lm.corpus.split(text) makes one, not "
                f"{type(corpus).__name__}"
            )
        set_up(config.device, config.threads)
        if config.tensorboard:
            board.check()
        if streams is None:
            streams = encode(build_vocabulary(config, corpus), corpus, folder)
        torch.manual_seed(config.seed)
        model = build(config, streams.vocab)
        width.initialise(model, config.relative_width)
        trainer = Trainer(model, config, streams.train, streams.valid, streams.test, folder)
        if folder is not None:
            about = {"source": corpus.source, "sha256": streams.sha256}
            folder.write_settings(config, streams.vocab, about)
        return trainer
    except BaseException:
        if folder is not None:
            folder.discard()
        raise


def build_vocabulary(config: Config, corpus: Corpus) -> Vocabulary:
    """Return the vocabulary that a run with the settings `config` has for a corpus."""
    texts = [corpus.train if corpus.vocab is None else corpus.vocab]
    if config.level == CHAR:
        # A character of valid that train does not have would stop the run.
        every = (corpus.vocab, corpus.train, corpus.valid, corpus.test)
        texts = [text for text in every if text]
    words = itertools.chain.from_iterable(map(parts, texts))
    return Vocabulary.build(config.level, words, config.min_count, config.max_vocab)


def resume(
    path: str | Path,
    changes: dict,
    corpus: Corpus | None = None,
    finished: bool = False,
    streams: Streams | None = None,
) -> Trainer:
    """Prepare to resume the run in a folder.

    Args:
        path: The folder of the run.
        changes: Settings by name. The budget may be raised, and `log_interval`,
            `checkpoint_interval`, `tensorboard`, `threads`, `device`, `compile` and `cuda_graph`
            may change. Any other setting must be the one that the run has. None means no change.
        corpus: The texts that the run began with. None reads them again from their files.
        finished: Return also a run whose budget is used up.
        streams: What `encode` returned for these texts and the vocabulary of the run. None reads
            the texts.

    Returns:
        A `Trainer`, whose method `run` goes on from the last checkpoint. `lm.report(trainer)` then
        returns the figures of the run.

    Raises:
        UserError: The folder has no run, the run is finished, a setting or the text is not that of
            the run, or a file is missing or corrupted.

    Example:
        >>> import tempfile
        >>> from rnnfast import lm
        >>> corpus = lm.corpus.split("the cat sat on the mat\\n" * 50)
        >>> config = lm.Config.defaults("char", nhid=16, batch_size=4, bptt=20, epochs=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model, report = lm.train(config, corpus, folder)
        ...     trainer = lm.resume(folder, {"epochs": 2}, corpus)
        ...     trainer.run()
        >>> trainer.epoch
        2.0
    """
    config, vocab, about = read_settings(path)
    check_settings(path, config, changes)
    changes = {name: value for name, value in changes.items() if value is not None}
    changed = replace(config, **changes)
    set_up(changed.device, changed.threads)
    if changed.tensorboard:
        board.check()
    folder = None if rank() else RunFolder(path, resume=True)
    with contextlib.ExitStack() as unless_it_goes_on:
        if folder is not None:
            unless_it_goes_on.callback(folder.close)
        best = weights(load_folder(path))  # this also checks every file except the checkpoint
        tensors, state = read_checkpoint(path)
        corpus = corpus or _reread(path, about)
        try:
            streams = streams or encode(vocab, corpus, folder)
        except UserError:
            # A character is not in the vocabulary. If the text is not the one that the run began
            # with, that is what the user has to know.
            _check_text(path, about, corpus.fingerprint())
            raise
        _check_text(path, about, streams.sha256)
        texts = (streams.train, streams.valid, streams.test)
        trainer = Trainer(build(changed, vocab), changed, *texts, folder)
        try:
            trainer.restore(tensors, state, best)
        except (KeyError, TypeError, RuntimeError) as error:
            raise UserError(
                f"the checkpoint in {path} is corrupted or belongs to other settings: start a new "
                "run"
            ) from error
        if trainer.finished and trainer.state.step == trainer.state.validated_step:
            if finished:
                return trainer
            raise UserError(
                f"the run in {path} is finished ({trainer.epoch:.4g} epochs, "
                f"{trainer.state.seconds:.4g} s): raise --epochs or --max-seconds to go on"
            )
        if folder is not None:
            folder.write_settings(changed, vocab, {**about, "source": corpus.source})
            folder.cut_log(trainer.state.step, trainer.state.validated_step)
        unless_it_goes_on.pop_all()
    return trainer


def check_settings(path: str | Path, config: Config, changes: dict) -> None:
    """Raise UserError if `changes` has a setting that the run in a folder cannot change.

    `config` are the settings of the run. None in `changes` means no change.
    """
    for field in fields(Config):
        asked, has = changes.get(field.name), getattr(config, field.name)
        if asked is not None and asked != has and field.name not in RESUMABLE:
            name = field.name.replace("_", "-")
            made = (
                "was made without it: leave it out"
                if has is None
                else f"has {has}: give that value"
            )
            raise UserError(
                f"--{name} {asked} was asked for but the checkpoint in {path} {made}, or start a "
                "new run"
            )


def _reread(path: str | Path, about: dict) -> Corpus:
    source = about.get("source") or {}
    if not source:
        raise UserError(
            f"the run in {path} does not know which files its text is in: give its text{_COMPARED}"
        )
    return read(**{name: file for name, file in source.items() if name != "builtin"})


def _check_text(path: str | Path, about: dict, sha256: str) -> None:
    if sha256 != about.get("sha256"):
        raise UserError(
            f"the text is not the one that the run in {path} began with: give that text, or start "
            f"a new run{'' if about.get('source') else _COMPARED}"
        )


def encode(vocab: Vocabulary, corpus: Corpus, folder: RunFolder | None = None) -> Streams:
    """Return the texts of a corpus as token numbers. Each text is read once.

    Train is mapped from the disk if it need not fit in memory. The file is in `folder`, or where
    temporary files are if that is None.

    Raises:
        UserError: The validation text is empty, or a character is not in the vocabulary.
    """
    fingerprint = Fingerprint()
    text = fingerprint.reading(corpus.train)
    if isinstance(text, Text):
        train = memory_map(vocab, text, None if folder is None else folder.path)
    else:
        train = vocab.encode_stream(text)
    valid = vocab.encode_stream(fingerprint.reading(corpus.valid))
    if len(valid) == 0:
        raise UserError("the validation text is empty: give more text")
    test = vocab.encode_stream(fingerprint.reading(corpus.test or ""))
    absent = corpus.test is None
    return Streams(vocab, train, valid, None if absent else test, fingerprint.hexdigest())


def train(
    config: Config, corpus: Corpus, out: str | Path | None = None, overwrite: bool = False
) -> tuple[NeuralLM, dict]:
    """Train a language model.

    With torch.distributed, every process of the default group calls this function. Together they
    train one model.

    Args:
        config: The settings; see `Config.defaults`.
        corpus: The texts to train, to validate and, if there is one, to test on.
        out: The folder to write the run to: the model with the best validation, checkpoints and the
            log. None writes nothing.
        overwrite: Replace a model that `out` already holds.

    Returns:
        The model with the weights of the best validation, and the report of the run, a dict. Its
        losses are in nats per token.

    Raises:
        UserError: A setting or a text cannot be used, `out` holds a model or other files, or the
            loss is no longer finite.
        Interrupted: SIGINT or SIGTERM stopped the run. It is saved in `out` and can be resumed.

    Example:
        >>> from rnnfast import lm
        >>> corpus = lm.corpus.split("the cat sat on the mat\\n" * 100)
        >>> config = lm.Config.defaults("char", nhid=32, batch_size=4, bptt=20, epochs=3)
        >>> model, report = lm.train(config, corpus)
        >>> report["valid_loss"] < report["baselines"]["bigram"]["valid_loss"]
        True
    """
    folder = None if out is None or rank() else RunFolder(out, overwrite)
    trainer = prepare(config, corpus, folder)
    trainer.run()
    return trainer.model, report(trainer)
