"""Models in several processes and threads, and inside of wrappers."""

import copy
import gc
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from rnnfast import FastGRU, FastLSTM, FastRNN

CLASSES = [FastRNN, FastGRU, FastLSTM]
classes = pytest.mark.parametrize("cls", CLASSES)


def model(cls=FastRNN):
    torch.manual_seed(0)
    return cls(5, 8, 2, bidirectional=True, batch_first=True)


def gradients(module, x):
    output, *final = tree_leaves(module(x))
    (output.square().mean() + sum(state.sin().mean() for state in final)).backward()
    return [p.grad for p in module.parameters()]


# Processes


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_beside_busy_processes():
    """Calls that find their threads waiting hand over to one thread, and give the same results."""
    run("""
import subprocess, sys, torch
from rnnfast import FastRNN
torch.manual_seed(0)
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
try:
    for B, H, calls in (1, 128, 80), (1, 512, 2), (9, 64, 20):
        module, x, dy = FastRNN(H, H), torch.randn(256, B, H), torch.randn(256, B, H)
        results = {}
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for _ in range(1 if threads == 1 else calls):
                output, h_n = module(x)
                results[threads] = [
                    output, h_n, *torch.autograd.grad(output, list(module.parameters()), dy)]
                for result, expected in zip(results[threads], results[1]):
                    assert torch.equal(result, expected), (B, H, threads)
finally:
    for process in busy:
        process.kill()
""")


def test_fork():
    """If the parent has threads, a child that used libgomp's threads would wait for ever.

    torch's own operators and autograd wait or raise an error there, so the child only calls the
    kernels.
    """
    run("""
import os, signal, torch
from rnnfast import FastRNN
torch.set_num_threads(2)
torch.set_grad_enabled(False)
module, x, dy = FastRNN(64, 64, 2), torch.randn(50, 32, 64), torch.randn(50, 32, 64)
weights = list(module.parameters())
options = None, 2, False, False, True
def call():
    outs, h_n = torch.ops.rnnfast.rnn(x, None, weights, *options, True)
    dx, _, dw = torch.ops.rnnfast.rnn_backward(
        dy, None, outs, x, None, weights, *options, True, False, True)
    return [t.numpy().tobytes() for t in (module(x)[0], *outs, h_n, dx, *dw)]
expected = call()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if call() == expected else 3)
assert os.waitpid(child, 0)[1] == 0
assert call() == expected, "the parent goes on"
""")


class Encoded(Dataset):
    """A data set whose items are computed by a recurrent module."""

    def __init__(self, encoder, x):
        self.encoder, self.x = encoder, x

    def __len__(self):
        return len(self.x)

    @torch.no_grad()
    def __getitem__(self, n):
        return self.encoder(self.x[n])[0]


@classes
@pytest.mark.parametrize("threads", [1, 2])
def test_in_workers_of_a_data_loader(num_threads, threads, cls):
    """A worker begins with one thread. If it uses more, it must not wait for the parent's."""
    num_threads(2)
    data = Encoded(cls(5, 256).eval(), torch.randn(8, 40, 3, 5))
    expected = torch.stack([data[n] for n in range(len(data))])
    loader = DataLoader(
        data, batch_size=4, num_workers=2, multiprocessing_context="fork", timeout=60,
        worker_init_fn=lambda _: torch.set_num_threads(threads),
    )  # fmt: skip
    assert torch.equal(torch.cat(list(loader)), expected)


SHARDED = {
    "DDP": DistributedDataParallel,
    "FSDP": lambda m: FullyShardedDataParallel(m, device_id=torch.device("cpu")),
    "FSDP2": lambda m: fully_shard(m, mesh=distributed.init_device_mesh("cpu", (2,))),
}


def train(module, x):
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        gradients(module, x)
        optimiser.step()


def train_as(rank, rendezvous, cls):
    torch.set_num_threads(1)
    method = f"file://{rendezvous}"
    distributed.init_process_group("gloo", init_method=method, rank=rank, world_size=2)
    reference = model(cls)
    x = torch.randn(6, 7, 5, generator=torch.Generator().manual_seed(1))
    train(reference, x)
    expected = reference(x)
    for name, shard in SHARDED.items():
        module = shard(model(cls))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*flatten_parameters.*")
            train(module, x[rank::2])
            torch.testing.assert_close(module(x), expected, msg=lambda m, name=name: f"{name}: {m}")
    # A process group that a module refers to would outlive this function, and its threads would
    # outlive the interpreter, which then sometimes aborts (pytorch/pytorch#179291).
    del module
    gc.collect()
    distributed.destroy_process_group()


@classes
def test_two_processes_train_one_model(tmp_path, cls):
    """DDP and both FSDPs reach the weights that one process reaches with the whole batch."""
    torch.multiprocessing.spawn(train_as, (str(tmp_path / "rendezvous"), cls), nprocs=2)


# Threads


@classes
def test_threads_of_python(cls):
    """Calls of one module release the GIL and run at the same time."""
    module = model(cls)
    inputs = [torch.randn(3 + n % 4, 20 + n, 5) for n in range(24)]

    def call(x):
        outputs = tree_leaves(module(x))
        loss = outputs[0].square().sum() + sum(t.sum() for t in outputs[1:])
        return [*outputs, *torch.autograd.grad(loss, list(module.parameters()))]

    expected = [call(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        # Repeated often, because two calls would rarely get the same buffer by mistake.
        for found, tensors in zip(pool.map(call, 40 * inputs), 40 * expected, strict=True):
            assert all(map(torch.equal, found, tensors))


@classes
def test_the_same_bits_every_time(device, cls):
    results = []
    for _ in range(3):
        module = model(cls).to(device)
        torch.manual_seed(1)
        x = torch.randn(33, 70, 5).to(device)
        results.append([*tree_leaves(module(x)), *gradients(module, x)])
    for again in results[1:]:
        assert all(map(torch.equal, again, results[0]))


# Wrappers


@classes
def test_data_parallel(cls):
    """The replicas have plain tensors in place of the parameters."""
    x = torch.randn(4, 7, 5)
    module = model(cls)
    torch.testing.assert_close(DataParallel(module)(x), module(x))
    replica = module._replicate_for_data_parallel()
    for name, p in module.named_parameters():
        setattr(replica, name, p * 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output, h_n = replica(x)
        with torch.no_grad():
            assert torch.equal(replica(x)[0], output)
    torch.testing.assert_close((output, h_n), module(x))
    output.sum().backward()
    assert module.weight_hh_l1_reverse.grad.any()


class WeightDrop(nn.Module):
    """Code of language models often keeps the raw weight and replaces it by a masked one."""

    def __init__(self, rnn, names):
        super().__init__()
        self.rnn, self.names = rnn, names
        for name in names:
            raw = rnn._parameters.pop(name)
            rnn.register_parameter(f"{name}_raw", raw)

    def forward(self, x):
        torch.manual_seed(2)
        for name in self.names:
            raw = getattr(self.rnn, f"{name}_raw")
            setattr(self.rnn, name, nn.functional.dropout(raw, 0.5))
        return self.rnn(x)


class Masked(nn.Module):
    def forward(self, weight):
        return weight.tril()


def spectral_norm(module):
    """In ``eval()``, reading the weight does not update the estimate of its norm."""
    parametrizations.spectral_norm(module, "weight_hh_l0")
    module.parametrizations.weight_hh_l0.eval()
    return module


WRAPPERS = {
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "old weight_norm": lambda m: nn.utils.weight_norm(m, "weight_hh_l0"),
    "spectral_norm": spectral_norm,
    "old spectral_norm": lambda m: nn.utils.spectral_norm(m, "weight_hh_l0"),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
    "a mask": lambda m: parametrize.register_parametrization(m, "weight_hh_l1", Masked()) or m,
    "weight drop": lambda m: WeightDrop(m, ["weight_hh_l0", "weight_hh_l1"]),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    "pair", [(nn.RNN, FastRNN), (nn.GRU, FastGRU), (nn.LSTM, FastLSTM)], ids=str
)
def test_parametrizations_of_weight_hh(device, pair, wrapper):
    results = []
    x = torch.randn(5, 3, 4, device=device)
    for cls in pair:
        torch.manual_seed(0)
        module = WRAPPERS[wrapper](cls(4, 6, 2).to(device))
        with warnings.catch_warnings():
            if device == "cpu":  # on CUDA devices cuDNN runs by default, and it warns
                warnings.filterwarnings("error", message=".*flatten_parameters.*")
            torch.manual_seed(1)
            outputs = tree_leaves(module(x))
        loss = outputs[0].square().sum() + sum(t.sum() for t in outputs[1:])
        wanted = dict(module.named_parameters())
        results.append([*outputs, *torch.autograd.grad(loss, list(wanted.values()))])
        assert len(wanted) >= 8
    torch.testing.assert_close(*results)


def test_parametrized_copy():
    module = parametrizations.weight_norm(FastRNN(4, 6), "weight_hh_l0")
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(copy.deepcopy(module)(x), module(x))
