"""Join several RNNs to one RNN whose logits are the mean of theirs: an ensemble in one model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..._common.errors import UserError
from ..language_model import LanguageModel
from .adaptive import AdaptiveDecoder
from .models import RNNLM


@torch.no_grad()
def join(models: Sequence[RNNLM]) -> RNNLM:
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
    kinds = [_kind(model) for model in models]
    if len(set(kinds)) > 1:
        raise UserError(f"models must be of one kind, not {' and '.join(sorted(set(kinds)))}")
    first = models[0]
    if any(model.vocab.to_json() != first.vocab.to_json() for model in models):
        raise UserError("models must have the same vocabulary: train them on the same text")
    emsize = sum(model.encoder.embedding_dim for model in models)
    nhid = sum(model.rnn.hidden_size for model in models)
    joined = RNNLM(first.vocab, emsize, nhid, first.rnn.num_layers, first.rnn.nonlinearity)
    joined.to(first.encoder.weight)
    joined.encoder.weight.copy_(torch.cat([model.encoder.weight for model in models], 1))
    for name, weight in joined.rnn.named_parameters():
        parts = [getattr(model.rnn, name) for model in models]
        weight.copy_(torch.cat(parts) if "bias" in name else torch.block_diag(*parts))
    joined.decoder.weight.copy_(torch.cat([model.decoder.weight for model in models], 1))
    joined.decoder.weight /= len(models)
    joined.decoder.bias.copy_(torch.stack([model.decoder.bias for model in models]).mean(0))
    return joined.eval()


def _kind(model: LanguageModel) -> str:
    if not isinstance(model, RNNLM) or not model.is_elman:
        raise UserError("models must be tanh or relu RNNs")
    if isinstance(model.decoder, AdaptiveDecoder):
        raise UserError("models must not have an adaptive softmax, which has no logits to average")
    return f"{model.rnn.num_layers} layers of {model.rnn.nonlinearity}"
