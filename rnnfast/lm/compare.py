"""Compare all kinds of models on one text: n-grams, window, RNN, LSTM, and their mixtures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .._common.errors import UserError
from .._common.storage import CHECKPOINT
from .config import RNN, WINDOW, Config
from .data.corpus import Corpus
from .data.vocabulary import BPE, BYTE, CHAR, WORD, Vocabulary
from .language_model import Evaluation, LanguageModel, bits, perplexity
from .mixture import best_cache, cache_logprobs, mix, tune
from .ngram.model import NgramLM
from .storage import RunFolder, read_settings
from .training.runs import Streams, build_vocabulary, check_settings, encode, prepare, resume
from .training.trainer import Trainer

NEURAL = {
    "rnn": {"model": RNN},
    "window": {"model": WINDOW},
    "lstm": {"model": RNN, "cell": "lstm"},
}
ORDERS = (1, 2, 3, 5)
# The names of the models that are mixed. The last mixture is also made with a cache.
MIXTURES = (("window", "5-gram"), ("rnn", "5-gram"), ("window", "rnn", "5-gram"))
SAMPLE_LENGTH = {CHAR: 400, BYTE: 400, WORD: 80, BPE: 120}  # tokens
SAMPLE_TEMPERATURE = 0.7  # a short training leaves the tail of the distribution noisy


@dataclass(frozen=True)
class Entry:
    """One model or mixture of a comparison.

    Attributes:
        name: The name in the table.
        parameters: The number of its parameters. Those of n-grams are the probabilities and the
            back-off weights.
        size: The bytes of its parameters in memory, the keys of n-grams included.
        train_seconds: The time that the training took.
        test_seconds: The time that log p of the test text took.
        valid: log p of every token of the validation text, float64 (n,), in nats.
        test: log p of every token of the test text, float64 (n,), in nats.
        weights: The weights of a mixture by the names of its components; None for a model.
        sample: A text that the model has generated; None for a mixture.
    """

    name: str
    parameters: int
    size: int
    train_seconds: float
    test_seconds: float
    valid: np.ndarray
    test: np.ndarray
    weights: dict[str, float] | None = None
    sample: str | None = None

    def to_json(self, text: str, words: np.ndarray | None) -> dict:
        """Return the figures on the test text as a dict that `json` can write.

        `words`, bool (n,), says which tokens are words and not the end of a line. It is None at the
        levels that have no words.
        """
        loss = float(-self.test.mean())
        by_unit = Evaluation(len(self.test), loss).by_unit(text)
        alone = None if words is None else perplexity(float(-self.test[words].mean()))
        return {
            "model": self.name,
            "parameters": self.parameters,
            "bytes": self.size,
            "train_seconds": self.train_seconds,
            "tokens_per_second": len(self.test) / self.test_seconds,
            "valid_perplexity": perplexity(float(-self.valid.mean())),
            "test_perplexity": perplexity(loss),
            "test_bits_per_token": bits(loss),
            "test_perplexity_of_words": alone,
            **{f"test_{name}": value for name, value in by_unit.items()},
            "weights": self.weights,
            "sample": self.sample,
        }


def compare(
    corpus: Corpus,
    settings: dict,
    out: str | Path,
    train: Callable[[Trainer], None] = Trainer.run,
) -> list[dict]:
    """Train every model, evaluate all of them on valid and test, and mix them.

    All models share one vocabulary and read a text as one stream. The weights of the mixtures are
    tuned on the validation text.

    Args:
        corpus: The texts. A test text is needed.
        settings: Changes to the defaults of `Config`: the level, and `epochs` or `max_seconds` as
            the budget of each neural model.
        out: The folder of the neural models, each of which has a folder of its name there. A model
            that is already there is not trained again, except if its budget is not used up.
        train: A function that runs a trainer.

    Returns:
        A list of dicts, one for each model and mixture, as `Entry.to_json` makes them.

    Raises:
        UserError: The corpus has no test text, `out` has models with another vocabulary or other
            settings, or training fails as in `lm.train`.
    """
    if corpus.test is None:
        raise UserError("a comparison needs a test text: give --test TEXT")
    # Only settings that are given are checked, and a model in `out` may have another level.
    settings = {"level": CHAR, **settings}
    vocab = build_vocabulary(Config.defaults(**settings), corpus)
    _check_models(Path(out), settings, vocab)
    streams = encode(vocab, corpus)
    entries: dict[str, Entry] = {}
    for name in NEURAL:
        trainer = _trainer(name, corpus, settings, Path(out) / name, streams)
        train(trainer)
        parameters = list(trainer.model.parameters())
        number = sum(p.numel() for p in parameters)
        size = sum(p.numel() * p.element_size() for p in parameters)
        costs = number, size, trainer.state.seconds
        entries[name] = _entry(name, trainer.model, costs, streams)
    for order in ORDERS:
        began = time.perf_counter()
        model = NgramLM.fit(vocab, streams.train, order, stream=True)
        seconds = time.perf_counter() - began
        number = sum(2 * len(ngrams.keys) for ngrams in model.ngrams) - len(model.ngrams[-1].keys)
        size = sum(array.nbytes for ngrams in model.ngrams for array in vars(ngrams).values())
        entries[f"{order}-gram"] = _entry(f"{order}-gram", model, (number, size, seconds), streams)
    mixed = [_mixed([entries[name] for name in names]) for names in MIXTURES]
    everything = _mixed([entries[name] for name in MIXTURES[-1]], streams)
    words = np.asarray(streams.test != vocab.boundary) if vocab.level == WORD else None
    return [entry.to_json(corpus.test, words) for entry in (*entries.values(), *mixed, everything)]


def _check_models(out: Path, settings: dict, vocab: Vocabulary) -> None:
    """Check before the training that the models in `out` have these settings and this vocabulary.

    An earlier run may have had another --vocab or --min-count.
    """
    for name, kind in NEURAL.items():
        path = out / name
        if (path / CHECKPOINT).exists():
            config, its_vocab, _ = read_settings(path)
            check_settings(path, config, {**settings, **kind})
            if its_vocab.to_json() != vocab.to_json():
                raise UserError(
                    f"the model in {path} has another vocabulary than this text: give another --out"
                )


def _trainer(name: str, corpus: Corpus, settings: dict, path: Path, streams: Streams) -> Trainer:
    settings = {**settings, **NEURAL[name]}
    if (path / CHECKPOINT).exists():
        return resume(path, settings, corpus, finished=True, streams=streams)
    return prepare(Config.defaults(**settings), corpus, RunFolder(path), streams)


def _entry(
    name: str, model: LanguageModel, costs: tuple[int, int, float], streams: Streams
) -> Entry:
    """Evaluate a model. `costs` are its parameters, its bytes and the seconds of its training."""
    assert streams.test is not None  # `compare` has checked it
    valid = model.logprobs(streams.valid)
    began = time.perf_counter()
    test = model.logprobs(streams.test)
    seconds = time.perf_counter() - began
    sample = model.generate(
        length=SAMPLE_LENGTH[model.vocab.level], temperature=SAMPLE_TEMPERATURE, seed=1
    )
    return Entry(name, *costs, seconds, valid, test, sample=sample)


def _mixed(parts: list[Entry], cached: Streams | None = None) -> Entry:
    """Return the mixture of `parts`, together with a cache of the streams `cached` if given."""
    names = [part.name for part in parts]
    began = time.perf_counter()
    valid, test = (np.array([getattr(p, split) for p in parts]) for split in ("valid", "test"))
    if cached is None:
        weights = tune(valid)
    else:
        assert cached.test is not None
        names.append("cache")
        size, weights = best_cache(valid, cached.valid)
        valid, test = (
            np.vstack([each, cache_logprobs(ids, size)])
            for each, ids in ((valid, cached.valid), (test, cached.test))
        )
    return Entry(
        " + ".join(names),
        sum(part.parameters for part in parts),
        sum(part.size for part in parts),
        sum(part.train_seconds for part in parts) + time.perf_counter() - began,
        sum(part.test_seconds for part in parts),
        mix(valid, weights),
        mix(test, weights),
        dict(zip(names, weights.tolist(), strict=True)),
    )
