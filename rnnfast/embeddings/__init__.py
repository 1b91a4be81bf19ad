"""Word vectors: train them with GloVe or skip-gram, save them, and find neighbours and analogies.

    from rnnfast import embeddings, lm

    text = lm.corpus.builtin().train
    vocab = lm.Vocabulary.build("word", [text], min_count=5)
    vectors = embeddings.glove(text, vocab)
    print(vectors.neighbours("class"))
    vectors.save("vectors.txt")

In the shapes of arrays, V is the number of words and D the size of a vector.
"""

from .cooccurrence import cooccurrences
from .glove import glove
from .skipgram import skipgram
from .vectors import Vectors

__all__ = ["Vectors", "cooccurrences", "glove", "skipgram"]
