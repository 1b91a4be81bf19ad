"""`rnnfast classify` and `rnnfast tag`: what they write, and what they say about bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rnnfast.cli.tasks import assign_folds
from rnnfast.tasks import SequenceClassifier

TINY = ["--embedding-size", 4, "--hidden-size", 4, "--batch-size", 8, "--lr", 0.02]
TINY += ["--threads", 1, "--dropout", 0, "--word-dropout", 0]
GOOD = [f"a {word} film" for word in ("good", "fine", "great")] * 10
BAD = [f"a {word} film" for word in ("bad", "dull", "poor")] * 10
SENTENCE = "The DT B-NP\ncat NN I-NP\nsat VBD B-VP\n. . O\n\nDogs NNS B-NP\nran VBD B-VP\n\n"


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        f"{label}\t{text}\n" for label, texts in (("pos", GOOD), ("neg", BAD)) for text in texts
    ]
    Path("all.tsv").write_text("".join(lines) + "\n")
    Path("pos.txt").write_text("\n".join(GOOD))
    Path("neg.txt").write_text("\n".join(BAD) + "\n")
    Path("tagged").write_text(SENTENCE * 20)
    Path("columns").write_text("A DT\ndog NN\n\nThe DT\ncat NN\nran VBD\n")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_classify(rnnfast):
    argv = ["classify", "--train", "all.tsv", "--test", "neg.txt", "pos.txt", "--out", "model"]
    status, out, err = rnnfast(*argv, *TINY, "--epochs", 8, "--json", "report.json")
    assert status == 0 and "test: accuracy 1.0000 (60 sequences)" in out
    report = json.loads(Path("report.json").read_text())
    assert report["test_score"] == 1.0 and report["metric"] == "accuracy"
    assert report["classes"] == ["neg", "pos"] and report["sequences"] == 60
    assert report["params"]["hidden_size"] == 4 and len(report["history"]) == err.count("epoch")
    status, out, err = rnnfast("classify", "--model", "model", "--predict", "pos.txt")
    assert status == 0 and out == "".join(f"pos\t{text}\n" for text in GOOD)
    status, out, _ = rnnfast("classify", "--model", "model", "--predict", "neg.txt", "--json", "-")
    report = json.loads(out)
    assert report["predictions"] == ["neg"] * 30
    assert np.array(report["probabilities"]).argmax(1).tolist() == [0] * 30
    before = {path.name: path.read_bytes() for path in Path("model").iterdir()}
    status, _, err = rnnfast(*argv, *TINY)
    assert status == 2 and "'model' holds a model: give another folder" in err
    assert before == {path.name: path.read_bytes() for path in Path("model").iterdir()}
    status, *_ = rnnfast(*argv, *TINY, "--epochs", 1, "--overwrite")
    assert status == 0 and before != {p.name: p.read_bytes() for p in Path("model").iterdir()}


def test_folds(rnnfast):
    argv = ["classify", "--train", "pos.txt", "neg.txt", "--folds", 3, "--epochs", 8, *TINY]
    status, out, _ = rnnfast(*argv, "--patience", 0, "--json", "report.json")
    report = json.loads(Path("report.json").read_text())
    assert status == 0 and len(report["accuracies"]) == 3 and out.count("fold ") == 3
    assert report["mean_accuracy"] == pytest.approx(np.mean(report["accuracies"])) == 1.0
    assert report["params"]["patience"] is None and Path("pos.txt").exists()
    y = ["a"] * 31 + ["b"] * 22
    fold = assign_folds(y, 5, seed=1)
    for k in range(5):
        classes = [y[i] for i in np.flatnonzero(fold == k)]
        assert classes.count("a") in (6, 7) and classes.count("b") in (4, 5)
    assert not np.array_equal(fold, assign_folds(y, 5, seed=2))


def test_embeddings(rnnfast):
    """A model starts from vectors of `rnnfast embed`, and does not need their file later."""
    assert rnnfast("embed", "--train", "pos.txt", "--out", "v.txt", "--dim", 4)[0] == 0
    argv = ["classify", "--train", "all.tsv", "--embeddings", "v.txt", *TINY, "--epochs", 2]
    status, *_ = rnnfast(*argv, "--out", "model", "--json", "report.json")
    report = json.loads(Path("report.json").read_text())
    assert status == 0 and report["params"]["embeddings"] == "v.txt"
    status, *_ = rnnfast(*argv[:3], *TINY, "--epochs", 2, "--test", "all.tsv", "--json", "r.json")
    assert status == 0 and json.loads(Path("r.json").read_text())["history"] != report["history"]
    embed = ["embed", "--train", "words", "--out", "w.bin", "--dim", 5, "--min-count", 1]
    Path("words").write_text("the cat sat .\ndogs ran away\n")
    assert rnnfast(*embed)[0] == 0
    argv[3:5] = ["--embeddings", "w.bin"]
    status, _, err = rnnfast(*argv, "--out", "other")
    assert status == 2 and "w.bin has vectors of size 5, not --embedding-size 4" in err
    assert not Path("other").exists()
    argv = ["tag", "--train", "tagged", *TINY, "--epochs", 2, "--out", "tagger"]
    status, *_ = rnnfast(*argv, "--embeddings", "w.bin", "--embedding-size", 5)
    assert status == 0 and "away" in json.loads(Path("tagger/vocab.json").read_text())["tables"][0]
    Path("v.txt").unlink(), Path("w.bin").unlink()
    assert rnnfast("classify", "--model", "model", "--predict", "pos.txt")[0] == 0
    assert rnnfast("tag", "--model", "tagger", "--predict", "columns")[0] == 0


def test_tag(rnnfast):
    argv = ["tag", "--train", "tagged", "--valid", "tagged", "--test", "tagged", "--out", "model"]
    status, out, _ = rnnfast(*argv, *TINY, "--epochs", 12, "--json", "report.json")
    assert status == 0 and "test: chunk F1 1.0000 (40 sequences)" in out
    assert ", accuracy 1.0000, strict chunk F1 1.0000" in out
    report = json.loads(Path("report.json").read_text())
    assert report["test_score"] == report["test_scores"]["chunk F1"] == 1.0
    status, out, _ = rnnfast("tag", "--model", "model", "--predict", "columns")
    expected = "A DT B-NP\ndog NN I-NP\n\nThe DT B-NP\ncat NN I-NP\nran VBD B-VP\n\n"
    assert (status, out) == (0, expected)
    status, out, _ = rnnfast("tag", "--model", "model", "--predict", "columns", "--json", "-")
    assert json.loads(out)["predictions"] == [["B-NP", "I-NP"], ["B-NP", "I-NP", "B-VP"]]
    status, _, err = rnnfast("classify", "--model", "model", "--test", "all.tsv")
    assert status == 2 and "holds a SequenceTagger, not a SequenceClassifier" in err


def test_a_header_is_warned_of(rnnfast):
    text = "label\ttext\n" + Path("all.tsv").read_text()
    Path("all.tsv").write_text(text + 'pos\t"a fine\nfilm"\n')
    status, out, err = rnnfast("classify", "--train", "all.tsv", "--out", "m", *TINY, "--epochs", 1)
    assert status == 0 and "62 sequences" in out
    assert err.count("warning") == 1
    assert "rnnfast: warning: all.tsv: its first line, 'label' and 'text', looks like" in err


def test_columns_of_predict(rnnfast):
    """A file with the tags still in it, or with too few columns, is named together with a line."""
    tabs = "New York\tNNP\tB-X\nis\tVBZ\tO\n\n"
    Path("tabs").write_text("# sent_id = 1\n" + tabs * 4)
    argv = ["tag", "--train", "tabs", "--out", "model", *TINY, "--epochs", 1]
    status, out, err = rnnfast(*argv, "--predict", "tabs")
    assert status == 2 and "tabs, line 2: 3 columns, not 2" in err and not Path("model").exists()
    assert rnnfast(*argv)[0] == 0
    Path("words").write_text("\nNew\n")
    for name, message in (
        ("tabs", "tabs, line 2: 3 columns, not 2 as in the training data without its tags: leave"),
        ("words", "words, line 2: 1 columns, not 2 as in the training data without its tags"),
    ):
        status, out, err = rnnfast("tag", "--model", "model", "--predict", name)
        assert status == 2 and message in err and out == ""
    status, _, err = rnnfast("tag", "--model", "model", "--test", "columns")
    assert status == 2 and "columns, line 1: 1 columns and the tag, not 2 and the tag" in err
    Path("untagged").write_text("New York\tNNP\nis\tVBZ\n")
    status, out, _ = rnnfast("tag", "--model", "model", "--predict", "untagged")
    assert status == 0 and [len(line.split("\t")) for line in out.split("\n")] == [3, 3, 1, 1]
    assert out.startswith("New York\tNNP\t")


def test_tags_without_f1_are_explained(rnnfast):
    """The command says on one line why it prints the accuracy."""
    Path("bmes").write_text("a B-X\nb M-X\nc E-X\n\n" * 4)
    status, out, err = rnnfast("tag", "--train", "bmes", "--test", "bmes", *TINY, "--epochs", 1)
    assert status == 0 and "test: accuracy" in out and "F1" not in out
    assert err.count("rnnfast: warning: scores are the accuracy, not the F1 of chunks") == 1
    assert "because 'M-X' is not a tag such as 'B-NP' or 'NP-B'\n" in err


@pytest.mark.parametrize(
    "argv, message",
    [
        (["classify"], "give --train FILE for a new model, or --model DIR"),
        (["classify", "--train", "all.tsv", "--model", "m"], "give --train FILE for a new model"),
        (["classify", "--model", "m", "--out", "n"], "--out and --valid are for --train"),
        (["classify", "--train", "all.tsv"], "give --out DIR to keep the model"),
        (["classify", "--model", "m"], "give --out DIR to keep the model, or --test"),
        (["classify", "--model", "m", "--test", "all.tsv"], "there is no model folder m"),
        (["classify", "--train", "pos.txt", "--out", "m"], "pos.txt, line 1: want label<TAB>text"),
        (["classify", "--train", "pos.txt", "pos.txt", "--out", "m"], "names that differ"),
        (["classify", "--train", "none", "--out", "m"], "cannot read none"),
        (
            ["classify", "--train", "all.tsv", "--folds", "2", "--out", "m"],
            "--folds cross-validates",
        ),
        (["classify", "--train", "all.tsv", "--folds", "61"], "--folds must be in [2, 60]"),
        (["classify", "--train", "all.tsv", "--out", "m", "--lr", "-1"], "lr must be positive"),
        (["classify", "--train", "all.tsv", "--out", "m", "--features", "x"], "features must be"),
        (["tag", "--train", "mixed", "--out", "m"], "mixed, line 2: 1 columns, not 2 as above"),
        (["classify", "--train", "blank", "--out", "m"], "blank is empty"),
        (["classify", "--train", "pos.txt", "blank", "--out", "m"], "blank is empty"),
        (["classify", "--model", "m", "--test", "all.tsv", "--batch-size", "4"], "--batch-size is"),
        (["tag", "--train", "blank", "--out", "m"], "blank is empty"),
        (
            ["tag", "--train", "tagged", "--out", "m", "--predict", "words"],
            "words, line 1: 1 columns, not 2 as in the training data",
        ),
        (["tag", "--train", "words", "--out", "m"], "words: want a word, other columns"),
    ],
)
def test_bad_input(rnnfast, argv, message):
    Path("blank").write_text("\n  \n")
    Path("mixed").write_text("a X\nb\n")
    Path("words").write_text("a\nb\n")
    status, out, err = rnnfast(*argv)
    assert status == 2 and message in err and out == ""
    assert not Path("m").exists()


def test_no_folder_is_left_of_a_training_that_failed(rnnfast):
    Path("one.tsv").write_text("x\ta\nx\tb\n")
    status, _, err = rnnfast("classify", "--train", "one.tsv", "--out", "m")
    assert status == 2 and "at least 2 classes" in err and not Path("m").exists()


def test_ctrl_c(rnnfast, monkeypatch):
    """No new folder is left, and a model that --overwrite would have replaced is unchanged."""

    def fit(self, X, y, valid, progress):
        real(self, X, y, valid, lambda record: (_ for _ in ()).throw(KeyboardInterrupt))

    argv = ["classify", "--train", "all.tsv", *TINY, "--epochs", 1, "--out"]
    assert rnnfast(*argv, "model")[0] == 0
    before = {path.name: path.read_bytes() for path in Path("model").iterdir()}
    names = sorted(path.name for path in Path().iterdir())
    real = SequenceClassifier.fit
    monkeypatch.setattr(SequenceClassifier, "fit", fit)
    for out in (["other"], ["model", "--overwrite"]):
        status, _, err = rnnfast(*argv, *out)
        assert status == 130 and err.endswith("rnnfast: interrupted\n")
    assert names == sorted(path.name for path in Path().iterdir())
    assert before == {path.name: path.read_bytes() for path in Path("model").iterdir()}
