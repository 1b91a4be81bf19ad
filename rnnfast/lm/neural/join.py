"""Join several RNNs to one RNN whose logits are the mean of theirs: an ensemble in one model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..._common.errors import UserError
from ...nn import FastRNN
from ..language_model import LanguageModel
from .adaptive import AdaptiveDecoder
from .models import RNNLM


@torch.no_grad()
def join(models: Sequence[LanguageModel]) -> RNNLM:
    """Return one Elman RNN whose logits are the mean of the logits of `models`.

    It has as many hidden units as all models together, and no dropout. Its embeddings are the
    embeddings of the models one after the other. Its other weights are blocks on the diagonal.

    Log-sum-exp is convex, so the loss of the joined model on any text is at most the mean of the
    losses of the models. The more the models differ in their errors, the lower it is (Hansen &
    Salamon 1990).

    Args:
        models: Two or more Elman RNNs with the same vocabulary, number of layers and nonlinearity,
            and without adaptive softmax.

    Raises:
        UserError: There are fewer than two models, or they do not fit together.

    Example:
        >>> from rnnfast import lm
        >>> vocab = lm.Vocabulary.build("char", ["abc"])
        >>> joined = lm.join([lm.RNNLM(vocab, emsize=4, nhid=n) for n in (8, 16)])
        >>> joined.rnn.hidden_size
        24
    """
    if len(models) < 2:
        raise UserError(f"models must be two or more, not {len(models)}")
    parts = [_parts(model) for model in models]
    kinds = [f"{rnn.num_layers} layers of {rnn.nonlinearity}" for _, rnn, _ in parts]
    if len(set(kinds)) > 1:
        raise UserError(f"models must be of one kind, not {' and '.join(sorted(set(kinds)))}")
    first = models[0]
    if any(model.vocab.to_json() != first.vocab.to_json() for model in models):
        raise UserError("models must have the same vocabulary: train them on the same text")
    encoders, rnns, decoders = zip(*parts, strict=True)
    emsize = sum(encoder.embedding_dim for encoder in encoders)
    nhid = sum(rnn.hidden_size for rnn in rnns)
    joined = RNNLM(first.vocab, emsize, nhid, rnns[0].num_layers, rnns[0].nonlinearity)
    joined.to(encoders[0].weight)
    encoder, _, decoder = _parts(joined)
    encoder.weight.copy_(torch.cat([encoder.weight for encoder in encoders], 1))
    for name, weight in joined.rnn.named_parameters():
        own = [getattr(rnn, name) for rnn in rnns]
        weight.copy_(torch.cat(own) if "bias" in name else torch.block_diag(*own))
    decoder.weight.copy_(torch.cat([decoder.weight for decoder in decoders], 1))
    decoder.weight /= len(models)
    decoder.bias.copy_(torch.stack([decoder.bias for decoder in decoders]).mean(0))
    return joined.eval()


def _parts(model: LanguageModel) -> tuple[nn.Embedding, FastRNN, nn.Linear]:
    """Return the layers of a model. Raise UserError if it is of a kind that cannot be joined."""
    if not isinstance(model, RNNLM) or not isinstance(model.rnn, FastRNN):
        raise UserError("models must be tanh or relu RNNs")
    if isinstance(model.decoder, AdaptiveDecoder):
        raise UserError("models must not have an adaptive softmax, which has no logits to average")
    return model.encoder, model.rnn, model.decoder
