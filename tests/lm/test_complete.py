"""What a model says to a user: what may come next, and which sentence is likelier."""

import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from lm_helpers import PERIODIC, WORDS, fit_ngrams, small_config, small_model

from rnnfast import cli, lm

MODELS = {
    "rnn": lambda level: small_model(level, nlayers=2, dropout=0.5),
    "window": lambda level: small_model(level, model="window", order=3),
    "sentences": lambda level: fit_ngrams(PERIODIC if level == "char" else WORDS, level=level),
    "stream": lambda level: fit_ngrams(
        PERIODIC if level == "char" else WORDS, level=level, stream=True
    ),
}


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def terminal(monkeypatch):
    """Sets what is typed at a terminal: lines, and what input() raises instead of one."""

    def give(*lines):
        lines = iter(lines)

        def ask(prompt):
            asked.append(prompt)
            line = next(lines)
            if isinstance(line, type):
                raise line
            return line

        monkeypatch.setattr("builtins.input", ask)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)

    asked = []
    give.asked = asked
    return give


def piped(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


@pytest.mark.parametrize("level", ["char", "word"])
@pytest.mark.parametrize("kind", MODELS)
def test_probabilities_are_those_of_the_chain_rule(kind, level):
    model = MODELS[kind](level)
    vocab = model.vocab
    for text in ("", "a1b1\na", "b") if level == "char" else ("", "the dog sat on", "zebra cat\n"):
        best = model.complete(text, top_k=1000)
        ids = vocab.encode(text)
        for token, p in best:
            expected = model.logprobs(np.append(ids, vocab.tokens.index(token)))[-1]
            assert p == pytest.approx(math.exp(expected), rel=1e-4)
        assert sorted(p for _, p in best)[::-1] == [p for _, p in best]
        assert {token for token, _ in best} == set(vocab.tokens) - {"<unk>"}
        assert model.complete(text, top_k=2) == best[:2]
    with pytest.raises(lm.UserError, match="top_k must be at least 1, not 0"):
        model.complete("", top_k=0)


@pytest.fixture
def arpa():
    lm.arpa.write(fit_ngrams(WORDS), "m")
    return lm.load("m")


def test_lines_of_a_pipe(arpa, monkeypatch, capsys):
    lines = ["the cat", "", "a [b]"]
    expected = [arpa.complete(line, 3) for line in lines]
    for target in ("-", "file"):
        piped(monkeypatch, "\r\n".join(lines).encode())
        assert cli.main(["complete", "m", "--top-k", "3", "--json", target]) == 0
        out, err = capsys.readouterr()
        data, text = (out, err) if target == "-" else (Path("file").read_text(), out)
        answers = [json.loads(line) for line in data.splitlines()]
        assert [answer["text"] for answer in answers] == lines
        for answer, best in zip(answers, expected, strict=True):
            pairs = [(one["token"], one["probability"]) for one in answer["suggestions"]]
            assert pairs == best
        shown = [f"> {line}" for line in lines]
        for i, best in zip((1, 2, 3), expected, strict=True):
            shown[4 * i - 3 : 4 * i - 3] = [f"{p:8.4f}  {token}" for token, p in best]
        assert text.splitlines() == shown
    piped(monkeypatch, b"\xff\n")
    assert cli.main(["complete", "m", "--json", "new"]) == 2
    assert "not UTF-8" in capsys.readouterr().err and not Path("new").exists()
    assert cli.main(["complete", "m", "--top-k", "0"]) == 2
    assert "--top-k must be" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=ascii)
def test_a_byte_order_mark_is_not_part_of_the_first_line(arpa, monkeypatch, capsys, end, encoding):
    """The encoding of the locale does not matter. Only the first mark of the input is left out."""
    lines = ["the cat", "été", "\ufeffa"]
    data = end.join(lines).encode("utf-8-sig")
    standard_input = io.TextIOWrapper(io.BytesIO(data), encoding, "surrogateescape")
    monkeypatch.setattr(sys, "stdin", standard_input)
    assert cli.main(["complete", "m", "--json", "-"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["text"] for answer in answers] == lines
    best = [(one["token"], one["probability"]) for one in answers[0]["suggestions"]]
    assert best == arpa.complete("the cat")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfea\0"), encoding))
    assert cli.main(["complete", "m"]) == 2
    assert "not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("leave", [EOFError, KeyboardInterrupt])
def test_lines_of_a_terminal(terminal, capsys, leave):
    model = small_model(text="a b")
    lm.save(model, small_config(), "m")
    terminal("a", "z", "a ", leave)
    assert cli.main(["complete", "m", "--top-k", "2"]) == 0
    out, err = capsys.readouterr()
    best = model.complete("a", 2) + model.complete("a ", 2)
    shown = [f"{p:8.4f}  {token if token in 'ab' else repr(token)}" for token, p in best]
    assert out.splitlines() == shown
    assert "'z'" in err and "Traceback" not in err
    assert terminal.asked == ["> "] * 4


STUDY = "I study machine learning\nwe study deep learning\nI like machine learning\n" * 30


@pytest.mark.parametrize("kind", ["rnn", "window", "ngram"])
def test_sentences_are_ranked(kind, capsys):
    Path("text").write_text(STUDY)
    if kind == "ngram":
        argv = ["ngram", "--train", "text", "--order", "3", "--arpa", "m"]
    else:
        argv = ["train", "--data", "text", "--level", "word", "--model", kind, "--out", "m"]
        argv += ["--epochs", "10", "--batch-size", "4", "--bptt", "10", "--threads", "1"]
    assert cli.main(argv) == 0
    capsys.readouterr()
    given = ["Machine I learning study", "learning machine study I", "I study machine learning"]
    assert cli.main(["score", "m", *given, "--json", "r"]) == 0
    results = json.loads(Path("r").read_text())
    assert results[0]["text"] == "I study machine learning"
    assert sorted(given) == sorted(result["text"] for result in results)
    logprobs = [result["logprob"] for result in results]
    assert logprobs == sorted(logprobs, reverse=True) and logprobs[0] > logprobs[1] + 1
    ranking = capsys.readouterr().out.split("the most probable first")[1]
    places = [ranking.index(result["text"]) for result in results]
    assert places == sorted(places)


def test_closed_standard_output(arpa, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["score", "m", "the cat"]) == 0


def test_closed_standard_input(arpa, monkeypatch, rnnfast):
    monkeypatch.setattr(sys, "stdin", None)
    for argv in (["complete", "m"], ["eval", "m", "--data", "-"]):
        status, out, err = rnnfast(*argv)
        assert (status, out) == (2, "") and "standard input is closed" in err
