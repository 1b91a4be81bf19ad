"""The module :class:`FastRNN`, and its single step, :class:`FastRNNCell`."""

from torch import Tensor, nn

from .._ops import RNNDescriptor
from ._recurrent import Recurrent


class FastRNN(Recurrent[Tensor], nn.RNN):
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

    _descriptor = RNNDescriptor
    nonlinearity: str


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
