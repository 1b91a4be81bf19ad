"""Tell whether a run learns, and if it does not, the likely cause and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..config import Config
from ..data.vocabulary import Vocabulary
from ..language_model import perplexity
from ..ngram.model import NgramLM

# The baselines are counted on so many tokens at most. They learn little from more, and counting
# takes time and memory.
BASELINE_TOKENS = 1 << 22
# After so many updates, twice the warm-up, a run with the default settings has a lower loss than
# the unigram model at every level.
FAIR_START = 200
RISING_VALIDATIONS = 2  # each of so many validations in a row is worse than the one before it
RISE = 0.01  # their losses rise by more than this part in total; less may be chance
HIGH_RATE = 0.5  # a rate above this part of the setting is high


def baseline(vocab: Vocabulary, train: np.ndarray, valid: np.ndarray, order: int) -> float:
    """Return the loss of an n-gram model of `order` on `valid`, in nats per token.

    It is counted on `train`, or on its first 4.2 million tokens.
    """
    model = NgramLM.fit(vocab, train[:BASELINE_TOKENS], order, stream=True)
    return float(-model.logprobs(valid).mean())


def has_diverged(loss: float, vocab_size: int) -> bool:
    """Return whether a model is far worse than a uniform guess over the vocabulary.

    A model that has not learnt anything yet is close to the uniform guess.
    """
    return loss > math.log(2 * vocab_size)


def diagnose(
    config: Config, vocab_size: int, curve: list[dict], unigram: Callable[[], float]
) -> str | None:
    """Return why a run does not learn and what to do about it, or None if it learns.

    Args:
        config: The settings of the run.
        vocab_size: The number of tokens in the vocabulary.
        curve: The records of the validations so far, the last one included.
        unigram: A function that returns the loss of the unigram model on the validation text. It
            is called only if the loss is needed.
    """
    last = curve[-1]
    loss = last["valid_loss"]
    if has_diverged(loss, vocab_size):
        return (
            f"the training diverged: the validation perplexity is {perplexity(loss):.3g}, and a "
            f"uniform guess has {vocab_size}. {_lower_rate(config)}"
        )
    if last["step"] >= FAIR_START and loss > unigram():
        return (
            f"the model has not learnt more than how frequent each token is: after {last['step']} "
            f"updates the validation loss is {loss:.4g} nats, and a unigram model has "
            f"{unigram():.4g}. {_cause(config)}"
        )
    best = min(curve, key=lambda record: record["valid_loss"])
    recent = curve[-1 - RISING_VALIDATIONS :]
    losses = [record["valid_loss"] for record in recent]
    rises = len(recent) > RISING_VALIDATIONS and losses == sorted(set(losses))
    if rises and losses[-1] > (1 + RISE) * losses[0] and last["lr"] > HIGH_RATE * config.lr:
        message = (
            f"the validation loss rose from {losses[0]:.4g} to {losses[-1]:.4g} nats in "
            f"{RISING_VALIDATIONS} validations. "
        )
        # Not since the last validations: chance moves the training loss more in so short a time.
        if last["train_loss"] < best["train_loss"]:
            return message + (
                "The training loss is lower than at the best validation, so the model learns its "
                "text by heart: use more --dropout, fewer units or a larger text"
            )
        return message + _lower_rate(config)
    return None


def _cause(config: Config) -> str:
    names = ("optimizer", "nhid", "emsize", "tied")
    usual = Config.defaults(config.level, **{name: getattr(config, name) for name in names}).lr
    if config.lr > usual:
        return _lower_rate(config)
    if config.lr < usual:
        return (
            "The learning rate is probably too low: train again with a higher --lr, which was "
            f"{config.lr:g}, or continue with more --epochs"
        )
    return (
        "With the default learning rate the probable cause is the text or too much dropout: "
        "lower the probabilities of dropout, and check that the validation text is like the "
        "training text"
    )


def _lower_rate(config: Config) -> str:
    cause = "The learning rate is probably too high"
    if config.lr_schedule == "plateau":
        return (
            f"{cause}: the run goes back to its best weights and halves the rate, which was "
            f"{config.lr:g}"
        )
    return (
        f"{cause}: train again with a lower --lr, which was {config.lr:g}, or with --lr-schedule "
        "plateau, which goes back to the best weights and halves the rate"
    )
