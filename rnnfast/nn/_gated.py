"""The modules :class:`FastGRU` and :class:`FastLSTM`."""

import torch
from torch import Tensor, nn

from .. import _torch
from .._ops import GatedDescriptor
from ._recurrent import Recurrent


class FastGRU(Recurrent[Tensor], nn.GRU):
    """A faster drop-in for :class:`torch.nn.GRU`, with the same arguments, parameters and results.

    It computes the GRU of Cho et al. (2014) in the form of ``nn.GRU``, with H hidden units::

        r_t = sigmoid(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
        z_t = sigmoid(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
        n_t = tanh(W_in x_t + b_in + r_t (W_hn h_{t-1} + b_hn))
        h_t = (1 - z_t) n_t + z_t h_{t-1}

    It raises the errors that ``nn.GRU`` raises.

    Args:
        *args, **kwargs: the arguments of ``nn.GRU``: ``input_size``, ``hidden_size``,
            ``num_layers``, ``bias``, ``batch_first``, ``dropout``, ``bidirectional``, ``device``,
            ``dtype``.
        variational_dropout, weight_dropout, zoneout: regularisers, as for :class:`FastRNN`.
            Default: 0.

    Shape:
        - ``input``, ``lengths``, ``reset``: as for :class:`FastRNN`, with int64 tokens for one-hot
          input.
        - ``hx``: the initial state (L * D, B, H), or (L * D, H) without a batch. Default: zeros.
        - Returns ``(output, h_n)`` of shapes (T, B, D * H) and (L * D, B, H), in the layout of
          ``input``. With ``batch_first`` the output is contiguous as (B, T, D * H).

    float32, float64, bfloat16 and float16 on the CPU run on rnnfast's kernels, except for single
    time steps with gradients. CUDA devices run on torch's operator, which means cuDNN.
    :func:`rnnfast.functional.gru` describes what else runs on torch's operators.

    Raises:
        ValueError, RuntimeError, IndexError: where ``nn.GRU`` or :class:`FastRNN` raises them.

    Example:
        >>> import torch
        >>> from rnnfast import FastGRU
        >>> gru = FastGRU(10, 20, num_layers=2, bidirectional=True)
        >>> output, h_n = gru(torch.randn(5, 3, 10), lengths=[5, 2, 4])
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 40]), torch.Size([4, 3, 20]))
    """

    _descriptor = GatedDescriptor

    def _is_single_step(self, input):
        """Return whether ``input`` should run on torch's operator as a single time step.

        Under autocast on the CPU ``nn.GRU`` returns float32, and the kernels another dtype.
        """
        return not _torch.is_any_autocast_enabled() and super()._is_single_step(input)


class FastLSTM(Recurrent[tuple[Tensor, Tensor]], nn.LSTM):
    """A faster drop-in for :class:`torch.nn.LSTM`, with the same arguments, parameters and results.

    It computes the LSTM of Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al.
    (2000), as ``nn.LSTM`` does, with H hidden units::

        i_t = sigmoid(W_ii x_t + b_ii + W_hi h_{t-1} + b_hi)
        f_t = sigmoid(W_if x_t + b_if + W_hf h_{t-1} + b_hf)
        g_t = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)
        o_t = sigmoid(W_io x_t + b_io + W_ho h_{t-1} + b_ho)
        c_t = f_t c_{t-1} + i_t g_t
        h_t = o_t tanh(c_t)

    It raises the errors that ``nn.LSTM`` raises.

    Args:
        *args, **kwargs: the arguments of ``nn.LSTM``: ``input_size``, ``hidden_size``,
            ``num_layers``, ``bias``, ``batch_first``, ``dropout``, ``bidirectional``,
            ``proj_size``, ``device``, ``dtype``.
        variational_dropout, weight_dropout: regularisers, as for :class:`FastRNN`. Default: 0.
        zoneout: probability that an element of h or of c keeps its value from one time step to the
            next, as for :class:`FastRNN`. h_t is made from c_t before zoneout, as in Krueger et al.
            (2017). Default: 0.

    Shape:
        - ``input``, ``lengths``: as for :class:`FastRNN`, with int64 tokens for one-hot input.
        - ``reset``: as for :class:`FastRNN`. It sets h and c to zero.
        - ``hx``: the initial states ``(h_0, c_0)``, each (L * D, B, H), or (L * D, H) without a
          batch. Default: zeros.
        - Returns ``(output, (h_n, c_n))``. ``output`` is (T, B, D * H) in the layout of ``input``,
          and the final states are (L * D, B, H). With ``batch_first`` the output is contiguous as
          (B, T, D * H).

    float32, float64, bfloat16 and float16 on the CPU run on rnnfast's kernels, except for single
    time steps with gradients. Modules with ``proj_size`` and CUDA devices run on torch's operator,
    which means cuDNN on CUDA devices. :func:`rnnfast.functional.lstm` describes what else runs on
    torch's operators.

    Raises:
        ValueError, RuntimeError, IndexError: where ``nn.LSTM`` or :class:`FastRNN` raises them.

    Example:
        >>> import torch
        >>> from rnnfast import FastLSTM
        >>> lstm = FastLSTM(10, 20)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
        >>> output.shape, c_n.shape
        (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))
    """

    _descriptor = GatedDescriptor

    def _is_single_step(self, input):
        """Return whether ``input`` should run on torch's operator as a single time step.

        ``nn.LSTM`` runs on oneDNN, which has float16 on few CPUs and no forward-mode derivatives.
        """
        return (
            input.dtype is not torch.float16
            and not _torch.is_any_autocast_enabled()
            and not _torch.is_in_transform_or_forward_ad()
            and super()._is_single_step(input)
        )

    def _checked_hx(self, hx):
        pair = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        for state in pair:
            if not isinstance(state, torch.Tensor):
                raise AttributeError(f"hx must hold two tensors, got {type(state).__name__}")
        if len(pair) != 2:
            raise RuntimeError(f"hx must be a pair of tensors (h_0, c_0), got {len(pair)} of them")
        return pair

    def _check_rank(self, hx, rank):
        h, c = (state.dim() for state in hx)
        if h != rank or c != rank:
            kind = "batched" if rank == 3 else "unbatched"
            raise RuntimeError(
                f"For {kind} {rank}-D input, hx and cx should also be {rank}-D but got ({h}-D, "
                f"{c}-D) tensors"
            )

    def _check_sizes(self, hx, input, batch_sizes):
        sizes = (
            self.get_expected_hidden_size(input, batch_sizes),
            self.get_expected_cell_size(input, batch_sizes),
        )
        for n, size in enumerate(sizes):
            self.check_hidden_size(hx[n], size, f"Expected hidden[{n}] size {{}}, got {{}}")
