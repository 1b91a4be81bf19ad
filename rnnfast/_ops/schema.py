"""The operators ``torch.ops.rnnfast.*``: definitions, fakes and the descriptions of calls.

Letters: T time steps, B sequences, I inputs, H hidden units, L layers, D directions, N rows of a
packed batch.

``rnn`` runs L layers, all their directions and all time steps.

- ``x`` is (T, B, I), (B, T, I) with ``batch_first``, or (N, I) with ``batch_sizes``. An ``x`` of
  int64 is one-hot input of shape (T, B), (B, T) or (N). W_ih x_t is then the column w_ih[:, x_t],
  and no one-hot tensor is built.
- ``weights`` holds (w_ih, w_hh[, b_ih, b_hh]) for each layer and direction.
- ``outs`` are the outputs of all layers if ``keep`` is true, which is what ``rnn_backward`` needs.
  Otherwise only the output of the last layer is returned.
- ``reset`` is bool and has one element for each row of ``x``: (T, B), (B, T) or (N). Where it is
  true, the state of that sequence is zero before that time step. A reverse direction enters a
  segment between resets at its last step, and its state is zero there instead. So every segment is
  as if it were run alone.

``rnn_padded`` is ``rnn`` for a padded batch of sequences that end after ``lengths``, int64 (B) of
values in [0, T]. Steps past the end of a sequence are zero in ``output``, and ``h_n`` has the state
at its last step. It is for the graphs of ``torch.export``.

``gated_rnn``, ``gated_rnn_backward`` and ``gated_rnn_padded`` are the same for the ``cell`` "gru"
or "lstm", which has G = 3 or 4 gates. ``w_ih`` is (G * H, I), ``w_hh`` (G * H, H), and a bias has
G * H elements, in the order of ``nn.GRU`` and ``nn.LSTM``.

- ``c0`` and ``c_n`` are the cell states of an LSTM, with the shape of ``h0``. For a GRU ``c0`` is
  None and ``c_n`` is empty. An LSTM has both initial states or neither.
- ``saved`` is what ``gated_rnn_backward`` needs beside ``outs``: one tensor for each layer if
  ``keep`` is true, and otherwise none. It has S numbers for each unit and row: 5 for a GRU and 6
  for an LSTM. Only the kernel knows what they mean.

``leaky_rnn`` runs one layer of leaky units forward in time; csrc/api/leaky.h describes it.

- ``weights`` holds (w_ih, w_hh[, b]), and ``x``, ``batch_sizes`` and ``reset`` are as for ``rnn``.
  ``h0`` and ``h_n`` are (1, B, H).
- ``alpha`` is (H). ``noise`` has a row of H elements for each row of ``x``; instead of it,
  ``noise_scale`` (H) and ``seed``, int64 (), have the noise drawn.
- ``states`` and ``saved`` are empty tensors unless ``keep_states`` and ``keep_saved`` are true. For
  a rate there are no ``states``, because the output is the state.

``normal`` returns (rows, columns) random numbers in the dtype of ``like``; csrc/api/leaky.h
describes them.

``linear_cross_entropy`` is described in csrc/api/loss.h. With ``reduction`` "none" the loss is (N)
and the gradients are those for ``dloss``, (N). With "mean" or "sum" the loss is (), the gradients
are those of the loss, and ``dloss`` is None.

``dropout`` is described in csrc/api/dropout.h. Its result is contiguous, and ``seed`` is int64 ().

A gradient that is not needed is returned as an empty tensor.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

NONLINEARITIES = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "linear": lambda x: x,
}

library = torch.library.Library("rnnfast", "DEF")
_tags = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)
library.define(
    "rnn(Tensor x, Tensor? h0, Tensor[] weights, Tensor? batch_sizes, int num_layers, "
    "bool batch_first, bool relu, bool bias, bool keep, *, Tensor? reset=None) "
    "-> (Tensor[] outs, Tensor h_n)",
    tags=_tags,
)
library.define(
    "rnn_backward(Tensor? dy, Tensor? dh_n, Tensor[] outs, Tensor x, Tensor? h0, Tensor[] weights, "
    "Tensor? batch_sizes, int num_layers, bool batch_first, bool relu, bool bias, bool need_dx, "
    "bool need_dh0, bool need_dw, *, Tensor? reset=None) -> (Tensor dx, Tensor dh0, Tensor[] dw)",
    tags=_tags,
)
library.define(
    "rnn_padded(Tensor x, Tensor? h0, Tensor[] weights, Tensor lengths, int num_layers, "
    "bool batch_first, bool relu, bool bias, *, Tensor? reset=None) -> (Tensor output, Tensor h_n)",
    tags=_tags,
)
library.define(
    "gated_rnn(Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, str cell, "
    "int num_layers, bool batch_first, bool bias, bool keep, *, Tensor? reset=None) "
    "-> (Tensor[] outs, Tensor h_n, Tensor c_n, Tensor[] saved)",
    tags=_tags,
)
library.define(
    "gated_rnn_backward(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor[] outs, Tensor[] saved, "
    "Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, str cell, "
    "int num_layers, bool batch_first, bool bias, bool need_dx, bool need_dh0, bool need_dc0, "
    "bool need_dw, *, Tensor? reset=None) -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor[] dw)",
    tags=_tags,
)
library.define(
    "gated_rnn_padded(Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor lengths, "
    "str cell, int num_layers, bool batch_first, bool bias, *, Tensor? reset=None) "
    "-> (Tensor output, Tensor h_n, Tensor c_n)",
    tags=_tags,
)
library.define(
    "leaky_rnn(Tensor x, Tensor? h0, Tensor[] weights, Tensor alpha, Tensor? noise, "
    "Tensor? noise_scale, Tensor? seed, Tensor? batch_sizes, bool batch_first, bool current, "
    "str nonlinearity, bool keep_states, bool keep_saved, *, Tensor? reset=None) "
    "-> (Tensor output, Tensor h_n, Tensor states, Tensor saved)",
    tags=_tags,
)
library.define(
    "leaky_rnn_backward(Tensor? dy, Tensor? dh_n, Tensor? dstates, Tensor output, Tensor states, "
    "Tensor saved, Tensor x, Tensor? h0, Tensor[] weights, Tensor alpha, Tensor? batch_sizes, "
    "bool batch_first, bool current, str nonlinearity, bool need_dx, bool need_dh0, bool need_dw, "
    "bool need_dalpha, bool need_dnoise, *, Tensor? reset=None) "
    "-> (Tensor dx, Tensor dh0, Tensor[] dw, Tensor dalpha, Tensor dnoise)",
    tags=_tags,
)
library.define("normal(Tensor seed, Tensor like, int rows, int columns) -> Tensor", tags=_tags)
library.define(
    "linear_cross_entropy(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, "
    "Tensor? dloss, str reduction, bool need_dx, bool need_dw, bool need_db) "
    "-> (Tensor loss, Tensor dx, Tensor dw, Tensor db)",
    tags=_tags,
)
library.define("dropout(Tensor x, Tensor seed, float p) -> Tensor", tags=_tags)


def _weights_per_direction(bias):
    return 4 if bias else 2


def _directions(weights, num_layers, bias):
    """Return the number of directions of a call of an operator."""
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    per = _weights_per_direction(bias)
    directions, rest = divmod(len(weights), num_layers * per)
    if rest or directions not in (1, 2):
        raise ValueError(
            f"weights must have {per} tensors for each of {num_layers} layers and of 1 or 2 "
            f"directions, got {len(weights)}"
        )
    return directions


class _RNNFields(NamedTuple):
    num_layers: int
    directions: int
    batch_first: bool
    nonlinearity: str  # "tanh" or "relu"
    bias: bool


class _GatedFields(NamedTuple):
    num_layers: int
    directions: int
    batch_first: bool
    cell: str  # "gru" or "lstm"
    bias: bool


class _Layers:
    """What the descriptions of all cells have in common: the numbers of weights and states."""

    __slots__ = ()

    @property
    def one_layer(self):
        """The description of each layer alone."""
        return self._replace(num_layers=1)

    @property
    def num_states(self):
        """L * D, the number of initial and of final states."""
        return self.num_layers * self.directions

    @property
    def weights_per_direction(self):
        """The number of weights of one direction: w_ih, w_hh and, with bias, b_ih, b_hh."""
        return _weights_per_direction(self.bias)

    @property
    def weights_per_layer(self):
        """The number of weights of all directions of one layer."""
        return self.directions * self.weights_per_direction

    def weights_of(self, weights, layer, direction=0):
        """Return the part of ``weights`` that belongs to one direction of one layer."""
        count = len(weights) // self.num_states  # also right with the projections of torch's LSTM
        first = (layer * self.directions + direction) * count
        return weights[first : first + count]


class RNNDescriptor(_RNNFields, _Layers):
    """The description of a call of the RNN: everything except its tensors.

    It has every number that the shapes of the weights and the states depend on. It is immutable, so
    one description may be handed on from the module to the kernels.
    """

    __slots__ = ()
    gates = 1  # the number of products with W_ih and with W_hh for each unit

    @classmethod
    def of_operator(cls, weights, num_layers, batch_first, relu, bias):
        """Return the description that belongs to the arguments of an operator."""
        directions = _directions(weights, num_layers, bias)
        return cls(num_layers, directions, batch_first, "relu" if relu else "tanh", bias)

    @property
    def options(self):
        """The arguments ``(num_layers, batch_first, relu, bias)`` of the operators."""
        return self.num_layers, self.batch_first, self.nonlinearity == "relu", self.bias

    @property
    def cell(self):
        """The name of the cell, which is that of its nonlinearity."""
        return self.nonlinearity


class GatedDescriptor(_GatedFields, _Layers):
    """The description of a call of a GRU or an LSTM, like `RNNDescriptor`."""

    __slots__ = ()

    @classmethod
    def of_operator(cls, weights, cell, num_layers, batch_first, bias):
        """Return the description that belongs to the arguments of an operator."""
        directions = _directions(weights, num_layers, bias)
        return cls(num_layers, directions, batch_first, cell, bias)

    @property
    def options(self):
        """The arguments ``(cell, num_layers, batch_first, bias)`` of the operators."""
        return self.cell, self.num_layers, self.batch_first, self.bias

    @property
    def is_lstm(self):
        """Whether there is a cell state."""
        return self.cell == "lstm"

    @property
    def gates(self):
        """G, the number of gates."""
        return 4 if self.is_lstm else 3

    @property
    def saved_per_row(self):
        """D * S, what the kernel saves for the backward pass of a layer, as multiples of H."""
        return self.directions * (6 if self.is_lstm else 5)


class LeakyDescriptor(NamedTuple):
    """The description of a layer of leaky units: everything except its tensors."""

    batch_first: bool
    current: bool  # whether the state is a current, and otherwise a rate
    nonlinearity: str


def is_one_hot(x):
    """Return whether ``x`` holds tokens, which stand for one-hot vectors."""
    return x.dtype is torch.int64


def shape_of_rows(x, batch_sizes):
    """Return the shape of the input ``x`` without I: (T, B), (B, T) or (N).

    Raises:
        RuntimeError: ``x`` has a wrong number of dimensions.
    """
    rows = x.shape if is_one_hot(x) else x.shape[:-1]
    if len(rows) != (2 if batch_sizes is None else 1):
        wanted = "(T, B, I), or int64 (T, B)" if batch_sizes is None else "(N, I), or int64 (N)"
        message = f"input must be {wanted}, got {x.dtype} {tuple(x.shape)}"
        if not is_one_hot(x) and not x.is_floating_point():
            message += ": tokens must be int64: call input.long()"
        raise RuntimeError(message)
    return rows


def _fake_outputs(x, h0, weights, batch_sizes, descriptor, keep):
    """Return fakes of ``outs`` and ``h_n``."""
    H = weights[1].shape[-1]
    rows = x.shape if is_one_hot(x) else x.shape[:-1]
    if batch_sizes is None:
        B = rows[0 if descriptor.batch_first else 1]
    else:  # B is the first element of batch_sizes, but a fake tensor has no elements
        B = h0.shape[1] if h0 is not None else torch.library.get_ctx().new_dynamic_size()
    shape = (*rows, descriptor.directions * H)
    outs = [weights[1].new_empty(shape) for _ in range(descriptor.num_layers if keep else 1)]
    return outs, weights[1].new_empty((descriptor.num_states, B, H))


@torch.library.register_fake("rnnfast::rnn", lib=library)
def _(x, h0, weights, batch_sizes, *options_and_keep, reset=None):
    *options, keep = options_and_keep
    descriptor = RNNDescriptor.of_operator(weights, *options)
    return _fake_outputs(x, h0, weights, batch_sizes, descriptor, keep)


@torch.library.register_fake("rnnfast::gated_rnn", lib=library)
def _(x, h0, c0, weights, batch_sizes, *options_and_keep, reset=None):
    *options, keep = options_and_keep
    descriptor = GatedDescriptor.of_operator(weights, *options)
    outs, h_n = _fake_outputs(x, h0, weights, batch_sizes, descriptor, keep)
    width = descriptor.saved_per_row * weights[1].shape[-1]
    saved = [out.new_empty((*out.shape[:-1], width)) for out in outs] if keep else []
    return outs, h_n, h_n.new_empty(h_n.shape if descriptor.is_lstm else 0), saved


@torch.library.register_fake("rnnfast::leaky_rnn", lib=library)
def _(x, h0, weights, alpha, noise, noise_scale, seed, batch_sizes, *options, reset=None):
    batch_first, _, _, keep_states, keep_saved = options
    H = weights[1].shape[-1]
    rows = x.shape if is_one_hot(x) else x.shape[:-1]
    if batch_sizes is None:
        B = rows[0 if batch_first else 1]
    else:
        B = h0.shape[1] if h0 is not None else torch.library.get_ctx().new_dynamic_size()
    like = weights[1]
    kept = [like.new_empty((*rows, H) if keep else 0) for keep in (keep_states, keep_saved)]
    return like.new_empty((*rows, H)), like.new_empty((1, B, H)), *kept


@torch.library.register_fake("rnnfast::leaky_rnn_backward", lib=library)
def _(dy, dh_n, dstates, output, states, saved, x, h0, weights, alpha, batch_sizes, *rest, **_):
    *_, need_dx, need_dh0, need_dw, need_dalpha, need_dnoise = rest
    new = output.new_empty
    dw = [new(w.shape) for w in weights] if need_dw else []
    if is_one_hot(x) and need_dw:
        dw[0] = new(weights[0].shape[::-1]).t()
    dh0 = new(h0.shape if need_dh0 else 0)
    dalpha, dnoise = new(alpha.shape if need_dalpha else 0), new(output.shape if need_dnoise else 0)
    return new(x.shape if need_dx else 0), dh0, dw, dalpha, dnoise


@torch.library.register_fake("rnnfast::normal", lib=library)
def _(seed, like, rows, columns):
    return like.new_empty((rows, columns))


def _fake_padded(x, weights, descriptor):
    """Return fakes of ``output`` and ``h_n`` for a padded batch."""
    H = weights[1].shape[-1]
    output = weights[1].new_empty((*x.shape[:2], descriptor.directions * H))
    B = x.shape[0 if descriptor.batch_first else 1]
    return output, weights[1].new_empty((descriptor.num_states, B, H))


@torch.library.register_fake("rnnfast::rnn_padded", lib=library)
def _(x, h0, weights, lengths, *options, reset=None):
    return _fake_padded(x, weights, RNNDescriptor.of_operator(weights, *options))


@torch.library.register_fake("rnnfast::gated_rnn_padded", lib=library)
def _(x, h0, c0, weights, lengths, *options, reset=None):
    descriptor = GatedDescriptor.of_operator(weights, *options)
    output, h_n = _fake_padded(x, weights, descriptor)
    return output, h_n, h_n.new_empty(h_n.shape if descriptor.is_lstm else 0)


def _fake_gradients(new, x, states, weights, descriptor, needs):
    """Return fakes of ``dx``, of the gradients of the initial ``states``, and of ``dw``."""
    need_dx, *need_states, need_dw = needs
    gradients = [new(t.shape if n else 0) for t, n in zip(states, need_states, strict=True)]
    dw = [new(w.shape) for w in weights] if need_dw else []
    if is_one_hot(x) and need_dw:  # the kernel makes these gradients column by column
        for n in range(0, descriptor.weights_per_layer, descriptor.weights_per_direction):
            dw[n] = new(weights[n].shape[::-1]).t()
    return new(x.shape if need_dx else 0), *gradients, dw


@torch.library.register_fake("rnnfast::rnn_backward", lib=library)
def _(dy, dh_n, outs, x, h0, weights, batch_sizes, *options_and_needs, reset=None):
    descriptor = RNNDescriptor.of_operator(weights, *options_and_needs[:-3])
    needs = options_and_needs[-3:]
    return _fake_gradients(outs[0].new_empty, x, (h0,), weights, descriptor, needs)


@torch.library.register_fake("rnnfast::gated_rnn_backward", lib=library)
def _(
    dy, dh_n, dc_n, outs, saved, x, h0, c0, weights, batch_sizes, *options_and_needs, reset=None
):  # fmt: skip
    descriptor = GatedDescriptor.of_operator(weights, *options_and_needs[:-4])
    needs = options_and_needs[-4:]
    return _fake_gradients(outs[0].new_empty, x, (h0, c0), weights, descriptor, needs)


def new_loss_gradients(empty, x, w, need_dx, need_dw, need_db):
    """Return new gradients of ``x``, ``w`` and the bias, made by ``empty(shape, like)``."""
    return [
        empty(shape if needed else (0,), x)
        for shape, needed in ((x.shape, need_dx), (w.shape, need_dw), (w.shape[:1], need_db))
    ]


@torch.library.register_fake("rnnfast::linear_cross_entropy", lib=library)
def _(x, w, target, b, dloss, reduction, *needs):
    gradients = new_loss_gradients(lambda shape, like: like.new_empty(shape), x, w, *needs)
    return x.new_empty(target.shape if reduction == "none" else ()), *gradients


@torch.library.register_fake("rnnfast::dropout", lib=library)
def _(x, seed, p):
    return x.new_empty(x.shape)
