"""Estimators of sequences: what the network computes, what training does, files, scikit-learn."""

import json
import shutil

import numpy as np
import pytest
import torch
from lm_helpers import DATA
from torch import nn

from rnnfast import lm, tasks
from rnnfast.embeddings import Vectors
from rnnfast.lm import UserError
from rnnfast.tasks import SequenceClassifier, SequenceRegressor, SequenceTagger
from rnnfast.tasks.inputs import Numbers, Tokens, extractor, shape
from rnnfast.tasks.metrics import chunk_f1, chunks, is_iob
from rnnfast.tasks.network import Embedding, SequenceNetwork

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {
    "embedding_size": 8,
    "hidden_size": 8,
    "epochs": 12,
    "batch_size": 8,
    "lr": 0.02,
    "patience": None,
    "dropout": 0.0,
    "word_dropout": 0.0,
}
RNG = np.random.default_rng(0)
# Which of two words comes first is the class: no bag of words tells it.
TEXTS = [" ".join(RNG.permutation(["a", "b", *"xyz"[: RNG.integers(4)]])) for _ in range(120)]
ORDER = ["ab" if text.index("a") < text.index("b") else "ba" for text in TEXTS]


@pytest.fixture(scope="module")
def classifier():
    return SequenceClassifier(**{**QUICK, "epochs": 20}).fit(TEXTS, ORDER)


# ---- the network


@pytest.mark.parametrize("pooling", ["last", "mean", "max", None])
@pytest.mark.parametrize("bidirectional, layers", [(True, 2), (False, 1)])
def test_network_is_that_of_each_sequence_alone(pooling, bidirectional, layers):
    torch.manual_seed(0)
    network = SequenceNetwork(
        None, 3, 7, layers, bidirectional, "tanh", dropout=0.0, pooling=pooling, outputs=5
    ).double()
    reference = nn.RNN(3, 7, layers, bidirectional=bidirectional).double()
    reference.load_state_dict(network.rnn.state_dict())
    lengths = torch.tensor([4, 1, 6, 5])
    x = torch.randn(6, 4, 3, dtype=torch.double)
    got = network(x, lengths)
    for b, n in enumerate(lengths):
        states, h_n = reference(x[:n, b])
        if pooling == "last":
            pooled = torch.cat(tuple(h_n[-(1 + bidirectional) :]))
        elif pooling is None:
            pooled = states
        else:
            pooled = states.mean(0) if pooling == "mean" else states.max(0).values
        expected = pooled @ network.head.weight.t() + network.head.bias
        ours = got[:n, b] if pooling is None else got[b]
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


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


def test_features():
    words = ["McCoy-90s", "a", "U.S."]
    assert extractor("word")(words) == ["mccoy-90s", "a", "u.s."]
    assert extractor("form")(words) == words
    assert extractor("bigram")(words) == [" mccoy-90s", "mccoy-90s a", "a u.s."]
    assert extractor("shape")(words) == ["AaAa-0a", "a", "A.A."]
    assert extractor("prefix2")(words) == ["mc", "a", "u."]
    assert extractor("suffix3")(words) == ["90s", "a", ".s."]
    assert shape("") == ""
    for name in ("suffix0", "affix2", "", 3):
        with pytest.raises(UserError, match="features must be"):
            extractor(name)


def test_tokens():
    X = [[("The", "DT"), ("cat", "NN")], [("the", "DT"), ("dog", "NN")], []]
    tokens = Tokens.fit(X, ["word", "suffix1"], min_count=2)
    assert tokens.tables == [["", "the"], ["", "e"], ["", "DT", "NN"]]
    assert tokens.unknown.tolist() == [0, 2, 4]
    first, second, empty = tokens.encode([X[0], [("THE", "XX")], []])
    assert first.tolist() == [[1, 3, 5], [0, 2, 6]]
    assert second.tolist() == [[1, 3, 4]]
    assert empty.tolist() == [[0, 2, 4]]
    with pytest.raises(UserError, match=r"X\[1\] has tokens of 1 columns, not 2"):
        tokens.encode([X[0], ["the", "cat"]])
    with pytest.raises(UserError, match=r"X\[0\] must be a text, a list of words"):
        tokens.encode([[("a", "b"), ("c",)]])


def test_numbers():
    assert [len(x) for x in Numbers.fit([np.ones(3)]).encode([np.ones(3), np.ones((2, 1))])] == [
        3,
        2,
    ]
    for wrong in (np.ones((2, 2)), np.ones((0, 1)), np.array([np.nan]), np.ones((1, 1, 1))):
        with pytest.raises(UserError, match=r"X\[1\] must be"):
            Numbers(1).encode([np.ones(3), wrong])


# ---- chunks

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


# ---- learning


def test_classifier_learns_the_order_of_words(classifier):
    assert classifier.score(TEXTS, ORDER) == 1.0
    assert classifier.classes_.tolist() == ["ab", "ba"]
    assert classifier.predict(["b a", "a b"]).tolist() == ["ba", "ab"]
    proba = classifier.predict_proba(TEXTS[:5])
    assert proba.shape == (5, 2) and np.allclose(proba.sum(1), 1)
    assert classifier.classes_[proba.argmax(1)].tolist() == ORDER[:5]
    losses = [record["train_loss"] for record in classifier.history_]
    assert len(losses) == 20 and losses[-1] < 0.2 * losses[0]


def test_predictions_do_not_depend_on_what_else_is_predicted(classifier):
    together = classifier.predict_proba([*TEXTS[:9], ""])
    alone = [classifier.predict_proba([text])[0] for text in [*TEXTS[:9], ""]]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    assert classifier.predict([]).shape == (0,)
    assert classifier.predict_proba([]).shape == (0, 2)


def test_the_first_loss_is_the_cross_entropy_by_hand():
    """Of 2 classes by BCE and of 3 by softmax, with the weights of classes."""
    X, y = [["a"], ["b"], ["c"], ["a", "b"]], [0, 1, 2, 1]
    for labels, weight in ((y, {1: 3.0}), ([0, 1, 0, 1], None), (y, "balanced")):
        model = SequenceClassifier(
            **{**QUICK, "epochs": 1, "batch_size": 4, "lr": 1e-30}, class_weight=weight
        )
        model.fit(X, labels)
        p = model.predict_proba(X)[range(4), labels]
        w = np.ones(4)
        if weight == "balanced":
            w = np.array([4 / (3 * labels.count(label)) for label in labels])
        elif weight:
            w = np.array([weight.get(label, 1.0) for label in labels])
        expected = -(w * np.log(p)).sum() / w.sum()
        assert model.history_[0]["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_multi_class_with_integers_and_all_poolings():
    X = [word.split() for word in ("a x", "b x", "c x", "x a", "x b", "x c")] * 10
    y = np.array([7, 8, 9] * 20)
    for pooling in ("last", "mean", "max"):
        model = SequenceClassifier(**QUICK, pooling=pooling).fit(X, y)
        assert model.score(X, y) == 1.0 and model.predict(X[:2]).tolist() == [7, 8]


def test_tagger_needs_what_comes_later():
    """The tag of a word is whether the same word comes again: only the way back knows."""
    rng = np.random.default_rng(3)
    X = [rng.choice(list("abc"), rng.integers(1, 6)).tolist() for _ in range(150)]
    y = [["B-Y" if word in words[i + 1 :] else "O" for i, word in enumerate(words)] for words in X]
    X.append([]), y.append([])
    model = SequenceTagger(**{**QUICK, "epochs": 40, "hidden_size": 16, "features": ("word",)})
    model.fit(X, y)
    assert model.metric == "chunk F1" and model.score(X, y) > 0.97
    one_way = SequenceTagger(**{**model.get_params(), "bidirectional": False}).fit(X, y)
    assert one_way.score(X, y) < 0.95
    assert [len(tags) for tags in model.predict(X)] == [len(words) for words in X]
    proba = model.predict_proba([["a", "b"], []])
    assert proba[0].shape == (2, 2) and proba[1].shape == (0, 2)


def test_regressor_of_a_sequence_and_of_every_step():
    rng = np.random.default_rng(4)
    X = [rng.normal(size=(rng.integers(1, 8), 2)).astype("float32") for _ in range(200)]
    settings = {**QUICK, "epochs": 25, "hidden_size": 16}
    means = np.array([5 + 100 * x.mean(0) for x in X])
    both = SequenceRegressor(**settings).fit(X, means)
    assert both.predict(X[:3]).shape == (3, 2) and both.score(X, means) > 0.95
    one = SequenceRegressor(**settings, pooling="last").fit(X, means[:, 0])
    assert one.predict(X[:3]).shape == (3,) and one.score(X, means[:, 0]) > 0.9
    sums = [x[:, 0].cumsum() for x in X]
    steps = SequenceRegressor(**settings, every_step=True).fit(X, sums)
    predicted = steps.predict(X)
    assert [len(p) for p in predicted] == [len(x) for x in X]
    flat, true = np.concatenate(predicted), np.concatenate(sums)
    r2 = 1 - ((flat - true) ** 2).sum() / ((true - true.mean()) ** 2).sum()
    assert steps.score(X, sums) == pytest.approx(r2) and r2 > 0.9


def test_seeds():
    def proba(**changes):
        model = SequenceClassifier(**{**QUICK, "epochs": 2, "dropout": 0.2, **changes})
        return model.fit(TEXTS, ORDER).predict_proba(TEXTS)

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = proba(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(first, proba(seed=1))
    second = proba(seed=2)
    assert not np.array_equal(first, second)
    mean = (first + second) / 2
    np.testing.assert_allclose(proba(seed=1, ensemble=2), mean, rtol=0, atol=1e-12)


def test_early_stopping_keeps_the_best_and_stops():
    """Labels by chance: what is learned of them is no use for others."""
    rng = np.random.default_rng(6)
    X = [rng.choice(list("abcdefgh"), 5).tolist() for _ in range(60)]
    y, other = rng.integers(0, 2, (2, 60))
    seen = []
    model = SequenceClassifier(**{**QUICK, "epochs": 30, "patience": 2})
    model.fit(X, y, valid=(X, other), progress=seen.append)
    scores = [record["valid_score"] for record in seen]
    assert seen == model.history_ and len(scores) < 30
    assert model.score(X, other) == max(scores)
    assert len(scores) == scores.index(max(scores)) + 1 + 2
    held_out = SequenceClassifier(**{**QUICK, "epochs": 2, "patience": 2}).fit(X, y)
    assert held_out.history_[0]["valid_score"] in {k / 6 for k in range(7)}


# ---- vectors of words

GOOD, BAD = ("good", "fine", "great"), ("bad", "dull", "poor")
FILMS = [f"a {word} film" for word in (*GOOD, *BAD)] * 10
SIDES = (["pos"] * 3 + ["neg"] * 3) * 10
FROZEN = {**QUICK, "epochs": 1, "lr": 1e-30}  # training that changes nothing


@pytest.fixture
def vectors(tmp_path):
    """Of size 8, in a file: the good near one another and the bad, two no training text has."""
    rng = np.random.default_rng(8)
    words = [*GOOD, *BAD, "superb", "awful"]
    side = np.array([1.0] * 3 + [-1.0] * 3 + [1.0, -1.0])[:, None]
    matrix = side * rng.normal(size=8) + 0.3 * rng.normal(size=(8, 8))
    path = tmp_path / "vectors.bin"
    Vectors(words, matrix).save(path)
    return path


def rows_of(model, words, k=0):
    """The rows of words' embeddings, feature k: those before it have all theirs before its own."""
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
    # All else is as it was: words that have none, the unknown, other features, other layers.
    for j, table in enumerate(plain._inputs.tables):
        others = [value for value in table if j != k or value not in known]
        assert np.array_equal(rows_of(model, others, j), rows_of(plain, others, j))
    ours, theirs = (dict(m._networks[0].named_parameters()) for m in (model, plain))
    for name in ours.keys() - {"embedding.weight"}:
        assert torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-25), name
    unknown = model._networks[0].embedding.unknown
    assert unknown.tolist() == np.cumsum([0, *map(len, model._inputs.tables)])[:-1].tolist()


def test_words_are_known_by_their_vectors_alone(vectors):
    """Those that are too rare, and those that come only after training."""
    settings = {**QUICK, "embeddings": vectors, "min_count": 2, "features": ("word", "suffix1")}
    model = SequenceClassifier(**settings).fit([*FILMS, "superb zzz"], [*SIDES, "pos"])
    assert "superb" in model._inputs.tables[0] and "zzz" not in model._inputs.tables[0]
    model = SequenceClassifier(**settings, ensemble=2).fit(FILMS, SIDES)
    assert model.predict(["a superb film", "a awful film"]).tolist() == ["pos", "neg"]
    # Training saw nothing of them: what it does to the others is what it does without them.
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


# ---- on disk


def estimators(classifier):
    numbers = [np.array([[0.0, 1.0]]), np.array([[2.0, 1.0], [1.0, 0.0]])]
    quick = {**QUICK, "epochs": 1}
    tags = [["B-A", "O"], ["O", "O", "B-A"]]
    words = [[("a", "X"), ("b", "Y")], [("c", "X"), ("a", "Y"), ("d", "X")]]
    return [
        (classifier, TEXTS),
        (SequenceTagger(**quick, class_weight={"O": 0.5}, ensemble=2).fit(words, tags), words),
        (SequenceRegressor(**quick).fit(numbers, [1.0, 4.0]), numbers),
        (SequenceClassifier(**quick, num_layers=2).fit(numbers, [False, True]), numbers),
    ]


def test_save_and_load(classifier, tmp_path):
    for k, (model, X) in enumerate(estimators(classifier)):
        model.save(tmp_path / str(k))
        torch.manual_seed(0)
        before = torch.get_rng_state()
        loaded = tasks.load(tmp_path / str(k))
        assert torch.equal(torch.get_rng_state(), before)
        assert type(loaded) is type(model) and loaded.get_params() == model.get_params()
        assert loaded.history_ == model.history_
        for ours, theirs in zip(loaded.predict(X), model.predict(X), strict=True):
            assert np.array_equal(ours, theirs) and np.asarray(ours).dtype == theirs.dtype
        assert loaded.fit(X[:40], loaded.predict(X[:40])) is loaded
        other = SequenceTagger if type(model) is not SequenceTagger else SequenceRegressor
        with pytest.raises(UserError, match=f"holds a {type(model).__name__}, not a"):
            other.load(tmp_path / str(k))


def test_save_does_not_overwrite_unasked(classifier, tmp_path):
    classifier.save(tmp_path / "m")
    with pytest.raises(UserError, match="holds a model"):
        classifier.save(tmp_path / "m")
    classifier.save(tmp_path / "m", overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"letter\.txt"):
        classifier.save(tmp_path / "other", overwrite=True)
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["letter.txt"]


def test_what_is_wrong_with_a_folder(classifier, tmp_path):
    good = tmp_path / "good"
    classifier.save(good)

    def broken(name, change):
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        change(folder / name)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            tasks.load(folder)

    def edit(*path_and_value):
        *path, last, value = path_and_value

        def change(file):
            data = json.loads(file.read_text())
            inner = data
            for key in path:
                inner = inner[key]
            inner[last] = value
            file.write_text(json.dumps(data))

        return change

    for name in ("config.json", "vocab.json", "model.safetensors"):
        broken(name, lambda file: file.unlink())
        broken(name, lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]))
    broken("config.json", edit("format", 99))
    broken("config.json", edit("estimator", "Forest"))
    broken("config.json", edit("params", "hidden_size", -1))
    broken("config.json", edit("params", "hidden_size", 9))
    broken("config.json", edit("params", "shoe_size", 9))
    broken("config.json", edit("targets", {}))
    broken("vocab.json", edit("tables", [["", "a"]]))
    broken("vocab.json", edit("tables", [[1]]))
    with pytest.raises(UserError, match="holds a SequenceClassifier, not a language model"):
        lm.load(good)
    with pytest.raises(UserError, match="there is no model folder"):
        tasks.load(tmp_path / "none")
    with pytest.raises(UserError, match="device 'gpu' is not available"):
        tasks.load(good, "gpu")
    (good / "config.json").write_text('{"format": 1, "config": {}}')
    with pytest.raises(UserError, match="holds no classifier"):
        tasks.load(good)


# ---- bad input


@pytest.mark.parametrize(
    "settings, X, y, message",
    [
        ({}, TEXTS[:3], ORDER[:2], "X and y must be of one length, not 3 and 2"),
        ({}, [], [], "X must be sequences"),
        ({}, "a b", ["x"], "X must be sequences"),
        ({}, ["a", "b"], ["x", "x"], "y must have at least 2 classes"),
        ({}, ["a", "b"], ["x", 1], "y must have labels of one kind"),
        ({}, [1, 2], ["x", "y"], r"X\[0\] must be a text"),
        ({"hidden_size": 0}, TEXTS, ORDER, "hidden_size must be a whole number"),
        ({"hidden_size": True}, TEXTS, ORDER, "hidden_size must be a whole number"),
        ({"dropout": 1.0}, TEXTS, ORDER, r"dropout must be in \[0, 1\)"),
        ({"pooling": "sum"}, TEXTS, ORDER, "pooling must be"),
        ({"features": ("sound",)}, TEXTS, ORDER, "features must be"),
        ({"features": ()}, TEXTS, ORDER, "features must name at least one"),
        ({"class_weight": {"zz": 1}}, TEXTS, ORDER, "class_weight must"),
        ({"class_weight": "even"}, TEXTS, ORDER, "class_weight must"),
        ({"patience": 1}, ["a"], ["x"], "at least 2"),
        ({"device": "gpu"}, TEXTS, ORDER, "device 'gpu' is not available"),
    ],
)
def test_bad_input_names_the_argument(settings, X, y, message):
    with pytest.raises(UserError, match=message):
        SequenceClassifier(**{**QUICK, **settings}).fit(X, y)


def test_other_bad_input(classifier):
    with pytest.raises(UserError, match="call fit first"):
        SequenceClassifier().predict(["a"])
    with pytest.raises(UserError, match="call fit first"):
        SequenceTagger().score(["a"], [["b"]])
    with pytest.raises(UserError, match="tokens or numbers"):
        classifier.predict([np.ones((2, 1))])
    with pytest.raises(UserError, match="has no setting 'size'"):
        classifier.set_params(size=3)
    with pytest.raises(UserError, match=r"y\[1\] must have one target for each of the 2 steps"):
        SequenceTagger().fit([["a"], ["a", "b"]], [["X"], ["X"]])
    with pytest.raises(UserError, match=r"valid\[0\] and valid\[1\] must be of one length"):
        SequenceClassifier(**QUICK).fit(TEXTS, ORDER, valid=(TEXTS, ORDER[:2]))
    with pytest.raises(UserError, match=r"y\[1\] must be finite"):
        SequenceRegressor(**QUICK).fit([np.ones(2), np.ones(3)], [1.0, np.nan])
    with pytest.raises(UserError, match="y must have as many numbers"):
        SequenceRegressor(**QUICK).fit([np.ones(2), np.ones(3)], [[1.0], [1.0, 2.0]])
    with pytest.raises(UserError, match="X must be sequences, in a list, not 'a b'"):
        classifier.predict("a b")
    with pytest.raises(UserError, match="y must be sequences, in a list, not 3"):
        classifier.score(["a b"], 3)


def test_targets_to_score(classifier):
    """A label that training has not seen is missed; what cannot be compared is refused."""
    assert classifier.score(["a b", "b a"], ["ab", "zz"]) == 0.5
    with pytest.raises(UserError, match=r"y must have labels of the kind .* str, not 1"):
        classifier.score(["a b", "b a"], ["ab", 1])
    tagger = SequenceTagger(**FROZEN).fit([["a", "b"]], [["B-X", "O"]])
    assert tagger.score([["a"], ["b"]], [["B-Y"], ["O"]]) < 1
    with pytest.raises(UserError, match="y must have labels of the kind"):
        tagger.score([["a"]], [[1]])
    X = [np.ones(2), np.zeros(3)]
    regressor = SequenceRegressor(**FROZEN).fit(X, [[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(UserError, match=r"y\[1\] must have 2 numbers, as in training, not 1"):
        regressor.score(X, [[1.0, 2.0], 3.0])
    with pytest.raises(UserError, match=r"y\[0\] must be a number, or some, not 'x'"):
        regressor.score(X, ["x", "y"])


@pytest.mark.parametrize(
    "valid, message",
    [
        ((FILMS, [1] * len(FILMS)), r"valid\[1\] must have labels of the kind"),
        (([[("a", "DT")]], ["pos"]), r"valid\[0\]\[0\] has tokens of 2 columns, not 1"),
        ((FILMS, SIDES, None), "valid must be a pair"),
        (([], []), r"valid\[0\] must be sequences, at least one"),
    ],
)
def test_bad_validation_data_is_found_before_training(valid, message):
    records = []
    with pytest.raises(UserError, match=message):
        SequenceClassifier(**QUICK).fit(FILMS, SIDES, valid, records.append)
    assert records == []


def test_sequences_need_not_be_numbered_from_0():
    """As those of pandas, cut into training and test data, are not."""

    class Series:
        def __init__(self, values):
            self.by_label = dict(enumerate(values, 7))

        def __len__(self):
            return len(self.by_label)

        def __iter__(self):
            return iter(self.by_label.values())

        def __getitem__(self, label):
            return self.by_label[label]

    model = SequenceClassifier(**FROZEN).fit(Series(FILMS), Series(SIDES))
    expected = SequenceClassifier(**FROZEN).fit(FILMS, SIDES)
    assert np.array_equal(model.predict_proba(Series(FILMS)), expected.predict_proba(FILMS))
    assert model.score(Series(FILMS), Series(SIDES)) == expected.score(FILMS, SIDES)


def test_what_an_interrupted_training_leaves_is_not_fitted():
    def interrupt(record):
        raise KeyboardInterrupt

    model = SequenceClassifier(**FROZEN).fit(FILMS, SIDES)
    with pytest.raises(KeyboardInterrupt):
        model.fit(["x y z"] * 9, [1, 2, 3] * 3, progress=interrupt)
    with pytest.raises(UserError, match="is not fitted"):
        model.predict(FILMS)


def test_settings_of_numpy_and_torch_are_saved(tmp_path):
    settings = {**FROZEN, "hidden_size": np.int64(3), "device": torch.device("cpu")}
    model = SequenceClassifier(**settings, class_weight={np.int64(1): np.float32(2)})
    model.fit(["a", "b"], np.array([0, 1])).save(tmp_path / "m")
    assert tasks.load(tmp_path / "m").class_weight == {1: 2.0}


# ---- scikit-learn


def test_scikit_learn(vectors):
    model_selection = pytest.importorskip("sklearn.model_selection")
    from sklearn.base import clone, is_classifier, is_regressor

    model = SequenceClassifier(**{**QUICK, "epochs": 20})
    assert is_classifier(model) and is_regressor(SequenceRegressor())
    assert clone(model).get_params() == model.get_params()
    scores = model_selection.cross_val_score(model, TEXTS, ORDER, cv=3)
    assert scores.shape == (3,) and scores.mean() > 0.9
    search = model_selection.GridSearchCV(model, {"hidden_size": np.array([1, 8])}, cv=2)
    search.fit(TEXTS, ORDER)
    assert set(search.cv_results_["param_hidden_size"]) == {1, 8}
    begun = SequenceClassifier(**QUICK, embeddings=vectors)
    assert clone(begun).get_params() == begun.get_params() and clone(begun).embeddings == vectors
    quick = {"epochs": [1], "embeddings": [None, str(vectors)]}
    search = model_selection.GridSearchCV(begun, quick, cv=2)
    assert len(search.fit(FILMS, SIDES).cv_results_["params"]) == 2
    proba = model_selection.cross_val_predict(model, TEXTS, ORDER, cv=2, method="predict_proba")
    assert proba.shape == (120, 2)
    X = [["a", "b"], ["b"], ["a", "a", "b"]] * 8
    y = [["B-A" if word == "a" else "O" for word in words] for words in X]
    tagger = SequenceTagger(**QUICK)
    assert model_selection.cross_val_score(tagger, X, y, cv=2).tolist() == [1.0, 1.0]


# ---- real data: that the pieces fit together; README has the figures


@pytest.mark.skipif(
    not (DATA / "conll2000").is_dir(), reason=f"no CoNLL-2000 in {DATA} (RNNFAST_DATA names it)"
)
def test_conll2000():
    from rnnfast.tasks.data import read_tagged

    X, y = read_tagged(DATA / "conll2000" / "train.txt")
    assert len(X) == 8936 and sum(map(len, X)) == 211727
    assert X[0][1] == ("in", "IN") and y[0][:3] == ["B-NP", "B-PP", "B-NP"]
    model = SequenceTagger(hidden_size=32, embedding_size=32, epochs=3, batch_size=8, patience=None)
    model.fit(X[:600], y[:600])
    # A bigram tagger of the parts of speech alone, on all the data, has some 77.
    assert model.score(X[600:800], y[600:800]) > 0.8
