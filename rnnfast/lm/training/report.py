"""The figures of a run."""

from __future__ import annotations

import numpy as np
import torch

from ..data.batches import Batches
from ..data.vocabulary import Vocabulary
from ..language_model import Evaluation, evaluate
from ..ngram.model import NgramLM
from .trainer import Trainer

# The baselines are counted on so many tokens at most. They learn little from more, and counting
# takes time and memory.
BASELINE_TOKENS = 1 << 22


def baselines(vocab: Vocabulary, train: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Return the loss of a unigram and of a bigram model on `valid`, in nats per token.

    A model that has learnt something has a lower loss. The two models are counted on `train`, or on
    its first 4.2 million tokens.
    """

    def loss(order: int) -> float:
        model = NgramLM.fit(vocab, train[:BASELINE_TOKENS], order, stream=True)
        return float(-model.logprobs(valid).mean())

    return {"unigram": loss(1), "bigram": loss(2)}


def report(trainer: Trainer) -> dict:
    """Return the figures of the run so far, as `rnnfast train --json` writes them.

    Losses are those of the best model, in nats per token. "tokens" and "seconds" count all parts of
    a run that was resumed. "tokens_per_second" is the speed of the present part, validation
    included. Call this after `Trainer.run`, which gives the model the best weights.
    """
    state = trainer.state
    tokens = _tokens(trainer.batches, state.step)
    fresh = tokens - _tokens(trainer.batches, trainer.resumed_step)
    seconds = max(state.seconds - trainer.resumed_seconds, 1e-9)
    test = None
    if trainer.test is not None and trainer.best is not None:
        test = evaluate(trainer.model, trainer.test)
    valid = None
    if state.best_loss is not None:
        valid = Evaluation(len(trainer.valid), state.best_loss)
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
            for name, loss in baselines(trainer.vocab, trainer.train, trainer.valid).items()
        },
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


def _tokens(batches: Batches, steps: int) -> int:
    epochs, rest = divmod(steps, len(batches))
    length, batch_size = batches.shape
    return (epochs * length + min(rest * batches.bptt, length)) * batch_size
