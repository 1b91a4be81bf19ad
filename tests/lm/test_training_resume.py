"""A run can be stopped, or killed, and resumed bit for bit."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from lm_helpers import CORPUS, PERIODIC, STEPS, records, same_weights, small_config

from rnnfast import lm
from rnnfast.lm import storage
from rnnfast.lm.training.report import report as report_of
from rnnfast.lm.training.runs import prepare, resume


@pytest.mark.parametrize(
    "changes",
    [
        {"nlayers": 2, "lr_schedule": "cosine"},
        {"nlayers": 2, "lr_schedule": "plateau"},
        {"nlayers": 2, "lr_schedule": "plateau", "lr": 3.0},
        {"average": 0, "lr_schedule": "plateau", "lr": 0.3},
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
    config = small_config(epochs=3, log_interval=9, **{"lr": 0.02, "dropout": 0.3, **changes})
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
    log = records(tmp_path / "whole")
    assert log == records(tmp_path / "parts")
    assert "lr" not in changes or any("restored_step" in record for record in log)


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
