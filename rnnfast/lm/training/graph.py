"""Updates as a CUDA graph, so that Python does not have to launch each kernel of each step."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from ..._common.errors import DataWarning
from .update import Update, staged

# Updates that run as usual before the capture. They create what must not be created during one: the
# handles of the libraries and the state of the optimizer. torch.cuda.make_graphed_callables also
# takes three.
WARM_UP = 3
CAPTURING = ("cuda",)  # the types of devices that can capture what is run


class GraphedUpdate:
    """Runs the updates of chunks of one length as a CUDA graph that is captured once.

    A chunk of a different length, and a chunk at the start of a text, runs as `Update` does. If
    the capture fails, a warning names the reason, and all chunks do.

    The graph reads its inputs from tensors that stay where they are, and the rates of the optimizer
    as well. The state of the model is carried from update to update in such a tensor. Random
    numbers come from torch's generator, which torch.cuda.graph registers with the graph: a replay
    draws what the same update would have drawn without a graph.

    Args:
        update: The update.
        length: The number of time steps of the chunks that are replayed.
    """

    def __init__(self, update: Update, length: int):
        self.update, self.length = update, length
        self.device = update.ranks.device
        self.stream = torch.cuda.Stream(self.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.failed = False
        self._warm = 0  # how many updates have run on `stream`
        self._static: tuple[Tensor, Tensor, Tensor]  # inputs, targets and state of the graph

    def __call__(self, inputs: Tensor, targets: Tensor, state: Tensor | None) -> Tensor:
        """Make one update; see `Update`. The next call overwrites the state that is returned."""
        if self.failed or state is None or len(inputs) != self.length:
            return self.update(inputs, targets, state)
        if self._warm < WARM_UP:
            self._warm += 1
            with self._aside():
                return self.update(inputs, targets, state)
        given = inputs, targets, state
        if self.graph is None and not self._capture(*given):
            return self.update(*given)
        assert self.graph is not None
        for static, x in zip(self._static, given, strict=True):
            if static is not x:
                static.copy_(staged(x, self.device), non_blocking=True)
        self.graph.replay()
        return self._static[2]

    def _capture(self, inputs: Tensor, targets: Tensor, state: Tensor) -> bool:
        """Capture the update, which does not run it. Return whether that went well."""
        self._static = (inputs.to(self.device), targets.to(self.device), state.clone())
        self.update.optimizer.zero_grad(set_to_none=True)  # the graph makes gradients of its own
        groups = self.update.optimizer.param_groups
        graph = torch.cuda.CUDAGraph()
        try:
            # torch refuses to capture other optimizers, although the fused ones are the same, and
            # warns if these run without a graph.
            for group in groups:
                group["capturable"] = True
            with self._aside(), torch.cuda.graph(graph, stream=self.stream):
                self._static[2].copy_(self.update(*self._static))
        except Exception as error:
            self.failed = True
            self._give_up(error)
            return False
        finally:
            for group in groups:
                group["capturable"] = False
        self.graph = graph
        return True

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Run the body of a `with` statement on `stream`, between what comes before and after."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        # torch.cuda.graph leaves its stream as the current one if it fails.
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)

    def _give_up(self, error: Exception) -> None:
        # Ending a capture that has failed raises an error of its own, after the one that says why.
        reason = str(error.__context__ or error).strip().partition("\n")[0]
        warnings.warn(
            f"training goes on without a CUDA graph, because the capture failed: {reason}",
            DataWarning,
            stacklevel=4,
        )
        # A generator would still take itself for one that is captured, and refuse to draw.
        generator = torch.cuda.default_generators[self.stream.device_index]
        generator.graphsafe_set_state(generator.clone_state())


def graphed(update: Update) -> Update | GraphedUpdate:
    """Return what makes the updates of a run: a CUDA graph if the settings want one and it can.

    An adaptive softmax asks the device how many tokens are in each cluster. With several processes
    the devices wait for one another.
    """
    config, ranks = update.config, update.ranks
    can = ranks.device.type in CAPTURING and ranks.size == 1 and not config.adaptive
    return GraphedUpdate(update, config.bptt) if can and config.cuda_graph else update
