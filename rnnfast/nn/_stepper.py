"""An RNN that gets one time step at a time, for policies, sensors and audio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _ops, _torch

if TYPE_CHECKING:
    from ._rnn import FastRNN


class Stepper:
    """The hidden state and the packed weights of a :class:`FastRNN`, for one time step at a time.

    :meth:`FastRNN.stepper` makes it. A call of :class:`FastRNN` with one time step has to pack its
    weights, or to run on torch's operators. A stepper packs them once. It computes no gradients.

    If an optimizer, ``load_state_dict`` or another in-place operation changes the weights, the next
    step packs them again and keeps the state. After a change that torch does not count, for example
    a new ``Parameter`` or a write to ``weight.data``, call :meth:`refresh`.

    With B sequences, I inputs, H hidden units and L layers:

    Attributes:
        batch_size: B.

    Example:
        >>> import torch
        >>> from rnnfast import FastRNN
        >>> rnn = FastRNN(10, 20)
        >>> stepper = rnn.stepper(batch_size=3)
        >>> for x in torch.randn(5, 3, 10):
        ...     output = stepper.step(x)
        >>> output.shape
        torch.Size([3, 20])
        >>> stepper.reset([1])  # the second sequence begins anew
    """

    def __init__(self, module: FastRNN, batch_size: int = 1):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
        if module.bidirectional:
            raise ValueError(
                "a bidirectional RNN has no stepper, because its reverse direction begins with the "
                "last time step"
            )
        if module.zoneout:
            raise ValueError(f"zoneout must be 0 for a stepper, got {module.zoneout}")
        weight = module.weight_hh_l0
        if not weight.is_cpu or not _ops.has_rnn_kernel("cpu", weight.dtype):
            raise RuntimeError(
                "a stepper needs weights of float32, float64, bfloat16 or float16 on the CPU, got "
                f"{weight.dtype} on {weight.device}"
            )
        self.batch_size = batch_size
        self._module = module
        self._output = torch.empty(batch_size, module.hidden_size, dtype=weight.dtype)
        self._pack()

    def step(self, input: Tensor) -> Tensor:
        """Run one time step of all layers.

        Args:
            input: (B, I) in the dtype of the weights, or (I) if ``batch_size`` is 1.

        Returns:
            The new state of the last layer, (B, H) or (H). It is the same tensor at every step:
            clone it to keep it.

        Raises:
            RuntimeError: the shape, dtype or device of ``input`` is wrong.
        """
        if [w._version for w in self._weights] != self._versions:
            self.refresh()
        if input.dim() == 1 and self.batch_size == 1:
            self._native.step(input.unsqueeze(0), self._output)
            return self._output[0]
        self._native.step(input, self._output)
        return self._output

    @property
    def state(self) -> Tensor:
        """The hidden state of all layers, (L, B, H), as a new tensor. It can be assigned."""
        state = self._output.new_empty(self._module.num_layers, *self._output.shape)
        self._native.read_state(state)
        return state

    @state.setter
    def state(self, state: Tensor) -> None:
        self._native.write_state(state.detach().contiguous())

    def reset(self, rows: Sequence[int] | Tensor | None = None) -> None:
        """Set the state to zero.

        Args:
            rows: the sequences to reset, as a list or tensor of numbers in [0, B) or as a bool
                tensor (B). Default: all.

        Raises:
            IndexError: a number is not in [0, B).
            ValueError: a bool tensor has a wrong shape.
        """
        if rows is None:
            rows = range(self.batch_size)
        elif isinstance(rows, torch.Tensor):
            if rows.dtype is torch.bool:
                if rows.shape != (self.batch_size,):
                    raise ValueError(
                        f"rows must be bool ({self.batch_size},), got {tuple(rows.shape)}"
                    )
                rows = rows.nonzero()
            rows = rows.flatten().tolist()
        self._native.reset(list(rows))

    def refresh(self) -> None:
        """Pack the present weights of the module. The state stays as it is."""
        state = self.state
        self._pack()
        self.state = state

    def _pack(self) -> None:
        module = self._module
        _, self._weights = _torch.named_rnn_weights(module)
        self._versions = [w._version for w in self._weights]
        relu = module.mode == "RNN_RELU"
        self._native = _ops.stepper(self.batch_size, self._weights, relu, module.bias)
