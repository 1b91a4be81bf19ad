"""A recurrent module that gets one time step at a time, for policies, sensors and audio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from .. import _ops
from ..functional._shared import as_hx, each_state

if TYPE_CHECKING:
    from ._leaky import LeakyRNN
    from ._recurrent import Recurrent

_State = TypeVar("_State")  # a tensor, or a pair of them for an LSTM

# uint8 tensors were masks in older versions of torch, so they are refused.
_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.int8)


def native_stepper(module, batch_size, weights, *options):
    """Return ``_ops.stepper(batch_size, weights, *options)``, if the module allows it."""
    if module._forward_pre_hooks:
        raise ValueError(
            "a stepper does not run the forward pre-hooks of the module, with which for "
            "example torch.nn.utils.prune makes its weights: remove them first"
        )
    w_hh = weights[1]
    if w_hh.layout is not torch.strided:
        raise RuntimeError(f"a stepper needs dense weights, got the layout {w_hh.layout}")
    if not w_hh.is_cpu or not _ops.has_rnn_kernel("cpu", w_hh.dtype):
        raise RuntimeError(
            "a stepper needs weights of float32, float64, bfloat16 or float16 on the CPU, got "
            f"{w_hh.dtype} on {w_hh.device}"
        )
    return _ops.stepper(batch_size, weights, *options)


class Stepper(Generic[_State]):
    """The state and the packed weights of a recurrent module, for one time step at a time.

    The method ``stepper`` of :class:`FastRNN`, :class:`FastGRU`, :class:`FastLSTM` and
    :class:`LeakyRNN` makes it. A call of a module with one time step has to look for its weights,
    to pack them, except those of an RNN with up to four sequences, and to make new tensors. A
    stepper packs them once and has one output. It computes no gradients, and no dropout or noise,
    as in ``eval()``. The state begins as zeros, or as ``h0`` of a :class:`LeakyRNN` that learns it.
    Only one thread may call it at a time.

    If an optimizer, ``load_state_dict`` or another in-place operation changes the weights, the next
    step packs them again and keeps the state. torch does not count all changes. After a step of an
    optimizer with ``fused=True``, a write to ``weight.data``, or a new ``Parameter`` in the module,
    call :meth:`refresh`.

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

    def __init__(self, module: Recurrent[_State] | LeakyRNN, batch_size: int = 1):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
        self.batch_size = batch_size
        self._module = module
        self._pack()
        h0 = getattr(module, "h0", None)
        if h0 is not None:
            self.state = cast(_State, h0.unsqueeze(1).expand(-1, batch_size, -1))

    def step(self, input: Tensor) -> Tensor:
        """Run one time step of all layers.

        Args:
            input: (B, I) in the dtype of the weights, or (I) if ``batch_size`` is 1.

        Returns:
            The output of the last layer, (B, H) or (H): its new state h, or r of leaky units. It is
            the same tensor at every step: clone it to keep it.

        Raises:
            TypeError: ``input`` is not a tensor.
            RuntimeError: the shape, dtype or device of ``input`` is wrong.
        """
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a tensor, got {type(input).__name__}")
        if self._changes() != self._packed:
            self.refresh()
        if not input.is_contiguous() or input.is_neg():
            input = input.resolve_neg().contiguous()
        output = self._output
        # A graph of autograd may need an output that this step overwrites. Then backward() raises.
        torch.autograd.graph.increment_version(output)
        if input.dim() == 1 and self.batch_size == 1:
            self._native.step(input.unsqueeze(0), output)
            return output[0]
        self._native.step(input, output)
        return output

    @property
    def state(self) -> _State:
        """The state of all layers as a new tensor, (L, B, H), or a pair (h, c) of an LSTM.

        It can be assigned.
        """
        shape = (self._module.num_layers, *self._output.shape)
        states = [self._output.new_empty(shape) for _ in range(self._native.states)]
        self._native.read_state(*states)
        return cast(_State, as_hx(states))

    @state.setter
    def state(self, state: _State) -> None:
        given: Any = state
        if self._native.states == 1:
            given = (state,)
        elif not isinstance(state, (tuple, list)) or len(state) != 2:
            kind = type(state).__name__
            raise TypeError(f"state must be a pair of tensors (h, c), got {kind}")
        for one in given:
            if not isinstance(one, Tensor):
                raise TypeError(f"state must be a tensor, got {type(one).__name__}")
        self._native.write_state(*(one.detach().resolve_neg().contiguous() for one in given))

    def reset(self, rows: Sequence[int] | Sequence[bool] | Tensor | None = None) -> None:
        """Set the state to zero.

        Args:
            rows: the sequences to reset. They are numbers in [0, B), or B bools of which True
                means a reset, as a list, an array or a tensor. Default: all.

        Raises:
            IndexError: a number is not in [0, B).
            ValueError: ``rows`` has a wrong shape or a wrong type.
        """
        numbers = torch.arange(self.batch_size, device="cpu")
        if rows is not None:
            given = torch.as_tensor(rows, device="cpu")
            if given.dtype is torch.bool and given.shape == numbers.shape:
                numbers = numbers[given]
            elif given.dim() == 1 and (given.dtype in _NUMBERS or given.numel() == 0):
                numbers = given
            else:
                raise ValueError(
                    f"rows must be a list of numbers or {self.batch_size} bools, got {given.dtype} "
                    f"{tuple(given.shape)}"
                )
        self._native.reset(numbers.tolist())

    def refresh(self) -> None:
        """Pack the present weights of the module. The state stays as it is.

        Raises:
            ValueError, RuntimeError: where the method ``stepper`` of the module raises them. The
                stepper stays as it is then.
        """
        state = self.state
        self._pack()
        self.state = cast(_State, each_state(lambda one: one.to(self._output.dtype), state))

    def _pack(self) -> None:
        module = self._module
        weights, native = module._native_stepper(self.batch_size)
        dtype = weights[1].dtype
        with torch.inference_mode(False):
            shape = (self.batch_size, module.hidden_size)
            self._output = torch.zeros(shape, dtype=dtype, device="cpu")
        self._native = native
        # The weights may be computed from parameters of a parametrization. Tensors of inference
        # mode have no version.
        unique = {id(w): w for w in (*weights, *module.parameters())}.values()
        self._counted = [w for w in unique if not w.is_inference()]
        self._uncounted = [w for w in unique if w.is_inference()]
        self._packed = self._changes()

    def _changes(self) -> list[int]:
        """Return numbers that differ after weights were changed in place or got new memory."""
        numbers = [w._version for w in self._counted]
        numbers += [w.data_ptr() for w in self._counted]
        if self._uncounted:
            numbers += [w.data_ptr() for w in self._uncounted]
        return numbers

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self._module, "batch_size": self.batch_size, "state": self.state}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self._module, self.batch_size = saved["module"], saved["batch_size"]
        self._pack()
        self.state = saved["state"]
