"""Models of bytes and of BPE tokens, and the units in which all levels compare."""

import io
import itertools
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_helpers import PERIODIC, SMALL, WORDS, fit_ngrams, small_config, small_model

from rnnfast import cli, lm

try:
    import tokenizers
except ImportError:
    tokenizers = None
needs_tokenizers = pytest.mark.skipif(not tokenizers, reason="no tokenizers (pip install it)")
LEVELS = ["byte", pytest.param("bpe", marks=needs_tokenizers)]
TEXT = (
    "naïve café, größer €5 \U0001f40d\r\n\n  two  spaces\tand <unk> <0x41> <U+0020>\n" * 20 + WORDS
)
SURROGATES = st.characters(exclude_categories=["Cs"])


@pytest.fixture(scope="session")
def vocabulary():
    """Of a level, the same for all tests."""
    made = {}

    def get(level):
        if level not in made:
            made[level] = lm.Vocabulary.build(level, [TEXT], max_vocab=400)
        return made[level]

    return get


# ---- vocabulary


@pytest.mark.parametrize("level", LEVELS)
@given(data=st.data())
def test_round_trip(vocabulary, level, data):
    text = data.draw(st.text(SURROGATES) | st.text(st.sampled_from(TEXT[:70])))
    vocab = vocabulary(level)
    ids = vocab.encode(text)
    assert ids.dtype == np.int64 and ((ids >= 0) & (ids < len(vocab))).all()
    assert vocab.decode(ids) == text
    assert vocab.tokens[vocab.boundary] == "\n" and vocab.unk is None
    # Every newline is a boundary, of its own: a line is encoded as it would be alone.
    assert (ids == vocab.boundary).sum() == text.count("\n")
    lines = re.findall("[^\n]*\n|[^\n]+", text)
    assert ids.tolist() == [i for line in lines for i in vocab.encode(line)]
    closed = vocab.encode(text, close=True)
    assert vocab.decode(closed) == text + "\n" * (not text.endswith("\n"))


def test_bytes_are_those_of_utf8(vocabulary):
    vocab = vocabulary("byte")
    assert vocab.encode("aé\n").tolist() == list("aé\n".encode())
    assert vocab.tokens[0x41] == "A" and vocab.tokens[0xC3] == "<0xC3>" and len(vocab) == 256


@needs_tokenizers
def test_bpe_is_what_its_definition_says(vocabulary):
    """Sennrich et al. (2016), algorithm 1, on words of no more than letters."""
    text = "low low low low low lower lower newest newest newest newest newest newest widest\n"
    text = "".join(f"{word}\n" for word in text.split() * 3)
    words = [list(word) for word in text.split()]
    merged = []
    while True:
        pairs = {}
        for word in words:
            for pair in itertools.pairwise(word):
                pairs[pair] = pairs.get(pair, 0) + 1
        if not pairs:
            break
        count = max(pairs.values())
        best = {a + b for (a, b), n in pairs.items() if n == count}
        vocab = lm.Vocabulary.build("bpe", [text], max_vocab=256 + len(merged) + 1)
        [token] = set(vocab.tokens[256:]) - set(merged)
        assert token in best  # of equals, one
        merged.append(token)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if word[i] + word[i + 1] == token:
                    word[i : i + 2] = [token]
                i += 1
        encoded = [vocab.tokens[i] for i in vocab.encode(text)]
        assert encoded == [token for word in words for token in (*word, "\n")]
    everything = lm.Vocabulary.build("bpe", [text], max_vocab=10_000)
    assert everything.tokens == vocab.tokens  # nothing is left to merge


@needs_tokenizers
def test_another_program_reads_the_tokenizer(vocabulary):
    vocab = vocabulary("bpe")
    theirs = tokenizers.Tokenizer.from_str(json.dumps(vocab.to_json()["tokenizer"]))
    assert theirs.encode(TEXT).ids == vocab.encode(TEXT).tolist()
    assert theirs.decode(vocab.encode(TEXT).tolist()) == TEXT


@pytest.mark.parametrize("level", LEVELS)
def test_json_round_trip(vocabulary, level):
    vocab = vocabulary(level)
    data = json.loads(json.dumps(vocab.to_json()))
    again = lm.Vocabulary.from_json(data)
    assert again.tokens == vocab.tokens and (again.encode(TEXT) == vocab.encode(TEXT)).all()
    # In whatever order the tokens are, as another program may leave them in an ARPA file.
    mixed = lm.Vocabulary.from_json({**data, "tokens": data["tokens"][::-1]})
    assert (len(vocab) - 1 - mixed.encode(TEXT) == vocab.encode(TEXT)).all()
    assert mixed.decode(mixed.encode(TEXT)) == TEXT
    for broken in (data["tokens"][1:], [*data["tokens"], "more"], ["<0xC3>", *data["tokens"]]):
        with pytest.raises(lm.UserError):
            lm.Vocabulary.from_json({**data, "tokens": broken})


@needs_tokenizers
@pytest.mark.parametrize("broken", [None, 3, {}, {"model": None}, "text"])
def test_broken_tokenizer_is_refused(vocabulary, broken):
    data = {**vocabulary("bpe").to_json(), "tokenizer": broken}
    with pytest.raises(lm.UserError, match="the tokenizer is not"):
        lm.Vocabulary.from_json(data)


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_not_unicode_is_refused(vocabulary, level):
    with pytest.raises(lm.UserError, match=r"'\\udcff', which is no character"):
        vocabulary(level).encode("a\udcff")


@needs_tokenizers
def test_size_of_bpe():
    for size in (None, 255):
        with pytest.raises(lm.UserError, match="max_vocab must be at least 256"):
            lm.Vocabulary.build("bpe", ["a"], max_vocab=size)
    assert len(lm.Vocabulary.build("bpe", [TEXT], max_vocab=300)) == 300
    assert len(lm.Vocabulary.build("bpe", ["abc"], max_vocab=300)) == 256


def test_bpe_without_its_package(monkeypatch, tmp_path, request):
    if tokenizers:
        lm.save(small_model("bpe"), small_config("bpe"), tmp_path / "m")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(lm.UserError, match=r"pip install 'rnnfast\[bpe\]'"):
        lm.Vocabulary.build("bpe", ["a"], max_vocab=300)
    if tokenizers:
        with pytest.raises(lm.UserError, match=r"^bpe level needs tokenizers"):
            lm.load(tmp_path / "m")


# ---- models


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("prompt", ["", "the ", "é"])
def test_generated_characters_are_whole(level, prompt):
    model = small_model(level, TEXT)
    pieces = list(lm.generate(model, prompt, 200, seed=3))
    text = "".join(pieces)
    assert text.startswith(prompt)
    sampler, _ = model.sampler(
        temperature=1.0, top_k=len(model.vocab), top_p=1.0, stop=None, seed=3
    )
    sampler.feed([model.vocab.boundary, *model.vocab.encode(prompt).tolist()])
    assert text == prompt + model.vocab.decode(sampler.generate(200))
    assert "\ufffd" in text or level == "bpe"  # an untrained model writes what is no UTF-8
    line = model.generate(prompt, 10_000, seed=3, sentence=True)
    assert line.count("\n") == 1 and line.endswith("\n")


def test_a_character_comes_when_it_is_whole(vocabulary):
    vocab = vocabulary("byte")
    assert list(vocab.pieces("aé".encode())) == ["a", "", "é"]
    assert list(vocab.pieces("é".encode()[:1])) == ["", "\ufffd"]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("stream", [False, True])
def test_ngrams_as_arpa_files(tmp_path, level, stream):
    model = fit_ngrams(TEXT, level=level, stream=stream)
    lm.arpa.write(model, tmp_path / "m")
    read = lm.load(tmp_path / "m")
    assert read.vocab.tokens == model.vocab.tokens and read.vocab.level == level
    ids = model.vocab.encode(TEXT + "zebra ü\n")
    assert (read.vocab.encode(TEXT + "zebra ü\n") == ids).all()
    np.testing.assert_allclose(read.logprobs(ids), model.logprobs(ids), atol=1e-7)
    if level == "bpe":
        path = tmp_path / "m"
        path.write_text(re.sub("# tokenizer .*", "# tokenizer {", path.read_text()))
        with pytest.raises(lm.UserError, match="line 2: the tokenizer is not JSON"):
            lm.load(path)
        path.write_text(re.sub("# tokenizer .*\n", "", path.read_text()))
        with pytest.raises(lm.UserError, match="the tokenizer is not one of these tokens"):
            lm.load(path)


@pytest.mark.parametrize("level", LEVELS)
def test_commands(tmp_path, monkeypatch, capsys, level):
    monkeypatch.chdir(tmp_path)
    for name in ("text", "other"):
        Path(name).write_text(TEXT if name == "text" else TEXT[700:2000] + "ü")
    tiny = [f"--{n.replace('_', '-')}={v}" for n, v in SMALL.items() if n != "emsize"]
    size = ["--vocab-size=300"] * (level == "bpe")
    argv = ["--level", level, *size, "--json", "r"]
    train = ["train", "--data", "text", *tiny, "--emsize=16", "--epochs=1", "--out=m"]
    assert cli.main([*train, *argv]) == 0
    report = json.loads(Path("r").read_text())
    assert report["vocab_size"] == (300 if level == "bpe" else 256)
    assert cli.main(["train", "--resume=m", "--epochs=2", "--threads=1"]) == 0
    assert cli.main(["ngram", "--train=text", "--test=other", "--arpa=n", *argv]) == 0
    counted = json.loads(Path("r").read_text())
    for model, path in ((lm.load("m"), "m"), (lm.load("n"), "n")):
        capsys.readouterr()
        assert cli.main(["eval", path, "--data=other", "--json=-"]) == 0
        report = json.loads(capsys.readouterr().out)
        text = Path("other").read_bytes().decode().replace("\r\n", "\n")
        nats = -model.logprobs(model.vocab.encode(text)).sum()
        words = len(re.findall(r"\S+|\n", text)) + 1  # the last line has no end
        assert report["perplexity_per_word"] == pytest.approx(math.exp(nats / words))
        assert report["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text.encode()))
        assert report["bits_per_character"] == pytest.approx(nats / math.log(2) / len(text))
    for name in ("perplexity", "perplexity_per_word", "bits_per_character", "bits_per_byte"):
        assert counted[name] == pytest.approx(report[name])
    assert counted["oov"] == 0
    assert cli.main(["score", "m", "café"]) == 0
    assert ("<0xC3>" in capsys.readouterr().out) == (level == "byte")
    assert cli.main(["generate", "m", "--length=9"]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("caf\n"))
    assert cli.main(["complete", "m", "--top-k=1", "--json=-"]) == 0


@needs_tokenizers
def test_default_size_of_ngrams_of_bpe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text").write_text(PERIODIC + TEXT)
    assert cli.main(["ngram", "--train=text", "--level=bpe", "--json=r"]) == 0
    assert 256 < json.loads(Path("r").read_text())["ngrams"][0] < 4096


@pytest.mark.parametrize("level", LEVELS)
def test_comparison(tmp_path, level):
    corpus = lm.Corpus(TEXT, TEXT[700:2000], TEXT[500:1500])
    settings = {**SMALL, "emsize": 16, "level": level, "epochs": 1}
    if level == "bpe":
        settings["max_vocab"] = 300
    for one in lm.compare(corpus, settings, tmp_path):
        nats = math.log(one["test_perplexity"])
        tokens = len(lm.load(tmp_path / "rnn").vocab.encode(corpus.test))
        bits = nats * tokens / math.log(2)
        assert one["test_bits_per_character"] == pytest.approx(bits / len(corpus.test))
        assert one["test_bits_per_byte"] == pytest.approx(bits / len(corpus.test.encode()))
