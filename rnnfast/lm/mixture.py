"""Combine several models: linear interpolation, a cache of recent words, dynamic evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .._common.errors import UserError
from .._common.runtime import one_thread
from .data.batches import shifted
from .language_model import Evaluation, LanguageModel
from .neural.models import NeuralLM

OnChunk = Callable[[int], None]

CACHE_SIZES = (100, 200, 500, 1000, 2000, 5000)  # tokens; `best_cache` tries each of them
DYNAMIC_CHUNK = 20  # tokens between two updates of dynamic evaluation
DYNAMIC_CLIP = 1.0  # the largest norm of a gradient in dynamic evaluation


@dataclass(frozen=True)
class Mixture:
    r"""A linear interpolation: p(w | h) = sum over k of weights[k] p_k(w | h).

    The K components are `models` and, if `cache_size` is not None, a unigram cache as the last one.

    Attributes:
        models: The models. They must have the same tokens.
        weights: float64 (K,), which sum to 1.
        cache_size: The number of tokens that the cache remembers, or None for no cache.
        lr: If not None, neural models go on learning at this rate; see `dynamic_logprobs`.

    Example:
        >>> from rnnfast import lm
        >>> text = "the cat sat on the mat\n" * 50
        >>> vocab = lm.Vocabulary.build("word", [text])
        >>> ids = vocab.encode_stream(text)
        >>> models = [lm.NgramLM.fit(vocab, ids, order) for order in (1, 3)]
        >>> mixture = lm.Mixture.tune(models, "the cat sat\non the mat\n")
        >>> unigram, trigram, mixed = mixture.evaluate("the mat sat\n")
        >>> mixed.tokens
        4
    """

    models: Sequence[LanguageModel]
    weights: np.ndarray
    cache_size: int | None = None
    lr: float | None = None

    @classmethod
    def tune(
        cls,
        models: Sequence[LanguageModel],
        text: str,
        cache: bool = False,
        lr: float | None = None,
        on_chunk: OnChunk | None = None,
    ) -> Mixture:
        """Return the mixture whose weights are the best on `text`.

        No model may have been trained on this text. With `cache`, the size of the cache is tuned
        as well. `on_chunk` is as in `logprobs`, the function.

        Raises:
            UserError: There is no model, the text has no token, or the models do not have the same
                tokens.
        """
        each = logprobs(models, text, lr, on_chunk)
        if each.shape[1] == 0:
            raise UserError("there is no token to tune the mixture on: give some text")
        if not cache:
            return cls(models, tune(each), None, lr)
        size, weights = best_cache(each, models[0].vocab.encode_stream(text))
        return cls(models, weights, size, lr)

    def logprobs(self, text: str, on_chunk: OnChunk | None = None) -> np.ndarray:
        """Return log p of every token: float64 (K + 1, n), in nats.

        There is one row for each component. The last row is that of the mixture.
        """
        each = logprobs(self.models, text, self.lr, on_chunk)
        if self.cache_size is not None:
            ids = self.models[0].vocab.encode_stream(text)
            each = np.vstack([each, cache_logprobs(ids, self.cache_size)])
        return np.vstack([each, mix(each, self.weights)])

    def evaluate(self, text: str, on_chunk: OnChunk | None = None) -> list[Evaluation]:
        """Return the cross-entropy of each model, and as the last of the mixture.

        The text is read as one stream. Raises UserError if it has no token.
        """
        each = self.logprobs(text, on_chunk)
        if each.shape[1] == 0:
            raise UserError("there is no token to evaluate: give some text")
        rows = [*each[: len(self.models)], each[-1]]
        return [Evaluation.of(row) for row in rows]


def logprobs(
    models: Sequence[LanguageModel],
    text: str,
    lr: float | None = None,
    on_chunk: OnChunk | None = None,
) -> np.ndarray:
    """Return log p of every token of a text for each model: float64 (K, n), in nats.

    It is -inf for a token of probability zero.

    `on_chunk` is called with the number of tokens that the present model has done. Raises UserError
    if there is no model or the models do not have the same tokens, or if `lr` is given and no model
    is neural.
    """
    if not models:
        raise UserError("there is no model to mix: give one or more")
    if lr is not None and not any(isinstance(model, NeuralLM) for model in models):
        raise UserError("dynamic evaluation needs a neural model: n-grams do not learn, omit lr")
    levels = sorted({model.vocab.level for model in models})
    if len(levels) > 1:
        raise UserError(f"models that are mixed need one level, not {' and '.join(levels)}")
    streams = [model.vocab.encode_stream(text) for model in models]
    names = [np.array(model.vocab.tokens, dtype=object) for model in models]
    tokens = [name[ids] for name, ids in zip(names, streams, strict=True)]
    for other in tokens[1:]:
        # BPE may cut the text into more tokens. Then a token within the shared length differs too.
        n = min(len(tokens[0]), len(other))
        different = np.flatnonzero(tokens[0][:n] != other[:n])
        if len(different):
            a, b = tokens[0][different[0]], other[different[0]]
            raise UserError(
                f"models that are mixed need one vocabulary, but what is {a!r} to one is "
                f"{b!r} to another: train them with the same --vocab and --min-count"
            )
    each = [
        dynamic_logprobs(model, ids, lr, on_chunk)
        if lr is not None and isinstance(model, NeuralLM)
        else model.logprobs(ids, on_chunk)
        for model, ids in zip(models, streams, strict=True)
    ]
    for model, row in zip(models, each, strict=True):
        row[row <= model.log_zero] = -np.inf
    return np.array(each)


def mix(each: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return log p of a mixture, float64 (n,), from log p of its components, (K, n)."""
    with np.errstate(divide="ignore"):
        return np.logaddexp.reduce(each + np.log(weights)[:, None])


def tune(each: np.ndarray) -> np.ndarray:
    """Return the weights with the highest likelihood, float64 (K,).

    `each` is log p of every token for each component, (K, n). The method is expectation-
    maximisation. The log-likelihood is concave in the weights, so it has no other local maximum.
    Tokens to which every component gives probability zero are left out. If no token is left, the
    weights are equal.
    """
    each = each[:, each.max(0) > -np.inf]
    p = np.exp(each - each.max(0))
    weights = np.full(len(p), 1 / len(p))
    if each.shape[1] == 0:
        return weights
    before = -np.inf
    while True:
        joint = weights[:, None] * p
        total = joint.sum(0)
        likelihood = np.log(total).mean()
        if likelihood - before < 1e-8:
            return weights
        before, weights = likelihood, (joint / total).mean(1)


def cache_logprobs(ids: np.ndarray, size: int) -> np.ndarray:
    """Return log p of each token in a unigram cache of the last `size` tokens: float64 (n,).

    p is the share of the token among the `size` tokens before it (Kuhn & De Mori 1990). It is zero,
    and log p is -inf, for a token that is not among them. The first token always has -inf.
    """
    n = len(ids)
    at = np.arange(n)
    # The sorted keys list the places of one token after those of another, so that two bisections
    # count how often a token is in its window.
    keys = ids * (n + 1) + at
    occurrences = np.sort(keys)
    first = np.maximum(at - size, 0)
    count = np.searchsorted(occurrences, keys) - np.searchsorted(occurrences, ids * (n + 1) + first)
    with np.errstate(divide="ignore"):
        return np.log(count / np.maximum(at - first, 1))


def best_cache(each: np.ndarray, ids: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the best size of a cache on `ids`, (n,), and the weights of the mixture, (K + 1,).

    `each` is log p of every token for the other components, (K, n). The last weight is that of the
    cache. The sizes tried are CACHE_SIZES.
    """
    tried = []
    for size in CACHE_SIZES:
        with_cache = np.vstack([each, cache_logprobs(ids, size)])
        weights = tune(with_cache)
        found = Evaluation.of(mix(with_cache, weights))
        # Fewer tokens of probability zero are better than any likelihood of the others.
        rank = (found.zeroprobs, found.loss_without_zeroprobs if found.zeroprobs else found.loss)
        tried.append((rank, size, weights))
    _, size, weights = min(tried, key=lambda t: t[0])
    return size, weights


def dynamic_logprobs(
    model: NeuralLM, ids: np.ndarray, lr: float, on_chunk: OnChunk | None = None
) -> np.ndarray:
    """Return log p of every token of a model that goes on learning: float64 (n,), in nats.

    After every 20 tokens, which have been predicted before, a copy of the model makes one step of
    gradient descent on their mean loss with the learning rate `lr` (dynamic evaluation: Mikolov et
    al. 2010, section 3.3; Krause et al. 2018). The model itself is not changed. Raises UserError if
    `lr` is not a positive number, or when the loss is no longer finite.
    """
    if not 0 < lr < np.inf:
        raise UserError(f"lr of dynamic evaluation must be a positive number, not {lr}")
    model = copy.deepcopy(model).eval()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr)
    device = parameters[0].device
    inputs, targets = (
        torch.from_numpy(a)[:, None].to(device) for a in shifted(ids, model.vocab.boundary)
    )
    result, state = np.empty(len(ids)), None
    for start in range(0, len(ids), DYNAMIC_CHUNK):
        part = slice(start, start + DYNAMIC_CHUNK)
        with one_thread():
            logits, state = model(inputs[part], state)
            losses = F.cross_entropy(logits[:, 0], targets[part, 0], reduction="none")
            result[part] = -losses.detach().double().cpu().numpy()
            if not np.isfinite(result[part]).all():
                raise UserError(f"dynamic evaluation diverged at token {start}: lower lr {lr:g}")
            optimizer.zero_grad()
            losses.mean().backward()
            nn.utils.clip_grad_norm_(parameters, DYNAMIC_CLIP)
            optimizer.step()
        state = state.detach()
        if on_chunk:
            on_chunk(min(start + DYNAMIC_CHUNK, len(ids)))
    return result
