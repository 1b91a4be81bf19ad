"""What a trained model says: the probability of a text, and texts of its own."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .._common.errors import UserError, check_seed
from .data.vocabulary import Vocabulary


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

    def by_unit(self, text: str) -> dict[str, float]:
        """The same for units that all levels share; `text` is what was evaluated.

        Words are what white space separates, and the ends of lines, as at word level, where the
        perplexity per word is that of a token. `<unk>` is easier than the words it stands for: a
        model that has it cannot be compared so with one that has not.
        """
        total = self.tokens * self.loss
        lines = text.count("\n") + (not text.endswith("\n"))
        return {
            "perplexity_per_word": perplexity(total / (len(text.split()) + lines)),
            "bits_per_character": bits(total / len(text)),
            "bits_per_byte": bits(total / len(text.encode("utf-8", "surrogatepass"))),
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


class TokenSampler(Protocol):
    """What draws tokens from a model; `rnnfast._ops.sampler` makes the native one."""

    def feed(self, tokens: list[int]) -> None:
        """Read tokens. The first token of all must be a boundary."""

    def generate(self, n: int) -> list[int]:
        """Draw and read up to `n` tokens. There are fewer if the last one is a boundary to stop at.

        Raises OverflowError if the probabilities of the next token are not finite.
        """


class LanguageModel:
    """p(token | the tokens before it) over the tokens of `vocab`: what every model here can do."""

    vocab: Vocabulary

    def logprobs(
        self, ids: np.ndarray, on_chunk: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """log p(ids[t] | boundary, ids[0] .. ids[t-1]) of all tokens, float64 (n,), nats.

        `on_chunk` is called with the number of tokens done so far.
        """
        raise NotImplementedError

    def next_logprobs(self, context: np.ndarray) -> np.ndarray:
        """log p of every token of the vocabulary after `context`: float64 (V,), nats.

        The context, int64 (n,), is a text so far, with a boundary before its first token.
        """
        raise NotImplementedError

    def sampler(self, **options) -> tuple[TokenSampler, int]:
        """A sampler with these weights, without `<unk>`, and the tokens to ask of it a time.

        `options` are those of `rnnfast._ops.sampler`, which says what a sampler does.
        """
        raise NotImplementedError

    def evaluate(self, text: str) -> Evaluation:
        """Cross-entropy of a text read as one stream; see `rnnfast.lm.evaluate`."""
        return evaluate(self, self.vocab.encode_stream(text))

    def score(self, sentence: str) -> Score:
        """Log probability of one sentence and of each of its tokens."""
        return score(self, sentence)

    def complete(self, text: str, top_k: int = 10) -> list[tuple[str, float]]:
        """The most probable tokens after a text, and their probabilities."""
        return complete(self, text, top_k)

    def generate(self, prompt: str = "", length: int = 200, **options) -> str:
        """The prompt and `length` tokens more; options as in `rnnfast.lm.generate`."""
        return "".join(generate(self, prompt, length, **options))


def evaluate(
    model: LanguageModel, ids: np.ndarray, on_chunk: Callable[[int], None] | None = None
) -> Evaluation:
    """Cross-entropy of a stream of token numbers (n,); see the model's `logprobs`."""
    if len(ids) == 0:
        raise UserError("there is no token to evaluate: give some text")
    return Evaluation(len(ids), float(-model.logprobs(ids, on_chunk).mean()))


def score(model: LanguageModel, sentence: str) -> Score:
    """Log probability of a sentence by the chain rule, after a boundary and with one at its end."""
    ids = model.vocab.encode(sentence, close=True)
    each = model.logprobs(ids)
    tokens = [(model.vocab.tokens[i], float(p)) for i, p in zip(ids, each, strict=True)]
    return Score(sentence, float(each.sum()), tokens)


def complete(model: LanguageModel, text: str, top_k: int = 10) -> list[tuple[str, float]]:
    """The `top_k` most probable tokens after a text, which begins after a boundary, and their
    probabilities, the most probable first; all tokens if there are fewer.

    `<unk>` is left out, as it is of texts that are generated. Raises UserError for a `top_k` below
    1 and a character that is not in the vocabulary.
    """
    if top_k < 1:
        raise UserError(f"top-k must be at least 1, not {top_k}")
    vocab = model.vocab
    logprobs = model.next_logprobs(np.append(vocab.boundary, vocab.encode(text)))
    order = np.argsort(-logprobs, kind="stable")
    best = order[order != vocab.unk][:top_k] if vocab.unk is not None else order[:top_k]
    return [(vocab.tokens[i], math.exp(logprobs[i])) for i in best]


def generate(
    model: LanguageModel,
    prompt: str = "",
    length: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
    sentence: bool = False,
    top_p: float | None = None,
) -> Iterator[str]:
    """A text, piece by piece as it is made: the prompt, then what each of `length` tokens adds.

    Without a prompt the text starts after a boundary. Tokens are drawn at `temperature` (0: always
    the most probable, the first of equals), from the `top_k` most probable (None: all), and of
    those from the fewest whose share of their probability reaches `top_p` (None: all; Holtzman et
    al. 2020), by a generator seeded with `seed` (None: from the system). `sentence` stops at the
    first boundary. `<unk>` is never generated.

    The weights of an RNN are those at the time of the call, and it runs in float32 on the CPU
    whatever the model's dtype and device. Raises UserError for options out of range, an unknown
    character in the prompt and, from the iterator, where the hidden state of an RNN overflows.
    """
    if length < 0:
        raise UserError(f"length must be zero or more, not {length}")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature must be zero or more, not {temperature}")
    if top_k is not None and top_k < 1:
        raise UserError(f"top-k must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top-p must be more than 0 and at most 1, not {top_p}")
    if seed is not None:
        check_seed(seed)
    vocab = model.vocab
    ids = vocab.encode(prompt)
    sampler, block = model.sampler(
        temperature=temperature,
        top_k=min(top_k or len(vocab), len(vocab)),
        top_p=1.0 if top_p is None else top_p,
        stop=vocab.boundary if sentence else None,
        seed=secrets.randbits(63) if seed is None else seed,
    )
    # Checked before the first piece is asked for: the errors above are raised by the call itself.
    return _pieces(vocab, prompt, ids, sampler, length, block, sentence)


def _pieces(vocab, prompt, ids, sampler, length, block, sentence):
    if prompt:
        yield prompt
    given = [vocab.boundary, *ids.tolist()]
    for start in range(0, len(given), block):
        sampler.feed(given[start : start + block])
    previous = vocab.boundary if prompt[-1:].isspace() else given[-1]
    yield from vocab.pieces(_tokens(vocab, sampler, length, block, sentence), previous)


def _tokens(vocab, sampler, length, block, sentence):
    while length > 0:
        try:
            tokens = sampler.generate(min(block, length))
        except OverflowError as error:
            raise UserError(f"no more text from this model: {error}") from error
        yield from tokens
        if sentence and tokens[-1] == vocab.boundary:
            return
        length -= len(tokens)
