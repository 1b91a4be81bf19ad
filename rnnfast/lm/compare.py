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
from .data.vocabulary import CHAR, WORD
from .language_model import Evaluation, LanguageModel, bits, perplexity
from .mixture import best_cache, cache_logprobs, mix, tune
from .ngram.model import NgramLM
from .storage import RunFolder, read_settings
from .training.runs import prepare, resume
from .training.trainer import Trainer

NEURAL = {
    "rnn": {"model": RNN},
    "window": {"model": WINDOW},
    "lstm": {"model": RNN, "cell": "lstm"},
}
ORDERS = (1, 2, 3, 5)
# The names of the models that are mixed. The last mixture is also made with a cache.
MIXTURES = (("window", "5-gram"), ("rnn", "5-gram"), ("window", "rnn", "5-gram"))


@dataclass(frozen=True)
class Entry:
    """One model or mixture of a comparison.

    Attributes:
        name: The name in the table.
        size: The bytes of its parameters in memory, the keys of n-grams included.
        train_seconds: The time that the training took.
        test_seconds: The time that log p of the test text took.
        valid: log p of every token of the validation text, float64 (n,), in nats.
        test: log p of every token of the test text, float64 (n,), in nats.
        weights: The weights of a mixture by the names of its components; None for a model.
    """

    name: str
    size: int
    train_seconds: float
    test_seconds: float
    valid: np.ndarray
    test: np.ndarray
    weights: dict[str, float] | None = None

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
            "bytes": self.size,
            "train_seconds": self.train_seconds,
            "tokens_per_second": len(self.test) / self.test_seconds,
            "valid_perplexity": perplexity(float(-self.valid.mean())),
            "test_perplexity": perplexity(loss),
            "test_bits_per_token": bits(loss),
            "test_perplexity_of_words": alone,
            **{f"test_{name}": value for name, value in by_unit.items()},
            "weights": self.weights,
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
        raise UserError("a comparison needs a test text")
    # `resume` checks only settings that are given, and a model in `out` may have another level.
    settings = {"level": CHAR, **settings}
    entries: dict[str, Entry] = {}
    for name in NEURAL:
        trainer = _trainer(name, corpus, settings, Path(out) / name)
        _check_vocabularies(trainer, Path(out))
        train(trainer)
        size = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
        entries[name] = _entry(name, trainer.model, size, trainer.state.seconds, trainer)
    vocab = trainer.vocab
    for order in ORDERS:
        began = time.perf_counter()
        model = NgramLM.fit(vocab, trainer.train, order, stream=True)
        seconds = time.perf_counter() - began
        size = sum(array.nbytes for ngrams in model.ngrams for array in vars(ngrams).values())
        entries[f"{order}-gram"] = _entry(f"{order}-gram", model, size, seconds, trainer)
    mixed = [_mixed([entries[name] for name in names]) for names in MIXTURES]
    everything = _mixed([entries[name] for name in MIXTURES[-1]], trainer)
    words = np.asarray(trainer.test != vocab.boundary) if vocab.level == WORD else None
    return [entry.to_json(corpus.test, words) for entry in (*entries.values(), *mixed, everything)]


def _trainer(name: str, corpus: Corpus, settings: dict, path: Path) -> Trainer:
    settings = {**settings, **NEURAL[name]}
    if (path / CHECKPOINT).exists():
        return resume(path, settings, corpus, finished=True)
    return prepare(Config.defaults(**settings), corpus, RunFolder(path))


def _check_vocabularies(trainer: Trainer, out: Path) -> None:
    """Check before the training that the models in `out` have the vocabulary of this run.

    An earlier run may have had another --vocab or --min-count.
    """
    for path in (out / name for name in NEURAL):
        if not (path / CHECKPOINT).exists():
            continue
        _, vocab, _ = read_settings(path)
        if vocab.to_json() != trainer.vocab.to_json():
            assert trainer.folder is not None
            trainer.folder.discard()
            raise UserError(
                f"the model in {path} has another vocabulary than {trainer.folder.final}: give "
                "another --out"
            )


def _entry(
    name: str, model: LanguageModel, size: int, train_seconds: float, trainer: Trainer
) -> Entry:
    assert trainer.test is not None  # `compare` has checked it
    valid = model.logprobs(trainer.valid)
    began = time.perf_counter()
    test = model.logprobs(trainer.test)
    return Entry(name, size, train_seconds, time.perf_counter() - began, valid, test)


def _mixed(parts: list[Entry], cached: Trainer | None = None) -> Entry:
    """Return the mixture of `parts`, with a cache of the trainer's streams if `cached` is given."""
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
        sum(part.size for part in parts),
        sum(part.train_seconds for part in parts) + time.perf_counter() - began,
        sum(part.test_seconds for part in parts),
        mix(valid, weights),
        mix(test, weights),
        dict(zip(names, weights.tolist(), strict=True)),
    )
