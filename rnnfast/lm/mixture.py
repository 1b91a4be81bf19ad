"""Several models as one: linear interpolation, a cache of recent words, dynamic evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable
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

Report = Callable[[int], None]

CACHE_SIZES = (100, 200, 500, 1000, 2000, 5000)  # tokens; the best on the tuning text is taken
CHUNK = 20  # tokens from one update of dynamic evaluation to the next
CLIP = 1.0  # largest norm of its gradients


@dataclass(frozen=True)
class Mixture:
    """p(w | h) = sum of weights[k] p_k(w | h); weights, float64 (K,), sum to 1.

    The components are `models` and, if `cache_size` is not None, the unigram cache last.
    With `lr` neural models are evaluated dynamically, see `dynamic_logprobs`.
    """

    models: list[LanguageModel]
    weights: np.ndarray
    cache_size: int | None = None
    lr: float | None = None

    @classmethod
    def tune(
        cls,
        models: list[LanguageModel],
        text: str,
        cache: bool = False,
        lr: float | None = None,
        on_chunk: Report | None = None,
    ) -> Mixture:
        """The weights that are best on `text`, which must not be the training text of a model.

        With `cache` also the best size of a cache. Raises UserError if to one model something is
        `<unk>` that is a word to another, or if there is no token.
        """
        each = logprobs(models, text, lr, on_chunk)
        if each.shape[1] == 0:
            raise UserError("there is no token to tune the mixture on: give some text")
        if not cache:
            return cls(models, tune(each), None, lr)
        size, weights = best_cache(each, models[0].vocab.encode_stream(text))
        return cls(models, weights, size, lr)

    def logprobs(self, text: str, on_chunk: Report | None = None) -> np.ndarray:
        """log p of every token of each component, and last of the mixture: float64 (K + 1, n)."""
        each = logprobs(self.models, text, self.lr, on_chunk)
        if self.cache_size is not None:
            ids = self.models[0].vocab.encode_stream(text)
            each = np.vstack([each, cache_logprobs(ids, self.cache_size)])
        return np.vstack([each, mix(each, self.weights)])

    def evaluate(self, text: str, on_chunk: Report | None = None) -> list[Evaluation]:
        """Cross-entropy on a text, read as one stream, of each model and last of the mixture."""
        each = self.logprobs(text, on_chunk)
        if each.shape[1] == 0:
            raise UserError("there is no token to evaluate: give some text")
        rows = [*each[: len(self.models)], each[-1]]
        return [Evaluation(len(row), float(-row.mean())) for row in rows]


def logprobs(
    models: list[LanguageModel], text: str, lr: float | None = None, on_chunk: Report | None = None
) -> np.ndarray:
    """log p of every token of a text by each model, float64 (K, n), nats.

    `on_chunk` is called with the number of tokens done, from 0 again for each model. Raises
    UserError for models that do not have the same tokens, and for `lr` where none is neural.
    """
    if lr is not None and not any(isinstance(model, NeuralLM) for model in models):
        raise UserError("dynamic evaluation needs a neural model: n-grams do not learn, leave lr")
    levels = sorted({model.vocab.level for model in models})
    if len(levels) > 1:
        raise UserError(f"models that are mixed need one level, not {' and '.join(levels)}")
    streams = [model.vocab.encode_stream(text) for model in models]
    names = [np.array(model.vocab.tokens, dtype=object) for model in models]
    tokens = [name[ids] for name, ids in zip(names, streams, strict=True)]
    for other in tokens[1:]:
        # Where BPE has cut the text into more tokens, one of the shared places differs too.
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
    return np.array(each)


def mix(each: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """log p of a mixture, float64 (n,), from those of its components, (K, n)."""
    with np.errstate(divide="ignore"):
        return np.logaddexp.reduce(each + np.log(weights)[:, None])


def tune(each: np.ndarray) -> np.ndarray:
    """The weights with the highest likelihood, float64 (K,), by expectation-maximisation.

    The likelihood is concave in the weights, so there is no other maximum to be caught in.
    """
    p = np.exp(each - each.max(0))
    weights = np.full(len(p), 1 / len(p))
    before = -np.inf
    while True:
        joint = weights[:, None] * p
        total = joint.sum(0)
        likelihood = np.log(total).mean()
        if likelihood - before < 1e-8:
            return weights
        before, weights = likelihood, (joint / total).mean(1)


def cache_logprobs(ids: np.ndarray, size: int) -> np.ndarray:
    """log of the share of each token among the `size` before it, float64 (n,); -inf for none.

    The unigram cache of Kuhn & De Mori (1990). The first token always has -inf.
    """
    n = len(ids)
    at = np.arange(n)
    # Occurrences of one token after another, each by its place: two bisections count a window.
    keys = ids * (n + 1) + at
    occurrences = np.sort(keys)
    first = np.maximum(at - size, 0)
    count = np.searchsorted(occurrences, keys) - np.searchsorted(occurrences, ids * (n + 1) + first)
    with np.errstate(divide="ignore"):
        return np.log(count / np.maximum(at - first, 1))


def best_cache(each: np.ndarray, ids: np.ndarray) -> tuple[int, np.ndarray]:
    """The size of a cache with which the mixture of `each`, (K, n), and it is best on `ids`, (n,),
    and the weights, (K + 1,), the cache's last."""
    tried = []
    for size in CACHE_SIZES:
        with_cache = np.vstack([each, cache_logprobs(ids, size)])
        weights = tune(with_cache)
        tried.append((-mix(with_cache, weights).mean(), size, weights))
    _, size, weights = min(tried, key=lambda t: t[0])
    return size, weights


def dynamic_logprobs(
    model: NeuralLM, ids: np.ndarray, lr: float, on_chunk: Report | None = None
) -> np.ndarray:
    """log p of every token by a model that goes on learning from what it has read, (n,), nats.

    After every 20 tokens, all predicted before, one step of gradient descent of rate `lr` is made
    on their mean loss (dynamic evaluation: Mikolov et al. 2010, section 3.3; Krause et al. 2018).
    The model itself stays as it is. Raises UserError for a bad `lr`, or where the loss is no longer
    finite.
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
    for start in range(0, len(ids), CHUNK):
        part = slice(start, start + CHUNK)
        with one_thread():
            logits, state = model(inputs[part], state)
            losses = F.cross_entropy(logits[:, 0], targets[part, 0], reduction="none")
            result[part] = -losses.detach().double().cpu().numpy()
            if not np.isfinite(result[part]).all():
                raise UserError(f"dynamic evaluation diverged at token {start}: lower lr {lr:g}")
            optimizer.zero_grad()
            losses.mean().backward()
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
        state = state.detach()
        if on_chunk:
            on_chunk(min(start + CHUNK, len(ids)))
    return result
