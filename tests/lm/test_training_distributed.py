"""Training in several processes: the numbers of one, and all stop together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_helpers import PERIODIC, ROOT, SMALL, same_weights, small_config, zipf

from rnnfast import cli, lm
from rnnfast.lm import storage
from rnnfast.lm.training.report import report as report_of

WORKER = Path(__file__)
TEXT = PERIODIC[:1800]
STEPS = 41  # an epoch


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(**more):
    path = f"{ROOT}:{Path(__file__).parent}"
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    names = ("step", "lr", "train_loss", "valid_loss", "grad_norm")
    return [{name: line[name] for name in names if name in line} for line in lines]


def test_two_processes_train_the_model_of_one(tmp_path, num_threads):
    """By the command, as torchrun starts it: the same batch and start, half the sequences each."""
    (tmp_path / "text").write_text(TEXT)
    outs = [tmp_path / "one", tmp_path / "two"]
    argv = ["train", "--data", tmp_path / "text", "--epochs", 2, "--dropout", 0, "--cell", "lstm"]
    argv += ["--accumulate", 2, "--log-interval", 9, "--threads", 1]
    for name in ("emsize", "nhid", "batch_size", "bptt", "lr"):
        argv += [f"--{name.replace('_', '-')}", SMALL[name]]
    argv = [str(argument) for argument in argv]
    one, two = ([*argv, "--out", f"{out}", "--json", f"{out}.json"] for out in outs)
    num_threads(1)
    assert cli.main(one) == 0
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    torchrun += ["--local-addr", "127.0.0.1"]  # a machine's own name may not be known to itself
    command = [sys.executable, *torchrun, "-m", "rnnfast", *two]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("A sample") == 1
    one, two = (json.loads(Path(f"{out}.json").read_text()) for out in outs)
    assert one["tokens"] == two["tokens"] and one["steps"] == two["steps"]
    expected, found = map(losses, outs)
    assert len(expected) == len(found) == 11
    for line, other in zip(expected, found, strict=True):
        assert other == {name: pytest.approx(value, rel=2e-4) for name, value in line.items()}
    models = [dict(lm.load(out).named_parameters()) for out in outs]
    for name, p in models[0].items():
        torch.testing.assert_close(models[1][name], p, rtol=1e-3, atol=1e-4)


CHANGES = {"epochs": 3, "dropout": 0.3, "average": 0, "log_interval": 9}


def test_all_processes_stop_for_one_and_go_on_bit_for_bit(tmp_path):
    """A signal to process 1 alone, in training and while process 0 evaluates."""
    port = str(free_port())
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path)],
            env=environment(
                RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
            ),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=600)
        assert worker.returncode == 0, errors
    whole, parts = (storage.read_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert whole[0].keys() == parts[0].keys()
    assert {"rng.cpu", "rng1.cpu", "average.decoder.bias"} < whole[0].keys()
    assert not torch.equal(whole[0]["rng.cpu"], whole[0]["rng1.cpu"])
    assert whole[0]["hidden"].shape == (1, 4, 16)
    assert all(torch.equal(tensor, parts[0][name]) for name, tensor in whole[0].items())
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert same_weights(*(lm.load(tmp_path / name) for name in ("whole", "parts")))
    with pytest.raises(lm.UserError, match="raise --epochs"):
        lm.resume(tmp_path / "parts", {}, lm.corpus.split(TEXT))
    # One process goes on with what two have left.
    trainer = lm.resume(tmp_path / "parts", {"epochs": 4}, lm.corpus.split(TEXT))
    trainer.run()
    assert report_of(trainer)["steps"] == 4 * STEPS


def work(folder):
    """What each of the two processes does."""
    import signal

    from torch import distributed

    from rnnfast._common.runtime import rank
    from rnnfast.lm.training import trainer as module
    from rnnfast.lm.training.runs import prepare, resume

    distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    module.has_stalled = lambda losses, patience: True
    corpus, config = lm.corpus.split(TEXT), small_config(**CHANGES)

    def directory(name):
        return None if rank() else storage.RunFolder(folder / name)

    prepare(config, corpus, directory("whole")).run()

    def stop(step):
        if rank() == 1 and step.step in (20, 2 * STEPS - 1):
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = prepare(config, corpus, directory("parts"))
    for at in (20, 2 * STEPS - 1):
        with pytest.raises(lm.Interrupted) as stopped:
            trainer.run(stop)
        assert stopped.value.signum == signal.SIGTERM and trainer.state.step == at
        distributed.barrier()  # process 0 has written
        trainer = resume(folder / "parts", {}, corpus)
    evaluate, once = module.evaluate, []

    def interrupted(model, ids, on_chunk):
        result = evaluate(model, ids, on_chunk)
        if not once:
            once.append(os.kill(os.getpid(), signal.SIGINT))
        return result

    module.evaluate = interrupted
    with pytest.raises(lm.Interrupted):
        trainer.run()
    assert trainer.state.step == 2 * STEPS and trainer.state.validated_step == STEPS
    distributed.barrier()
    trainer = resume(folder / "parts", {}, corpus)
    trainer.run()
    # In chunks so short that clusters have no token, and then no gradient.
    words = lm.corpus.split(zipf(900))
    config = small_config("word", adaptive=True, bptt=1, accumulate=2, batch_size=4, epochs=1)
    trainer = prepare(config, words)
    trainer.run()
    own = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    first = own.clone()
    distributed.broadcast(first, 0)
    assert torch.equal(own, first)
    # Each has a clock of its own, but not a budget.
    trainer = prepare(small_config(epochs=None, max_seconds=1.0), corpus)
    trainer.run()
    steps = torch.tensor([trainer.state.step, -trainer.state.step])
    distributed.all_reduce(steps, distributed.ReduceOp.MAX)
    assert steps[0] == -steps[1] > 0
    for changes, says in (
        ({"batch_size": 3}, "multiple of the 2 processes"),
        ({"accumulate": 3}, "at most the 2 sequences"),
    ):
        with pytest.raises(lm.UserError, match=says):
            prepare(small_config(**changes), corpus)
    distributed.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
