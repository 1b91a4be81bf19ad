"""What :class:`FastRNN`, :class:`FastGRU` and :class:`FastLSTM` have in common."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .. import _torch, functional
from .._ops import is_one_hot
from ..functional._operators import check_hx_dtype, one_hot_vectors
from ..functional._run import run_rnn
from ..functional._shared import as_hx, check_reset, each_state, states_of
from ._checks import checked_lengths, packed_like, probability, warn_of_one_hot_vectors
from ._stepper import Stepper, native_stepper

_CELLS = {"RNN_TANH": "tanh", "RNN_RELU": "relu", "GRU": "gru", "LSTM": "lstm"}
REGULARISERS = ("variational_dropout", "weight_dropout", "zoneout")

_Batch = TypeVar("_Batch", Tensor, PackedSequence)
_State = TypeVar("_State")


class Recurrent(nn.RNNBase, Generic[_State]):
    """The base class that stands before a module of ``torch.nn`` in the bases of a class.

    ``hx`` and ``h_n`` are a tensor, or a pair of them for an LSTM.
    """

    _descriptor: Any  # the class that describes a call

    # These are attributes of the class, so that a module of torch has them too after accelerate()
    # has changed its class.
    variational_dropout = weight_dropout = zoneout = 0.0
    weight_ih_l0: Tensor
    weight_hh_l0: Tensor

    def __init__(
        self,
        *args: Any,
        variational_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.variational_dropout = probability("variational_dropout", variational_dropout)
        self.weight_dropout = probability("weight_dropout", weight_dropout)
        self.zoneout = probability("zoneout", zoneout)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``, with the regularisers that are not 0."""
        used = [f"{name}={getattr(self, name)}" for name in REGULARISERS if getattr(self, name)]
        return ", ".join([super().extra_repr(), *used])

    @property
    def _torch_name(self):
        """The name of torch's module, with which its messages begin."""
        return self.mode.partition("_")[0]

    def _is_regularised(self):
        """Return whether a regulariser is active that torch's module does not have."""
        return bool(
            self.zoneout or (self.training and (self.variational_dropout or self.weight_dropout))
        )

    def _weights(self) -> list[Tensor]:
        """Return the weights for one call, in the order that torch's module uses.

        In training, DropConnect is applied to the recurrent weights.
        """
        names, weights = _torch.named_rnn_weights(self)
        if self.training and self.weight_dropout:
            weights = [
                functional.dropout(weight, self.weight_dropout) if "weight_hh" in name else weight
                for name, weight in zip(names, weights, strict=True)
            ]
        return weights

    def _is_single_step(self, input):
        """Return whether the tensor ``input`` has one time step and should run on torch's operator.

        A single step leaves nothing to fuse over time. With gradients, and on a GPU, torch's
        operator is as fast as the kernels. While the module is traced the answer is False, so that
        a graph has one operator for any T. Under torch.func it is False as well, because torch's
        operator has no batching rule. ``forward`` of torch's module would compute a weight that has
        a parametrization four times, and keep its graph.
        """
        return (
            input.dim() in (2, 3)
            and input.shape[1 if self.batch_first and input.dim() == 3 else 0] == 1
            and input.is_floating_point()
            and (torch.is_grad_enabled() or not input.is_cpu)
            and "parametrizations" not in self._modules
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and not _torch.is_in_transform()
        )

    def _check_data(self, input, dtype, batch_sizes):
        """Check ``input`` as ``nn.RNN.check_input`` does, but without its list of weights."""
        if input.dtype != dtype and not _torch.is_any_autocast_enabled():
            other = f"convert model: model.to({input.dtype})"
            if not input.is_floating_point():
                other = "tokens must be int64: call input.long()"
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). Convert "
                f"input: input.to({dtype}), or {other}"
            )
        rank = 3 if batch_sizes is None else 2
        if input.dim() != rank:
            raise RuntimeError(f"input must have {rank} dimensions, got {input.dim()}")
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {input.size(-1)}"
            )

    def forward(
        self,
        input: _Batch,
        hx: _State | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | PackedSequence | None = None,
    ) -> tuple[_Batch, _State]:
        """Return ``(output, h_n)``; the class describes the arguments."""
        packed = not isinstance(input, torch.Tensor)
        if packed and not isinstance(input, PackedSequence):
            kind = type(input).__name__  # torch's module raises an AttributeError that says less
            raise AttributeError(f"input must be a tensor or PackedSequence, got {kind}")
        if hx is not None:
            hx = self._checked_hx(hx)
        if lengths is not None:
            lengths = checked_lengths(input, lengths, self.batch_first)
            # The shapes of a packed batch depend on the lengths, which a graph does not know.
            # Steps that run one by one would be recorded for these lengths only.
            in_graph = torch.compiler.is_exporting() or (self.zoneout and torch.jit.is_tracing())
            if not in_graph:
                return self._forward_padded(input, hx, lengths, reset)
        if not packed and self._is_single_step(input) and not self._is_regularised():
            if hx is not None:
                check_hx_dtype(hx, self._weights()[0].dtype)
            if reset is not None:
                hx = self._reset_hx(hx, reset, input)
            return super().forward(input, hx)
        batched, batch_dim = True, 0 if self.batch_first else 1
        if not isinstance(input, torch.Tensor):
            data, batch_sizes, sorted_indices, unsorted_indices = input
            one_hot = is_one_hot(data)
            if batch_sizes.dtype != torch.int64 and torch.compiler.is_exporting():
                raise RuntimeError(
                    "pack_padded_sequence cannot be exported, because torch does not know the "
                    "shapes of its result: give the module the padded batch and the lengths, "
                    "rnn(input, hx, lengths=lengths)"
                )
            if batch_sizes.numel() == 0:
                raise IndexError("input must have at least one time step, got empty batch_sizes")
            if hx is not None:
                # A graph does not know batch_sizes[0], the number of sequences. There the operator
                # checks. Sorting the sequences could cut a batch of hx that is too large.
                if not torch.compiler.is_exporting():
                    self._check_sizes(hx, data, batch_sizes)
                hx = self.permute_hidden(hx, sorted_indices)  # type: ignore[arg-type]  # a pair
            resets = (
                None
                if reset is None
                else check_reset(packed_like(reset, input, "reset"), data.shape[:1])
            )
        else:
            data, batch_sizes = input, None
            one_hot = is_one_hot(data)
            rank = data.dim() + one_hot
            if rank not in (2, 3):
                raise ValueError(
                    f"{self._torch_name}: Expected input to be 2D or 3D, or int64 tokens of 1D or "
                    f"2D, got {data.dtype} of {data.dim()}D instead. Vectors must be "
                    "floating-point, also one-hot vectors. Tokens must be int64: call input.long()"
                )
            if one_hot and rank == 3 and data.shape[1] == self.input_size:
                warn_of_one_hot_vectors(data, self.batch_first)
            if hx is not None:
                self._check_rank(hx, rank)
            batched = rank == 3
            resets = None if reset is None else check_reset(reset, data.shape[: rank - 1])
            if not batched:
                data = data.unsqueeze(batch_dim)
                resets = None if resets is None else resets.unsqueeze(batch_dim)
                hx = each_state(lambda state: state.unsqueeze(1), hx)
        weights = self._weights()
        training = self.training
        if not one_hot:
            self._check_data(data, weights[0].dtype, batch_sizes)
        if hx is not None and not packed:
            self._check_sizes(hx, data, batch_sizes)

        descriptor = self._descriptor(
            self.num_layers,
            2 if self.bidirectional else 1,
            self.batch_first and not packed,
            _CELLS[self.mode],
            self.bias,
        )
        output, h_n = run_rnn(
            data,
            hx,
            weights,
            batch_sizes,
            descriptor,
            self.dropout if training else 0.0,
            self.variational_dropout if training else 0.0,
            self.zoneout,
            training,
            lengths,
            resets,
        )
        if packed:
            output = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
            return output, self.permute_hidden(h_n, unsorted_indices)
        if not batched:
            return output.squeeze(batch_dim), each_state(lambda state: state.squeeze(1), h_n)
        return output, h_n

    def stepper(self, batch_size: int = 1) -> Stepper[_State]:
        """Return a :class:`rnnfast.nn.Stepper`, which gets one time step at a time.

        Args:
            batch_size: the number of sequences that run side by side.

        Raises:
            ValueError: ``batch_size`` is less than 1, the module is bidirectional, or it has
                zoneout or projections.
            RuntimeError: there is no kernel for the device and dtype of the weights.
        """
        return Stepper(self, batch_size)

    def _native_stepper(self, batch_size):
        """Return the present weights and the native part of a stepper."""
        if self.bidirectional:
            raise ValueError(
                f"a bidirectional {self._torch_name} has no stepper, because its reverse direction "
                "begins with the last time step"
            )
        if self.proj_size:
            raise ValueError(
                "proj_size must be 0 for a stepper, because rnnfast's kernels have no projections, "
                f"got {self.proj_size}"
            )
        if self.zoneout:
            raise ValueError(f"zoneout must be 0 for a stepper, got {self.zoneout}")
        _, weights = _torch.named_rnn_weights(self)
        options = (2 if self.bias else 0, _CELLS[self.mode])
        return weights, native_stepper(self, batch_size, weights, *options)

    def _checked_hx(self, hx):
        """Return ``hx``, after a check of its type."""
        if not isinstance(hx, torch.Tensor):
            raise AttributeError(f"hx must be a tensor, got {type(hx).__name__}")
        return hx

    def _check_rank(self, hx, rank):
        if hx.dim() != rank:
            kind = "batched" if rank == 3 else "unbatched"
            raise RuntimeError(
                f"For {kind} input, hx should be {rank}-D but got {hx.dim()}-D tensor"
            )

    def _check_sizes(self, hx, input, batch_sizes):
        self.check_hidden_size(hx, self.get_expected_hidden_size(input, batch_sizes))

    def _reset_hx(self, hx, reset, input):
        """Return ``hx`` for a single time step, with zeros where ``reset`` is true.

        A single step of the reverse direction is the first one that it computes. No step comes
        before it, so that nothing is reset.
        """
        check_reset(reset, input.shape[:-1])
        batch = (reset.numel(),) if reset.dim() == 2 else ()
        count = self.num_layers * (2 if self.bidirectional else 1)
        kept = ~reset.squeeze(1 if self.batch_first and reset.dim() == 2 else 0)

        def with_zeros(state):
            if state.shape[:-1] != (count, *batch):
                return state  # torch's module says what is wrong with it
            directions = list(state.unflatten(0, (self.num_layers, -1)).unbind(1))
            is_kept = kept.to(state.device).unsqueeze(-1)
            directions[0] = torch.where(is_kept, directions[0], 0.0)
            return torch.stack(directions, 1).flatten(0, 1)

        return each_state(with_zeros, hx)

    def _forward_padded(self, input, hx, lengths, reset):
        T, B = input.shape[:2][:: -1 if self.batch_first else 1]
        lengths = lengths.cpu()
        if B and not 0 <= lengths.min() <= lengths.max() <= T:
            raise ValueError(f"lengths must be in [0, {T}], got {lengths.tolist()}")
        if torch.jit.is_tracing() and is_one_hot(input):
            # The older exporter of ONNX allows no operator between the packing and the RNN.
            input = one_hot_vectors(input, self.weight_ih_l0)
        if reset is not None:
            check_reset(reset, input.shape[:2])
        if hx is not None:  # sorting the sequences could cut a batch of hx that is too large
            self._check_sizes(hx, input, None)
        if not lengths.all():
            return self._forward_with_empty(input, hx, lengths, reset)
        packed, reset = (
            t if t is None else pack_padded_sequence(t, lengths, self.batch_first, False)
            for t in (input, reset)
        )
        output, h_n = self.forward(packed, hx, reset=reset)
        output, _ = pad_packed_sequence(output, self.batch_first, total_length=T)
        return output, h_n

    def _forward_with_empty(self, input, hx, lengths, reset):
        """Run a padded batch in which sequences without time steps keep their initial state."""
        batch_dim, time_dim = (0, 1) if self.batch_first else (1, 0)
        kept = lengths.nonzero().flatten().to(input.device)
        steps = input.index_select(batch_dim, kept)
        h0 = each_state(lambda state: state.index_select(1, kept), hx)
        if len(kept):
            if reset is not None:
                reset = reset.index_select(batch_dim, kept.to(reset.device))
            output, h_n = self._forward_padded(steps, h0, lengths[lengths > 0], reset)
        else:  # one step of no sequence: the results are empty, and their gradients are zero
            output, h_n = self.forward(steps.sum(time_dim, keepdim=True), h0)
        output = output.expand(*steps.shape[:2], -1)
        if hx is None:
            B = len(lengths)
            hx = each_state(lambda last: last.new_zeros(last.shape[0], B, last.shape[2]), h_n)
        padded = output.new_zeros(*input.shape[:2], output.shape[-1])
        output = padded.index_copy(batch_dim, kept, output)
        pairs = zip(states_of(hx), states_of(h_n), strict=True)
        return output, as_hx([h.to(last.dtype).index_copy(1, kept, last) for h, last in pairs])


_torch.let_dynamo_trace(Recurrent)
