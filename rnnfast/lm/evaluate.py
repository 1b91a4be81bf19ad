"""What a trained model says: the probability of a text, and texts of its own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from .batches import shifted
from .errors import UserError

if TYPE_CHECKING:
    from .model import RNNLM

CHUNK = 1024  # tokens a call: long enough that the output layer is one big GEMM
CHUNK_LOGITS = 1 << 24  # and few enough logits (64 MB) for a vocabulary of words


def perplexity(loss: float) -> float:
    """exp(loss) for a loss in nats a token, capped where a double ends."""
    return math.exp(min(loss, 709.0))


def bits(loss: float) -> float:
    """A loss in nats as bits."""
    return loss / math.log(2)


@dataclass(frozen=True)
class Evaluation:
    """Cross-entropy of a model on a text: `loss` is the mean, in nats a token."""

    tokens: int
    loss: float

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)

    @property
    def bits_per_token(self) -> float:
        return bits(self.loss)

    def to_json(self) -> dict:
        return {
            "tokens": self.tokens,
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_token": self.bits_per_token,
        }


@dataclass(frozen=True)
class Score:
    """log p of a sentence with its closing boundary, and of each token given those before it."""

    text: str
    logprob: float
    tokens: list[tuple[str, float]]

    def to_json(self) -> dict:
        tokens = [{"token": token, "logprob": logprob} for token, logprob in self.tokens]
        return {"text": self.text, "logprob": self.logprob, "tokens": tokens}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Threads that share the units of a single sequence have to meet at every time step.

    That wins little on an idle machine and loses all on a busy one: 512 units, 2 cores with other
    work on them, 32,000 tokens/s with one thread and 1,600 with two.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def logprobs(
    model: RNNLM, ids: np.ndarray, on_chunk: Callable[[int], None] | None = None
) -> np.ndarray:
    """log p(ids[t] | boundary, ids[0] .. ids[t-1]) of every token of a stream, float64 (n,), nats.

    The stream is one sequence, whatever the batch size of training was: the hidden state starts
    at zero, carries over from chunk to chunk, and every token is predicted exactly once.
    `on_chunk` is called with the number of tokens done.
    """
    inputs, targets = (torch.from_numpy(a) for a in shifted(ids, model.vocab.boundary))
    device = model.decoder.weight.device
    chunk = min(CHUNK, max(1, CHUNK_LOGITS // len(model.vocab)))
    result = np.empty(len(ids))
    was_training = model.training
    model.eval()
    try:
        hidden = None
        for start in range(0, len(ids), chunk):
            part = slice(start, start + chunk)
            with one_thread():
                output, hidden = model.recur(inputs[part, None].to(device), hidden)
            logits = model.decoder(output)
            loss = F.cross_entropy(logits[:, 0], targets[part].to(device), reduction="none")
            result[part] = -loss.double().cpu().numpy()
            if on_chunk:
                on_chunk(min(start + chunk, len(ids)))
    finally:
        model.train(was_training)
    return result


def evaluate(
    model: RNNLM, ids: np.ndarray, on_chunk: Callable[[int], None] | None = None
) -> Evaluation:
    """Cross-entropy of a stream of token numbers (n,); see `logprobs`."""
    if len(ids) == 0:
        raise UserError("there is no token to evaluate: give some text")
    return Evaluation(len(ids), float(-logprobs(model, ids, on_chunk).mean()))


def score(model: RNNLM, sentence: str) -> Score:
    """Log probability of a sentence by the chain rule, after a boundary and with one at its end."""
    ids = model.vocab.encode(sentence, close=True)
    each = logprobs(model, ids)
    tokens = [(model.vocab.tokens[i], float(p)) for i, p in zip(ids, each, strict=True)]
    return Score(sentence, float(each.sum()), tokens)


def generate(
    model: RNNLM,
    prompt: str = "",
    length: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
    sentence: bool = False,
) -> Iterator[str]:
    """A text, piece by piece as it is made: the prompt, then one piece for each of `length` tokens.

    Without a prompt the text starts after a boundary. Tokens are drawn from the `top_k` most
    probable (None: all) at `temperature` (0: always the most probable), by a generator seeded
    with `seed` (None: from the system). `sentence` stops at the first boundary. `<unk>` is never
    generated. Raises UserError for options out of range or an unknown character in the prompt.
    """
    if length < 0:
        raise UserError(f"length must be zero or more, not {length}")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature must be zero or more, not {temperature}")
    if top_k is not None and top_k < 1:
        raise UserError(f"top-k must be at least 1, not {top_k}")
    if seed is not None and not 0 <= seed < 2**63:
        raise UserError(f"seed must be in [0, 2**63), not {seed}")
    ids = model.vocab.encode(prompt)
    # Checked before the first piece is asked for: the errors above are raised by the call itself.
    return _generate(model, prompt, ids, length, temperature, top_k, seed, sentence)


@torch.inference_mode()
def _generate(model, prompt, ids, length, temperature, top_k, seed, sentence):
    vocab = model.vocab
    device = model.decoder.weight.device
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    if prompt:
        yield prompt
    previous = int(ids[-1]) if len(ids) and not prompt[-1].isspace() else vocab.boundary
    inputs = torch.from_numpy(np.concatenate(([vocab.boundary], ids)))[:, None]
    hidden = None
    was_training = model.training
    model.eval()
    try:
        for _ in range(length):
            with one_thread():
                logits, hidden = model(inputs.to(device), hidden)
            row = logits[-1, 0].float().cpu()
            if vocab.unk is not None:
                row[vocab.unk] = -math.inf
            token = _draw(row, temperature, top_k, generator)
            yield vocab.piece(token, previous)
            if sentence and token == vocab.boundary:
                return
            inputs, previous = torch.tensor([[token]]), token
    finally:
        model.train(was_training)


def _draw(logits: torch.Tensor, temperature: float, top_k: int | None, generator) -> int:
    if temperature == 0 or top_k == 1:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        values, at = logits.topk(top_k)
    else:
        values, at = logits, None
    # The largest is subtracted first: a tiny temperature must not turn logits into infinities.
    probabilities = torch.softmax((values.double() - values.max()) / temperature, dim=0)
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return int(drawn if at is None else at[drawn])
