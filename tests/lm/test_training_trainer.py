"""Training: it learns, it keeps the best model, and it logs what it does."""

import math
import os
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from lm_helpers import (
    CORPUS,
    PERIODIC,
    SMALL,
    STEPS,
    WORDS,
    records,
    same_weights,
    small_config,
    zipf,
)
from torch._dynamo.testing import CompileCounter

from rnnfast import lm
from rnnfast.lm import storage
from rnnfast.lm.training.optimiser import has_stalled
from rnnfast.lm.training.runs import prepare, resume

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


@pytest.mark.parametrize("changes", [{}, {"tied": False, "cell": "lstm", "bf16": True}], ids=str)
def test_sampled_softmax_learns(tmp_path, changes):
    corpus = lm.corpus.split(zipf(6000))
    config = small_config("word", sampled_softmax=4, bptt=5, epochs=3, lr=0.02, **changes)
    _, report = lm.train(config, corpus, tmp_path / "model")
    assert report["valid_loss"] < report["baselines"]["unigram"]["valid_loss"] - 0.1
    assert resume(tmp_path / "model", {"epochs": 4}, corpus).config.sampled_softmax == 4


def test_best_model_is_kept_not_the_last(tmp_path, monkeypatch):
    trainer = prepare(small_config(epochs=3), CORPUS, storage.RunFolder(tmp_path / "model"))
    losses = iter([2.0, 1.0, 1.5])
    snapshots = []

    def evaluation(model, ids, on_chunk=None):
        snapshots.append(storage.weights(model))
        return lm.Evaluation(len(ids), next(losses))

    monkeypatch.setattr("rnnfast.lm.training.trainer.evaluate", evaluation)
    trainer.run()
    assert lm.report(trainer)["valid_loss"] == 1.0
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
    assert lm.report(again)["epochs"] == 2


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


def test_word_level_trains_and_saves(tmp_path):
    corpus = lm.Corpus(WORDS, WORDS[:200] + "zebra\n", WORDS[:100])
    model, report = lm.train(small_config("word"), corpus, tmp_path / "model")
    assert report["test_loss"] is not None and model.vocab.tokens[1] == "<unk>"
    assert same_weights(model, lm.load(tmp_path / "model"))


@pytest.mark.parametrize(
    "arguments, says",
    [
        ((CORPUS, lm.Config.defaults(epochs=1)), "config must be a Config, .* not Corpus"),
        (({"epochs": 1}, CORPUS), "config must be a Config, .* not dict"),
        ((lm.Config.defaults(epochs=1), PERIODIC), "corpus must be a Corpus, .* not str"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, says):
    with pytest.raises(lm.UserError, match=says):
        lm.train(*arguments, tmp_path / "m")
    assert not (tmp_path / "m").exists()
