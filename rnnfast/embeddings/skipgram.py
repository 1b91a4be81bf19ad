"""Skip-gram with negative sampling (Mikolov et al. 2013), by gensim."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .._common.errors import MissingPackage, UserError, check_seed
from ..lm.data.vocabulary import Vocabulary
from .vectors import Vectors, check_positive

LONGEST = 10_000  # words of a sentence: gensim's MAX_WORDS_IN_BATCH


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
    """Vectors of the words of `vocab` from a text, a sentence a line, with 5 negative samples.

    `progress` is called after each epoch with a dict: epoch, loss (a sum, gensim's). Threads are
    torch's; with one thread the same seed gives the same vectors. Raises UserError without gensim
    (the extra `embeddings`) and for settings out of range.
    """
    check_positive(dim=dim, window=window, epochs=epochs, lr=lr)
    check_seed(seed, 2**32)  # NumPy's RandomState, which gensim has, takes no more
    try:
        from gensim.models import Word2Vec
        from gensim.models.callbacks import CallbackAny2Vec
    except ImportError as error:
        raise MissingPackage("skip-gram needs gensim: pip install 'rnnfast[embeddings]'") from error

    class Progress(CallbackAny2Vec):
        epoch, total = 0, 0.0

        def on_epoch_end(self, model):
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
    """The words of each line; gensim leaves out what is longer, so that begins another sentence."""
    known, unk, result = set(vocab.tokens), vocab.tokens[vocab.unk], []
    for line in text.split("\n"):
        words = [word if word in known else unk for word in line.split()]
        result += [words[at : at + LONGEST] for at in range(0, len(words), LONGEST)]
    if not result:
        raise UserError("the text has no words")
    return result
