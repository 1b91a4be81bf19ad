"""Word vectors: neighbours, analogies and files."""

import numpy as np
import pytest

from rnnfast import lm
from rnnfast.embeddings import Vectors


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
    """Files of Stanford's GloVe have no line with the sizes, and blank lines are skipped."""
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
