"""The network, its embeddings, and embeddings that start from word vectors."""

import numpy as np
import pytest
import torch
from torch import nn

from rnnfast import tasks
from rnnfast.embeddings import Vectors
from rnnfast.lm import UserError
from rnnfast.tasks import SequenceClassifier, SequenceRegressor, SequenceTagger
from rnnfast.tasks.network import Embedding, SequenceNetwork

from .helpers import BAD, FILMS, FROZEN, GOOD, QUICK, SIDES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("pooling", ["last", "mean", "max", None])
@pytest.mark.parametrize("bidirectional, layers", [(True, 2), (False, 1)])
@pytest.mark.parametrize("cell, kind", [("tanh", nn.RNN), ("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_network_is_that_of_each_sequence_alone(pooling, bidirectional, layers, cell, kind):
    torch.manual_seed(0)
    network = SequenceNetwork(
        None, 3, 7, layers, bidirectional, cell, dropout=0.0, pooling=pooling, outputs=5
    ).double()
    reference = kind(3, 7, layers, bidirectional=bidirectional).double()
    reference.load_state_dict(network.rnn.state_dict())
    lengths = torch.tensor([4, 1, 6, 5])
    x = torch.randn(6, 4, 3, dtype=torch.double)
    got = network(x, lengths)
    for b, n in enumerate(lengths):
        states, h_n = reference(x[:n, b])
        h_n = h_n[0] if cell == "lstm" else h_n
        if pooling == "last":
            pooled = torch.cat(tuple(h_n[-(1 + bidirectional) :]))
        elif pooling is None:
            pooled = states
        else:
            pooled = states.mean(0) if pooling == "mean" else states.max(0).values
        expected = pooled @ network.head.weight.t() + network.head.bias
        ours = got[:n, b] if pooling is None else got[b]
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_sequences_without_steps_have_states_of_zero(pooling):
    network = SequenceNetwork(
        None, 3, 7, 2, True, "tanh", dropout=0.0, pooling=pooling, outputs=5
    ).double()
    nn.init.normal_(network.head.bias)
    x, empty = torch.randn(4, 3, dtype=torch.double), torch.zeros(0, 3, dtype=torch.double)
    expected = torch.cat([network.run([x]), network.head.bias[None]])
    torch.testing.assert_close(network.run([x, empty]), expected)
    torch.testing.assert_close(network.run([empty]), expected[1:])


def test_embedding_is_the_sum_over_features_and_word_dropout_makes_them_unknown():
    unknown = torch.tensor([0, 4])
    embedding = Embedding(9, unknown, 5, word_dropout=0.25)
    ids = torch.tensor([[[1, 5], [3, 8]], [[2, 4], [0, 6]]])
    expected = embedding.weight[ids].sum(2)
    torch.testing.assert_close(embedding.eval()(ids), expected)
    ids = torch.tensor([[[1, 5]]]).expand(4000, 1, 2)
    embedding.train()
    with torch.no_grad():
        embedding.weight.copy_(torch.zeros(9, 5))
        embedding.weight[1, 0] = embedding.weight[5, 1] = 1.0
        embedding.weight[0, 2] = embedding.weight[4, 3] = 1.0
    shares = embedding(ids).mean((0, 1))
    torch.testing.assert_close(shares[0] + shares[2], torch.tensor(1.0))
    torch.testing.assert_close(shares[1] + shares[3], torch.tensor(1.0))
    assert 0.21 < shares[2] < 0.29 and 0.21 < shares[3] < 0.29


def rows_of(model, words, k=0):
    """Return the embeddings of words as values of feature k, whose rows follow those of k - 1."""
    tables = model._inputs.tables
    start = sum(map(len, tables[:k]))
    return (
        model._networks[0]
        .embedding.weight.detach()[[start + tables[k].index(word) for word in words]]
        .numpy()
    )


@pytest.mark.parametrize("features", [("word",), ("prefix2", "form", "suffix1", "word")])
def test_embeddings_begin_with_the_vectors_of_the_file(vectors, features):
    k = 0 if features == ("word",) else 1
    plain = SequenceClassifier(**FROZEN, features=features).fit(FILMS, SIDES)
    model = SequenceClassifier(**FROZEN, features=features, embeddings=vectors).fit(FILMS, SIDES)
    file = Vectors.load(vectors)
    before = rows_of(plain, plain._inputs.tables[k], k)
    known = [*GOOD, *BAD]
    matrix = np.stack([file[word] for word in known])
    scale = np.sqrt(np.mean(before**2.0) / np.mean(matrix**2.0))
    np.testing.assert_allclose(rows_of(model, known, k), scale * matrix, rtol=1e-5)
    new = np.stack([file[word] for word in ("superb", "awful")])
    np.testing.assert_allclose(rows_of(model, ["superb", "awful"], k), scale * new, rtol=1e-5)
    # Nothing else changes: words without a vector, unknown values, other features, other layers.
    for j, table in enumerate(plain._inputs.tables):
        others = [value for value in table if j != k or value not in known]
        assert np.array_equal(rows_of(model, others, j), rows_of(plain, others, j))
    ours, theirs = (dict(m._networks[0].named_parameters()) for m in (model, plain))
    for name in ours.keys() - {"embedding.weight"}:
        assert torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-25), name
    unknown = model._networks[0].embedding.unknown
    assert unknown.tolist() == np.cumsum([0, *map(len, model._inputs.tables)])[:-1].tolist()


def test_words_are_known_by_their_vectors_alone(vectors):
    """Words that are rarer than min_count, or that are only in the file, are known."""
    settings = {**QUICK, "embeddings": vectors, "min_count": 2, "features": ("word", "suffix1")}
    model = SequenceClassifier(**settings).fit([*FILMS, "superb zzz"], [*SIDES, "pos"])
    assert "superb" in model._inputs.tables[0] and "zzz" not in model._inputs.tables[0]
    model = SequenceClassifier(**settings, ensemble=2).fit(FILMS, SIDES)
    assert model.predict(["a superb film", "a awful film"]).tolist() == ["pos", "neg"]
    # Words that are only in the file have no influence on the training.
    file = Vectors.load(vectors)
    Vectors(file.tokens[:6], file.matrix[:6]).save(vectors)
    fewer = SequenceClassifier(**settings, ensemble=2).fit(FILMS, SIDES)
    assert fewer.history_ != [] and [r["train_loss"] for r in fewer.history_] == [
        r["train_loss"] for r in model.history_
    ]
    assert np.array_equal(fewer.predict_proba(FILMS), model.predict_proba(FILMS))


def test_embeddings_of_a_tagger_and_a_regressor_and_on_disk(vectors, tmp_path):
    X = [[(word, "X") for word in film.split()] for film in FILMS]
    tagger = SequenceTagger(**QUICK, embeddings=str(vectors), ensemble=2)
    tagger.fit(X, [["O", side, "O"] for side in SIDES])
    regressor = SequenceRegressor(**QUICK, embeddings=vectors)
    regressor.fit(FILMS, [1.0 if side == "pos" else -1.0 for side in SIDES])
    good, bad = regressor.predict(["a superb film", "a awful film"])
    assert good > 0 > bad
    new = [[("a", "X"), ("superb", "X"), ("film", "X")], [("awful", "X")]]
    for k, (model, some) in enumerate([(tagger, new), (regressor, ["superb", "awful a"])]):
        model.save(tmp_path / str(k))
        vectors.rename(tmp_path / "away")
        loaded = tasks.load(tmp_path / str(k))
        assert loaded.embeddings == str(vectors)
        for ours, theirs in zip(loaded.predict(some), model.predict(some), strict=True):
            assert np.array_equal(ours, theirs)
        with pytest.raises(UserError, match=r"cannot read .*vectors\.bin"):
            loaded.fit(some, [[1.0] * len(one) for one in some])
        (tmp_path / "away").rename(vectors)


@pytest.mark.parametrize(
    "settings, X, message",
    [
        ({"embedding_size": 9}, FILMS, r"vectors\.bin has vectors of size 8, not embedding_size 9"),
        ({"features": ("prefix2",)}, FILMS, "features must have one, not prefix2"),
        ({"embeddings": 5}, FILMS, "embeddings must be the name of a file, not 5"),
        ({"embeddings": "none.bin"}, FILMS, r"cannot read none\.bin"),
        ({}, ["x y", "z"] * 30, r"none of the 4 tokens is among those that have vectors"),
        ({}, [np.ones(2)] * 60, "embeddings are of words"),
    ],
)
def test_embeddings_that_do_not_fit(vectors, settings, X, message):
    with pytest.raises(UserError, match=message):
        SequenceClassifier(**{**QUICK, "embeddings": vectors, **settings}).fit(X, SIDES)


def test_vector_of_the_empty_word(tmp_path):
    """A vector of the empty word, which files may have, is not that of unknown words."""
    words = ["", *GOOD, *BAD]
    matrix = np.random.default_rng(0).normal(size=(7, 8))
    models = []
    for name, first in (("with.txt", 0), ("without.txt", 1)):
        Vectors(words[first:], matrix[first:]).save(tmp_path / name)
        model = SequenceClassifier(**{**FROZEN, "embeddings": tmp_path / name})
        models.append(model.fit(FILMS, SIDES).predict_proba(["unknown", "good"]))
    assert np.array_equal(*models)
