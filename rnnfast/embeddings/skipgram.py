"""Train word vectors with skip-gram and negative sampling, which gensim implements.

Mikolov, Sutskever, Chen, Corrado & Dean, "Distributed Representations of Words and Phrases and
their Compositionality", 2013.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .._common.errors import MissingPackage, UserError, check_seed
from .._common.text import words
from ..lm.data.vocabulary import UNK, Vocabulary
from .vectors import Vectors, check_positive

LONGEST = 10_000  # words of a sentence, because gensim drops the words after MAX_WORDS_IN_BATCH


def skipgram(
    text: str,
    vocab: Vocabulary,
    dim: int = 100,
    window: int = 5,
    epochs: int = 10,
    lr: float = 0.025,
    seed: int = 1,
    progress: Callable[[dict], None] | None = None,
) -> Vectors:
    """Train word vectors with skip-gram and 5 negative samples, on as many threads as torch uses.

    Args:
        text: one sentence a line.
        vocab: the words that get a vector. Words of the text that it lacks are `<unk>`.
        dim: D, the size of a vector.
        window: the largest distance, in words, at which two words of a line are near one another.
        epochs: passes over the text.
        lr: learning rate.
        seed: seed of the initial vectors and of the order, below 2**32. The same seed gives the
            same vectors with one thread only.
        progress: called after each epoch with a dict: `epoch` and `loss`, the sum that gensim
            reports.

    Raises:
        MissingPackage: gensim is not installed (the extra `embeddings`). It is a UserError.
        UserError: a setting is out of range, or the text has no words.

    Example:
        >>> from rnnfast import embeddings, lm
        >>> text = "the cat sat\\nthe dog sat\\n" * 20
        >>> vocab = lm.Vocabulary.build("word", [text])
        >>> vectors = embeddings.skipgram(text, vocab, dim=8)  # doctest: +SKIP
        >>> vectors["cat"].shape  # doctest: +SKIP
        (8,)
    """
    check_positive(dim=dim, window=window, epochs=epochs, lr=lr)
    check_seed(seed, 2**32)  # gensim uses NumPy's RandomState, which takes no larger seed
    try:
        from gensim.models import Word2Vec
        from gensim.models.callbacks import CallbackAny2Vec
    except ImportError as error:
        raise MissingPackage("skip-gram needs gensim: pip install 'rnnfast[embeddings]'") from error

    class Progress(CallbackAny2Vec):  # type: ignore[misc]  # gensim has no types
        epoch, total = 0, 0.0

        def on_epoch_end(self, model: Word2Vec) -> None:
            self.epoch += 1
            total = model.get_latest_training_loss()
            if progress:
                progress({"epoch": self.epoch, "loss": total - self.total})
            self.total = total

    model = Word2Vec(
        _sentences(text, vocab),
        vector_size=dim,
        window=window,
        epochs=epochs,
        alpha=lr,
        sg=1,
        negative=5,
        min_count=1,
        seed=seed,
        workers=torch.get_num_threads(),
        compute_loss=True,
        callbacks=[Progress()],
    )
    seen = [token for token in vocab.tokens if token in model.wv.key_to_index]
    return Vectors(seen, np.stack([model.wv[token] for token in seen]))


def _sentences(text: str, vocab: Vocabulary) -> list[list[str]]:
    """Return the words of each line. A line longer than `LONGEST` becomes several sentences."""
    known, result = set(vocab.tokens), []
    for line in text.split("\n"):
        tokens = [word if word in known else UNK for word in words(line)]
        result += [tokens[at : at + LONGEST] for at in range(0, len(tokens), LONGEST)]
    if not result:
        raise UserError("the text has no words: give more text")
    return result
