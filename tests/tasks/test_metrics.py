"""Chunks of IOB tags and their F1."""

import numpy as np
import pytest

from rnnfast.tasks.metrics import chunk_f1, chunks, is_iob

TAGS = ["O", "B-NP", "I-NP", "B-VP", "I-VP", "I-PP"]


def test_chunks():
    tags = ["I-NP", "I-NP", "B-NP", "O", "I-VP", "I-NP", "B-PP", "I-PP"]
    assert chunks(tags) == {(0, 2, "NP"), (2, 3, "NP"), (4, 5, "VP"), (5, 6, "NP"), (6, 8, "PP")}
    assert chunks([]) == set() and chunks(["O"]) == set()
    y, predicted = [["B-NP", "I-NP", "O"], ["B-VP"]], [["B-NP", "O", "B-NP"], ["B-VP"]]
    assert chunk_f1(y, predicted) == pytest.approx(2 * 1 / (2 + 3))
    assert chunk_f1([["O"]], [["O"]]) == 0.0
    assert is_iob(TAGS) and not is_iob(["O"]) and not is_iob(["B-NP", "X"]) and not is_iob([1, 2])


def test_chunk_f1_is_that_of_seqeval():
    metrics = pytest.importorskip("seqeval.metrics")
    rng = np.random.default_rng(1)
    for _ in range(20):
        y, predicted = ([rng.choice(TAGS, n).tolist() for n in (1, 5, 30)] for _ in range(2))
        assert chunk_f1(y, predicted) == pytest.approx(metrics.f1_score(y, predicted), abs=1e-12)
