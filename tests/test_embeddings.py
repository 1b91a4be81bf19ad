"""Word vectors: counts and GloVe against plain loops, files, neighbours, the command."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_helpers import small_config

from rnnfast import _ops, embeddings, lm
from rnnfast.embeddings import Vectors, cooccurrences
from rnnfast.embeddings.glove import Glove
from rnnfast.embeddings.skipgram import _sentences

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)
GROUPS = [["cat", "dog", "cow"], ["red", "blue", "green"], ["one", "two", "six"]]
# Each line keeps to one group: words of a group are near one another and to no others.
TEXT = "\n".join(" ".join(RNG.choice(GROUPS[k % 3], 6)) for k in range(300)) + "\n"
VOCAB = lm.Vocabulary.build("word", [TEXT])


def group_of(word):
    return next(k for k, group in enumerate(GROUPS) if word in group)


def neighbours_are_of_the_group(vectors):
    for group in GROUPS:
        for word in group:
            near = [other for other, _ in vectors.neighbours(word, 2)]
            assert set(near) == set(group) - {word}, (word, near)


# ---- counts


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


# ---- GloVe


def by_hand(model, shifts, dtype):
    """An epoch in plain loops, and its cost."""
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
    """By the rule of the kernels: at most twice the error of plain float32, and some roundings."""
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
        # What is too short, or the first of the others that no longer fits it.
        refused(RuntimeError, "to fit the rest", **{name: tensor[..., :-1].contiguous()})
    for wrong in (-1, 11, int(model._row[0]) + 1):
        row = model._row.clone()
        row[0] = wrong
        refused(IndexError, "row and column must be words", row=row)
    refused(ValueError, "shifts must have each", shifts=torch.zeros(11, dtype=torch.int64))
    refused(ValueError, "starts must rise", starts=model._starts.flip(0))


# ---- skip-gram


def full_softmax_skipgram(ids, vocab, dim, window, epochs=150, seed=0):
    """-sum log softmax_o(u_o . v_c) over all pairs of a word c and one within the window: the
    textbook objective (Mikolov et al. 2013, equation 2), by gradient descent on counts."""
    counts = torch.zeros(len(vocab), len(vocab), dtype=torch.double)
    line = np.cumsum(ids == vocab.boundary)
    for d in range(1, window + 1):
        near = (line[:-d] == line[d:]) & (ids[:-d] != vocab.boundary)
        for a, b in zip(ids[:-d][near], ids[d:][near], strict=True):
            counts[a, b] += 1
            counts[b, a] += 1
    torch.manual_seed(seed)
    v, u = (torch.randn(len(vocab), dim, dtype=torch.double).mul_(0.1) for _ in range(2))
    optimizer = torch.optim.Adam([v.requires_grad_(), u.requires_grad_()], 0.05)
    losses = []
    for _ in range(epochs):
        loss = -(counts * (v @ u.t()).log_softmax(1)).sum() / counts.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    frequencies = counts / counts.sum()
    conditional = counts / counts.sum(1, keepdim=True).clamp_min(1)
    entropy = -float((frequencies * conditional.clamp_min(1e-300).log()).sum())
    return v.detach().numpy(), losses, entropy


def test_skipgram():
    """Its neighbours are those of the textbook objective, which reaches the entropy of the text."""
    ids = VOCAB.encode_stream(TEXT)
    matrix, losses, entropy = full_softmax_skipgram(ids, VOCAB, 10, 5)
    assert entropy <= losses[-1] < entropy + 0.01
    neighbours_are_of_the_group(Vectors.of(VOCAB, matrix))
    pytest.importorskip("gensim")
    records = []
    vectors = embeddings.skipgram(TEXT, VOCAB, 10, epochs=30, progress=records.append)
    neighbours_are_of_the_group(vectors)
    assert len(records) == 30 and records[-1]["loss"] < records[0]["loss"]
    again = embeddings.skipgram(TEXT, VOCAB, 10, epochs=30)
    assert np.array_equal(vectors.matrix, again.matrix)


def test_long_lines_are_several_sentences():
    """Gensim reads no more than 10,000 words of one."""
    vocab = lm.Vocabulary.build("word", ["a b c"])
    lines = ["a zebra b", "", " ".join("abc"[i * i % 3] for i in range(25_000)), "c " * 10_000]
    found = _sentences("\n".join(lines), vocab)
    assert [len(words) for words in found] == [3, 10_000, 10_000, 5_000, 10_000]
    assert found[0] == ["a", "<unk>", "b"]
    assert [*found[1], *found[2], *found[3]] == lines[2].split()
    with pytest.raises(lm.UserError, match="no words"):
        _sentences("\n \n", vocab)


# ---- vectors and files


def test_neighbours_and_analogies():
    words = ["man", "king", "woman", "queen", "zero"]
    matrix = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [1.1, 1, 1], [0, 0, 0]])
    vectors = Vectors(words, matrix)
    unit = matrix / np.maximum(np.linalg.norm(matrix, axis=1), 1e-9)[:, None]
    expected = sorted(((float(unit[1] @ unit[i]), w) for i, w in enumerate(words) if i != 1))[::-1]
    found = vectors.neighbours("king", 3)
    assert [w for w, _ in found] == [w for _, w in expected[:3]]
    assert [c for _, c in found] == pytest.approx([c for c, _ in expected[:3]], rel=1e-6)
    assert vectors.analogy("man", "king", "woman", 1)[0][0] == "queen"
    assert len(vectors.neighbours("king", 99)) == 4
    for call in (lambda: vectors.neighbours("duke"), lambda: vectors["duke"]):
        with pytest.raises(lm.UserError, match="no vector of 'duke' among 5"):
            call()
    with pytest.raises(lm.UserError, match="words that differ"):
        Vectors(["a", "a"], np.ones((2, 2)))


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("suffix", [".txt", ".vec", ".bin", ".safetensors"])
def test_files(tmp_path, suffix, order):
    matrix = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32, order)
    matrix[0, 0], matrix[1, 1] = 1e-38, -0.0
    vectors = Vectors(["a", "über", "\U0001f642"], matrix)
    path = tmp_path / f"v{suffix}"
    vectors.save(path)
    loaded = Vectors.load(path)
    assert loaded.tokens == vectors.tokens
    assert loaded.matrix.tobytes() == matrix.tobytes()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(lm.UserError, match=path.name):
        Vectors.load(path)
    path.write_bytes(b"")
    with pytest.raises(lm.UserError, match=path.name):
        Vectors.load(path)


def test_files_of_gensim(tmp_path):
    keyed = pytest.importorskip("gensim.models.keyedvectors")
    matrix = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    theirs = keyed.KeyedVectors(5)
    theirs.add_vectors(["a", "b", "c"], matrix)
    for suffix, binary in ((".txt", False), (".bin", True)):
        path = str(tmp_path / f"theirs{suffix}")
        theirs.save_word2vec_format(path, binary=binary)
        assert np.array_equal(Vectors.load(path).matrix, matrix)
        path = str(tmp_path / f"ours{suffix}")
        Vectors(["a", "b", "c"], matrix).save(path)
        loaded = keyed.KeyedVectors.load_word2vec_format(path, binary=binary)
        assert loaded.index_to_key == ["a", "b", "c"] and np.array_equal(loaded.vectors, matrix)


def test_what_files_cannot_hold(tmp_path):
    spaced = Vectors(["a b"], np.ones((1, 2)))
    for suffix in (".txt", ".bin"):
        with pytest.raises(lm.UserError, match="cannot hold the word 'a b'"):
            spaced.save(tmp_path / f"v{suffix}")
    spaced.save(tmp_path / "v.safetensors")
    assert Vectors.load(tmp_path / "v.safetensors").tokens == ["a b"]
    with pytest.raises(lm.UserError, match="must end with"):
        spaced.save(tmp_path / "v.npy")
    with pytest.raises(lm.UserError, match="cannot read"):
        Vectors.load(tmp_path / "none.txt")
    for data in (b"2 2\na 1 2\n", b"1 2\na 1\n", b"x\n", b"1 2\na 1 y\n", b"1 0\na\n"):
        (tmp_path / "bad.txt").write_bytes(data)
        with pytest.raises(lm.UserError, match=r"bad\.txt is not word2vec's text"):
            Vectors.load(tmp_path / "bad.txt")
    for number in ("nan", "inf", "1e39"):
        (tmp_path / "bad.txt").write_text(f"2 2\na 1 2\nb 1 {number}\n")
        with pytest.raises(lm.UserError, match=r"bad\.txt .* must be finite, not that of 'b'"):
            Vectors.load(tmp_path / "bad.txt")
    good = Vectors(["a", "b"], np.ones((2, 3)))
    good.save(tmp_path / "bad.bin")
    data = (tmp_path / "bad.bin").read_bytes()
    for wrong in (b"1 3", b"2 2", b"3 3", b"99999999999 3", b"2", b"2 -3", b"two 3"):
        (tmp_path / "bad.bin").write_bytes(data.replace(b"2 3", wrong))
        with pytest.raises(lm.UserError, match=r"bad\.bin is not word2vec's binary format"):
            Vectors.load(tmp_path / "bad.bin")
    with pytest.raises(lm.UserError, match="must be strings"):
        Vectors([1, 2], np.ones((2, 3)))
    with pytest.raises(lm.UserError, match="must be finite, not that of 'b'"):
        Vectors(["a", "b"], [[1.0], [np.nan]])


def test_files_of_glove(tmp_path):
    """Stanford's have no first line, and a blank line is none."""
    (tmp_path / "glove.txt").write_text("the 0.5 -1 2e-3\n, 1 2 3\n\n3 4 5 6\n")
    loaded = Vectors.load(tmp_path / "glove.txt")
    assert loaded.tokens == ["the", ",", "3"]
    expected = np.array([[0.5, -1, 2e-3], [1, 2, 3], [4, 5, 6]], np.float32)
    assert np.array_equal(loaded.matrix, expected)
    (tmp_path / "glove.txt").write_text("the 1 2 3\n. . . 4 5 6\n at name@domain.com 7 8 9 \n")
    loaded = Vectors.load(tmp_path / "glove.txt")
    assert loaded.tokens == ["the", ". . .", "at name@domain.com"]
    assert np.array_equal(loaded.matrix, np.arange(1, 10).reshape(3, 3))
    (tmp_path / "glove.txt").write_text("3 3\nthe 1 2 3\n. . . 4 5 6\na 7 8 9\n")
    with pytest.raises(lm.UserError, match="has 5 numbers, not 3"):
        Vectors.load(tmp_path / "glove.txt")
    (tmp_path / "glove.txt").write_text("the 0.5 -1 2e-3\n, 1 2\n")
    with pytest.raises(lm.UserError, match="has 2 numbers, not 3"):
        Vectors.load(tmp_path / "glove.txt")


# ---- the command line


@pytest.fixture
def rnnfast(rnnfast, tmp_path, monkeypatch):
    """In a folder of its own, with the text in it."""
    monkeypatch.chdir(tmp_path)
    Path("text").write_text(TEXT)
    return rnnfast


def test_embed(rnnfast):
    argv = ["embed", "--train", "text", "--dim", 10, "--epochs", 40, "--threads", 1]
    status, _, err = rnnfast(*argv, "--out", "v.txt", "--neighbours", "cat", "--json", "r.json")
    report = json.loads(Path("r.json").read_text())
    assert status == 0 and len(report["history"]) == 40 and err.count("epoch") == 40
    assert report["words"] == 10 and report["dim"] == 10
    assert {word for word, _ in report["neighbours"]["cat"][:2]} == {"dog", "cow"}
    expected = embeddings.glove(TEXT, VOCAB, dim=10, epochs=40)
    assert np.array_equal(Vectors.load("v.txt").matrix, expected.matrix)
    query = ["embed", "--vectors", "v.txt", "--analogy", "cat", "dog", "red", "--top", 3]
    status, out, _ = rnnfast(*query, "--json", "-")
    found = json.loads(out)["analogy"]
    assert [word for word, _ in found] == [w for w, _ in expected.analogy("cat", "dog", "red", 3)]
    status, out, _ = rnnfast(*query)
    assert status == 0 and found[0][0] in out


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "give --train FILE and --out FILE"),
        (["--train", "text"], "give --train FILE and --out FILE"),
        (["--train", "text", "--vectors", "v.txt"], "give --train FILE and --out FILE"),
        (["--vectors", "v.txt"], "give --neighbours WORD or --analogy"),
        (["--vectors", "v.txt", "--neighbours", "a"], "cannot read v.txt"),
        (["--train", "text", "--out", "v.npy"], "v.npy must end with"),
        (["--train", "text", "--out", "no/v.txt"], "cannot write no/v.txt"),
        (["--train", "text", "--out", "v.txt", "--dim", "0"], "dim must be positive"),
        (["--train", "text", "--out", "v.txt", "--window", "0"], "window must be at least 1"),
        (["--train", "text", "--out", "v.txt", "--epochs", "0"], "epochs must be at least 1"),
        (["--train", "text", "--out", "v.txt", "--seed", "-1"], "seed must be in [0, 2**63), not"),
        (
            ["--train", "text", "--out", "v.txt", "--method", "skipgram", "--seed", "4294967296"],
            "seed must be in [0, 2**32), not 4294967296",
        ),
        (["--train", "text", "--out", "v.txt", "--top", "0"], "--top must be at least 1, not 0"),
        (["--train", "text", "--out", "v.txt", "--neighbours", "a"], "'a' is not seen --min-count"),
        (["--train", "one", "--out", "v.txt"], "no words near one another"),
    ],
)
def test_bad_input(rnnfast, argv, message):
    Path("one").write_text("a\nb\n")
    status, out, err = rnnfast("embed", *argv)
    assert status == 2 and message in err and out == "" and not Path("v.txt").exists()


def test_embeddings_begin_a_language_model(rnnfast):
    vectors = embeddings.glove(TEXT, VOCAB, dim=16, epochs=2)
    known = Vectors(vectors.tokens[:6], vectors.matrix[:6])
    known.save("v.safetensors")
    config = small_config("word", emsize=16, nhid=16)
    plain = lm.prepare(config, lm.Corpus(TEXT, TEXT)).model.encoder.weight.detach()
    ours = plain.clone()
    returned = known.initialise(ours, VOCAB.tokens)
    rows = [VOCAB.tokens.index(token) for token in known.tokens]
    others = [i for i in range(len(VOCAB)) if i not in rows]
    assert torch.equal(ours[others], plain[others])
    scale = np.sqrt(np.mean(plain.numpy() ** 2.0) / np.mean(known.matrix**2.0))
    assert returned == pytest.approx(scale, rel=1e-5)
    np.testing.assert_allclose(ours[rows], scale * known.matrix, rtol=1e-5)
    with pytest.raises(lm.UserError, match="vectors of size 16 cannot begin embeddings of size 15"):
        known.initialise(ours[:, :15], VOCAB.tokens)
    with pytest.raises(lm.UserError, match="are all 0"):
        Vectors(VOCAB.tokens, np.zeros((len(VOCAB), 16))).initialise(ours, VOCAB.tokens)
    argv = ["train", "--train", "text", "--valid", "text", "--level", "word", "--epochs", 1]
    argv += ["--nhid", 16, "--batch-size", 4, "--bptt", 10, "--threads", 1]
    argv += ["--emsize", 16]
    losses = []
    for out, more in (("m", ["--embeddings", "v.safetensors"]), ("o", [])):
        status, *_ = rnnfast(*argv, "--out", out, *more, "--json", "report.json")
        assert status == 0
        losses.append(json.loads(Path("report.json").read_text())["valid_loss"])
    assert losses[0] != losses[1]
    Vectors(["zebra"], np.ones((1, 16))).save("w.txt")
    status, _, err = rnnfast(*argv, "--out", "n", "--embeddings", "w.txt")
    assert status == 2 and "none of the 11 tokens" in err and not Path("n").exists()
    argv += ["--out", "n", "--no-tied"]
    status, _, err = rnnfast(*argv, "--emsize", 8, "--embeddings", "v.safetensors")
    assert status == 2 and "vectors of size 16, not emsize 8" in err and not Path("n").exists()
    status, _, err = rnnfast("train", "--resume", "m", "--embeddings", "v.safetensors")
    assert status == 2 and "leave out --embeddings" in err
