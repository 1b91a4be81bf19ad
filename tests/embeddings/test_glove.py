"""GloVe: co-occurrences and an epoch against plain loops, and the groups that it finds."""

from collections import Counter

import numpy as np
import pytest
import torch
from embedding_helpers import GROUPS, TEXT, VOCAB, neighbours_are_of_the_group

from rnnfast import _ops, embeddings, lm
from rnnfast.embeddings import cooccurrences
from rnnfast.embeddings.glove import Glove

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("window", [1, 3, 50])
def test_cooccurrences(window):
    text = "a b a c\n\nb b b\nd zz a b\nc"
    vocab = lm.Vocabulary.build("word", ["a b c d"])
    ids = vocab.encode_stream(text)
    expected = Counter()
    for line in text.split("\n"):
        words = [word if word in vocab.tokens else "<unk>" for word in line.split()]
        for i, word in enumerate(words):
            for j, other in enumerate(words):
                if 0 < abs(i - j) <= window:
                    expected[word, other] += 1 / abs(i - j)
    row, column, x = cooccurrences(ids, vocab, window)
    keys = list(zip(row.tolist(), column.tolist(), strict=True))
    assert keys == sorted(set(keys))
    found = {(vocab.tokens[i], vocab.tokens[j]): v for (i, j), v in zip(keys, x, strict=True)}
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(expected[key], rel=1e-12) for key in found)


def test_nothing_is_near_anything():
    vocab = lm.Vocabulary.build("word", ["a b"])
    for text in ("", "a\nb\n"):
        assert [len(a) for a in cooccurrences(vocab.encode_stream(text), vocab, 5)] == [0, 0, 0]
    with pytest.raises(lm.UserError, match="window must be at least 1"):
        cooccurrences(vocab.encode_stream("a b"), vocab, 0)


def by_hand(model, shifts, dtype):
    """Compute an epoch in plain loops, and its cost."""
    words, contexts = (t.numpy().astype(dtype) for t in (model.words, model.contexts))
    starts, P = model._starts.tolist(), model.blocks
    cost = 0.0
    for shift in shifts:
        for p in range(P):
            block = p * P + (p + shift) % P
            for n in range(starts[block], starts[block + 1]):
                w, c = words[model._row[n]], contexts[model._column[n]]
                error = w[0, :-1] @ c[0, :-1] + w[0, -1] + c[0, -1] - dtype(model._log_x[n])
                g = dtype(model._weight[n]) * error
                cost += float(g * error)
                g_w, g_c = g * np.append(c[0, :-1], dtype(1)), g * np.append(w[0, :-1], dtype(1))
                w[0] -= dtype(model.lr) * g_w / np.sqrt(w[1])
                c[0] -= dtype(model.lr) * g_c / np.sqrt(c[1])
                w[1] += g_w * g_w
                c[1] += g_c * g_c
    return words, contexts, cost


def small_glove(dim, V=11, seed=0):
    rng = np.random.default_rng(seed)
    row, column = np.nonzero(rng.random((V, V)) < 0.7)
    return Glove(row, column, rng.uniform(0.1, 30, len(row)), V, dim, seed=seed)


@pytest.mark.parametrize("dim", [1, 7, 33, 100])
def test_an_epoch_is_that_of_plain_loops(isa, dim):
    """The rule of the kernels: at most twice the error of plain float32, plus some roundings."""
    model = small_glove(dim)
    assert model.blocks == 11
    shifts = np.roll(np.arange(11), 3)
    exact = by_hand(model, shifts, np.float64)
    plain = by_hand(model, shifts, np.float32)
    entries = (model._row, model._column, model._log_x, model._weight)
    cost = _ops.glove_epoch(
        model._starts, torch.tensor(shifts), *entries, model.words, model.contexts, model.lr
    )
    for ours, theirs, true in zip((model.words, model.contexts), plain, exact, strict=False):
        ours = np.abs(ours.numpy() - true).max()
        roundings = 4 * np.finfo(np.float32).eps * np.abs(true).max()
        assert ours <= 2 * np.abs(theirs - true).max() + roundings
    assert cost == pytest.approx(exact[2], rel=1e-5)


def test_threads_do_not_matter(num_threads):
    found = []
    for threads in (1, 2, 3):
        num_threads(threads)
        model = small_glove(20, V=150)
        found.append([[model.epoch() for _ in range(3)], model.matrix()])
    num_threads(1)
    for costs, matrix in found[1:]:
        assert costs == found[0][0] and np.array_equal(matrix, found[0][1])


def test_vectors_explain_the_counts():
    """With as many dimensions as words, w . c + b + d becomes log x."""
    model = small_glove(11)
    costs = [model.epoch() for _ in range(600)]
    assert costs[-1] < 1e-3 * costs[0] and costs == sorted(costs, reverse=True)[: len(costs)]


def test_glove_finds_the_groups():
    records = []
    vectors = embeddings.glove(TEXT, VOCAB, dim=10, epochs=40, progress=records.append)
    assert len(records) == 40 and records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert sorted(vectors.tokens) == sorted(
        ["<unk>", *(word for group in GROUPS for word in group)]
    )
    neighbours_are_of_the_group(vectors)
    again = embeddings.glove(TEXT, VOCAB, dim=10, epochs=40)
    assert np.array_equal(vectors.matrix, again.matrix)
    other = embeddings.glove(TEXT, VOCAB, dim=10, epochs=40, seed=2)
    assert not np.array_equal(vectors.matrix, other.matrix)


def test_native_errors():
    model = small_glove(3)
    good = {
        "starts": model._starts,
        "shifts": torch.arange(11),
        "row": model._row,
        "column": model._column,
        "log_x": model._log_x,
        "weight": model._weight,
        "words": model.words,
        "contexts": model.contexts,
    }
    before = model.words.clone()

    def refused(error, match, **changes):
        with pytest.raises(error, match=match):
            _ops.glove_epoch(*{**good, **changes}.values(), 0.05)
        assert torch.equal(model.words, before)

    for name, tensor in good.items():
        refused(RuntimeError, f"{name} must be", **{name: tensor.to(torch.int32)})
        # The message names the tensor that is too short, or the first one that it does not fit.
        refused(RuntimeError, "to fit the rest", **{name: tensor[..., :-1].contiguous()})
    for wrong in (-1, 11, int(model._row[0]) + 1):
        row = model._row.clone()
        row[0] = wrong
        refused(IndexError, "row and column must be words", row=row)
    refused(ValueError, "shifts must have each", shifts=torch.zeros(11, dtype=torch.int64))
    refused(ValueError, "starts must rise", starts=model._starts.flip(0))
