"""What every language model can do: evaluate a text, score a sentence, complete and generate."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .._common.errors import ArgumentError, UserError, check_seed
from .._common.files import finite
from .._common.text import words
from .data.vocabulary import Vocabulary

MAX_LOSS = 709.0  # nats: the exponential of a larger number is not a finite double


def perplexity(loss: float) -> float:
    """Return exp(loss) for a loss in nats per token. A finite loss above 709 counts as 709."""
    return math.inf if loss == math.inf else math.exp(min(loss, MAX_LOSS))


def bits(loss: float) -> float:
    """Convert a loss from nats to bits."""
    return loss / math.log(2)


@dataclass(frozen=True)
class Evaluation:
    """The cross-entropy of a model on a text.

    Attributes:
        tokens: The number of tokens that were predicted.
        loss: The mean of -log p over these tokens, in nats per token. It is infinite if a token has
            probability zero.
        zeroprobs: The number of tokens of probability zero, which SRILM calls so.
        loss_without_zeroprobs: The mean over the other tokens; None if there are no other tokens.
            Read it only if there are zeroprobs.
    """

    tokens: int
    loss: float
    zeroprobs: int = 0
    loss_without_zeroprobs: float | None = None

    @classmethod
    def of(cls, logprobs: np.ndarray, log_zero: float = -math.inf) -> Evaluation:
        """Return the evaluation of tokens with these log p, float64 (n,), in nats.

        A log p of at most `log_zero` stands for probability zero; see `LanguageModel.log_zero`.
        """
        zero = logprobs <= log_zero
        if not zero.any():
            return cls(len(logprobs), float(-logprobs.mean()))
        others = None if zero.all() else float(-logprobs[~zero].mean())
        return cls(len(logprobs), math.inf, int(zero.sum()), others)

    @property
    def perplexity(self) -> float:
        """exp(loss), the perplexity per token. It is infinite if a token has probability zero."""
        return perplexity(self.loss)

    @property
    def perplexity_without_zeroprobs(self) -> float | None:
        """The perplexity of the tokens that do not have probability zero, as SRILM prints it.

        It is None if there are no such tokens.
        """
        loss = self.loss_without_zeroprobs if self.zeroprobs else self.loss
        return None if loss is None else perplexity(loss)

    @property
    def bits_per_token(self) -> float:
        """The loss in bits per token."""
        return bits(self.loss)

    def to_json(self) -> dict:
        """Return the numbers as a dict that `json` can write. None stands for infinity."""
        return finite(
            {
                "tokens": self.tokens,
                "loss": self.loss,
                "perplexity": self.perplexity,
                "bits_per_token": self.bits_per_token,
                "zeroprobs": self.zeroprobs,
                "perplexity_without_zeroprobs": self.perplexity_without_zeroprobs,
            }
        )

    def by_unit(self, text: str) -> dict[str, float]:
        """Return the cross-entropy in units that models of different levels share.

        `text` is the text that was evaluated. The keys are "perplexity_per_word",
        "bits_per_character" and "bits_per_byte". Words end at the blanks of ASCII. The end of a
        line counts as a word, so that for a word-level model the perplexity per word is the
        perplexity per token. A model with `<unk>` cannot be compared in this way with a model that
        has none, because `<unk>` is easier to predict than the words it replaces.
        """
        total = self.tokens * self.loss
        lines = text.count("\n") + (not text.endswith("\n"))
        return {
            "perplexity_per_word": perplexity(total / (len(words(text)) + lines)),
            "bits_per_character": bits(total / len(text)),
            "bits_per_byte": bits(total / len(text.encode("utf-8", "surrogatepass"))),
        }


@dataclass(frozen=True)
class Score:
    """The log probability of a sentence.

    Attributes:
        text: The sentence.
        logprob: log p of the sentence and of the boundary that closes it, in nats.
        tokens: Each token and its log p given the tokens before it, in nats.
    """

    text: str
    logprob: float
    tokens: list[tuple[str, float]]

    def to_json(self) -> dict:
        """Return the score as a dict that `json` can write."""
        tokens = [{"token": token, "logprob": logprob} for token, logprob in self.tokens]
        return {"text": self.text, "logprob": self.logprob, "tokens": tokens}


class TokenSampler(Protocol):
    """An object that draws tokens from a model. `rnnfast._ops.sampler` makes the native one."""

    def feed(self, tokens: list[int]) -> None:
        """Read tokens. The first token of all must be a boundary."""

    def generate(self, n: int) -> list[int]:
        """Draw and read up to `n` tokens. There are fewer if the last one is a boundary to stop at.

        Raises OverflowError if the probabilities of the next token are not finite.
        """


class LanguageModel:
    """The base class of all models: p(token | the tokens before it).

    Subclasses implement `logprobs`, `next_logprobs` and `sampler`.

    Attributes:
        vocab: The `Vocabulary` of the tokens, of size V.
        log_zero: A log p of at most this number, in nats, stands for probability zero.
    """

    vocab: Vocabulary
    log_zero: float = -math.inf

    def logprobs(
        self, ids: np.ndarray, on_chunk: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Return log p(ids[t] | boundary, ids[0] .. ids[t-1]) of every token: float64 (n,), nats.

        `ids` is a stream of token numbers, integers (n,). `on_chunk` is called with the number of
        tokens that are done.
        """
        raise NotImplementedError

    def next_logprobs(self, context: np.ndarray) -> np.ndarray:
        """Return log p of every token of the vocabulary after `context`: float64 (V,), nats.

        `context`, int64 (n,), is the text so far. Its first token is a boundary.
        """
        raise NotImplementedError

    def sampler(self, **options: Any) -> tuple[TokenSampler, int]:
        """Return a sampler, which never draws `<unk>`, and the tokens to ask of it in one call.

        `options` are those of `rnnfast._ops.sampler`. The sampler has the weights that the model
        has now.
        """
        raise NotImplementedError

    def evaluate(self, text: str) -> Evaluation:
        """Return the cross-entropy of a text that is read as one stream; see `lm.evaluate`."""
        return evaluate(self, self.vocab.encode_stream(text))

    def score(self, sentence: str) -> Score:
        """Return the log probability of a sentence and of its tokens; see `lm.score`."""
        return score(self, sentence)

    def complete(self, text: str, top_k: int = 10) -> list[tuple[str, float]]:
        """Return the most probable tokens after a text; see `lm.complete`."""
        return complete(self, text, top_k)

    def generate(self, prompt: str = "", length: int = 200, **options: Any) -> str:
        """Return the prompt and `length` more tokens. The options are those of `lm.generate`."""
        return "".join(generate(self, prompt, length, **options))


def evaluate(
    model: LanguageModel, ids: np.ndarray, on_chunk: Callable[[int], None] | None = None
) -> Evaluation:
    """Return the cross-entropy of a model on a stream of token numbers.

    Args:
        model: Any model of this package.
        ids: Token numbers, integers (n,), as `Vocabulary.encode_stream` returns them. The stream
            starts after a boundary, and every token is predicted once.
        on_chunk: A function that is called with the number of tokens that are done.

    Raises:
        UserError: `ids` is empty.

    Example:
        >>> from rnnfast import lm
        >>> text = "the cat sat on the mat\\n" * 50
        >>> vocab = lm.Vocabulary.build("word", [text])
        >>> model = lm.NgramLM.fit(vocab, vocab.encode_stream(text), order=3)
        >>> result = lm.evaluate(model, vocab.encode_stream("the cat sat on the mat\\n"))
        >>> result.tokens, result.perplexity < 2
        (7, True)
    """
    if len(ids) == 0:
        raise UserError("there is no token to evaluate: give some text")
    return Evaluation.of(model.logprobs(ids, on_chunk), model.log_zero)


def score(model: LanguageModel, sentence: str) -> Score:
    """Return the log probability of a sentence by the chain rule.

    The sentence starts after a boundary, and the boundary that closes it counts as well.

    Raises:
        UserError: The sentence has a character that is not in the vocabulary.

    Example:
        >>> from rnnfast import lm
        >>> text = "the cat sat on the mat\\n" * 50
        >>> vocab = lm.Vocabulary.build("word", [text])
        >>> model = lm.NgramLM.fit(vocab, vocab.encode_stream(text), order=3)
        >>> good, bad = (lm.score(model, s) for s in ("the cat sat", "cat the sat"))
        >>> good.logprob > bad.logprob
        True
        >>> [token for token, logprob in good.tokens]
        ['the', 'cat', 'sat', '<eos>']
    """
    ids = model.vocab.encode(sentence, close=True)
    each = model.logprobs(ids)
    tokens = [(model.vocab.tokens[i], float(p)) for i, p in zip(ids, each, strict=True)]
    return Score(sentence, float(each.sum()), tokens)


def complete(model: LanguageModel, text: str, top_k: int = 10) -> list[tuple[str, float]]:
    """Return the `top_k` most probable tokens after a text and their probabilities.

    The most probable token comes first. The text starts after a boundary. `<unk>` is left out, as
    it is in generated text. A vocabulary of fewer than `top_k` tokens is returned completely.

    Raises:
        UserError: `top_k` is below 1, or the text has a character that is not in the vocabulary.
    """
    if top_k < 1:
        raise ArgumentError(f"top_k must be at least 1, not {top_k}")
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
    """Generate a text piece by piece: first the prompt, then what each new token adds to it.

    `<unk>` is never generated. An RNN has the weights that it has at the time of the call. It runs
    in float32 on the CPU, whatever the dtype and the device of the model are.

    Args:
        model: Any model of this package.
        prompt: The text to continue. Without a prompt the text starts after a boundary.
        length: The number of tokens to generate.
        temperature: The logits are divided by this number. 0 always takes the most probable token,
            the first one of several equals.
        top_k: Draw from this many of the most probable tokens. None draws from all.
        seed: The seed of the generator. None takes a seed from the operating system.
        sentence: Stop at the first boundary.
        top_p: Of the tokens that `top_k` leaves, draw from the fewest whose probabilities make up
            this share (Holtzman et al. 2020). None draws from all.

    Raises:
        UserError: An option is out of range, or the prompt has a character that is not in the
            vocabulary. The iterator raises it if the hidden state of an RNN overflows.

    Example:
        >>> from rnnfast import lm
        >>> text = "the cat sat on the mat\\n" * 50
        >>> vocab = lm.Vocabulary.build("word", [text])
        >>> model = lm.NgramLM.fit(vocab, vocab.encode_stream(text), order=3)
        >>> "".join(lm.generate(model, "the cat", length=4, temperature=0))
        'the cat sat on the mat'
    """
    if length < 0:
        raise ArgumentError(f"length must be zero or more, not {length}")
    if not 0 <= temperature < math.inf:
        raise ArgumentError(f"temperature must be zero or more, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ArgumentError(f"top_k must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ArgumentError(f"top_p must be more than 0 and at most 1, not {top_p}")
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
    # This function is not a generator itself, so that the call raises the errors above and not the
    # first `next` of the iterator.
    return _pieces(vocab, prompt, ids, sampler, length, block, sentence)


def _pieces(
    vocab: Vocabulary,
    prompt: str,
    ids: np.ndarray,
    sampler: TokenSampler,
    length: int,
    block: int,
    sentence: bool,
) -> Iterator[str]:
    if prompt:
        yield prompt
    given = [vocab.boundary, *ids.tolist()]
    for start in range(0, len(given), block):
        sampler.feed(given[start : start + block])
    # A prompt that ends with a blank needs no space before the next word.
    previous = given[-1] if words(prompt[-1:]) else vocab.boundary
    yield from vocab.pieces(_tokens(vocab, sampler, length, block, sentence), previous)


def _tokens(
    vocab: Vocabulary, sampler: TokenSampler, length: int, block: int, sentence: bool
) -> Iterator[int]:
    while length > 0:
        try:
            tokens = sampler.generate(min(block, length))
        except OverflowError as error:
            raise UserError(f"there is no more text from this model: {error}") from error
        yield from tokens
        if sentence and tokens[-1] == vocab.boundary:
            return
        length -= len(tokens)
