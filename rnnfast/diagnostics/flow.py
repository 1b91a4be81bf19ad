"""Gradient flow in a language model: how far back a prediction reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from .._common.errors import UserError
from .._common.text import counted
from ..nn import FastRNN
from . import gradient_norms, jacobian_norms, spectral_radius

LANES = 32  # places of the text whose losses are averaged
JACOBIAN_LANES = 4  # fewer, because each lane costs one H x H product for each time step


class RecurrentModel(Protocol):
    """What `flow` uses of a language model, such as `rnnfast.lm.RNNLM`.

    Attributes:
        vocab: a vocabulary, whose `encode_stream(text)` returns the tokens of a text, int64 (n,).
        embed: a function from tokens, (T, B), to the input of `rnn`, (T, B, I).
        rnn: the RNN.
        decoder: a function from states of the RNN, (B, H), to logits, (B, V).
    """

    vocab: Any
    embed: Callable[[torch.Tensor], torch.Tensor]
    rnn: FastRNN
    decoder: Callable[[torch.Tensor], torch.Tensor]


def flow(model: RecurrentModel, text: str, steps: int) -> dict:
    """Measure the norms of gradients and Jacobians in an RNN language model, by time step.

    The loss is the mean of -log p of the token that follows `steps` others, at up to `LANES` places
    of the text. The hidden state starts at zero at each place.

    Args:
        model: a language model with one direction.
        text: more than `steps` tokens.
        steps: T, the number of tokens that a prediction is made from.

    Returns:
        A dict that `json.dumps` accepts: `steps`; `lanes`, the number of places; and for each layer
        in a list `spectral_radius`, that of W_hh; `gradient_norms`, (T,), the norms of dL/dh_t; and
        `jacobian_norms`, (T,), the spectral norms of dh_T/dh_t, averaged over `JACOBIAN_LANES`
        places.

    Raises:
        UserError: the text has too few tokens.

    Example:
        >>> from rnnfast import lm
        >>> from rnnfast.diagnostics.flow import flow
        >>> vocab = lm.Vocabulary.build("char", ["a1b1"])
        >>> report = flow(lm.RNNLM(vocab, emsize=4, nhid=8), "a1b1" * 20, steps=5)
        >>> len(report["gradient_norms"]), len(report["gradient_norms"][0])
        (1, 5)
    """
    ids = model.vocab.encode_stream(text)
    if len(ids) <= steps:
        raise UserError(
            f"the text has {counted(len(ids), 'token')}, too few to go {steps} steps back: "
            "give a longer text"
        )
    lanes = min(LANES, len(ids) - steps)
    starts = np.linspace(0, len(ids) - steps - 1, lanes).astype(int)
    device = model.rnn.weight_hh_l0.device
    ids = torch.from_numpy(ids[starts + np.arange(steps + 1)[:, None]]).to(device)
    with torch.no_grad():
        x = model.embed(ids[:-1])

    def loss(states: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model.decoder(states[-1]), ids[-1])

    return {
        "steps": steps,
        "lanes": lanes,
        "spectral_radius": spectral_radius(model.rnn)[:, 0].tolist(),
        "gradient_norms": gradient_norms(model.rnn, x, loss)[:, 0].tolist(),
        "jacobian_norms": jacobian_norms(model.rnn, x[:, :JACOBIAN_LANES])[:, 0].mean(-1).tolist(),
    }
