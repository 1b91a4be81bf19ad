"""Bad input and damaged models: one line on standard error, and nothing is touched."""

import json
from pathlib import Path

import pytest
from cli_helpers import TINY
from lm_helpers import PERIODIC

from rnnfast import cli

pytestmark = pytest.mark.usefixtures("folder_with_text")


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
    "tied sizes": (
        [*TRAIN, "--data", "text", "--tied"],
        "--tied needs --emsize equal to --nhid, not --emsize 8",
    ),
    "window order": ([*WINDOW, "--order", "1"], "--order must be at least 2, not 1"),
    "window cell": ([*WINDOW, "--cell", "gru"], "tanh or relu for the model window, not gru"),
    "window layers": ([*WINDOW, "--nlayers", "2"], "--nlayers must be 1"),
    "window weights": (
        [*WINDOW, "--weight-dropout", "0.1"],
        "--weight-dropout needs the model rnn",
    ),
    "window tied": ([*WINDOW, "--tied", "--direct"], "not tied"),
    "rnn direct": ([*TRAIN, "--data", "text", "--direct"], "--direct needs the model window"),
    "nhid 0": ([*TRAIN, "--data", "text", "--nhid", "0"], "at least 1"),
    "dropout 1": ([*TRAIN, "--data", "text", "--dropout", "1"], "dropout"),
    "embedding dropout": ([*TRAIN, "--data", "text", "--embedding-dropout", "-1"], "in [0, 1)"),
    "accumulate": ([*TRAIN, "--data", "text", "--accumulate", "5"], "at most the 4 sequences"),
    "adaptive": ([*TRAIN, "--data", "text", "--adaptive"], "--adaptive needs words"),
    "sampled": ([*TRAIN, "--data", "text", "--sampled-softmax", "9"], "--sampled-softmax needs"),
    "average": ([*TRAIN, "--data", "text", "--average", "-1"], "--average must be zero or more"),
    "checkpoints": ([*TRAIN, "--data", "text", "--checkpoint-interval", "0"], "a positive number"),
    "lr nan": ([*TRAIN, "--data", "text", "--lr", "nan"], "--lr must be"),
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
        "continues with the vocabulary of the run: leave out --vocab",
    ),
    "resume, settings": (
        ["train", "--resume", "model", "--epochs", "3", "--bptt", "11"],
        "--bptt 11 was asked for but the checkpoint in model has 10",
    ),
    "resume, preset": (
        ["train", "--resume", "model", "--epochs", "3", "--preset", "small"],
        "the checkpoint in model was made without it: leave it out",
    ),
    "resume, text": (
        ["train", "--resume", "model", "--epochs", "3", "--data", "longer"],
        "not the one",
    ),
    "eval nowhere": (["eval", "nowhere", "--data", "text"], "there is no model nowhere"),
    "eval missing": (["eval", "model", "--data", "nowhere"], "cannot read nowhere"),
    "eval stranger": (["eval", "model", "--data", "stranger"], "'z'"),
    "mixture": (["eval", "model", "model", "--data", "text"], "a mixture needs --tune TEXT"),
    "cache": (["eval", "model", "--cache", "--data", "text"], "a mixture needs --tune TEXT"),
    "no mixture": (
        ["eval", "model", "--data", "text", "--tune", "text"],
        "--tune TEXT is for a mixture: give more models",
    ),
    "dynamic": (["eval", "model", "--data", "text", "--dynamic", "-1"], "lr of dynamic"),
    "tune missing": ([*MIXTURE, "--tune", "nowhere"], "cannot read nowhere"),
    "tune stranger": ([*MIXTURE, "--tune", "stranger"], "'z'"),
    "prompt stranger": (["generate", "model", "--prompt", "z"], "'z'"),
    "complete top-k": (["complete", "model", "--top-k", "0"], "--top-k must be"),
    "score stranger": (["score", "model", "a", "z"], "'z'"),
    "ngram missing": (["ngram", "--train", "nowhere"], "cannot read nowhere"),
    "ngram order": (["ngram", "--train", "text", "--order", "0"], "--order must be at least 1"),
    "ngram k": (["ngram", "--train", "text", "--smoothing", "add-k", "--k", "-1"], "--k must be"),
    "ngram min-count": (["ngram", "--train", "text", "--min-count", "0"], "--min-count must be"),
    "ngram max-vocab": (["ngram", "--train", "text", "--max-vocab", "1"], "--max-vocab must be"),
    "ngram arpa": (["ngram", "--train", "text", "--arpa", "no/where"], "cannot write no/where"),
    "ngram marks": (["ngram", "--train", "marks", "--arpa", "m"], "the word </s>"),
    "text as model": (["eval", "text", "--data", "text"], "not an ARPA file"),
    "temperature": (["generate", "model", "--temperature", "-1"], "temperature"),
    "top-k": (["generate", "model", "--top-k", "0"], "--top-k must be"),
    "top-p": (["generate", "model", "--top-p", "0"], "--top-p must be"),
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


@pytest.mark.parametrize("command", ["train", "compare", "score"])
def test_a_stray_argument_gets_the_usage_of_its_command(capsys, command):
    needed = {"compare": ["--train", "a", "--valid", "a", "--test", "a"], "score": ["model"]}
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, *needed.get(command, []), "--stray", "x"])
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.startswith(f"usage: rnnfast {command} ")
    assert f"rnnfast {command}: error: unrecognized arguments: --stray" in err


def test_an_option_without_effect_at_the_level_is_warned_of(rnnfast):
    argv = [*TRAIN, "--data", "text", "--min-count", "2", "--out"]
    status, _, err = rnnfast(*argv, "c")
    assert status == 0
    assert "warning: --min-count has no effect at level char, only at word\n" in err
    status, _, err = rnnfast(*argv, "w", "--level", "word", "--no-tied")
    assert status == 0 and "warning" not in err
