"""Word vectors from a file, as the first values of the embeddings of words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from .._common.errors import UserError
from ..embeddings import Vectors
from .inputs import WORDS, Tokens, is_numeric
from .network import SequenceNetwork


def load_vectors(path: str | Path, size: int, features: Sequence[str], X: list) -> Vectors:
    """Return the vectors of a file whose words are those of a feature of the sequences X.

    Raises:
        UserError: The sequences are numbers, no feature has words as its values, the file cannot
            be read, or its vectors do not have `size` elements.
    """
    if is_numeric(X):
        raise UserError("embeddings are of words: leave them out where X has numbers")
    if not set(WORDS) & set(features):
        raise UserError(
            f"embeddings are of the feature word or form: features must have one, not "
            f"{', '.join(features)}"
        )
    return Vectors.load_of_size(path, size, "embedding_size")


def initialise(network: SequenceNetwork, tokens: Tokens, vectors: Vectors) -> float:
    """Copy the vectors to the embeddings of the words in `tokens`, and return their scale.

    The vectors are scaled so that their root mean square is that of the embeddings before. The
    embeddings of words without a vector do not change.
    """
    weight = network.embedding.weight.detach()[tokens.word_rows]
    return vectors.initialise(weight, tokens.tables[tokens.word])


def add_words(
    vectors: Vectors, tokens: Tokens, networks: list[SequenceNetwork], scales: list[float]
) -> Tokens:
    """Give the words that only `vectors` has their embeddings, after the training.

    During the training they would cost each update the time of all vectors in the file, and only
    weight decay would change them.

    Args:
        vectors: The vectors from which the embeddings started.
        tokens: The tokens of the training data.
        networks: The trained networks, whose embeddings get more rows.
        scales: The scale of the vectors in each network, from `initialise`.

    Returns:
        The tokens of the training data together with the new words.
    """
    table = set(tokens.tables[tokens.word])
    new = [i for i, token in enumerate(vectors.tokens) if token not in table]
    extended = tokens.with_words(vectors.tokens[i] for i in new)
    end = tokens.word_rows.stop
    for network, scale in zip(networks, scales, strict=True):
        embedding, weight = network.embedding, network.embedding.weight.detach()
        rows = scale * torch.from_numpy(vectors.matrix[new]).to(weight)
        embedding.weight = nn.Parameter(torch.cat([weight[:end], rows, weight[end:]]))
        embedding.unknown = extended.unknown.to(weight.device)
    return extended
