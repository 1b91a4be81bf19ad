"""A run that does not learn says so, and the schedule plateau goes back to the best weights."""

import math
import re
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from lm_helpers import CORPUS, STEPS, records, same_weights, small_config, zipf

from rnnfast import lm
from rnnfast._common.errors import DataWarning
from rnnfast.lm import storage
from rnnfast.lm.training.diagnosis import diagnose
from rnnfast.lm.training.runs import prepare, resume

WORDS = lm.corpus.split(zipf(6000))


def trained(config, corpus, folder=None):
    """Return the model, the report and the warnings of a run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, report = lm.train(config, corpus, folder)
    return model, report, [str(w.message) for w in caught if w.category is DataWarning]


def play(monkeypatch, losses):
    """Let the validations have these losses. Return the list that gets the validated weights."""
    left, validated = iter(losses), []

    def evaluation(model, ids, on_chunk=None):
        validated.append(storage.weights(model))
        return lm.Evaluation(len(ids), next(left))

    monkeypatch.setattr("rnnfast.lm.training.trainer.evaluate", evaluation)
    return validated


# ---- going back


def test_a_diverging_run_warns_goes_back_and_ends_better_than_it_began(tmp_path):
    config = small_config("word", epochs=8, lr=0.3, lr_schedule="plateau")
    model, report, warned = trained(config, WORDS, tmp_path / "model")
    curve = report["curve"]
    uniform = math.log(report["vocab_size"])
    assert curve[0]["valid_loss"] > uniform + math.log(2) and curve[0]["restored_step"] == 0
    assert report["valid_loss"] < report["baselines"]["unigram"]["valid_loss"] < uniform
    assert report["valid_loss"] < curve[0]["valid_loss"] - 1
    (message,) = warned
    assert "the training diverged" in message and "halves the rate, which was 0.3" in message
    assert report["warning"] == message
    logged = [line["warning"] for line in records(tmp_path / "model") if "warning" in line]
    assert logged == [message] == [line["warning"] for line in curve if "warning" in line]
    assert same_weights(model, lm.load(tmp_path / "model"))
    # Without that schedule, a run warns and says what would help.
    _, report, warned = trained(small_config("word", epochs=2, lr=1.0), WORDS)
    assert len(warned) == 1 and "--lr-schedule plateau" in warned[0] == report["warning"]
    assert report["valid_loss"] > report["baselines"]["unigram"]["valid_loss"]


def test_plateau_goes_back_to_the_best_weights_with_half_the_rate(monkeypatch):
    trainer = prepare(small_config(epochs=4, lr_schedule="plateau"), CORPUS)
    validated = play(monkeypatch, [2.0, 1.0, 1.5, 0.9])
    begun = []

    def note(step):
        if step.step == 3 * STEPS + 1:
            begun.extend(s["step"].item() for s in trainer.optimizer.state.values())

    def compare(record):
        present = storage.weights(trainer.model)
        kept = validated[1] if record["step"] == 3 * STEPS else validated[-1]
        assert all(torch.equal(present[name], kept[name]) for name in kept)

    trainer.run(note, compare)
    back = [record.get("restored_step") for record in trainer.state.curve]
    assert back == [None, None, 2 * STEPS, None]
    assert [record["lr"] for record in trainer.state.curve] == [0.01, 0.01, 0.005, 0.005]
    assert set(begun) == {1.0}  # the optimizer began anew
    assert trainer.state.best_step == 4 * STEPS


def test_until_a_model_is_better_than_a_unigram_model_plateau_begins_again(monkeypatch, tmp_path):
    config = small_config(epochs=6, lr_schedule="plateau")
    trainer = prepare(config, CORPUS, storage.RunFolder(tmp_path / "model"))
    initial, restored = storage.weights(trainer.model), []
    validated = play(monkeypatch, [9.0, 8.0, 2.0, 2.1, 1.0, 1.2])
    with pytest.warns(DataWarning, match="diverged"):
        trainer.run(None, lambda record: restored.append(storage.weights(trainer.model)))
    for at in (0, 1, 3):
        assert all(torch.equal(restored[at][name], initial[name]) for name in initial)
    for at, of in ((2, 2), (4, 4), (5, 4)):
        assert all(torch.equal(restored[at][name], validated[of][name]) for name in initial)
    steps = [record.get("restored_step") for record in trainer.state.curve]
    assert steps == [0, 0, None, 0, None, 5 * STEPS]
    tensors, _ = storage.read_checkpoint(tmp_path / "model")
    assert not [name for name in tensors if name.startswith("initial.")]


def test_a_resumed_run_does_not_warn_again(tmp_path):
    config = small_config("word", epochs=1, lr=0.3, lr_schedule="plateau")
    _, report, warned = trained(config, WORDS, tmp_path / "model")
    assert len(warned) == 1
    trainer = resume(tmp_path / "model", {"epochs": 3}, WORDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        trainer.run()
    assert lm.report(trainer)["warning"] == report["warning"] == warned[0]


# ---- the diagnosis


def curve(losses, train=None, lr=0.004, step=100):
    """Return the records of validations, `step` updates apart."""
    train = train or losses
    return [
        {"step": step * n, "valid_loss": loss, "train_loss": own, "lr": lr}
        for n, (loss, own) in enumerate(zip(losses, train, strict=True), 1)
    ]


HIGH = "learning rate is probably too high"
V, UNIGRAM = 100, 4.0  # log V is 4.61, and log 2 V is 5.30


@pytest.mark.parametrize(
    ("changes", "validations", "says"),
    [
        # A model that learns, or that has not had the time to.
        ({}, curve([3.5]), None),
        ({}, curve([4.6]), None),
        ({}, curve([4.6, 3.9]), None),
        ({}, curve([5.29]), None),
        # Diverged: worse than a uniform guess over 2 V tokens.
        ({}, curve([5.31]), f"diverged: .* perplexity is 202, and .* has 100.*{HIGH}"),
        ({"lr_schedule": "plateau"}, curve([9.0]), f"{HIGH}: the run goes back"),
        ({"lr_schedule": "constant"}, curve([9.0]), "or with --lr-schedule plateau"),
        # Not better than the unigram model.
        (
            {"lr": 0.1},
            curve([4.2, 4.1]),
            f"4.1 nats, .* unigram model has 4. .*{HIGH}.* was 0.1",
        ),
        ({"lr": 1e-4}, curve([4.2, 4.1]), "too low: train again with a higher --lr, .* 0.0001"),
        ({"lr": 0.004}, curve([4.2, 4.1]), "default learning rate .* too much dropout"),
        # Rising.
        ({}, curve([3.0, 3.2, 3.1]), None),
        ({}, curve([3.0, 3.1]), None),
        ({}, curve([3.0, 3.01, 3.02]), None),
        ({}, curve([3.0, 3.1, 3.1]), None),
        ({}, curve([3.0, 3.1, 3.3]), f"rose from 3 to 3.3 nats in 2 validations.*{HIGH}"),
        ({}, curve([3.0, 3.1, 3.3], lr=0.002), None),
        ({}, curve([3.0, 3.1, 3.3], train=[2.5, 2.4, 2.0]), "by heart: use more --dropout"),
        ({}, curve([2.0, 3.0, 3.1, 3.3]), "rose from 3 to 3.3"),
        # The training loss fell by chance, but it is higher than at the best validation.
        ({}, curve([2.0, 3.0, 3.1, 3.3], train=[2.2, 2.9, 2.8, 2.7]), HIGH),
    ],
    ids=str,
)
def test_diagnosis(changes, validations, says):
    config = lm.Config.defaults("char", **{"epochs": 9, **changes})
    found = diagnose(config, V, validations, lambda: UNIGRAM)
    if says is None:
        assert found is None
    else:
        assert re.search(says, found)


def test_a_rate_that_is_too_low_is_named(tmp_path):
    """The unigram loss, counted here: the likelihood of the frequencies in the training text."""
    _, report, warned = trained(small_config("word", epochs=2, lr=1e-5), WORDS)
    tokens = [word for line in WORDS.train.splitlines() for word in [*line.split(), "<eos>"]]
    held_out = [word for line in WORDS.valid.splitlines() for word in [*line.split(), "<eos>"]]
    counts = Counter(tokens)
    unigram = np.mean([-math.log(counts[word] / len(tokens)) for word in held_out])
    assert report["baselines"]["unigram"]["valid_loss"] == pytest.approx(unigram, rel=0.01)
    (message,) = warned
    assert "too low: train again with a higher --lr, which was 1e-05" in message
    assert f"a unigram model has {report['baselines']['unigram']['valid_loss']:.4g}" in message


def test_a_run_that_learns_has_no_warning():
    _, report, warned = trained(small_config(epochs=4), CORPUS)
    assert warned == [] and report["warning"] is None
