"""`rnnfast score --data`: a result a line, in the order of the text."""

import gzip
import io
import json
import sys
from pathlib import Path

import pytest
from lm_helpers import ARPA, WORDS, fit_ngrams, small_config, small_model

from rnnfast import cli, lm
from rnnfast._common import text
from rnnfast.lm.ngram.arpa import LOG10

pytestmark = pytest.mark.usefixtures("folder_with_text")

# Sentences and log10 p of each, from kenlm 0.3.0 (Python, `Model.score`).
SCORES = {"b a": -1.4, "": -0.9, "a zebra\tb": -3.9, " b  a b ": -2.4, "a": -1.4}
LINES = list(SCORES)


def jsonl(data):
    return [json.loads(line) for line in data.splitlines()]


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\r"], ids=ascii)
@pytest.mark.parametrize("source", ["file", "gzip", "stdin"])
def test_lines_score_in_their_order_as_in_kenlm(rnnfast, monkeypatch, source, end):
    Path("m").write_text(ARPA)
    data = ((end or "\n").join(LINES) + end).encode()
    Path("lines").write_bytes(gzip.compress(data) if source == "gzip" else data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    argv = ("score", "m", "--data", "-" if source == "stdin" else "lines")
    status, out, err = rnnfast(*argv, "--json", "r")
    assert status == 0 and not err
    results = jsonl(Path("r").read_text())
    assert [(result["line"], result["text"]) for result in results] == [*enumerate(LINES, 1)]
    for result, line in zip(results, LINES, strict=True):
        assert result["logprob"] / LOG10 == pytest.approx(SCORES[line], abs=1e-6)
        assert {**result, "line": None} == {"line": None, **lm.load("m").score(line).to_json()}
    shown = [line.split("\t", 1) for line in out.removesuffix("\n").split("\n")]
    assert shown == [[f"{result['logprob']:.4f}", result["text"]] for result in results]


def test_the_best_lines_are_ranked_on_request(rnnfast):
    Path("m").write_text(ARPA)
    Path("lines").write_text("\n".join(LINES))
    status, out, _ = rnnfast("score", "m", "--data", "lines", "--best", 3, "--json", "-")
    assert status == 0
    best = [(result["line"], result["text"]) for result in jsonl(out)]
    assert best == [(2, ""), (1, "b a"), (5, "a")]  # the first of equal ones comes first
    assert len(rnnfast("score", "m", "--data", "lines", "--best", 9)[1].splitlines()) == 5
    status, out, _ = rnnfast("score", "m", *LINES, "--best", 2, "--json", "-")
    assert [result["text"] for result in json.loads(out)] == ["", "b a"]


def test_a_result_is_written_before_the_next_line_is_scored(monkeypatch, capsys):
    Path("m").write_text(ARPA)
    Path("lines").write_text("b\na\nb\n")
    score, seen = lm.NgramLM.score, []
    monkeypatch.setattr(text, "IN_MEMORY", 3)
    monkeypatch.setattr(
        lm.NgramLM,
        "score",
        lambda model, line: seen.append(capsys.readouterr().out) or score(model, line),
    )
    assert cli.main(["score", "m", "--data", "lines", "--json", "-"]) == 0
    assert [len(jsonl(out)) for out in seen] == [0, 1, 1]


@pytest.mark.parametrize("kind", ["rnn", "window"])
def test_lines_of_a_neural_model_do_not_see_one_another(rnnfast, kind):
    model = small_model(text="ab\n", model=kind)
    lm.save(model, small_config(model=kind), "m")
    Path("lines").write_text("ab\nba\n\nab")
    _, out, _ = rnnfast("score", "m", "--data", "lines", "--json", "-")
    expected = [lm.load("m").score(line).logprob for line in ("ab", "ba", "", "ab")]
    assert [result["logprob"] for result in jsonl(out)] == pytest.approx(expected)
    Path("lines").write_text("ab\n\nza\n")
    status, _, err = rnnfast("score", "m", "--data", "lines", "--json", "r")
    assert status == 2 and "lines, line 3: character 'z'" in err and not Path("r").exists()


def test_the_bar_leaves_standard_output_alone(monkeypatch, capsys):
    """On a terminal, what is written while the bar shows is still the JSON alone."""
    lm.arpa.write(fit_ngrams(WORDS), "m")
    Path("lines").write_text(WORDS)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.main(["score", "m", "--data", "lines", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert len(jsonl(out)) == 160 and "characters" in err
    assert cli.main(["score", "m", "--data", "lines"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 160


def test_what_score_is_given_is_sentences_or_a_text(rnnfast):
    Path("m").write_text(ARPA)
    for argv in ([], ["a", "--data", "lines"]):
        status, _, err = rnnfast("score", "m", *argv)
        assert status == 2 and "give sentences, or --data TEXT" in err
    status, _, err = rnnfast("score", "m", "a", "--best", 0)
    assert status == 2 and "--best must be at least 1, not 0" in err
