"""The benchmarks of the language models run, and do not time programs whose results differ."""

import bench_busy
import bench_generate
import bench_reservoir
import bench_resets
import bench_stepper
import bench_training
import bench_widths
import pytest
import torch

from rnnfast import lm
from rnnfast.bench.comparison import CELLS


@pytest.mark.parametrize("case", [("word", 9, 5, 5, 2, 2, 3), ("char", 7, 5, 6, 1, 2, 3)], ids=str)
def test_training(case):
    result = bench_training.measure(*case, repeats=1)
    assert tuple(result["case"].values()) == case
    assert result["ratio"] == result["ms"]["nn.RNN"] / result["ms"]["rnnfast"] > 0


def test_training_refuses(monkeypatch):
    loss = bench_training.Torchs.loss
    monkeypatch.setattr(
        bench_training.Torchs, "loss", lambda *args: (2 * loss(*args)[0], loss(*args)[1])
    )
    with pytest.raises(RuntimeError, match=r"differ by .* nothing was timed"):
        bench_training.measure("char", 7, 5, 6, 1, 2, 3, repeats=1)


def test_generation():
    result = bench_generate.measure(6, 7, length=5, repeats=1)
    assert result["tokens_per_second"].keys() == {"rnnfast", "loop", "loop, 1 thread"}


def test_generation_refuses(monkeypatch):
    loop = bench_generate.loop
    monkeypatch.setattr(bench_generate, "loop", lambda *args: [(t + 1) % 7 for t in loop(*args)])
    with pytest.raises(RuntimeError, match="differ at H=6 V=7: nothing was timed"):
        bench_generate.measure(6, 7, length=5, repeats=1)


def test_resets():
    ms = bench_resets.measure((6, 3, 4, 5), 0.3, repeats=1)
    assert list(ms) == ["no resets", "resets", "cut"] and min(ms.values()) > 0


def test_reservoir():
    us = bench_reservoir.measure((20, 3), torch.float32, repeats=1, steps=4)
    assert {"rnnfast", "torch"} <= us.keys() and min(us.values()) > 0


@pytest.mark.parametrize("cell", CELLS)
def test_stepper(cell):
    us = bench_stepper.measure(cell, (2, 4, 5), repeats=1)
    ours, theirs, *_ = CELLS[cell]
    assert list(us) == ["stepper", ours.__name__, f"nn.{theirs.__name__}"]
    assert min(us.values()) > 0


def test_busy(monkeypatch, num_threads):
    monkeypatch.setattr(bench_busy, "SECONDS", 0)
    inference, training = bench_busy.measure((4, 3, 4, 5), threads=2, processes=1)
    assert inference["phase"] == "inference" and training["phase"] == "training"
    assert all(row[f"{name}, {n}"] > 0 for row in (inference, training)
               for name in ("rnnfast", "nn.RNN") for n in (1, 2))  # fmt: skip


def test_widths():
    corpus = lm.corpus.split("the cat sat on the mat\n" * 200)
    settings = {"level": "word", "epochs": 2, "threads": 1}
    asked = [(8, 1.0, False), (8, 1.0, True), (8, 2.0, True), (16, 1.0, True), (16, 1.0, False)]
    runs = [bench_widths.measure(corpus, settings, *run) for run in asked]
    assert [run["lr"] for run in runs] == pytest.approx([0.01, 0.04, 0.08, 0.04, 0.01])
    assert all(len(run["valid_losses"]) == 2 for run in runs)
    pairs = bench_widths.final_losses(runs, factor=1.0)
    assert pairs == [(8, runs[1]["valid_losses"][-1]), (16, runs[3]["valid_losses"][-1])]
    assert [row for row, _ in bench_widths.final_losses(runs, width=8)] == [1.0, 2.0]
    assert bench_widths.table({"runs": runs}).row_count == 2
