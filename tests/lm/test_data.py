"""Text to numbers: corpus, vocabulary and batches."""

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_helpers import WORDS

from rnnfast import lm
from rnnfast.lm.data.batches import Batches, shifted

# ---- corpus


def test_builtin_corpus_is_split_ninety_ten():
    corpus = lm.corpus.builtin()
    whole = len(corpus.train) + len(corpus.valid)
    assert whole > 300_000
    assert len(corpus.train) == int(0.9 * whole)
    assert corpus.test is None


def test_data_is_split_by_characters(tmp_path):
    # The usual split of tinyshakespeare's 1,115,394 characters.
    (tmp_path / "input.txt").write_text("x" * 1_115_394)
    corpus = lm.corpus.read(data=tmp_path / "input.txt")
    assert (len(corpus.train), len(corpus.valid)) == (1_003_854, 111_540)


def test_fingerprint_tells_splits_apart():
    a = lm.Corpus("ab", "c").fingerprint()
    assert a == lm.Corpus("ab", "c", None, {"data": "elsewhere"}).fingerprint()
    assert len({a, lm.Corpus("a", "bc").fingerprint(), lm.Corpus("ab", "", "c").fingerprint()}) == 3


def test_there_must_be_a_text_to_split():
    with pytest.raises(lm.UserError, match="no text to split"):
        lm.corpus.split("")


@pytest.mark.parametrize("level", ["syllable", ["char"]])
def test_an_unknown_level_is_called_that_everywhere(level):
    wrong = {"emsize": 8, "nhid": 8, "batch_size": 1, "bptt": 1, "dropout": 0.0}
    for make in (
        lambda: lm.Config.defaults(level),
        lambda: lm.Vocabulary.build(level, ["a"]),
        lambda: lm.Config(level, **wrong),
    ):
        with pytest.raises(lm.UserError, match=r"^level must be (one of char|of type str)"):
            make()


@pytest.mark.parametrize("text", ["", "h\u00e9\u00df\u20ac\ud800\U0001d11e" * 100_000])
def test_fingerprint_is_the_digest_of_sizes_and_texts(text):
    wanted = hashlib.sha256()
    for part in (text, "v", ""):
        part = part.encode("utf-8", "surrogatepass")
        wanted.update(len(part).to_bytes(8, "little") + part)
    assert lm.Corpus(text, "v").fingerprint() == wanted.hexdigest()


# ---- vocabulary


@given(st.text(st.characters(exclude_categories=()), min_size=1))
def test_char_round_trip(text):
    vocab = lm.Vocabulary.build("char", [text])
    ids = vocab.encode(text)
    assert ids.dtype == np.int64
    assert vocab.decode(ids) == text
    assert vocab.tokens[vocab.boundary] == "\n"
    assert set(vocab.tokens) == set(text) | {"\n"}


@pytest.mark.parametrize("stranger", ["z", "é", "\U0001f40d", "\0"])
def test_unknown_character_is_named(stranger):
    vocab = lm.Vocabulary.build("char", ["abc"])
    with pytest.raises(lm.UserError, match=r"position 2"):
        vocab.encode("ab" + stranger + "a")


def test_words_are_closed_by_eos():
    vocab = lm.Vocabulary.build("word", ["a b\nb\n"])
    assert vocab.tokens == ["<eos>", "<unk>", "b", "a"]
    for text in ("a  b\n\nb\n", "a b\n\nb"):
        assert [vocab.tokens[i] for i in vocab.encode_stream(text)] == (
            ["a", "b", "<eos>", "<eos>", "b", "<eos>"]
        )
    assert vocab.decode(vocab.encode("a b\n\nb zebra")) == "a b\n\nb <unk>"
    assert vocab.encode("a b\nb").tolist() == [3, 2, 0, 2]


def test_words_are_limited_by_count_and_size():
    text = "a a a b b c c d <unk> <unk> <unk>"
    assert lm.Vocabulary.build("word", [text], min_count=2).tokens[2:] == ["a", "b", "c"]
    assert lm.Vocabulary.build("word", [text], max_vocab=4).tokens == ["<eos>", "<unk>", "a", "b"]


def test_unknown_characters_with_unk():
    vocab = lm.Vocabulary.build("char", ["<unk>"], unk=True)
    assert vocab.tokens == ["\n", "<", ">", "k", "n", "u", "<unk>"] and vocab.unk == 6
    ids = vocab.encode("<unk>\u2028z")
    assert ids.dtype == np.int64 and ids.tolist() == [1, 5, 4, 3, 2, 6, 6]


def test_a_vocabulary_is_of_a_level_and_several_texts():
    text = "to be or not to be " * 100
    for arguments, named in (
        ((text, "word"), "level"),
        (([text], "word"), "level"),
        (("word", text), "texts"),
    ):
        with pytest.raises(lm.UserError, match=named) as raised:
            lm.Vocabulary.build(*arguments)
        assert len(str(raised.value)) < 120


@pytest.mark.parametrize("level", ["char", "word"])
def test_limits_of_a_vocabulary_are_checked(level):
    with pytest.raises(lm.UserError, match="min_count must be at least 1, not 0"):
        lm.Vocabulary.build(level, ["a"], min_count=0)
    with pytest.raises(lm.UserError, match="max_vocab must be at least 2, not 1"):
        lm.Vocabulary.build(level, ["a"], max_vocab=1)


@pytest.mark.parametrize(("level", "unk"), [("char", False), ("char", True), ("word", True)])
def test_vocabulary_json_round_trip(level, unk):
    vocab = lm.Vocabulary.build(level, [WORDS + "é\u2028"], unk=unk)
    again = lm.Vocabulary.from_json(json.loads(json.dumps(vocab.to_json())))
    assert again.tokens == vocab.tokens
    assert (again.encode(WORDS) == vocab.encode(WORDS)).all()


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"level": "char"},
        {"level": "char", "tokens": ["a"]},
        {"level": "char", "tokens": ["\n", "ab"]},
        {"level": "char", "tokens": ["\n", "a", "a"]},
        {"level": "word", "tokens": ["<eos>", "a"]},
        {"level": "word", "tokens": ["<eos>", "<unk>", 3]},
        {"level": "byte", "tokens": ["\n"]},
        {"level": ["char"], "tokens": ["\n"]},
    ],
)
def test_broken_vocabulary_is_refused(data):
    with pytest.raises(lm.UserError):
        lm.Vocabulary.from_json(data)


# ---- batches


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_batches_hold_the_stream_once_and_in_order(dtype):
    stream = np.arange(1, 48, dtype=dtype)
    batches = Batches(stream, boundary=0, batch_size=4, bptt=3)  # sequences of 11
    assert batches.shape == (11, 4)
    for tensor in (*batches[0], *batches[3]):
        assert tensor.dtype == torch.int64 and tensor.is_contiguous()
    assert [batches[i][0].shape for i in range(len(batches))] == [(3, 4)] * 3 + [(2, 4)]
    targets = np.concatenate([batches[i][1].numpy() for i in range(len(batches))])
    inputs = np.concatenate([batches[i][0].numpy() for i in range(len(batches))])
    assert (targets.T.reshape(-1) == stream[:44]).all()
    assert (inputs.T.reshape(-1) == np.arange(44)).all()
    assert shifted(stream[:0], 0)[0].shape == (0,)
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_less_than_a_batch_is_refused():
    assert len(Batches(np.arange(12), 0, 4, 3)) == 1
    with pytest.raises(lm.UserError, match="--batch-size or --bptt"):
        Batches(np.arange(11), 0, 4, 3)
