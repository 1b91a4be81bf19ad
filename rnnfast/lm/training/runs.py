"""A run: from settings and text to a trainer, anew or from where a checkpoint stands."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import fields, replace
from pathlib import Path

import torch

from ..._common.errors import UserError
from ..._common.runtime import rank, set_up
from ..._common.text import Text, parts
from ..config import Config
from ..data.batches import memory_map
from ..data.corpus import Corpus, Fingerprint, read
from ..data.vocabulary import CHAR, Vocabulary
from ..neural.models import NeuralLM, build
from ..storage import RunFolder, load, read_checkpoint, read_settings, weights
from . import board
from .report import report
from .trainer import Trainer

# The settings a resumed run may change: the budget, and what does not bear on the numbers
# (other threads, another device and torch.compile change them by rounding).
RESUMABLE = {"epochs", "max_seconds", "log_interval", "checkpoint_interval", "tensorboard"}
RESUMABLE |= {"threads", "device", "compile"}


def prepare(config: Config, corpus: Corpus, folder: RunFolder | None = None) -> Trainer:
    """A new run: vocabulary, streams, a model seeded with `config.seed`. Raises UserError."""
    try:
        set_up(config.device, config.threads)
        if config.tensorboard:
            board.check()
        texts = [corpus.train if corpus.vocab is None else corpus.vocab]
        if config.level == CHAR:
            # A character of valid that train does not have would stop the run.
            every = (corpus.vocab, corpus.train, corpus.valid, corpus.test)
            texts = [text for text in every if text]
        words = itertools.chain.from_iterable(map(parts, texts))
        vocab = Vocabulary.build(config.level, words, config.min_count, config.max_vocab)
        torch.manual_seed(config.seed)
        model = build(config, vocab)
        *streams, sha256 = _encode(vocab, corpus, folder)
        trainer = Trainer(model, config, *streams, folder=folder)
        if folder is not None:
            folder.write_settings(config, vocab, {"source": corpus.source, "sha256": sha256})
        return trainer
    except BaseException:
        if folder is not None:
            folder.discard()
        raise


def resume(
    path: str | Path, changes: dict, corpus: Corpus | None = None, finished: bool = False
) -> Trainer:
    """The run of a folder, ready to go on, with `finished` also one that has nothing left to do.

    `changes` are settings asked for: the budget may be raised, every other must be what the
    checkpoint has. `corpus` None reads again what the run began with. Raises UserError.
    """
    config, vocab, about = read_settings(path)
    for field in fields(Config):
        asked, has = changes.get(field.name), getattr(config, field.name)
        if asked is not None and asked != has and field.name not in RESUMABLE:
            name = field.name.replace("_", "-")
            raise UserError(
                f"--{name} {asked} was asked for but the checkpoint in {path} has {has}: ask for "
                "that, or start a new run"
            )
    changes = {name: value for name, value in changes.items() if value is not None}
    changed = replace(config, **changes)
    set_up(changed.device, changed.threads)
    if changed.tensorboard:
        board.check()
    folder = None if rank() else RunFolder(path, resume=True)
    with contextlib.ExitStack() as unless_it_goes_on:
        if folder is not None:
            unless_it_goes_on.callback(folder.close)
        best = weights(load(path))  # and with it every file but the checkpoint is seen to be whole
        tensors, state = read_checkpoint(path)
        corpus = corpus or _reread(path, about)
        try:
            *streams, sha256 = _encode(vocab, corpus, folder)
        except UserError:
            # The text may have a character that the vocabulary does not have. If it is not the text
            # that the run began with, the user has to know that instead.
            _check_text(path, about, corpus.fingerprint())
            raise
        _check_text(path, about, sha256)
        trainer = Trainer(build(changed, vocab), changed, *streams, folder=folder)
        try:
            trainer.restore(tensors, state, best)
        except (KeyError, TypeError, RuntimeError) as error:
            raise UserError(
                f"the checkpoint in {path} is corrupted or not of these settings: start a new run"
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


def _reread(path: str | Path, about: dict) -> Corpus:
    source = about.get("source") or {}
    if not source:
        raise UserError(f"the run in {path} was not trained on a file: give its text")
    return read(**{name: file for name, file in source.items() if name != "builtin"})


def _check_text(path: str | Path, about: dict, sha256: str) -> None:
    if sha256 != about.get("sha256"):
        raise UserError(
            f"the text is not the one the run in {path} began with: give that one, or start anew"
        )


def _encode(vocab: Vocabulary, corpus: Corpus, folder: RunFolder | None) -> tuple:
    """Return the token numbers of train, valid and test, and the fingerprint of the corpus.

    Each text is read once for both. Train is mapped from the disk if it need not fit in memory.
    """
    fingerprint = Fingerprint()
    text = fingerprint.reading(corpus.train)
    if isinstance(text, Text):
        train = memory_map(vocab, text, folder and folder.path)
    else:
        train = vocab.encode_stream(text)
    valid = vocab.encode_stream(fingerprint.reading(corpus.valid))
    if len(valid) == 0:
        raise UserError("the validation text is empty: give more text")
    test = vocab.encode_stream(fingerprint.reading(corpus.test or ""))
    return train, valid, None if corpus.test is None else test, fingerprint.hexdigest()


def train(
    config: Config, corpus: Corpus, out: str | Path | None = None, overwrite: bool = False
) -> tuple[NeuralLM, dict]:
    """Train a model and return it with its report; with `out` it is saved there as well.

    Called by every process of torch.distributed's default group, it trains one model in all.
    """
    folder = None if out is None or rank() else RunFolder(out, overwrite)
    trainer = prepare(config, corpus, folder)
    trainer.run()
    return trainer.model, report(trainer)
