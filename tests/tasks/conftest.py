"""Fixtures of the estimators' tests: a trained classifier and a file of word vectors."""

import numpy as np
import pytest

from rnnfast.embeddings import Vectors
from rnnfast.tasks import SequenceClassifier

from .helpers import BAD, GOOD, ORDER, QUICK, TEXTS


@pytest.fixture(scope="module")
def classifier(one_thread):
    return SequenceClassifier(**{**QUICK, "epochs": 20}).fit(TEXTS, ORDER)


@pytest.fixture
def vectors(tmp_path):
    """A file of vectors of size 8: good words are close to each other, and so are bad ones.

    Two of the words occur in no training text.
    """
    rng = np.random.default_rng(8)
    words = [*GOOD, *BAD, "superb", "awful"]
    side = np.array([1.0] * 3 + [-1.0] * 3 + [1.0, -1.0])[:, None]
    matrix = side * rng.normal(size=8) + 0.3 * rng.normal(size=(8, 8))
    path = tmp_path / "vectors.bin"
    Vectors(words, matrix).save(path)
    return path
