"""The figures of a run."""

from __future__ import annotations

import torch

from ..language_model import Evaluation, evaluate
from .diagnosis import baseline
from .trainer import Trainer


def report(trainer: Trainer) -> dict:
    """Return the figures of the run so far, as `rnnfast train --json` writes them.

    Losses are those of the best model, in nats per token. "warning" says why the run does not
    learn, and is None if it learns. "tokens" and "seconds" count all parts of
    a run that was resumed. "tokens_per_second" is the speed of the present part, validation
    included. Call this after `Trainer.run`, which gives the model the best weights.
    """
    state = trainer.state
    tokens = trainer.batches.tokens(state.step)
    fresh = tokens - trainer.batches.tokens(trainer.resumed_step)
    seconds = max(state.seconds - trainer.resumed_seconds, 1e-9)
    test = None
    if trainer.test is not None and trainer.best is not None:
        test = evaluate(trainer.model, trainer.test)
    valid = None
    if state.best_loss is not None:
        valid = Evaluation(len(trainer.valid), state.best_loss)
    bigram = baseline(trainer.vocab, trainer.train, trainer.valid, 2)
    return {
        "level": trainer.config.level,
        "vocab_size": len(trainer.vocab),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "epochs": trainer.epoch,
        "steps": state.step,
        "tokens": tokens,
        "seconds": state.seconds,
        "tokens_per_second": fresh / seconds,
        "best_step": state.best_step,
        **_figures("valid", valid),
        **_figures("test", test),
        "baselines": {
            name: _figures("valid", Evaluation(len(trainer.valid), loss))
            for name, loss in {"unigram": trainer.unigram(), "bigram": bigram}.items()
        },
        "warning": state.warning,
        "curve": state.curve,
        "config": trainer.config.to_json(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "model_dir": None if trainer.folder is None else str(trainer.folder.final),
    }


def _figures(split: str, result: Evaluation | None) -> dict:
    return {
        f"{split}_loss": result and result.loss,
        f"{split}_perplexity": result and result.perplexity,
        f"{split}_bits_per_token": result and result.bits_per_token,
    }
