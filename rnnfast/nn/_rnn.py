"""The module :class:`FastRNN`, and its single step, :class:`FastRNNCell`."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .. import _torch, functional
from .._ops import RNNDescriptor, is_one_hot
from ..functional._operators import check_hx_dtype, one_hot_vectors
from ..functional._run import run_rnn
from ..functional._shared import check_reset
from ._checks import checked_lengths, packed_like, probability, warn_of_one_hot_vectors
from ._stepper import Stepper, native_stepper

_REGULARISERS = ("variational_dropout", "weight_dropout", "zoneout")

_Batch = TypeVar("_Batch", Tensor, PackedSequence)


class FastRNN(nn.RNN):
    """A faster drop-in for :class:`torch.nn.RNN`, with the same arguments, parameters and results.

    It computes ``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)`` with f = tanh or ReLU (Elman
    1990) over L layers and D directions, for T time steps, B sequences, I inputs and H hidden
    units. It raises the errors that ``nn.RNN`` raises.

    Args:
        *args, **kwargs: the arguments of ``nn.RNN``: ``input_size``, ``hidden_size``,
            ``num_layers``, ``nonlinearity``, ``bias``, ``batch_first``, ``dropout``,
            ``bidirectional``, ``device``, ``dtype``.
        variational_dropout: probability of zeroing a unit between layers, like ``dropout`` but with
            one mask for all time steps of a sequence (Gal & Ghahramani 2016). Default: 0.
        weight_dropout: probability of zeroing a weight of ``weight_hh``, with one mask per call
            (DropConnect; Wan et al. 2013, Merity et al. 2018). Default: 0.
        zoneout: probability that a unit keeps its state from one time step to the next (Krueger et
            al. 2017). In ``eval()`` the new state is the expectation,
            ``p h_{t-1} + (1 - p) f(...)``. A module that always is in ``eval()`` is therefore an
            RNN of leaky units: with ``zoneout=1 - alpha`` they have the leak rate alpha, and it can
            be trained like any other. There is no kernel for zoneout: the time steps run one by one
            on torch's operators. Default: 0.

    Dropout of every kind is active in training only, and is drawn from torch's generator.

    Shape:
        - ``input``: (T, B, I), (B, T, I) with ``batch_first``, (T, I) or a ``PackedSequence``. A
          one-hot input may be given as int64 tokens in [0, I), of shape (T, B), (B, T), (T) or
          packed. The result is that of the one-hot vectors, but no one-hot tensor is built. Vectors
          must be floating-point. If int64 tokens look like one-hot vectors (T, I), there is a
          warning.
        - ``hx``: the initial state (L * D, B, H), or (L * D, H) without a batch. Default: zeros.
        - ``lengths``: integers (B) on any device, or a list: the number of time steps of each
          sequence of a padded batch. Steps past the end of a sequence are zero in ``output``, and
          ``h_n`` has the state at its last step, or ``hx`` if the sequence has no steps. Default:
          all sequences have T steps.
        - ``reset``: bool tensor of the shape of ``input`` without I: (T, B), (B, T) with
          ``batch_first``, (T) without a batch, or a ``PackedSequence`` packed like ``input``. Where
          it is true, the state of that sequence is zero before that time step, and no gradient
          passes. A reverse direction enters the part of a sequence between two resets at its last
          step, so that every part is as if it were run alone. Default: no resets.
        - Returns ``(output, h_n)`` of shapes (T, B, D * H) and (L * D, B, H), in the layout of
          ``input``. With ``batch_first`` the output is contiguous as (B, T, D * H).

    float32, float64, bfloat16 and float16 on the CPU run on rnnfast's kernels. A single time step
    runs on them in ``torch.no_grad()`` only, because with gradients torch's operator is as fast.
    :func:`rnnfast.functional.rnn` describes what else runs on torch's operators.

    Raises:
        ValueError, RuntimeError: where ``nn.RNN`` raises them. Also ValueError for a probability
            that is not in [0, 1], and for ``lengths`` that are not in [0, T] or do not fit the
            input, and for a ``reset`` that does not fit the input.
        IndexError: a token is not in [0, I).

    Example:
        >>> import torch
        >>> from rnnfast import FastRNN
        >>> rnn = FastRNN(10, 20, num_layers=2, bidirectional=True)
        >>> output, h_n = rnn(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 40]), torch.Size([4, 3, 20]))
        >>> output, h_n = rnn(torch.randn(5, 3, 10), lengths=[5, 2, 4])
        >>> output[2:, 1].abs().max().item()  # the second sequence ends after two steps
        0.0
        >>> episode_begins = torch.rand(5, 3) < 0.1
        >>> output, h_n = rnn(torch.randn(5, 3, 10), reset=episode_begins)
    """

    # These are attributes of the class, so that an nn.RNN has them too after accelerate() has
    # changed its class.
    variational_dropout = weight_dropout = zoneout = 0.0
    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    nonlinearity: str

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
        used = [f"{name}={getattr(self, name)}" for name in _REGULARISERS if getattr(self, name)]
        return ", ".join([super().extra_repr(), *used])

    def _is_regularised(self):
        """Return whether a regulariser is active that ``nn.RNN`` does not have."""
        return bool(
            self.zoneout or (self.training and (self.variational_dropout or self.weight_dropout))
        )

    def _weights(self):
        """Return the weights for one call, in the order that ``nn.RNN`` uses.

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
        operator has no batching rule. nn.RNN would compute a weight that has a parametrization four
        times, and keep its graph.
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
        hx: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | PackedSequence | None = None,
    ) -> tuple[_Batch, Tensor]:
        """Return ``(output, h_n)``; the class describes the arguments."""
        packed = not isinstance(input, torch.Tensor)
        if packed and not isinstance(input, PackedSequence):
            kind = type(input).__name__  # an AttributeError, as nn.RNN raises, that says more
            raise AttributeError(f"input must be a tensor or PackedSequence, got {kind}")
        if hx is not None and not isinstance(hx, torch.Tensor):
            raise AttributeError(f"hx must be a tensor, got {type(hx).__name__}")
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
                    "shapes of its result: give FastRNN the padded batch and the lengths, "
                    "rnn(input, hx, lengths=lengths)"
                )
            if batch_sizes.numel() == 0:
                raise IndexError("input must have at least one time step, got empty batch_sizes")
            hx = None if hx is None else self.permute_hidden(hx, sorted_indices)
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
                    "RNN: Expected input to be 2D or 3D, or int64 tokens of 1D or 2D, got "
                    f"{data.dtype} of {data.dim()}D instead. Vectors must be floating-point, also "
                    "one-hot vectors. Tokens must be int64: call input.long()"
                )
            if one_hot and rank == 3 and data.shape[1] == self.input_size:
                warn_of_one_hot_vectors(data, self.batch_first)
            if hx is not None and hx.dim() != rank:
                kind = "batched" if rank == 3 else "unbatched"
                raise RuntimeError(
                    f"For {kind} input, hx should be {rank}-D but got {hx.dim()}-D tensor"
                )
            batched = rank == 3
            resets = None if reset is None else check_reset(reset, data.shape[: rank - 1])
            if not batched:
                data = data.unsqueeze(batch_dim)
                resets = None if resets is None else resets.unsqueeze(batch_dim)
                hx = None if hx is None else hx.unsqueeze(1)
        weights = self._weights()
        training = self.training
        if not one_hot:
            self._check_data(data, weights[0].dtype, batch_sizes)
        # A graph does not know batch_sizes[0], the number of sequences. There the operator checks.
        if hx is not None and not (packed and torch.compiler.is_exporting()):
            self.check_hidden_size(hx, self.get_expected_hidden_size(data, batch_sizes))

        descriptor = RNNDescriptor(
            self.num_layers,
            2 if self.bidirectional else 1,
            self.batch_first and not packed,
            "relu" if self.mode == "RNN_RELU" else "tanh",
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
            return output.squeeze(batch_dim), h_n.squeeze(1)
        return output, h_n

    def stepper(self, batch_size: int = 1) -> Stepper:
        """Return a :class:`rnnfast.nn.Stepper`, which gets one time step at a time.

        Args:
            batch_size: the number of sequences that run side by side.

        Raises:
            ValueError: ``batch_size`` is less than 1, the module is bidirectional, or it has
                zoneout.
            RuntimeError: there is no kernel for the device and dtype of the weights.
        """
        return Stepper(self, batch_size)

    def _native_stepper(self, batch_size):
        """Return the present weights and the native part of a stepper."""
        if self.bidirectional:
            raise ValueError(
                "a bidirectional RNN has no stepper, because its reverse direction begins with the "
                "last time step"
            )
        if self.zoneout:
            raise ValueError(f"zoneout must be 0 for a stepper, got {self.zoneout}")
        _, weights = _torch.named_rnn_weights(self)
        options = (2 if self.bias else 0, self.mode == "RNN_RELU")
        return weights, native_stepper(self, batch_size, weights, *options)

    def _reset_hx(self, hx, reset, input):
        """Return ``hx`` for a single time step, with zeros where ``reset`` is true.

        A single step of the reverse direction is the first one that it computes. No step comes
        before it, so that nothing is reset.
        """
        check_reset(reset, input.shape[:-1])
        batch = (reset.numel(),) if reset.dim() == 2 else ()
        states = self.num_layers * (2 if self.bidirectional else 1)
        if hx is None or hx.shape != (states, *batch, self.hidden_size):
            return hx  # nn.RNN says what is wrong with it
        kept = ~reset.to(hx.device).squeeze(1 if self.batch_first and reset.dim() == 2 else 0)
        directions = list(hx.unflatten(0, (self.num_layers, -1)).unbind(1))
        directions[0] = torch.where(kept.unsqueeze(-1), directions[0], 0.0)
        return torch.stack(directions, 1).flatten(0, 1)

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
            self.check_hidden_size(hx, self.get_expected_hidden_size(input, None))
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
        h0 = None if hx is None else hx.index_select(1, kept)
        if len(kept):
            if reset is not None:
                reset = reset.index_select(batch_dim, kept.to(reset.device))
            output, h_n = self._forward_padded(steps, h0, lengths[lengths > 0], reset)
        else:  # one step of no sequence: the results are empty, and their gradients are zero
            output, h_n = self.forward(steps.sum(time_dim, keepdim=True), h0)
        output = output.expand(*steps.shape[:2], -1)
        if hx is None:
            hx = h_n.new_zeros(h_n.shape[0], len(lengths), h_n.shape[2])
        padded = output.new_zeros(*input.shape[:2], output.shape[-1])
        output = padded.index_copy(batch_dim, kept, output)
        return output, hx.to(h_n.dtype).index_copy(1, kept, h_n)


_torch.let_dynamo_trace(FastRNN)


class FastRNNCell(nn.RNNCell):
    """A drop-in for :class:`torch.nn.RNNCell`: one step, ``h' = f(W_ih x + b_ih + W_hh h + b_hh)``.

    It runs on torch's own operators, because a single step leaves nothing to fuse over time. Use
    :class:`FastRNN` for whole sequences.

    Args:
        input_size, hidden_size, bias, nonlinearity, device, dtype: as in ``nn.RNNCell``.

    Shape:
        - ``input``: (B, I) or (I).
        - ``hx``: the state, (B, H) or (H). Default: zeros.
        - Returns the next state, (B, H) or (H).

    Raises:
        ValueError, RuntimeError: where ``nn.RNNCell`` raises them.

    Example:
        >>> import torch
        >>> from rnnfast import FastRNNCell
        >>> cell = FastRNNCell(10, 20)
        >>> cell(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """
