"""The training step as a CUDA graph: on a GPU, and on the CPU by a stand-in."""

import contextlib
import itertools
import os
import signal
import warnings

import graph_helpers
import pytest
import torch
from lm_helpers import CORPUS, WORDS, records, same_weights, small_config, zipf
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rnnfast import lm
from rnnfast.lm import storage
from rnnfast.lm.neural.adaptive import AdaptiveDecoder
from rnnfast.lm.training.graph import WARM_UP, GraphedUpdate
from rnnfast.lm.training.runs import prepare, resume

# 25 chunks of 32 tokens are an epoch, and a chunk of 10 more. The first chunk of an epoch has no
# state, so 24 are for the graph, except those that warm up.
EPOCHS, GRAPHED = 2, 24
SETTINGS = {"bptt": 32, "epochs": EPOCHS, "log_interval": 9, "dropout": 0.3, "lr": 0.02}

KINDS = [
    {"nlayers": 2, "cell": "relu"},
    {"lr_schedule": "plateau", "lr": 3.0, "epochs": 3},
    {"average": 0, "lr_schedule": "constant"},
    {"cell": "lstm", "nlayers": 2, "locked_dropout": True, "weight_dropout": 0.3},
    {"cell": "gru", "embedding_dropout": 0.2, "clip": 0.0},
    {"optimizer": "sgd", "lr": 2.0},
    {"bf16": True, "accumulate": 3},
    {"model": "window", "direct": True},
    {"level": "word", "nlayers": 2, "locked_dropout": True, "embedding_dropout": 0.1},
]


def settings(**changes):
    return small_config(changes.pop("level", "char"), **{**SETTINGS, **changes})


def text(config):
    return CORPUS if config.level == "char" else lm.corpus.split(WORDS * 3)


def run(config, folder=None):
    trainer = prepare(config, text(config), folder and storage.RunFolder(folder))
    losses = []
    trainer.run(lambda step: losses.append((step.loss, step.grad_norm)))
    return trainer, losses


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that the stand-in captures."""
    return graph_helpers.install(monkeypatch)[0]


# ---- a stand-in for the GPU


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_captured_step_is_the_eager_one(graphs, kind):
    """The replays repeat only operators, so nothing that changes may be in Python's hands.

    That holds for the learning rate, Adam's bias corrections, the state of the model, the masks of
    dropout, the chunk and the figures.
    """
    eager, expected = run(settings(cuda_graph=False, **kind))
    assert not graphs
    trainer, losses = run(settings(**kind))
    assert losses == expected
    assert same_weights(trainer.model, eager.model)
    (graph,) = graphs
    if "plateau" in kind.values():  # the optimizer began anew
        assert any("restored_step" in record for record in trainer.state.curve[:-1])
    elif trainer.config.level == "char":
        assert graph.replays == EPOCHS * GRAPHED - WARM_UP
    assert graph.replays > len(losses) / 2


@pytest.mark.parametrize("stops", [[1], [10, 26], [33, 34]])
def test_a_resumed_run_is_the_uninterrupted_one(graphs, tmp_path, stops):
    config = settings(average=0, nlayers=2)
    whole, _ = run(config, tmp_path / "whole")

    def stop(step):
        if step.step in stops:
            os.kill(os.getpid(), signal.SIGINT)

    trainer = prepare(config, CORPUS, storage.RunFolder(tmp_path / "parts"))
    for _ in stops:
        with pytest.raises(lm.Interrupted):
            trainer.run(stop)
        torch.manual_seed(0)
        trainer = resume(tmp_path / "parts", {}, CORPUS)
    trainer.run(stop)
    assert same_weights(whole.model, trainer.model)
    assert records(tmp_path / "whole") == records(tmp_path / "parts")
    assert graphs[-1].replays > 0
    # The trainer that has a graph already may also go back to a checkpoint.
    earlier = prepare(config, CORPUS)
    losses = [earlier.train_step().loss for _ in range(8)]
    tensors, state = earlier.checkpoint()
    losses += [earlier.train_step().loss for _ in range(8)]
    earlier.restore(tensors, state, {})
    assert losses[8:] == [earlier.train_step().loss for _ in range(8)]
    again = resume(tmp_path / "parts", {"epochs": EPOCHS + 1, "cuda_graph": False}, CORPUS)
    again.run()
    assert not again.config.cuda_graph


def test_figures_are_read_at_the_lines_of_the_log(graphs, tmp_path, monkeypatch):
    """A device is not asked for a figure in each step, and the log is the same."""
    _, losses = run(settings(), tmp_path / "always")
    trainer = prepare(settings(), CORPUS, storage.RunFolder(tmp_path / "seldom"))
    trainer._reads_always = False
    monkeypatch.setattr("rnnfast.lm.training.trainer.READING_SECONDS", 1e9)
    reads, read = [], trainer.update.read
    monkeypatch.setattr(trainer.update, "read", lambda: reads.append(trainer.state.step) or read())
    shown = []
    trainer.run(lambda step: shown.append(step))
    assert reads == [1, *sorted({*range(9, 53, 9), 26, 52})]  # and before each validation
    log = records(tmp_path / "seldom")
    assert log == records(tmp_path / "always")
    for line, end in zip(log, (9, 18), strict=False):
        expected = sum(loss for loss, _ in losses[end - 9 : end]) / 9
        assert (line["step"], line["train_loss"]) == (end, pytest.approx(expected, rel=1e-6))
    assert all(step.loss == shown[8].loss and step.tokens_per_second > 0 for step in shown[8:17])


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_weights_stay_the_last_good_ones_until_figures_are_read(
    graphs, tmp_path, what, monkeypatch
):
    monkeypatch.setattr("rnnfast.lm.training.trainer.READING_SECONDS", 1e9)
    trainer = prepare(settings(log_interval=20), CORPUS, storage.RunFolder(tmp_path / "model"))
    trainer._reads_always = False
    poison = torch.zeros(())  # a tensor, so that it reaches the captured step
    if what == "loss":
        cross_entropy = trainer.model._cross_entropy
        monkeypatch.setattr(
            trainer.model, "_cross_entropy", lambda *args: cross_entropy(*args) + poison
        )
    else:
        trainer.model.decoder.bias.register_hook(lambda gradient: gradient + poison)
    kept = []

    def spoil(step):
        if step.step == 12:
            poison.fill_(torch.nan)
            kept.append(storage.weights(trainer.model))
        if step.step == 14:
            poison.zero_()

    with pytest.raises(lm.UserError, match=f"the {what} is not finite at step 12"):
        trainer.run(spoil)
    assert trainer.state.step == 20 and graphs[0].replays > 10
    present = storage.weights(trainer.model)
    assert all(torch.equal(present[name], kept[0][name]) for name in present)
    assert (tmp_path / "model").exists() == (what == "gradient")


def test_an_optimizer_that_cannot_skip_is_not_called(monkeypatch):
    monkeypatch.setattr("rnnfast.lm.training.update.skips_updates_where", lambda *args: False)
    trainer = prepare(settings(), CORPUS)
    trainer.model.decoder.bias.register_hook(lambda gradient: gradient * torch.nan)
    before = storage.weights(trainer.model)
    with pytest.raises(lm.UserError, match="gradient is not finite at step 0"):
        trainer.train_step()
    assert all(torch.equal(before[n], w) for n, w in storage.weights(trainer.model).items())


def reads_a_number(trainer):
    return 1.0 + 0 * trainer.model.decoder.bias.sum().item()


def makes_a_tensor(trainer):
    return torch.tensor(1.0)


def counts_in_python(trainer):
    trainer.calls = getattr(trainer, "calls", 0) + 1
    return 1.0 + trainer.calls / 100


def asks_where(trainer):
    return trainer.model.decoder.bias.isfinite().nonzero().shape[0] / len(trainer.vocab)


@pytest.mark.parametrize("mistake", [reads_a_number, makes_a_tensor, asks_where])
def test_a_step_that_waits_runs_without_a_graph(monkeypatch, mistake):
    graphs, drawn_anew = graph_helpers.install(monkeypatch)
    eager = prepare(settings(), CORPUS)
    expected = [eager.train_step().loss for _ in range(12)]
    trainer = prepare(settings(), CORPUS)
    loss = trainer.model.loss

    def wrong(*args):
        value, state = loss(*args)
        return value * mistake(trainer), state

    trainer.update._loss = wrong
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = [trainer.train_step().loss for _ in range(12)]
    assert losses == expected
    (warning,) = caught
    assert "without a CUDA graph" in str(warning.message) and "capturing: aten" in str(
        warning.message
    )
    assert "\n" not in str(warning.message) and warning.category is lm_warning()
    assert drawn_anew == ["clone"] and [graph.replays for graph in graphs] == [8, 0]


def lm_warning():
    from rnnfast._common.errors import DataWarning

    return DataWarning


def test_the_stand_in_sees_what_changes_in_python(graphs):
    losses = []
    for wanted in (True, False):
        trainer = prepare(settings(cuda_graph=wanted), CORPUS)
        loss = trainer.model.loss

        def wrong(*args, trainer=trainer, loss=loss):
            value, state = loss(*args)
            return value * counts_in_python(trainer), state

        trainer.update._loss = wrong
        losses.append([trainer.train_step().loss for _ in range(8)])
    assert losses[0][: WARM_UP + 2] == losses[1][: WARM_UP + 2]
    assert losses[0][WARM_UP + 2 :] != losses[1][WARM_UP + 2 :]


class OneDevice(TorchDispatchMode):
    """Refuses tensors that are not on the meta device, and whatever waits for a device."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace != "profiler":
            graph_helpers.refuse_waiting(func, (args, kwargs))
            out = func(*args, **kwargs)
            for tensor in graph_helpers.tensors((args, kwargs, out)):
                if tensor.device.type != "meta":
                    raise graph_helpers.Waits(f"{func.name()} has a tensor on {tensor.device}")
            self.calls.append((func.name(), [tuple(t.shape) for t in graph_helpers.tensors(out)]))
            return out
        return func(*args, **kwargs)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_step_stays_on_its_device(kind, monkeypatch):
    """No tensor of the host is made or read in it, and each step gives the device the same work."""
    graph_helpers.run_loss_in_chunks(monkeypatch)
    config = settings(**{"device": "meta", **kind})
    trainer = prepare(config, text(config))
    update = trainer.update
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())
    monkeypatch.setattr(update.optimizer, "step", lambda: None)  # torch's own has no fused one here
    update._skips = True
    inputs, targets = (x.to("meta") for x in trainer.batches[1])
    state = update(inputs, targets, None)
    work = []
    for _ in range(3):
        with OneDevice() as mode:
            state = update(inputs, targets, state)
        work.append(mode.calls)
    assert work[0] == work[1] == work[2] and len(work[0]) > 20
    for call in (
        lambda: state.sum().tolist(),
        lambda: state.cpu(),
        lambda: torch.zeros(2).to("meta"),
    ):
        with OneDevice(), pytest.raises((RuntimeError, NotImplementedError)):
            call()


def test_what_cannot_be_captured_is_not(graphs):
    config = settings(level="word", adaptive=True, cuda_graph=True)
    trainer = prepare(config, lm.corpus.split(zipf(2000)))
    assert isinstance(trainer.model.decoder, AdaptiveDecoder)
    assert trainer._make_update is trainer.update
    assert isinstance(prepare(settings(), CORPUS)._make_update, GraphedUpdate)


# ---- a GPU

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="this machine, or this build of torch, has no CUDA device"
)


@needs_gpu
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_losses_on_a_gpu_are_the_eager_ones(kind):
    results = []
    for wanted in (False, True):
        # A rate that is too high would magnify the rounding, and cuDNN's dropout between layers
        # has a generator that no seed begins anew.
        changes = {"lr": 0.01} | ({"dropout": 0.0} if "relu" in kind.values() else {})
        config = settings(device="cuda", cuda_graph=wanted, log_interval=1, **{**kind, **changes})
        trainer, losses = run(config)
        results.append(torch.tensor(losses))
        assert wanted == isinstance(trainer._make_update, GraphedUpdate)
        if wanted:
            assert trainer._make_update.graph is not None
    torch.testing.assert_close(*results, rtol=0.05 if "bf16" in kind else 5e-3, atol=1e-4)


@needs_gpu
def test_a_resumed_run_on_a_gpu_is_the_uninterrupted_one(tmp_path):
    config = settings(device="cuda", nlayers=2, dropout=0.0)
    whole, _ = run(config, tmp_path / "whole")

    def stop(step):
        if step.step == 33:
            os.kill(os.getpid(), signal.SIGINT)

    trainer = prepare(config, CORPUS, storage.RunFolder(tmp_path / "parts"))
    with pytest.raises(lm.Interrupted):
        trainer.run(stop)
    trainer = resume(tmp_path / "parts", {}, CORPUS)
    trainer.run()
    assert trainer._make_update.graph is not None
    for a, b in zip(whole.model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


@needs_gpu
def test_dropout_of_a_graph_on_a_gpu_draws_new_masks():
    trainer = prepare(settings(device="cuda", dropout=0.0), CORPUS)
    dropout = trainer.model.dropout = nn.Dropout(0.5)
    masks = torch.zeros(24, 32, 4, 16, device="cuda")
    at = torch.zeros((), dtype=torch.int64, device="cuda")

    def note(module, inputs, output):
        masks.index_copy_(0, at[None], (output == 0).float()[None])
        at.add_(1)

    dropout.register_forward_hook(note)
    for _ in range(24):
        trainer.train_step()
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(masks))
