"""The modules :class:`FastRNN`, :class:`FastRNNCell` and :class:`Dropout`; :func:`accelerate` for
existing models."""

import numbers

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import functional
from ._ops import is_one_hot
from ._torch import is_any_autocast_enabled, is_in_transform, let_dynamo_trace, named_rnn_weights

__all__ = ["Dropout", "FastRNN", "FastRNNCell", "accelerate"]


def _probability(name, p):
    """``p``, checked as ``nn.RNN`` checks its dropout."""
    if not isinstance(p, numbers.Number) or isinstance(p, bool) or not 0 <= p <= 1:
        raise ValueError(f"{name} should be a number in range [0, 1], a probability, got {p!r}")
    return float(p)


class FastRNN(nn.RNN):
    """A drop-in for :class:`torch.nn.RNN`: same arguments, parameters, results and errors; faster.

    ``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)`` with f = tanh or ReLU (Elman 1990), over
    L layers and D directions.

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout,
        bidirectional, device, dtype: as in ``nn.RNN``.
        variational_dropout: probability of zeroing a unit between layers, as ``dropout`` does but
            with one mask for all time steps of a sequence (Gal & Ghahramani 2016).
        weight_dropout: probability of zeroing a weight of ``weight_hh``, one mask a call
            (DropConnect; Wan et al. 2013, Merity et al. 2018).
        zoneout: probability that a unit keeps its state from one time step to the next (Krueger et
            al. 2017); in ``eval()`` the expectation, ``p h_{t-1} + (1 - p) f(...)``. No kernel: its
            time steps run one by one on torch's operators.

    The last three are 0 by default and, but for zoneout's expectation, act in training only, drawn
    from torch's generator.

    Call with ``input`` (T, B, I), (B, T, I) if ``batch_first``, (T, I) or a ``PackedSequence``,
    and optionally ``hx`` (L * D, B, H) or (L * D, H). Returns ``(output, h_n)`` as ``nn.RNN``
    does; with ``batch_first`` the output is contiguous as (B, T, D * H).

    One more kind of input, for a one-hot layer: int64 tokens in [0, I), of shape (T, B), (B, T),
    (T) or packed. The result is that of the one-hot vectors, but they are never built.

    And one more argument, ``lengths``: int64 (B), on any device, or a list, the number of time
    steps of each sequence in a padded batch. Steps past the end are zero in ``output`` and change
    nothing; ``h_n`` is each sequence's own last state.

    float32, float64, bfloat16 and float16 on the CPU run on rnnfast's kernels; see
    :func:`rnnfast.functional.rnn` for what runs on torch's operators instead.

    Raises:
        ValueError, RuntimeError: where ``nn.RNN`` does. ValueError for a probability that is not
            in [0, 1] and for lengths that are not in [1, T] or do not fit the input.
        IndexError: a token that is not in [0, I).
    """

    # Of the class, so that an nn.RNN which accelerate() turned into a FastRNN has them too.
    variational_dropout = weight_dropout = zoneout = 0.0

    def __init__(self, *args, variational_dropout=0.0, weight_dropout=0.0, zoneout=0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.variational_dropout = _probability("variational_dropout", variational_dropout)
        self.weight_dropout = _probability("weight_dropout", weight_dropout)
        self.zoneout = _probability("zoneout", zoneout)

    def extra_repr(self):
        regularisers = ("variational_dropout", "weight_dropout", "zoneout")
        used = [f"{name}={getattr(self, name)}" for name in regularisers if getattr(self, name)]
        return ", ".join([super().extra_repr(), *used])

    def _is_regularised(self):
        """By more than ``nn.RNN`` knows of."""
        return bool(
            self.zoneout or (self.training and (self.variational_dropout or self.weight_dropout))
        )

    def _weights(self):
        """Of a call, in the order of ``nn.RNN``: in training some recurrent ones are dropped."""
        names, weights = named_rnn_weights(self)
        if self.training and self.weight_dropout:
            weights = [
                functional.dropout(weight, self.weight_dropout) if "weight_hh" in name else weight
                for name, weight in zip(names, weights, strict=True)
            ]
        return weights

    def _is_single_step(self, input):
        """A single step has nothing to fuse over time, and its weights would be packed for one use.

        Not while it is traced: a graph has one operator for any T, with a translation to ONNX. Nor
        under torch.func, for torch's operator has no batching rule.
        """
        return (
            not isinstance(input, PackedSequence)
            and input.dim() in (2, 3)
            and input.shape[1 if self.batch_first and input.dim() == 3 else 0] == 1
            and not is_one_hot(input)
            and not torch.compiler.is_compiling()
            and not is_in_transform()
        )

    def _check_data(self, input, dtype, batch_sizes):
        """nn.RNN's check_input, which reads that list."""
        if input.dtype != dtype and not is_any_autocast_enabled():
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). Convert "
                f"input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )
        rank = 3 if batch_sizes is None else 2
        if input.dim() != rank:
            raise RuntimeError(f"input must have {rank} dimensions, got {input.dim()}")
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {input.size(-1)}"
            )

    def forward(self, input, hx=None, lengths=None):
        if lengths is not None:
            return self._padded(input, hx, lengths)
        if self._is_single_step(input) and not self._is_regularised():
            functional.check_hx_dtype(hx, self.weight_hh_l0.dtype)
            return super().forward(input, hx)
        packed = isinstance(input, PackedSequence)
        if packed:
            data, batch_sizes, sorted_indices, unsorted_indices = input
            if len(batch_sizes) == 0:
                raise IndexError("input must have at least one time step, got empty batch_sizes")
            hx = None if hx is None else self.permute_hidden(hx, sorted_indices)
        else:
            data, batch_sizes = input, None
            rank = data.dim() + is_one_hot(data)
            if rank not in (2, 3):
                raise ValueError(
                    "RNN: Expected input to be 2D or 3D, or int64 tokens of 1D or 2D, got "
                    f"{data.dtype} of {data.dim()}D instead"
                )
            if hx is not None and hx.dim() != rank:
                kind = "batched" if rank == 3 else "unbatched"
                raise RuntimeError(
                    f"For {kind} input, hx should be {rank}-D but got {hx.dim()}-D tensor"
                )
            batched = rank == 3
            batch_dim = 0 if self.batch_first else 1
            if not batched:
                data = data.unsqueeze(batch_dim)
                hx = None if hx is None else hx.unsqueeze(1)
        weights = self._weights()
        training = self.training
        if not is_one_hot(data):
            self._check_data(data, weights[0].dtype, batch_sizes)
        if hx is not None:
            self.check_hidden_size(hx, self.get_expected_hidden_size(data, batch_sizes))

        output, h_n = functional.run(
            data,
            hx,
            weights,
            batch_sizes,
            self.num_layers,
            self.bidirectional,
            self.batch_first and not packed,
            self.mode == "RNN_RELU",
            self.bias,
            self.dropout if training else 0.0,
            self.variational_dropout if training else 0.0,
            self.zoneout,
            training,
        )
        if packed:
            output = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
            return output, self.permute_hidden(h_n, unsorted_indices)
        if not batched:
            return output.squeeze(batch_dim), h_n.squeeze(1)
        return output, h_n

    def _padded(self, input, hx, lengths):
        if isinstance(input, PackedSequence) or input.dim() + is_one_hot(input) != 3:
            raise ValueError("lengths must be None unless input is a padded batch")
        T, B = input.shape[:2][:: -1 if self.batch_first else 1]
        lengths = torch.as_tensor(lengths, device="cpu")
        if lengths.dtype != torch.int64 or lengths.shape != (B,):
            raise ValueError(
                f"lengths must be int64 ({B},), got {lengths.dtype} {tuple(lengths.shape)}"
            )
        if B and not 1 <= lengths.min() <= lengths.max() <= T:
            raise ValueError(f"lengths must be in [1, {T}], got {lengths.tolist()}")
        if hx is not None:  # whose batch is sorted with that of the input, and might be cut to it
            self.check_hidden_size(hx, self.get_expected_hidden_size(input, None))
        packed = pack_padded_sequence(input, lengths, self.batch_first, enforce_sorted=False)
        output, h_n = self.forward(packed, hx)
        output, _ = pad_packed_sequence(output, self.batch_first, total_length=T)
        return output, h_n


let_dynamo_trace(FastRNN)


class FastRNNCell(nn.RNNCell):
    """A drop-in for :class:`torch.nn.RNNCell`: one step, ``h' = f(W_ih x + b_ih + W_hh h + b_hh)``.

    Call with ``input`` (B, I) or (I) and optionally ``hx`` (B, H) or (H); returns the next state,
    (B, H) or (H). Like a single step of :class:`FastRNN` it runs on torch's own operators, there
    being nothing to fuse over time; to go over a sequence use :class:`FastRNN`.
    """


class Dropout(nn.Dropout):
    """:class:`torch.nn.Dropout` by :func:`rnnfast.functional.dropout`, which says what is other.

    Args:
        p: probability of zeroing an element, in [0, 1].
    """

    def __init__(self, p=0.5):
        super().__init__(p)

    def forward(self, input):
        return functional.dropout(input, self.p, self.training)


_FAST = {nn.RNN: FastRNN, nn.RNNCell: FastRNNCell}


def accelerate(model):
    """Turn every ``nn.RNN`` and ``nn.RNNCell`` inside ``model`` into its fast form, in place.

    The modules stay the same objects with the same parameters, buffers and hooks: only their
    class changes, so optimizers and references from elsewhere stay valid. Subclasses are left
    alone, since they may have changed ``forward``.

    Args:
        model: any ``nn.Module``, an ``nn.RNN`` itself as well.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if type(module) in _FAST:
            module.__class__ = _FAST[type(module)]
    return model
