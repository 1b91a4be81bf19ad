"""The command line: what it prints, what it writes, and what it says of bad input."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lm_helpers import DATA, PERIODIC, ROOT, WORDS, needs_brown

from rnnfast import cli, lm

TINY = ["--emsize", "8", "--nhid", "16", "--batch-size", "4", "--bptt", "10"]
TINY += ["--threads", "1", "--lr", "0.01"]


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """Every test runs in its own folder, with the text in it, and leaves torch's threads."""
    monkeypatch.chdir(tmp_path)
    Path("text").write_text(PERIODIC)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A small model trained by the command line, and its report. Copied by who changes it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text").write_text(PERIODIC)
    argv = ["train", "--data", folder / "text", "--out", folder / "model", *TINY, "--epochs", "2"]
    assert cli.main([*map(str, argv), "--json", str(folder / "report.json")]) == 0
    return folder / "model", json.loads((folder / "report.json").read_text())


@pytest.fixture
def model(trained):
    """A copy of the trained model in the folder of the test."""
    shutil.copytree(trained[0], "model")
    return Path("model")


def contents(folder):
    """Everything in a folder, to see that nothing changed."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def heed_ctrl_c():
    """What runs in the background of a shell, as tests may, inherits that it ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def process(*argv, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", "rnnfast", *map(str, argv)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=environment,
        preexec_fn=heed_ctrl_c,
        **options,
    )


# ---- what the commands do


def test_report_has_the_figures(trained):
    _, report = trained
    expected = """level vocab_size parameters epochs steps tokens seconds tokens_per_second
        valid_loss valid_perplexity valid_bits_per_token test_loss test_perplexity model_dir
        curve config baselines torch threads"""
    for key in expected.split():
        assert key in report
    assert report["level"] == "char" and report["vocab_size"] == 5
    assert report["epochs"] == 2 and report["steps"] == 2 * 81
    assert report["test_loss"] is None and report["test_perplexity"] is None
    assert report["threads"] == 1 and len(report["curve"]) == 2
    unigram = report["baselines"]["unigram"]["valid_loss"]
    assert report["valid_loss"] < unigram


def test_eval_repeats_what_train_said(rnnfast, trained):
    folder, report = trained
    Path("valid").write_text(lm.corpus.split(PERIODIC).valid)
    argv = ("eval", folder, "--data", "valid", "--threads", 1)
    status, out, err = rnnfast(*argv, "--json", "-")
    result = json.loads(out)
    assert status == 0
    keys = """tokens loss perplexity bits_per_token perplexity_per_word bits_per_character
        bits_per_byte"""
    assert result.keys() == set(keys.split())
    assert result["loss"] == report["valid_loss"]
    assert result["bits_per_character"] == pytest.approx(result["bits_per_token"])
    assert result["perplexity"] == report["valid_perplexity"]
    assert f"{result['loss']:.4f} nats" in err
    status, out, err = rnnfast(*argv)
    assert status == 0 and f"{result['loss']:.4f} nats" in out and not err


def test_train_prints_a_table_a_sample_and_where(rnnfast):
    status, out, err = rnnfast("train", "--data", "text", *TINY, "--epochs", 1)
    assert status == 0
    for words in ("unigram, valid", "bigram, valid", "RNN, valid", "A sample", "rnnfast-model;"):
        assert words in out
    assert re.search(r"^step 50  epoch 0.62 .* loss .* lr .* tokens/s$", err, re.M)
    assert re.search(r"valid \d.\d+ nats, \d.\d+ bits, perplexity", err)
    assert lm.load("rnnfast-model").vocab.level == "char"
    # A second run does not touch the first one's model.
    before = contents("rnnfast-model")
    assert rnnfast("train", "--data", "text", *TINY, "--epochs", 1)[0] == 0
    assert contents("rnnfast-model") == before and Path("rnnfast-model-2").is_dir()


def test_json_on_stdout_is_alone_there(rnnfast):
    argv = ("train", "--data", "text", *TINY, "--epochs", 1, "--out", "m", "--json", "-")
    status, out, err = rnnfast(*argv)
    assert status == 0 and json.loads(out)["model_dir"] == "m" and "A sample" in err
    status, out, err = rnnfast("generate", "m", "--seed", 1, "--length", 5, "--json", "-")
    assert status == 0 and json.loads(out).keys() == {"text"} and json.loads(out)["text"] in err
    status, out, err = rnnfast("score", "m", "a1", "--json", "-")
    assert status == 0 and json.loads(out)[0]["text"] == "a1" and "log p" in err


def test_no_arguments_train_on_the_builtin_text(rnnfast):
    status, out, _ = rnnfast("train", "--epochs", 1, "--nhid", 64, "--threads", 1)
    assert status == 0
    rows = re.findall(r"(unigram|bigram|RNN), valid\D+([\d.]+)", out)
    unigram, bigram, rnn = (float(loss) for _, loss in rows)
    assert bigram < unigram and rnn < unigram
    status, out, _ = rnnfast("score", "rnnfast-model", "The class statement [defines]")
    assert status == 0 and "The class statement [defines]" in out


def test_splits_of_their_own_and_a_test_set(rnnfast):
    Path("valid").write_text(PERIODIC[:300])
    Path("test").write_text(PERIODIC[:120])
    files = ("--train", "text", "--valid", "valid", "--test", "test")
    argv = ("train", *files, *TINY, "--epochs", 1, "--out", "m", "--json", "r")
    assert rnnfast(*argv)[0] == 0
    report = json.loads(Path("r").read_text())
    _, out, _ = rnnfast("eval", "m", "--data", "test", "--json", "-")
    assert json.loads(out)["loss"] == report["test_loss"] and json.loads(out)["tokens"] == 120


def test_generate(rnnfast, model):
    argv = ("generate", model, "--prompt", "a1", "--length", 30, "--seed", 7)
    first, again = (rnnfast(*argv) for _ in range(2))
    assert first == again and first[0] == 0 and first[1].startswith("a1")
    assert rnnfast(*argv, "--json", "t")[1] == first[1]
    text = json.loads(Path("t").read_text())["text"]
    assert len(text) == 32 and first[1] in (text, text + "\n")
    assert text == lm.load(model).generate("a1", 30, seed=7)
    greedy = rnnfast("generate", model, "--length", 9, "--top-k", 1)
    assert greedy == rnnfast("generate", model, "--length", 9, "--temperature", 0)
    assert greedy == rnnfast("generate", model, "--length", 9, "--top-p", 1e-9)


def test_score(rnnfast, model):
    status, out, _ = rnnfast("score", model, "a1b1a2b2", "b", "", "--json", "s")
    results = json.loads(Path("s").read_text())
    results.sort(key=lambda result: -len(result["text"]))
    assert status == 0 and [result["text"] for result in results] == ["a1b1a2b2", "b", ""]
    for result in results:
        assert result.keys() == {"text", "logprob", "tokens"}
        total = sum(token["logprob"] for token in result["tokens"])
        assert result["logprob"] == pytest.approx(total)
        assert f"{result['logprob']:.4f}" in out
    Path("line").write_text("a1b1a2b2\n")
    _, out, _ = rnnfast("eval", model, "--data", "line", "--json", "-")
    assert -json.loads(out)["loss"] * 9 == pytest.approx(results[0]["logprob"])


def test_word_level_defaults(rnnfast):
    Path("words").write_text("the cat sat on the mat\nthe dog sat\n" * 100)
    argv = ("train", "--data", "words", "--level", "word", "--epochs", 1, "--bptt", 20)
    assert rnnfast(*argv, "--threads", 1, "--out", "m", "--json", "r")[0] == 0
    report = json.loads(Path("r").read_text())
    assert report["config"]["tied"] and report["config"]["nhid"] == 200
    status, out, _ = rnnfast("score", "m", "the zebra sat")
    assert status == 0 and "<unk>" in out and "<eos>" in out
    status, out, _ = rnnfast("generate", "m", "--prompt", "the", "--sentence", "--seed", 1)
    assert status == 0 and out.startswith("the") and out.count("\n") == 1


def test_words_of_another_text(rnnfast):
    Path("words").write_text(WORDS)
    Path("others").write_text("zebra cat cat " * 300)
    argv = ("train", "--data", "words", "--vocab", "others", "--epochs", 1, "--threads", 1)
    argv += ("--batch-size", 4, "--bptt", 10, "--min-count", 500)
    assert rnnfast(*argv, "--level", "word", "--out", "m")[0] == 0
    assert lm.load("m").vocab.tokens == ["<eos>", "<unk>", "cat"]
    assert rnnfast("train", "--resume", "m", "--epochs", 2, "--threads", 1)[0] == 0
    assert rnnfast(*argv, "--level", "char", "--out", "c", *TINY)[0] == 0
    assert set(lm.load("c").vocab.tokens) == set(WORDS + "zebra")


def test_window(rnnfast):
    Path("words").write_text(WORDS)
    argv = ("train", "--data", "words", "--level", "word", "--epochs", 1, "--model", "window")
    argv += ("--order", 3, *TINY, "--direct", "--no-tied")
    status, out, _ = rnnfast(*argv, "--out", "m", "--json", "r")
    assert status == 0 and "tanh window of 3 tokens, 1 x 16 units" in out
    assert "window of 3 tokens, valid" in out and "RNN" not in out
    report = json.loads(Path("r").read_text())
    size = report["vocab_size"]
    assert report["parameters"] == 8 * size + 17 * 16 + (32 + 1) * size
    assert lm.load("m").order == 3
    _, out, _ = rnnfast("score", "m", "the cat sat", "--json", "-")
    assert json.loads(out)[0]["logprob"] == lm.load("m").score("the cat sat").logprob


def test_lstm(rnnfast):
    argv = ("train", "--data", "text", *TINY, "--epochs", 1, "--cell", "lstm", "--nlayers", 2)
    status, out, _ = rnnfast(*argv, "--out", "m", "--json", "r")
    assert status == 0 and "\nLSTM, 2 x 16 units" in out and "LSTM, valid" in out
    assert json.loads(Path("r").read_text())["config"]["cell"] == "lstm"
    status, out, _ = rnnfast("generate", "m", "--seed", 1, "--length", 20, "--json", "t")
    text = json.loads(Path("t").read_text())["text"]
    assert status == 0 and text == lm.load("m").generate(length=20, seed=1)


def test_resume_goes_on(rnnfast, model):
    before = contents(model)
    status, _, err = rnnfast("train", "--resume", model)
    assert status == 2 and "raise --epochs" in err and contents(model) == before
    status, _, _ = rnnfast("train", "--resume", model, "--epochs", 3, "--json", "r")
    report = json.loads(Path("r").read_text())
    assert status == 0 and report["epochs"] == 3 and len(report["curve"]) == 3
    assert report["config"]["nhid"] == 16 and report["model_dir"] == "model"


def test_overwrite_replaces(rnnfast, model):
    argv = ("train", "--data", "text", *TINY, "--epochs", 1, "--out", model)
    assert rnnfast(*argv)[0] == 2
    assert rnnfast(*argv, "--nhid", 8, "--overwrite")[0] == 0
    assert lm.load(model).rnn.hidden_size == 8


def test_ngram(rnnfast):
    Path("train").write_text(WORDS)
    Path("test").write_text("the cat sat on a zebra\n\n")
    argv = ("ngram", "--train", "train", "--test", "test", "--order", 3)
    status, out, err = rnnfast(*argv, "--arpa", "m.arpa", "--json", "r")
    report = json.loads(Path("r").read_text())
    assert (status, err) == (0, "") and "m.arpa" in out
    keys = """order smoothing train_tokens test_tokens oov ngrams perplexity
        perplexity_without_oov perplexity_per_word bits_per_character bits_per_byte seconds"""
    assert report.keys() == set(keys.split())
    vocab = lm.Vocabulary.build("word", [WORDS])
    model = lm.NgramLM.fit(vocab, vocab.encode_stream(WORDS), 3, "mkn")
    assert (report["order"], report["smoothing"]) == (3, "mkn")
    assert (report["train_tokens"], report["test_tokens"], report["oov"]) == (840, 8, 1)
    assert report["ngrams"] == [len(entries.keys) for entries in model.ngrams]
    result = model.evaluate(Path("test").read_text())
    assert report["perplexity"] == pytest.approx(result.perplexity)
    assert report["perplexity_per_word"] == pytest.approx(result.perplexity)
    tokens = model.score(Path("test").read_text()).tokens
    known = [logprob for token, logprob in tokens if token != "<unk>"]
    assert report["perplexity_without_oov"] == pytest.approx(math.exp(-sum(known) / 7))
    assert f"{report['perplexity']:.6g}" in out and f"{report['seconds']:.2f} s" in out


@pytest.mark.filterwarnings("error")
def test_ngram_of_a_test_text_of_nothing_known(rnnfast):
    Path("test").write_text("zzz")
    argv = ("ngram", "--train", "text", "--test", "test", "--level", "char", "--json", "r")
    status, out, _ = rnnfast(*argv)
    report = json.loads(Path("r").read_text())
    assert status == 0 and (report["test_tokens"], report["oov"]) == (3, 3)
    assert report["perplexity_without_oov"] is None
    assert f"3 of them <unk>; perplexity {report['perplexity']:.6g}\n" in out


def test_ngram_options(rnnfast):
    Path("test").write_text("a1b1z\n")
    model = ("ngram", "--train", "text", "--test", "test", "--level", "char", "--json", "-")
    reports = []
    for options in (
        (),
        ("--stream",),
        ("--smoothing", "add-k"),
        ("--smoothing", "add-k", "--k", 9),
    ):
        status, out, _ = rnnfast(*model, *options)
        reports.append(json.loads(out))
        assert status == 0 and (reports[-1]["test_tokens"], reports[-1]["oov"]) == (6, 1)
    assert len({report["perplexity"] for report in reports}) == 4
    assert reports[3]["smoothing"] == "add-k" and reports[0]["ngrams"][0] == 6
    Path("words").write_text("a a a b b c\n")
    Path("others").write_text("d d d d e e\n")
    others = ("--vocab", "others")
    for options, size in (
        (("--min-count", 2), 4),
        (("--max-vocab", 3), 3),
        (others, 4),
        ((*others, "--min-count", 3), 3),
    ):
        _, out, _ = rnnfast("ngram", "--train", "words", *options, "--json", "-")
        report = json.loads(out)
        assert report["ngrams"][0] == size
        assert report["test_tokens"] is report["oov"] is report["perplexity"] is None


def test_commands_on_an_arpa_file(rnnfast):
    Path("words").write_text(WORDS)
    assert rnnfast("ngram", "--train", "words", "--arpa", "m", "--json", "r")[0] == 0
    model = lm.load("m")
    _, out, _ = rnnfast("eval", "m", "--data", "words", "--json", "-")
    assert json.loads(out)["loss"] == model.evaluate(WORDS).loss
    _, out, _ = rnnfast("score", "m", "the zebra sat", "--json", "-")
    assert json.loads(out)[0]["logprob"] == model.score("the zebra sat").logprob
    argv = ("generate", "m", "--prompt", "the", "--length", 9, "--seed", 2)
    status, out, _ = rnnfast(*argv, "--top-p", 0.9, "--temperature", 0.7)
    expected = model.generate("the", 9, seed=2, top_p=0.9, temperature=0.7)
    assert status == 0 and out.rstrip("\n") == expected.rstrip("\n")


def test_eval_of_a_mixture(rnnfast):
    Path("words").write_text(WORDS)
    Path("other").write_text("the cat sat on a dog\na cat and the dog\n" * 9)
    argv = ("train", "--data", "words", "--level", "word", "--epochs", 1, "--out", "m", *TINY)
    assert rnnfast(*argv, "--no-tied")[0] == 0
    assert rnnfast("ngram", "--train", "words", "--min-count", 2, "--arpa", "n")[0] == 0
    argv = ("eval", "m", "n", "--cache", "--tune", "other", "--data", "words", "--dynamic", 0.1)
    status, out, _ = rnnfast(*argv, "--json", "r")
    report = json.loads(Path("r").read_text())
    mixture = lm.Mixture.tune([lm.load("m"), lm.load("n")], Path("other").read_text(), True, 0.1)
    *each, whole = mixture.evaluate(WORDS)
    assert report["loss"] == pytest.approx(whole.loss) and report["tokens"] == whole.tokens
    assert report["cache_size"] == mixture.cache_size
    components = report["components"]
    assert [one["model"] for one in components] == ["m", "n", "cache"]
    assert [one["weight"] for one in components] == pytest.approx(mixture.weights, abs=1e-6)
    expected = [*(one.perplexity for one in each), None]
    assert [one["perplexity"] for one in components] == pytest.approx(expected)
    assert status == 0 and f"perplexity {report['perplexity']:.3f}" in out and "cache" in out
    _, out, _ = rnnfast("eval", "m", "--data", "words", "--dynamic", 0.1, "--json", "-")
    assert "components" not in json.loads(out)
    assert json.loads(out)["perplexity"] == pytest.approx(each[0].perplexity)


# ---- signals


def interrupt(number, *, again=False):
    argv = ("train", "--max-seconds", 600, "--nhid", 32, "--emsize", 8, "--threads", 1)
    running = process(*argv, "--out", "run", "--log-interval", 50)
    seen = ""
    while not (line := running.stderr.readline()).startswith("step 50 "):
        seen += line
        assert line, seen
    running.send_signal(number)
    if again:
        running.send_signal(number)
    out, err = running.communicate(timeout=120)
    return running.returncode, out, err


def test_ctrl_c_saves_a_model_that_goes_on(rnnfast):
    status, out, err = interrupt(signal.SIGINT, again=True)
    assert status == 130 and "Traceback" not in err
    assert "saved in run; go on with rnnfast train --resume run" in out
    step = int(re.search(r"stopped at step (\d+)", out)[1])
    Path("line").write_text("The class\n")
    assert rnnfast("eval", "run", "--data", "line")[0] == 0
    assert rnnfast("generate", "run", "--length", 5)[0] == 0
    # Enough time for some steps more, by the run's own clock.
    seconds = json.loads(Path("run/log.jsonl").read_text().splitlines()[-1])["seconds"] + 2
    assert rnnfast("train", "--resume", "run", "--max-seconds", seconds, "--json", "r")[0] == 0
    assert json.loads(Path("r").read_text())["steps"] > step


def test_sigterm_saves_too():
    status, out, err = interrupt(signal.SIGTERM)
    assert (status, err) == (128 + signal.SIGTERM, "") and "saved in run" in out
    lm.load("run")


def test_closed_pipe_is_no_traceback(trained):
    running = process("generate", trained[0], "--length", 100_000, "--seed", 1)
    running.stdout.read(10)
    running.stdout.close()
    assert running.stderr.read() == ""
    assert running.wait(120) == 128 + signal.SIGPIPE


def test_ctrl_c_ends_a_long_text(trained):
    running = process("generate", trained[0], "--length", 10**12, "--seed", 1)
    running.stdout.read(10)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert (running.returncode, err) == (130, "rnnfast: interrupted\n")


def test_json_to_where_standard_output_goes(model):
    """A file, which has what is printed before and after, also what waits in a buffer."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)
    argv = ["generate", model, "--length", 5, "--seed", 1, "--json", "/dev/stdout"]
    command = [sys.executable, "-m", "rnnfast", *map(str, argv)]
    Path("file").write_text("before\n")
    with open("file", "ab") as file:
        subprocess.run(command, stdout=file, env=environment, check=True)
    printed, _, report = Path("file").read_text().partition("{")
    text = json.loads("{" + report)["text"]
    assert printed == "before\n" + text + ("" if text.endswith("\n") else "\n")


# ---- bad input


def write(name, data=""):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(data if isinstance(data, bytes) else data.encode())


TRAIN = ["train", *TINY, "--epochs", "1"]
MIXTURE = ["eval", "model", "--cache", "--data", "text"]
WINDOW = [*TRAIN, "--data", "text", "--model", "window"]
BAD_INPUT = {
    "missing file": ([*TRAIN, "--data", "nowhere"], "cannot read nowhere"),
    "folder": ([*TRAIN, "--data", "."], "garbage is not UTF-8"),
    "empty folder": ([*TRAIN, "--data", "hidden"], "hidden is empty"),
    "empty file": ([*TRAIN, "--data", "empty"], "empty is empty"),
    "garbage": ([*TRAIN, "--data", "garbage"], "not UTF-8"),
    "too short": ([*TRAIN, "--data", "short"], "fewer than one batch"),
    "train alone": ([*TRAIN, "--train", "text"], "--valid"),
    "test alone": ([*TRAIN, "--test", "text"], "--data"),
    "data and train": ([*TRAIN, "--data", "text", "--train", "text"], "not both"),
    "tied sizes": ([*TRAIN, "--data", "text", "--tied"], "emsize equal to nhid"),
    "window order": ([*WINDOW, "--order", "1"], "order must be at least 2, not 1"),
    "window cell": ([*WINDOW, "--cell", "gru"], "tanh or relu for the model window, not gru"),
    "window layers": ([*WINDOW, "--nlayers", "2"], "nlayers must be 1"),
    "window weights": ([*WINDOW, "--weight-dropout", "0.1"], "weight_dropout needs the model rnn"),
    "window tied": ([*WINDOW, "--tied", "--direct"], "not tied"),
    "rnn direct": ([*TRAIN, "--data", "text", "--direct"], "direct needs the model window"),
    "nhid 0": ([*TRAIN, "--data", "text", "--nhid", "0"], "at least 1"),
    "dropout 1": ([*TRAIN, "--data", "text", "--dropout", "1"], "dropout"),
    "embedding dropout": ([*TRAIN, "--data", "text", "--embedding-dropout", "-1"], "in [0, 1)"),
    "accumulate": ([*TRAIN, "--data", "text", "--accumulate", "5"], "at most the 4 sequences"),
    "adaptive": ([*TRAIN, "--data", "text", "--adaptive"], "adaptive needs words"),
    "average": ([*TRAIN, "--data", "text", "--average", "-1"], "average must be zero or more"),
    "checkpoints": ([*TRAIN, "--data", "text", "--checkpoint-interval", "0"], "a positive number"),
    "lr nan": ([*TRAIN, "--data", "text", "--lr", "nan"], "lr must be"),
    "threads 0": ([*TRAIN, "--data", "text", "--threads", "0"], "threads"),
    "device": ([*TRAIN, "--data", "text", "--device", "warp"], "--device cpu"),
    "json folder": ([*TRAIN, "--data", "text", "--json", "no/where"], "cannot write no/where"),
    "out is a file": ([*TRAIN, "--data", "text", "--out", "text"], "is a file"),
    "out is foreign": ([*TRAIN, "--data", "text", "--out", "foreign"], "notes.txt"),
    "foreign, overwrite": (
        [*TRAIN, "--data", "text", "--out", "foreign", "--overwrite"],
        "notes.txt",
    ),
    "out is a model": ([*TRAIN, "--data", "text", "--out", "model"], "--resume model to go on"),
    "resume nowhere": (["train", "--resume", "nowhere"], "give one that rnnfast train made"),
    "resume and out": (["train", "--resume", "model", "--out", "x"], "--resume"),
    "resume and vocab": (
        ["train", "--resume", "model", "--epochs", "3", "--vocab", "nowhere"],
        "goes on with the vocabulary it has: leave --vocab",
    ),
    "resume, settings": (
        ["train", "--resume", "model", "--epochs", "3", "--bptt", "11"],
        "--bptt 11 was asked for but the checkpoint in model has 10",
    ),
    "resume, text": (
        ["train", "--resume", "model", "--epochs", "3", "--data", "longer"],
        "not the one",
    ),
    "eval nowhere": (["eval", "nowhere", "--data", "text"], "there is no model nowhere"),
    "eval missing": (["eval", "model", "--data", "nowhere"], "cannot read nowhere"),
    "eval stranger": (["eval", "model", "--data", "stranger"], "'z'"),
    "mixture": (["eval", "model", "model", "--data", "text"], "--tune TEXT is for a mixture"),
    "cache": (["eval", "model", "--cache", "--data", "text"], "--tune TEXT is for a mixture"),
    "no mixture": (["eval", "model", "--data", "text", "--tune", "text"], "is for a mixture"),
    "dynamic": (["eval", "model", "--data", "text", "--dynamic", "-1"], "lr of dynamic"),
    "tune missing": ([*MIXTURE, "--tune", "nowhere"], "cannot read nowhere"),
    "tune stranger": ([*MIXTURE, "--tune", "stranger"], "'z'"),
    "prompt stranger": (["generate", "model", "--prompt", "z"], "'z'"),
    "complete top-k": (["complete", "model", "--top-k", "0"], "top-k"),
    "score stranger": (["score", "model", "a", "z"], "'z'"),
    "ngram missing": (["ngram", "--train", "nowhere"], "cannot read nowhere"),
    "ngram order": (["ngram", "--train", "text", "--order", "0"], "order must be at least 1"),
    "ngram k": (["ngram", "--train", "text", "--smoothing", "add-k", "--k", "-1"], "k must be"),
    "ngram min-count": (["ngram", "--train", "text", "--min-count", "0"], "min_count must be"),
    "ngram max-vocab": (["ngram", "--train", "text", "--max-vocab", "1"], "max_vocab must be"),
    "ngram arpa": (["ngram", "--train", "text", "--arpa", "no/where"], "cannot write no/where"),
    "ngram marks": (["ngram", "--train", "marks", "--arpa", "m"], "the word </s>"),
    "text as model": (["eval", "text", "--data", "text"], "not an ARPA file"),
    "temperature": (["generate", "model", "--temperature", "-1"], "temperature"),
    "top-k": (["generate", "model", "--top-k", "0"], "top-k"),
    "top-p": (["generate", "model", "--top-p", "0"], "top-p"),
    "length": (["generate", "model", "--length", "-1"], "length"),
}


def bad_input():
    for name, data in {
        "empty": "",
        "garbage": bytes(range(256)) * 50,
        "short": "a" * 40,
        "stranger": "abz\n",
        "marks": "a </s>\n",
        "longer": PERIODIC + "a",
        "foreign/notes.txt": "mine",
        "hidden/.notes": "mine",
    }.items():
        write(name, data)


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_touches_nothing(rnnfast, model, case):
    bad_input()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    argv, says = BAD_INPUT[case]
    status, out, err = rnnfast(*argv)
    assert status == 2 and not out
    assert err.startswith("rnnfast: error: ") and err.count("\n") == 1 and says in err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    assert not list(Path().glob("rnnfast-model*"))


def damage_config(**changes):
    def damage(path):
        data = json.loads(path.read_text())
        data["config"].update(changes)
        path.write_text(json.dumps(data))

    return damage


def poison(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors["decoder.bias"][0] = float("nan")
    save_file(tensors, path)


DAMAGE = {
    "no weights": ("model.safetensors", Path.unlink),
    "no config": ("config.json", Path.unlink),
    "no vocab": ("vocab.json", Path.unlink),
    "cut weights": ("model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-100])),
    "cut header": ("model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:60])),
    "empty weights": ("model.safetensors", lambda p: p.write_bytes(b"")),
    "nan weights": ("model.safetensors", poison),
    "cut config": ("config.json", lambda p: p.write_text(p.read_text()[:50])),
    "binary config": ("config.json", lambda p: p.write_bytes(b"\xff\xfe\0")),
    "list config": ("config.json", lambda p: p.write_text("[]")),
    "cut vocab": ("vocab.json", lambda p: p.write_text(p.read_text()[:20])),
    "short vocab": ("vocab.json", lambda p: p.write_text(p.read_text().replace('"2"', '"1"'))),
    "other vocab": ("vocab.json", lambda p: p.write_text('{"level":"char","tokens":["\\n"]}')),
    "word vocab": ("vocab.json", lambda p: p.write_text('{"level":"word","tokens":["<eos>"]}')),
    "other size": ("config.json", damage_config(nhid=17)),
    "huge size": ("config.json", damage_config(nhid=10**15)),
    "other layers": ("config.json", damage_config(nlayers=2)),
    "string size": ("config.json", damage_config(nhid="16")),
    "new setting": ("config.json", damage_config(colour="red")),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_model_is_one_line(rnnfast, model, case):
    name, damage = DAMAGE[case]
    damage(model / name)
    for argv in (["generate", model], ["train", "--resume", model, "--epochs", 3]):
        status, out, err = rnnfast(*argv)
        assert status == 2 and not out
        assert err.startswith("rnnfast: error: ") and err.count("\n") == 1 and name in err


@pytest.mark.parametrize("cut", [0, 200, -50])
def test_damaged_checkpoint_is_one_line(rnnfast, model, cut):
    path = model / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    status, _, err = rnnfast("train", "--resume", model, "--epochs", 3)
    assert status == 2 and err.count("\n") == 1 and "checkpoint.safetensors" in err
    assert rnnfast("generate", model, "--length", 3)[0] == 0


@pytest.mark.parametrize("argv", [[], ["fly"], ["train", "--nhid", "many"], ["eval", "model"]])
def test_wrong_usage_is_status_two(rnnfast, argv):
    assert rnnfast(*argv)[0] == 2


def test_the_process_itself_exits_with_two():
    running = process("train", "--data", "nowhere")
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out, err.count("\n")) == (2, "", 1)


def test_a_bug_shows_its_traceback(model, monkeypatch):
    monkeypatch.setattr(lm.RNNLM, "score", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["score", "model", "a"])


# ---- a real corpus of words


@needs_brown
def test_brown_by_words(rnnfast):
    # A part of it: the whole is minutes of work.
    for split, size in (("train", 400_000), ("valid", 40_000), ("test", 20_000)):
        text = (DATA / "brown" / f"{split}.txt").read_text()[:size]
        Path(split).write_text(text)
    files = ("--train", "train", "--valid", "valid", "--test", "test", "--level", "word")
    argv = ("train", *files, "--nhid", 64, "--emsize", 64, "--min-count", 5, "--threads", 1)
    assert rnnfast(*argv, "--epochs", 2, "--out", "m", "--json", "r")[0] == 0
    report = json.loads(Path("r").read_text())
    assert report["valid_perplexity"] < report["baselines"]["unigram"]["valid_perplexity"]
    _, out, _ = rnnfast("eval", "m", "--data", "test", "--threads", 1, "--json", "-")
    assert json.loads(out)["perplexity"] == report["test_perplexity"]


def test_interrupted_before_training_is_quiet(rnnfast, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rnnfast.lm.training.report.NgramLM.fit", stop)
    began = time.monotonic()
    status, _, err = rnnfast("train", "--data", "text", *TINY, "--epochs", 1, "--out", "m")
    assert status == 130 and err.endswith("rnnfast: interrupted\n")
    assert time.monotonic() - began < 30
    lm.load("m")
