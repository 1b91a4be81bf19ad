"""Training: it learns, it can be stopped and resumed bit for bit, and it never loses a model."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from lm_helpers import PERIODIC, SMALL, WORDS, same_weights, small_config, small_model, zipf
from torch._dynamo.testing import CompileCounter

from rnnfast import lm
from rnnfast._common.files import check_writable, write_atomic
from rnnfast.lm import storage
from rnnfast.lm.training.optimiser import has_stalled
from rnnfast.lm.training.report import report as report_of
from rnnfast.lm.training.runs import prepare, resume

CORPUS = lm.corpus.split(PERIODIC)


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def records(folder):
    """The log without what the clock has a part in."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


# ---- learning


KINDS = [{}, {"cell": "lstm"}, {"model": "window"}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("level", ["char", "word"])
def test_learns_what_a_bigram_cannot(level, kind):
    text = PERIODIC if level == "char" else "a b a c a d\n" * 300
    sizes = {"nhid": 32, "emsize": 32}
    config = small_config(level, epochs=12, dropout=0.0, lr=0.02, **sizes, **kind)
    model, report = lm.train(config, lm.corpus.split(text))
    assert report["baselines"]["bigram"]["valid_loss"] > 0.4
    assert report["valid_loss"] < 0.1
    period = "a1b1a2b2\n" if level == "char" else "a b a c a d\n"
    assert model.generate(length=27, temperature=0).startswith(period)
    curve = [record["valid_loss"] for record in report["curve"]]
    assert len(curve) == 12 and min(curve) == report["valid_loss"]
    assert report["model_dir"] is None and report["test_loss"] is None


def test_report_is_what_evaluate_says(tmp_path):
    corpus = replace(CORPUS, test=PERIODIC[:100])
    model, report = lm.train(small_config(), corpus, tmp_path / "model")
    again = lm.load(tmp_path / "model")
    for split in ("valid", "test"):
        assert again.evaluate(getattr(corpus, split)).loss == report[f"{split}_loss"]
    assert same_weights(model, again)
    steps = math.ceil(len(CORPUS.train) // 4 / 10)
    assert report["steps"] == 2 * steps and report["epochs"] == 2
    assert report["tokens"] == 2 * (len(CORPUS.train) // 4) * 4
    assert report["parameters"] == sum(p.numel() for p in model.parameters())


def test_adaptive_softmax_learns(tmp_path):
    config = small_config("word", adaptive=True, epochs=3, accumulate=2, lr=0.02, bf16=True)
    _, report = lm.train(config, lm.corpus.split(zipf(6000)), tmp_path / "model")
    unigram = report["baselines"]["unigram"]["valid_loss"]
    assert report["valid_loss"] < unigram - 0.1
    assert resume(tmp_path / "model", {"epochs": 4}, lm.corpus.split(zipf(6000))).state.step


def test_best_model_is_kept_not_the_last(tmp_path, monkeypatch):
    trainer = prepare(small_config(epochs=3), CORPUS, storage.RunFolder(tmp_path / "model"))
    losses = iter([2.0, 1.0, 1.5])
    snapshots = []

    def evaluation(model, ids, on_chunk=None):
        snapshots.append(storage.weights(model))
        return lm.Evaluation(len(ids), next(losses))

    monkeypatch.setattr("rnnfast.lm.training.trainer.evaluate", evaluation)
    trainer.run()
    assert report_of(trainer)["valid_loss"] == 1.0
    loaded = dict(lm.load(tmp_path / "model").named_parameters())
    assert all(torch.equal(loaded[name], snapshots[1][name]) for name in loaded)
    assert same_weights(trainer.model, lm.load(tmp_path / "model"))


def test_learning_rate_schedules(monkeypatch):
    trainer = prepare(small_config(epochs=10, lr=1.0), CORPUS)
    total = 10 * len(trainer.batches)
    rates = []
    for step in range(total + 1):
        trainer.state.step = step
        rates.append(trainer.lr)
    top = rates.index(max(rates))
    assert 0 < rates[0] < 0.1 and top <= 0.06 * total and max(rates) > 0.98
    assert all(a > b for a, b in zip(rates[top:-1], rates[top + 1 :], strict=True))
    assert rates[-1] == pytest.approx(0.01)

    losses = iter([2.0, 2.1, 1.9, 1.95])
    monkeypatch.setattr(
        "rnnfast.lm.training.trainer.evaluate",
        lambda m, ids, f=None: lm.Evaluation(1, next(losses)),
    )
    trainer = prepare(small_config(epochs=4, lr=1.0, lr_schedule="plateau"), CORPUS)
    trainer.run()
    assert [record["lr"] for record in trainer.state.curve] == [1.0, 0.5, 0.5, 0.25]
    trainer = prepare(small_config(epochs=10, lr=1.0, lr_schedule="constant"), CORPUS)
    for step, rate in ((0, 0.025), (19, 19 / 40.5), (41, 1.0), (400, 1.0), (800, 1.0)):
        trainer.state.step = step
        assert trainer.lr == pytest.approx(rate, abs=0.02)


def test_gradient_is_clipped_and_weights_decay_where_they_should():
    trainer = prepare(small_config(clip=1e-3), CORPUS)
    assert trainer.train_step().grad_norm > 1e-3  # as it was before clipping
    norm = torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters()])
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    decay = {
        id(p): group["weight_decay"]
        for group in trainer.optimizer.param_groups
        for p in group["params"]
    }
    for name, parameter in trainer.model.named_parameters():
        assert bool(decay[id(parameter)]) == (name in ("decoder.weight",) or "rnn.weight" in name)


def test_sgd_and_its_defaults():
    trainer = prepare(
        lm.Config.defaults("char", **{**SMALL, "optimizer": "sgd", "lr": 2.0, "epochs": 1}), CORPUS
    )
    before = storage.weights(trainer.model)
    rate = trainer.train_step().lr
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - rate * p.grad, rtol=1e-4, atol=1e-6)
    config = lm.Config.defaults("word", epochs=1, optimizer="sgd")
    assert (config.lr, config.weight_decay) == (10.0, 1.2e-6)
    assert lm.Config.defaults("word", epochs=1, optimizer="sgd", lr=3.0).lr == 3.0


@pytest.mark.parametrize("eps", [1e-8, 1e-3, 1.0])
def test_eps_is_adams(eps):
    """The first step of Adam (Kingma & Ba 2015, algorithm 1): lr g / (|g| + eps)."""
    trainer = prepare(small_config(epochs=1, eps=eps, weight_decay=0.0), CORPUS)
    before = storage.weights(trainer.model)
    rate = trainer.train_step().lr
    for name, p in trainer.model.named_parameters():
        step = rate * p.grad / (p.grad.abs() + eps)
        torch.testing.assert_close(p.detach(), before[name] - step, rtol=1e-4, atol=1e-6)


def test_averaging_starts_when_the_loss_is_above_an_earlier_one():
    """Algorithm 1 of Merity et al. (2018), in its words: t > n and v > min of L[0 .. t-n-1]."""
    random = np.random.default_rng(0)
    for n in (0, 1, 3):
        triggered = 0
        for losses in random.random((200, 5)).round(1).tolist():
            *logs, v = losses
            t = len(logs)
            expected = t > n and v > min(logs[i] for i in range(t - n))
            assert has_stalled(losses, n) == expected
            triggered += expected
        assert triggered > 20
        assert not has_stalled([1.0], n)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_averaged_weights_are_validated_and_saved(tmp_path, monkeypatch, optimizer):
    config = small_config(epochs=5, optimizer=optimizer, average=0, lr=0.02)
    trainer = prepare(config, CORPUS, storage.RunFolder(tmp_path / "model"))
    losses, passed, validated = iter([3.0, 4.0, 2.5, 2.0, 2.1]), [], []

    def evaluation(model, ids, on_chunk=None):
        validated.append((len(passed), storage.weights(model)))
        return lm.Evaluation(len(ids), next(losses))

    def mean(start, end):
        return {n: torch.stack([w[n] for w in passed[start:end]]).mean(0) for n in passed[0]}

    monkeypatch.setattr("rnnfast.lm.training.trainer.evaluate", evaluation)
    trainer.run(lambda step: passed.append(storage.weights(trainer.model)))
    assert [at for at, _ in validated] == [STEPS * n for n in range(1, 6)]
    for n, (at, shown) in enumerate(validated):
        # The second validation was worse than the first: averages are of updates after it.
        expected = passed[at - 1] if n < 2 else mean(2 * STEPS, at)
        for name in expected:
            torch.testing.assert_close(shown[name], expected[name], rtol=1e-5, atol=1e-6)
    assert trainer.state.averaged == 3 * STEPS
    saved = dict(lm.load(tmp_path / "model").named_parameters())
    assert all(torch.equal(saved[name], validated[3][1][name]) for name in saved)
    assert same_weights(trainer.model, lm.load(tmp_path / "model"))


@pytest.mark.parametrize("kind", [*KINDS, {"cell": "gru", "nlayers": 2}], ids=str)
def test_accumulated_parts_are_the_whole_batch(kind):
    results = []
    for parts in (1, 3, 4):
        trainer = prepare(small_config(accumulate=parts, dropout=0.0, **kind), CORPUS)
        trainer.model.double()
        losses = [trainer.train_step().loss for _ in range(7)]
        results.append((losses, storage.weights(trainer.model), trainer.hidden))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("level", ["char", "word"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_bf16_is_autocast(kind, level):
    losses = []
    for bf16 in (False, True):
        text = PERIODIC if level == "char" else WORDS * 5
        config = small_config(level, bf16=bf16, dropout=0.0, nhid=16, emsize=16, **kind)
        trainer = prepare(config, lm.corpus.split(text))
        losses.append([trainer.train_step().loss for _ in range(20)])
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert losses[0] != losses[1]
    torch.testing.assert_close(losses[0], losses[1], rtol=0.03, atol=0)


@pytest.mark.parametrize("kind", [{}, {"cell": "lstm"}], ids=str)
def test_compiled_step_is_the_same(monkeypatch, kind):
    compile = torch.compile
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", lambda f: compile(f, backend=counter))
    plain, compiled = (
        prepare(small_config(compile=on, dropout=0.0, **kind), CORPUS) for on in (False, True)
    )
    for _ in range(3):
        assert compiled.train_step().loss == pytest.approx(plain.train_step().loss, rel=1e-4)
    assert counter.frame_count > 0
    torch.compiler.reset()


def test_steps_without_a_run_have_a_clock(tmp_path):
    trainer = prepare(small_config(), CORPUS, storage.RunFolder(tmp_path / "model"))
    first, second = trainer.train_step(), trainer.train_step()
    assert 0 < first.seconds < second.seconds < 600
    assert trainer.validate()["seconds"] > second.seconds
    trainer.folder.close()
    again = resume(tmp_path / "model", {}, CORPUS)
    assert again.validate()["seconds"] > trainer.state.seconds
    again.run()
    assert report_of(again)["epochs"] == 2


def test_time_budget_is_kept():
    config = small_config(epochs=None, max_seconds=1.5)
    _, report = lm.train(config, CORPUS)
    assert 1.0 < report["seconds"] < 3.0  # a busy machine may be late, by a step or a validation
    assert len(report["curve"]) >= 2 and report["curve"][-1]["step"] == report["steps"]


def test_a_run_needs_an_end():
    with pytest.raises(lm.UserError):
        prepare(small_config(epochs=None), CORPUS)


def test_same_seed_same_model():
    runs = [lm.train(small_config(seed=seed, epochs=1), CORPUS)[0] for seed in (1, 1, 2)]
    assert same_weights(runs[0], runs[1]) and not same_weights(runs[0], runs[2])


def test_loss_that_is_not_finite_keeps_the_last_good_weights(tmp_path):
    trainer = prepare(small_config(epochs=3), CORPUS, storage.RunFolder(tmp_path / "model"))

    def poison(step):
        if step.step == len(trainer.batches) + 3:
            with torch.no_grad():
                trainer.model.decoder.bias.fill_(math.nan)

    with pytest.raises(lm.UserError, match="not finite at step"):
        trainer.run(on_step=poison)
    assert lm.load(tmp_path / "model").evaluate(CORPUS.valid).loss == trainer.state.best_loss


@pytest.mark.parametrize("clip, advice", [(0.5, "or --clip"), (0.0, "or set --clip")])
def test_weights_of_a_loss_that_is_not_finite_are_not_saved(tmp_path, clip, advice):
    trainer = prepare(small_config(clip=clip), CORPUS, storage.RunFolder(tmp_path / "model"))

    def poison(step):
        with torch.no_grad():
            trainer.model.decoder.bias.fill_(math.nan)

    with pytest.raises(lm.UserError, match=rf"at step 1: lower --lr {advice}; there was no good"):
        trainer.run(on_step=poison)
    assert not (tmp_path / "model").exists()


def test_weights_of_a_gradient_that_is_not_finite_are_saved(tmp_path):
    """The loss that they gave was finite."""
    trainer = prepare(small_config(), CORPUS, storage.RunFolder(tmp_path / "model"))
    with torch.no_grad():
        trainer.model.decoder.bias.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(lm.UserError, match=r"gradient is not finite .* the last good weights are"):
        trainer.run()
    assert math.isfinite(lm.load(tmp_path / "model").evaluate(CORPUS.valid).loss)


def test_divergence_leaves_the_model_that_was_to_be_replaced(tmp_path):
    model, _ = lm.train(small_config(), CORPUS, tmp_path / "model")
    with pytest.raises(lm.UserError, match=r"as it was"):
        config = small_config(cell="relu", lr=1e30, clip=0.0)
        lm.train(config, CORPUS, tmp_path / "model", overwrite=True)
    assert same_weights(model, lm.load(tmp_path / "model"))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


# ---- watching


@pytest.mark.parametrize("kind", [{"nlayers": 2}, {"average": 0}, {"cell": "lstm"}], ids=str)
def test_log_has_gradient_norms_and_spectral_radii(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("rnnfast.lm.training.trainer.has_stalled", lambda losses, patience: True)
    folder = storage.RunFolder(tmp_path / "m")
    trainer = prepare(small_config(log_interval=20, **kind), CORPUS, folder)
    norms, radii = {}, []

    def evaluation(model, ids, on_chunk=None):
        p = dict(model.named_parameters())
        matrices = [p[name].detach().double().numpy() for name in p if "weight_hh" in name]
        radii.append([max(abs(np.linalg.eigvals(m))) for m in matrices if m.shape == (16, 16)])
        return lm.Evaluation(len(ids), 1.0)

    monkeypatch.setattr("rnnfast.lm.training.trainer.evaluate", evaluation)
    trainer.run(lambda step: norms.update({step.step: step.grad_norm}))
    found = [line["spectral_radius"] for line in records(tmp_path / "m") if "valid_loss" in line]
    assert [len(layers) for layers in found] == 2 * [
        0 if "cell" in kind else kind.get("nlayers", 1)
    ]
    for each, expected in zip(found, radii, strict=True):
        assert each == pytest.approx(expected, rel=1e-4)
    steps = [line for line in records(tmp_path / "m") if "valid_loss" not in line]
    assert [line["grad_norm"] for line in steps] == [norms[line["step"]] for line in steps]
    assert len(steps) == 8


def test_tensorboard_shows_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lm.train(small_config(epochs=1), CORPUS, tmp_path / "model")
    # In the place of an old model, so that the folder is renamed while it is written.
    config = small_config(epochs=2, tensorboard=True, nlayers=2)
    trainer = prepare(config, CORPUS, storage.RunFolder(tmp_path / "model", True))

    def stop(step):
        if step.step == 100:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(lm.Interrupted):
        trainer.run(stop)
    resume(tmp_path / "model", {}, CORPUS).run()
    events = EventAccumulator(str(tmp_path / "model" / "tensorboard"))
    events.Reload()
    log = records(tmp_path / "model")
    assert len(log) == 5
    for name in ("train_loss", "valid_loss", "grad_norm", "lr", "epoch"):
        shown = [(e.step, e.value) for e in events.Scalars(name)]
        assert shown == [(r["step"], pytest.approx(r[name], rel=1e-6)) for r in log if name in r]
    for layer in (0, 1):
        shown = [e.value for e in events.Scalars(f"spectral_radius/{layer}")]
        assert shown == [
            pytest.approx(r["spectral_radius"][layer]) for r in log if "valid_loss" in r
        ]


def test_tensorboard_that_is_missing_is_an_error_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(lm.UserError, match="pip install 'rnnfast"):
        lm.train(small_config(tensorboard=True), CORPUS, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    lm.train(small_config(epochs=1), CORPUS, tmp_path / "model")
    with pytest.raises(lm.UserError, match="pip install 'rnnfast"):
        resume(tmp_path / "model", {"tensorboard": True, "epochs": 2}, CORPUS)


# ---- stopping and resuming

STEPS = math.ceil(len(CORPUS.train) // 4 / 10)  # an epoch


@pytest.mark.parametrize(
    "changes",
    [
        {"nlayers": 2, "lr_schedule": "cosine"},
        {"nlayers": 2, "lr_schedule": "plateau"},
        {"cell": "lstm", "nlayers": 2, "locked_dropout": True, "weight_dropout": 0.3},
        {"cell": "gru", "embedding_dropout": 0.2},
        {"optimizer": "sgd", "average": 1, "lr_schedule": "constant"},
        {"average": 0, "bf16": True, "accumulate": 3},
        {"model": "window", "direct": True},
        {"model": "window", "order": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("stops", [[1], [STEPS // 2, STEPS], [STEPS + 7, STEPS + 8]])
def test_resumed_run_is_bit_for_bit_the_uninterrupted_one(tmp_path, stops, changes, monkeypatch):
    # Averages begin at the first validation, so that there are some.
    monkeypatch.setattr("rnnfast.lm.training.trainer.has_stalled", lambda losses, patience: True)
    config = small_config(epochs=3, log_interval=9, lr=0.02, **{"dropout": 0.3, **changes})
    whole = prepare(config, CORPUS, storage.RunFolder(tmp_path / "whole"))
    whole.run()

    def stop(step):
        if step.step in stops:
            os.kill(os.getpid(), signal.SIGINT)

    trainer = prepare(config, CORPUS, storage.RunFolder(tmp_path / "parts"))
    for at in stops:
        with pytest.raises(lm.Interrupted):
            trainer.run(on_step=stop)
        assert trainer.state.step == at
        lm.load(tmp_path / "parts")
        torch.manual_seed(0)  # what else the process does must not matter
        trainer = resume(tmp_path / "parts", {}, CORPUS)
    trainer.run(on_step=stop)

    assert same_weights(whole.model, trainer.model)
    (expected, state), (tensors, other) = whole.checkpoint(), trainer.checkpoint()
    assert expected.keys() == tensors.keys()
    assert ("average.decoder.bias" in expected) == ("average" in changes)
    assert all(torch.equal(expected[name], tensors[name]) for name in expected)
    assert (state["best_loss"], state["best_step"]) == (other["best_loss"], other["best_step"])
    assert records(tmp_path / "whole") == records(tmp_path / "parts")


def test_stopping_during_validation_loses_nothing(tmp_path, monkeypatch):
    config = small_config(epochs=2)
    whole = prepare(config, CORPUS)
    whole.run()
    trainer = prepare(config, CORPUS, storage.RunFolder(tmp_path / "model"))

    def signal_comes(model, ids, on_chunk):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        on_chunk(1)

    with monkeypatch.context() as patch:
        patch.setattr("rnnfast.lm.training.trainer.evaluate", signal_comes)
        with pytest.raises(lm.Interrupted) as stopped:
            trainer.run()
    assert stopped.value.signum == signal.SIGTERM
    trainer = resume(tmp_path / "model", {}, CORPUS)
    trainer.run()
    assert same_weights(whole.model, trainer.model)


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGINT)
    prepare(small_config(epochs=1), CORPUS).run()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_goes_on_with_a_larger_budget(tmp_path):
    lm.train(small_config(epochs=1), CORPUS, tmp_path / "model")
    with pytest.raises(lm.UserError, match="raise --epochs"):
        resume(tmp_path / "model", {}, CORPUS)
    trainer = resume(tmp_path / "model", {"epochs": 2}, CORPUS)
    trainer.run()
    assert report_of(trainer)["epochs"] == 2
    assert storage.read_settings(tmp_path / "model")[0].epochs == 2


def test_other_settings_and_other_text_are_refused(tmp_path):
    lm.train(small_config(epochs=1), CORPUS, tmp_path / "model")
    with pytest.raises(lm.UserError, match=r"--nhid 17 .* has 16"):
        resume(tmp_path / "model", {"epochs": 2, "nhid": 17}, CORPUS)
    with pytest.raises(lm.UserError, match="text is not the one"):
        resume(tmp_path / "model", {"epochs": 2}, lm.corpus.split(PERIODIC + "a"))
    with pytest.raises(lm.UserError, match="give its text"):
        resume(tmp_path / "model", {"epochs": 2})
    (tmp_path / "model" / "checkpoint.safetensors").unlink()
    with pytest.raises(lm.UserError, match="missing"):
        resume(tmp_path / "model", {"epochs": 2}, CORPUS)


# ---- storage


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(lm.UserError, match="No space left"):
                write_atomic(path, b"new")
        assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_link_stays_one(tmp_path):
    for name in ("there", "new"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        file, link = tmp_path / "folder" / name, tmp_path / f"to-{name}"
        link.symlink_to(f"folder/{name}")
        if name == "there":
            file.write_bytes(b"old")
        check_writable(link, "--json")
        write_atomic(link, b"new")
        assert link.is_symlink() and not file.is_symlink() and file.read_bytes() == b"new"
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["new", "there"]
    (tmp_path / "astray").symlink_to("nowhere/file")
    with pytest.raises(lm.UserError, match=r"cannot write .*astray: give --json a file"):
        check_writable(tmp_path / "astray", "--json")


def test_what_is_no_file_is_written_to(tmp_path):
    """A pipe with a name, a link to it, and what the shell calls /dev/fd/N, be it a file."""
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to("fifo")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    ends = os.pipe()
    for path, end in ((fifo, reader), (link, reader), (f"/dev/fd/{ends[1]}", ends[0])):
        check_writable(path, "--json")
        write_atomic(path, (part for part in (b"some ", b"text")))
        assert os.read(end, 99) == b"some text"
    assert fifo.is_fifo() and link.is_symlink()
    with open(tmp_path / "file", "wb", buffering=0) as file:
        file.write(b"before, ")
        write_atomic(f"/dev/fd/{file.fileno()}", b"some text")
        file.write(b", after")
    assert (tmp_path / "file").read_bytes() == b"before, some text, after"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "file", "link"]
    for end in (reader, *ends):
        os.close(end)
    with pytest.raises(lm.UserError, match=r"cannot write .*: give --json a file"):
        check_writable(tmp_path, "--json")


def test_killed_at_any_moment_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """By SIGKILL, three times, while it saves a checkpoint after every step."""
    (tmp_path / "text").write_text(PERIODIC)
    corpus = lm.corpus.read(data=tmp_path / "text")
    config = small_config(dropout=0.3, nlayers=2, log_interval=9, checkpoint_interval=1e-9)
    whole = prepare(config, corpus, storage.RunFolder(tmp_path / "whole"))
    whole.run()

    folder = tmp_path / "parts"
    prepare(config, corpus, storage.RunFolder(folder)).save()
    program = (
        "import sys; from rnnfast.lm.training import runs, trainer\n"
        "trainer.SAVING_PART = 1e9\n"
        "run = runs.resume(sys.argv[1], {}, None)\n"
        "run.run(lambda step: print(step.step, flush=True))\n"
    )
    before, random = 0, np.random.default_rng(0)
    for kill in (5, STEPS - 2, STEPS + 20):
        kill = max(kill, before + 2)  # it may have gone on before it was killed
        arguments = [sys.executable, "-c", program, str(folder)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            while int(process.stdout.readline()) < kill:
                pass
            time.sleep(0.02 * random.random())
            process.kill()
        assert process.returncode == -signal.SIGKILL
        lm.load(folder)
        _, state = storage.read_checkpoint(folder)
        assert state["step"] >= kill - 1 > before  # at most the step it was at is lost
        before = state["step"]
    trainer = resume(folder, {}, corpus)
    assert trainer.state.step == before and not [p for p in folder.iterdir() if p.name[0] == "."]
    trainer.run()
    assert same_weights(whole.model, trainer.model)
    assert records(tmp_path / "whole") == records(folder)


def test_nothing_is_left_of_a_run_killed_before_it_saved(tmp_path):
    folder, config = tmp_path / "model", small_config(epochs=1, log_interval=9)
    lm.train(config, CORPUS, tmp_path / "alone")

    class Killed(BaseException):
        pass

    def kill(step):
        if step.step == 20:
            raise Killed

    with pytest.raises(Killed):
        prepare(config, CORPUS, storage.RunFolder(folder)).run(kill)
    (folder / "tensorboard").mkdir()
    for name in (".model.safetensors.1.tmp", "checkpoint.safetensors", "tensorboard/events"):
        (folder / name).write_text("old")
    assert len(records(folder)) == 2
    again = storage.RunFolder(folder)
    assert not list(folder.iterdir())
    prepare(config, CORPUS, again).run()
    assert records(folder) == records(tmp_path / "alone")


def test_checkpoints_at_intervals_take_little_of_the_time(tmp_path, monkeypatch):
    config = small_config(epochs=1, checkpoint_interval=60)
    trainer = prepare(config, CORPUS, storage.RunFolder(tmp_path / "model"))
    clock, saved = [0.0], []
    monkeypatch.setattr("rnnfast.lm.training.trainer.time.monotonic", lambda: clock[0])
    write = trainer.folder.write_checkpoint

    def slow(tensors, state):
        saved.append(clock[0])
        clock[0] += 1.0 if len(saved) < 3 else 5.0
        write(tensors, state)

    def pass_time(step):
        clock[0] += 20.0

    monkeypatch.setattr(trainer.folder, "write_checkpoint", slow)
    trainer.run(pass_time)
    gaps = np.diff([0.0, *saved])[:-1]  # but for that of the validation at the end
    # Every 60 s, and when they take 5 s, too long for a fiftieth of the time, every 250.
    assert ((gaps[:3] >= 60) & (gaps[:3] <= 100)).all()
    assert len(gaps) > 5 and ((gaps[3:] >= 250) & (gaps[3:] <= 290)).all()


def test_an_old_model_stands_until_the_new_one_is_there(tmp_path):
    model, _ = lm.train(small_config(), CORPUS, tmp_path / "model")
    trainer = prepare(small_config(nhid=8), CORPUS, storage.RunFolder(tmp_path / "model", True))
    validations = []

    def still_there(step):
        if not validations:
            assert same_weights(model, lm.load(tmp_path / "model"))

    trainer.run(still_there, validations.append)
    assert lm.load(tmp_path / "model").rnn.hidden_size == 8
    assert {p.name for p in (tmp_path / "model").iterdir()} == storage.FILES
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("replaced", [False, True])
def test_one_run_at_a_time_writes_to_a_folder(tmp_path, replaced):
    """Whether another asks for it anew, to replace it or to go on with it; another process too."""
    path = tmp_path / "model"
    if replaced:
        lm.save(small_model(), small_config(), path)
    trainer = prepare(small_config(epochs=2), CORPUS, storage.RunFolder(path, replaced))
    refused = pytest.raises(lm.UserError, match=r"another run is writing to .*model")

    def meanwhile(_):
        before = {file: file.read_bytes() for file in path.iterdir()}
        for overwrite in (False, True):
            with refused:
                storage.RunFolder(path, overwrite)
        if storage.CHECKPOINT in os.listdir(path):
            with refused:
                resume(path, {}, CORPUS)
            argv = [sys.executable, "-m", "rnnfast", "train", "--resume", str(path)]
            other = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert other.returncode == 2 and "another run is writing" in other.stderr
        assert before == {file: file.read_bytes() for file in path.iterdir()}

    meanwhile(None)
    trainer.run(on_validation=meanwhile)
    with pytest.raises(lm.UserError, match="is finished"):  # nobody writes there any more
        resume(path, {}, CORPUS)
    resume(path, {"epochs": 3}, CORPUS).run()


def test_a_folder_is_free_when_nobody_writes(tmp_path):
    path = tmp_path / "model"
    first = storage.RunFolder(path)
    del first
    with pytest.raises(lm.UserError, match="empty") as kept:  # and with it the frames
        prepare(small_config(), lm.Corpus(PERIODIC, ""), storage.RunFolder(path))
    for overwrite in (False, True):
        lm.save(small_model(), small_config(), path, overwrite)
    (path / "notes").touch()
    with pytest.raises(lm.UserError, match="not a model's") as other:
        storage.RunFolder(path, True)
    (path / "notes").unlink()
    lm.save(small_model(), small_config(), path, overwrite=True)
    assert [kept.type, other.type] == 2 * [lm.UserError]


def test_a_folder_without_locks_is_written_to(tmp_path, monkeypatch):
    def unknown(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("rnnfast._common.storage.fcntl.flock", unknown)
    for overwrite in (False, True):
        lm.save(small_model(), small_config(), tmp_path / "model", overwrite)


def test_a_model_is_replaced_through_a_link_and_keeps_its_mode(tmp_path):
    (tmp_path / "link").symlink_to("model")
    lm.save(small_model(), small_config(), tmp_path / "link")  # makes what it points to
    (tmp_path / "model").chmod(0o751)
    for path in ("link", "model"):
        before, new = lm.load(tmp_path / "model"), small_model(seed=1)
        with pytest.raises(lm.UserError, match=f"{path} holds a model"):
            lm.save(new, small_config(), tmp_path / path)
        assert same_weights(before, lm.load(tmp_path / "model"))
        lm.save(new, small_config(), tmp_path / path, overwrite=True)
        assert same_weights(new, lm.load(tmp_path / path))
        assert (tmp_path / "link").is_symlink() and not (tmp_path / "model").is_symlink()
        assert (tmp_path / "model").stat().st_mode & 0o777 == 0o751
        assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "model"]


def test_an_old_model_is_put_back_if_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    old, rename = small_model(), os.rename
    lm.save(old, small_config(), tmp_path / "model")

    def failing(source, target):
        if str(source).endswith(".new"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    new = small_model(seed=1)
    with pytest.raises(lm.UserError, match=r"cannot write .*model: Input/output error; ") as error:
        lm.save(new, small_config(), tmp_path / "model", overwrite=True)
    assert same_weights(old, lm.load(tmp_path / "model"))
    assert same_weights(new, lm.load(str(error.value).rpartition(" is in ")[2]))


def test_word_level_trains_and_saves(tmp_path):
    corpus = lm.Corpus(WORDS, WORDS[:200] + "zebra\n", WORDS[:100])
    model, report = lm.train(small_config("word"), corpus, tmp_path / "model")
    assert report["test_loss"] is not None and model.vocab.tokens[1] == "<unk>"
    assert same_weights(model, lm.load(tmp_path / "model"))
