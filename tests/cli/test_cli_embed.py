"""`rnnfast embed`, and vectors that initialise a language model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_helpers import TEXT, VOCAB
from lm_helpers import small_config

from rnnfast import embeddings, lm
from rnnfast.embeddings import Vectors

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def rnnfast(rnnfast, tmp_path, monkeypatch):
    """Run commands in a folder of their own, with the file `text`."""
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
    with pytest.raises(lm.UserError, match="size 16 cannot initialise embeddings of size 15"):
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
    assert status == 2 and "vectors of size 16, not --emsize 8" in err and not Path("n").exists()
    status, _, err = rnnfast("train", "--resume", "m", "--embeddings", "v.safetensors")
    assert status == 2 and "leave out --embeddings" in err


def test_coverage_of_embeddings(rnnfast):
    """The log and the JSON say how many words have a vector, and how many would in lower case."""
    Path("cased").write_text(TEXT.replace("cat", "Cat").replace("dog", "DOG"))
    Path("labels.tsv").write_text("x\tCat DOG cow red\ny\tsix two one fish\n" * 3)
    vectors = Vectors(["cat", "dog", "cow", "Six", "<unk>"], np.random.rand(5, 4))
    vectors.save("v.txt.gz")
    argv = ["train", "--train", "cased", "--valid", "cased", "--level", "word", "--epochs", 1]
    argv += ["--nhid", 4, "--emsize", 4, "--batch-size", 4, "--bptt", 10, "--threads", 1]
    status, out, _ = rnnfast(*argv, "--out", "m", "--embeddings", "v.txt.gz", "--json", "r.json")
    line = (
        "embeddings: 1 of 9 words have a vector; 2 of the others would have one in lower case; "
        "1 of the others would have one with capitals\n"
    )
    assert status == 0 and line in out
    coverage = {"words": 9, "known": 1, "lower_case": 2, "capitals": 1}
    assert json.loads(Path("r.json").read_text())["coverage"] == coverage
    assert rnnfast(*argv, "--out", "o", "--json", "r.json")[0] == 0
    assert "coverage" not in json.loads(Path("r.json").read_text())
    argv = ["classify", "--train", "labels.tsv", "--embedding-size", 4, "--hidden-size", 4]
    argv += ["--epochs", 1, "--threads", 1, "--embeddings", "v.txt.gz", "--json", "r.json"]
    for feature, known, lower_case in (("form", 1, 2), ("word", 3, 0)):
        for more in (["--out", feature], ["--folds", 2]):
            status, out, _ = rnnfast(*argv, "--features", feature, *more)
            coverage = {"words": 8, "known": known, "lower_case": lower_case, "capitals": 1}
            assert status == 0 and f"embeddings: {known} of 8 words have a vector; " in out
            assert json.loads(Path("r.json").read_text())["coverage"] == coverage
    Vectors(["fish"], np.ones((1, 4))).save("v.txt.gz")
    Path("labels.tsv").write_text("x\tFish\ny\tFISH\n" * 3)
    status, _, err = rnnfast(*argv, "--features", "form", "--out", "n")
    assert status == 2 and "none of the 3 tokens" in err
    assert "; 2 of the others would have one in lower case" in err
