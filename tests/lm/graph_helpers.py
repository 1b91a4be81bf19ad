"""A stand-in for torch.cuda.CUDAGraph that captures and replays operators on the CPU."""

import contextlib
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rnnfast.functional import _loss, _loss_chunks

# Operators that wait for the device: they give numbers to Python, or outputs whose size depends on
# the values, or they copy what Python has made (lift_fresh is torch.tensor).
WAITING = (
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "lift_fresh",
    "masked_select",
    "nonzero",
    "repeat_interleave.Tensor",
    "unique_consecutive",
    "unique_dim",
)


class Waits(RuntimeError):
    """An operator that is not permitted while a stream is captured."""


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def refuse_waiting(func, arguments):
    name = func.name().partition("::")[2]
    masks = [t for t in tensors(arguments) if t.dtype is torch.bool]
    if name in WAITING or name.partition(".")[0] in WAITING or (name == "index.Tensor" and masks):
        raise Waits(f"operation not permitted when stream is capturing: {func.name()}\nmore")


def written(func, args, kwargs):
    """Return the tensors that a call writes."""
    named = zip(func._schema.arguments, args, strict=False)
    pairs = [*named, *((a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs)]
    return tensors([x for a, x in pairs if a.alias_info is not None and a.alias_info.is_write])


class Recorder(TorchDispatchMode):
    """Records operators. What they write in tensors from before is undone by `undo`."""

    def __init__(self):
        super().__init__()
        self.calls, self.before, self.created = [], {}, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        refuse_waiting(func, (args, kwargs))
        for tensor in written(func, args, kwargs):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.created | self.before.keys():
                self.before[storage._cdata] = storage, storage.clone()
        known = {t.untyped_storage()._cdata for t in tensors((args, kwargs))}
        out = func(*args, **kwargs)
        self.created |= {t.untyped_storage()._cdata for t in tensors(out)} - known
        self.calls.append((func, args, kwargs, out))
        return out

    def undo(self):
        for storage, copy in self.before.values():
            storage.copy_(copy)


class Graph:
    """Like torch.cuda.CUDAGraph: a replay runs the captured operators on the captured tensors.

    Whatever Python did during the capture is not repeated. A capture leaves the values of tensors
    and the random generator as they were.
    """

    captured: ClassVar[list] = []

    def __init__(self):
        self.calls, self.replays = [], 0
        Graph.captured.append(self)

    @contextlib.contextmanager
    def capture(self):
        recorder, generator = Recorder(), torch.get_rng_state()
        try:
            with recorder:
                yield
        except Exception as error:
            # torch ends the capture as well, and that error does not say what was wrong.
            raise RuntimeError("CUDA error: operation failed due to a previous error") from error
        finally:
            recorder.undo()
            torch.set_rng_state(generator)
        self.calls = recorder.calls

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for func, args, kwargs, out in self.calls:
            fresh = func(*args, **kwargs)
            returns = [r.alias_info for r in func._schema.returns]
            if not any(returns):  # neither a view nor what the operator has written in place
                for old, new in zip(tensors(out), tensors(fresh), strict=True):
                    old.copy_(new)


class Stream:
    device_index = 0

    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


def run_loss_in_chunks(monkeypatch):
    """Let the loss run on every device as it does on CUDA."""
    # The CPU kernel of the loss reads a number, which is free there.
    monkeypatch.setattr("rnnfast._ops.has_loss_kernel", lambda device_type, dtype: False)
    monkeypatch.setattr(_loss, "_linear_cross_entropy_torch", _loss._in_chunks)
    monkeypatch.setattr(_loss_chunks, "CHUNK_LOGITS", 300)


def install(monkeypatch):
    """Let `rnnfast.lm` believe that the CPU can capture graphs.

    Return the list of the graphs, and the list of what was done to the generator.
    """
    drawn_anew = []
    generator = SimpleNamespace(
        clone_state=lambda: "clone", graphsafe_set_state=lambda state: drawn_anew.append(state)
    )
    for name, value in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "graph": lambda graph, stream: graph.capture(),
        "default_generators": (generator,),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr("rnnfast.lm.training.graph.CAPTURING", ("cpu",))
    run_loss_in_chunks(monkeypatch)
    monkeypatch.setattr(Graph, "captured", [])
    return Graph.captured, drawn_anew
