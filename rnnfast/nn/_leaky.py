"""The module :class:`LeakyRNN`."""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .. import functional
from .._ops import LeakyDescriptor, is_one_hot
from ..functional._leaky import check_kind
from ..functional._shared import check_reset
from ._checks import checked_lengths, packed_like
from ._stepper import Stepper, native_stepper

_Batch = TypeVar("_Batch", Tensor, PackedSequence)


class LeakyRNN(nn.Module):
    r"""A recurrent network of leaky units, the continuous-time RNN of computational neuroscience.

    With the leak rate alpha = dt / tau of each unit, the nonlinearity f and standard normal numbers
    xi, it computes one of two kinds of state (Song et al. 2016, doi:10.1371/journal.pcbi.1004792;
    Yang et al. 2019, doi:10.1038/s41593-018-0310-2)::

        p_t = W_ih x_t + W_hh r_{t-1} + b + sqrt(2 / alpha) noise xi_t

        "rate":     r_t = (1 - alpha) r_{t-1} + alpha f(p_t)
        "current":  s_t = (1 - alpha) s_{t-1} + alpha p_t,   r_t = f(s_t)

    The noise of a current is therefore ``sqrt(2 alpha) noise xi_t``. A fused kernel runs all time
    steps, forward and backward. With alpha = 1 and no noise it is :class:`FastRNN` with one bias.

    Args:
        input_size: I, the number of inputs.
        hidden_size: H, the number of units.
        num_layers: L.
        alpha: the leak rate, in (0, 1]: a number or one for each unit, (H). Give it or ``tau`` and
            ``dt``. Default: 1.
        tau: the time constant, a number or one for each unit, (H), in the unit of ``dt``.
        dt: the length of a time step. alpha is ``dt / tau``.
        state: ``"rate"`` or ``"current"``.
        nonlinearity: ``"tanh"``, ``"relu"``, ``"sigmoid"``, ``"softplus"`` or ``"linear"``.
        noise: the standard deviation of the noise, at least 0. It is drawn in training, unless
            ``forward`` is told otherwise.
        learn_h0: whether the initial state is a parameter ``h0``, (L, H), which begins as zeros.
        learn_alpha: whether alpha is learnt, for each unit of each layer. The parameter
            ``alpha_logit``, (L, H), then holds ln(alpha / (1 - alpha)), so that alpha stays between
            0 and 1.
        bias: whether there are biases ``b``.
        batch_first: whether ``input`` and ``output`` are (B, T, ...).
        device, dtype: of the parameters.

    Attributes:
        weight_ih_l0, weight_hh_l0, bias_l0: the weights of the first layer, (H, I), (H, H) and (H).
            Those of the layers above it end with their numbers. They begin uniform between
            -1 / sqrt(H) and 1 / sqrt(H), as in ``nn.RNN``.
        alpha: the leak rates, (L, H).

    Shape:
        - ``input``: (T, B, I), (B, T, I) with ``batch_first``, (T, I) or a ``PackedSequence``. A
          one-hot input may be given as int64 tokens in [0, I).
        - ``hx``: the initial state, (L, B, H), or (L, H) without a batch: s_0 for a current, r_0
          for a rate. Default: ``h0``, or zeros.
        - ``noise``: True or False to draw noise or not, whatever the mode; or the numbers xi, of
          the shape of ``output``, with a first dimension L if there are several layers. Default:
          noise is drawn in training.
        - ``reset``: bool tensor of the shape of ``input`` without I. Where it is true, the state of
          that sequence is zero before that time step, and no gradient passes.
        - ``lengths``: integers (B): the number of time steps of each sequence of a padded batch.
          Steps past the end of a sequence are zero in ``output``, and ``h_n`` has the state at its
          last step, or the initial state if the sequence has no steps.
        - Returns ``(output, h_n)``: r of the last layer, (T, B, H) in the layout of ``input``, and
          the final state of each layer, (L, B, H), which can be given as ``hx``. With
          ``return_state=True`` it returns ``(output, h_n, states)``, where ``states`` has the
          states s of the last layer, of the shape of ``output``. For a rate they are the output.

    For reservoirs, which are not trained, ``weight_hh_l0`` may be sparse (layout
    ``torch.sparse_csr``). Such a module runs in ``torch.no_grad()`` only::

        rnn.weight_hh_l0 = torch.nn.Parameter(w.to_sparse_csr(), requires_grad=False)

    :class:`rnnfast.tasks.EchoState` is a reservoir with a readout that is fitted.

    Noise is seeded by torch's generator. rnnfast's kernels for CPUs draw it, and there it does not
    depend on the number of threads. On CUDA devices, ``torch.randn`` draws it before the kernel
    runs. :func:`rnnfast.functional.leaky_rnn` says what runs on torch's operators instead.

    Raises:
        ValueError: an argument is out of range, or ``lengths``, ``noise`` or ``reset`` do not fit.
        RuntimeError: sizes, dtypes or devices do not fit one another.
        IndexError: a token is not in [0, I).

    Example:
        >>> import torch
        >>> from rnnfast import LeakyRNN
        >>> rnn = LeakyRNN(3, 50, tau=100.0, dt=20.0, noise=0.05)
        >>> rnn.alpha[0, 0].item()
        0.20000000298023224
        >>> output, h_n = rnn(torch.randn(40, 8, 3))
        >>> output.shape, h_n.shape
        (torch.Size([40, 8, 50]), torch.Size([1, 8, 50]))
    """

    alpha_logit: nn.Parameter | None
    h0: nn.Parameter | None
    _alpha: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        alpha: float | Sequence[float] | Tensor | None = None,
        tau: float | Sequence[float] | Tensor | None = None,
        dt: float | None = None,
        state: str = "rate",
        nonlinearity: str = "relu",
        noise: float = 0.0,
        learn_h0: bool = False,
        learn_alpha: bool = False,
        bias: bool = True,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": (input_size, 0), "hidden_size": (hidden_size, 1)}
        for name, (size, least) in {**sizes, "num_layers": (num_layers, 1)}.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {size!r}")
        check_kind(state, nonlinearity)
        if isinstance(noise, bool) or not 0 <= noise < math.inf:
            raise ValueError(f"noise must be a number of at least 0, got {noise!r}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.state, self.nonlinearity, self.noise = state, nonlinearity, float(noise)
        self.bias, self.batch_first = bias, batch_first
        dtype = dtype or torch.get_default_dtype()
        rates = _leak_rates(alpha, tau, dt, hidden_size, learn_alpha)
        rates = rates.expand(num_layers, hidden_size)
        logit = h0 = None
        if learn_alpha:
            logit = nn.Parameter(rates.logit().to(device, dtype).clone())
        else:
            self.register_buffer("_alpha", rates.to(device, dtype).clone())
        if learn_h0:
            h0 = nn.Parameter(torch.zeros(num_layers, hidden_size, device=device, dtype=dtype))
        self.register_parameter("alpha_logit", logit)
        self.register_parameter("h0", h0)
        for layer in range(num_layers):
            inputs = hidden_size if layer else input_size
            shapes = {"weight_ih": (hidden_size, inputs), "weight_hh": (hidden_size, hidden_size)}
            for name, shape in {**shapes, **({"bias": (hidden_size,)} if bias else {})}.items():
                parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                self.register_parameter(f"{name}_l{layer}", parameter)
        self.reset_parameters()

    @property
    def alpha(self) -> Tensor:
        """The leak rates, (L, H)."""
        return self._alpha if self.alpha_logit is None else self.alpha_logit.sigmoid()

    def reset_parameters(self) -> None:
        """Draw the weights anew. alpha and ``h0`` stay as they are."""
        bound = 1 / math.sqrt(self.hidden_size)
        with torch.no_grad():
            for weight in self._weights():
                weight.uniform_(-bound, bound)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr`` that differ from their defaults."""
        text = f"{self.input_size}, {self.hidden_size}"
        rates = self.alpha.detach()
        same = rates.min() == rates.max()
        given = {
            "num_layers": (self.num_layers, 1),
            "alpha": (f"{rates[0, 0].item():.4g}" if same else "one for each unit", "1"),
            "state": (self.state, "rate"),
            "nonlinearity": (self.nonlinearity, "relu"),
            "noise": (self.noise, 0.0),
            "learn_h0": (self.h0 is not None, False),
            "learn_alpha": (self.alpha_logit is not None, False),
            "bias": (self.bias, True),
            "batch_first": (self.batch_first, False),
        }
        return ", ".join([text, *(f"{k}={v}" for k, (v, default) in given.items() if v != default)])

    def _weights(self):
        """Return the weights of all layers, as :func:`rnnfast.functional.leaky_rnn` expects."""
        names = ("weight_ih", "weight_hh", *(("bias",) if self.bias else ()))
        return [getattr(self, f"{n}_l{layer}") for layer in range(self.num_layers) for n in names]

    def forward(
        self,
        input: _Batch,
        hx: Tensor | None = None,
        *,
        noise: bool | Tensor | PackedSequence | None = None,
        reset: Tensor | PackedSequence | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        return_state: bool = False,
    ) -> tuple[_Batch, Tensor] | tuple[_Batch, Tensor, _Batch]:
        """Return ``(output, h_n)`` or ``(output, h_n, states)``; the class describes them."""
        if not isinstance(input, (Tensor, PackedSequence)):
            kind = type(input).__name__
            raise TypeError(f"input must be a tensor or PackedSequence, got {kind}")
        is_given = not isinstance(noise, bool) and noise is not None
        if is_given and not self.noise:
            raise ValueError("noise was given, but the module was made with noise=0")
        xi = noise if is_given else None
        sigma = self.noise if is_given or (self.training if noise is None else noise) else 0.0
        if lengths is not None:
            results = self._forward_padded(input, hx, sigma, xi, reset, lengths)
        elif isinstance(input, PackedSequence):
            results = self._forward_packed(input, hx, sigma, xi, reset)
        else:
            results = self._forward_batch(input, hx, sigma, xi, reset)
        return results if return_state else results[:2]

    def stepper(self, batch_size: int = 1) -> Stepper[Tensor]:
        """Return a :class:`rnnfast.nn.Stepper`, which gets one time step at a time, without noise.

        Args:
            batch_size: the number of sequences that run side by side.

        Raises:
            ValueError: ``batch_size`` is less than 1.
            RuntimeError: there is no kernel for the device and dtype of the weights.
        """
        return Stepper(self, batch_size)

    def _native_stepper(self, batch_size):
        """Return the present weights with alpha, and the native part of a stepper."""
        weights, alpha = self._weights(), self.alpha
        leak = LeakyDescriptor(False, self.state == "current", self.nonlinearity)
        options = (int(self.bias), "tanh", alpha, leak)
        return [*weights, alpha], native_stepper(self, batch_size, weights, *options)

    def _run(self, data, hx, batch_sizes, B, sigma, xi, reset):
        """Run all layers on a batch of B sequences, whose sizes are checked by the function."""
        weights = self._weights()
        if not is_one_hot(data) and data.shape[-1] != self.input_size:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {data.shape[-1]}"
            )
        if hx is None and self.h0 is not None:
            hx = self.h0.unsqueeze(1).expand(-1, B, -1)
        return functional.leaky_rnn(
            data,
            hx,
            weights,
            self.alpha,
            state=self.state,
            nonlinearity=self.nonlinearity,
            noise=sigma,
            xi=xi,
            batch_first=self.batch_first and batch_sizes is None,
            batch_sizes=batch_sizes,
            reset=reset,
        )

    def _forward_batch(self, input, hx, sigma, xi, reset):
        rank = input.dim() + is_one_hot(input)
        if rank not in (2, 3):
            raise ValueError(
                "input must be (T, B, I) or (T, I), or int64 tokens (T, B) or (T), got "
                f"{input.dtype} {tuple(input.shape)}. Tokens must be int64: call input.long()"
            )
        if rank == 3:
            B = input.shape[0 if self.batch_first else 1]
            return self._run(input, hx, None, B, sigma, xi, reset)
        dim = 0 if self.batch_first else 1
        if hx is not None and hx.dim() != 2:
            raise RuntimeError(f"hx must be (L, H) for input (T, I), got {tuple(hx.shape)}")
        input, reset = (None if t is None else t.unsqueeze(dim) for t in (input, reset))
        hx = None if hx is None else hx.unsqueeze(1)
        xi = None if xi is None else xi.unsqueeze(dim - 3)
        output, h_n, states = self._run(input, hx, None, 1, sigma, xi, reset)
        return output.squeeze(dim), h_n.squeeze(1), states.squeeze(dim)

    def _forward_packed(self, input, hx, sigma, xi, reset):
        data, batch_sizes, order, back = input
        if hx is not None and order is not None:
            hx = hx.index_select(1, order)
        if xi is not None:
            xi = packed_like(xi, input, "noise")
        if reset is not None:
            reset = check_reset(packed_like(reset, input, "reset"), data.shape[:1])
        B = int(batch_sizes[0])
        output, h_n, states = self._run(data, hx, batch_sizes, B, sigma, xi, reset)
        h_n = h_n if back is None else h_n.index_select(1, back)
        output, states = (PackedSequence(t, batch_sizes, order, back) for t in (output, states))
        return output, h_n, states

    def _forward_padded(self, input, hx, sigma, xi, reset, lengths):
        batch_dim = 0 if self.batch_first else 1
        lengths = checked_lengths(input, lengths, self.batch_first).cpu()
        T, B = input.shape[1 - batch_dim], input.shape[batch_dim]
        if B and not 0 <= lengths.min() <= lengths.max() <= T:
            raise ValueError(f"lengths must be in [0, {T}], got {lengths.tolist()}")
        if T == 0 or not lengths.any():
            raise ValueError("lengths must be at least 1 for one sequence, got only zeros")
        # A sequence without steps gets one, whose results are replaced below.
        shape = [1, 1, 1]
        shape[batch_dim] = B
        runs = (lengths > 0).to(input.device).view(shape)
        if not runs.all():
            is_run = runs.squeeze(-1) if is_one_hot(input) else runs
            input = torch.where(is_run, input, torch.zeros((), dtype=input.dtype))
        steps = lengths.clamp(min=1)

        def pack(t):
            return pack_padded_sequence(t, steps, self.batch_first, enforce_sorted=False)

        if xi is not None:
            if self.num_layers > 1:
                raise ValueError("noise must not be a tensor for several layers with lengths")
            xi = pack(xi)
        if reset is not None:
            reset = pack(check_reset(reset, input.shape[:2]))
        results = self._forward_packed(pack(input), hx, sigma, xi, reset)
        output, states = (
            pad_packed_sequence(t, self.batch_first, total_length=T)[0]
            for t in (results[0], results[2])
        )
        h_n = results[1]
        if not runs.all():
            start = hx
            if hx is None:
                start = torch.zeros_like(h_n) if self.h0 is None else self.h0.unsqueeze(1)
            h_n = torch.where(runs.view(1, B, 1), h_n, start)
            output, states = (torch.where(runs, t, 0.0) for t in (output, states))
        return output, h_n, states


def _leak_rates(alpha, tau, dt, hidden_size, learn_alpha):
    """Return the leak rates, float64 () or (H), after checks of what the user gave."""
    if (tau is None) != (dt is None):
        raise ValueError("tau and dt must be given together: alpha is dt / tau")
    if alpha is not None and tau is not None:
        raise ValueError("alpha must not be given together with tau and dt")
    name, given = ("alpha", 1.0 if alpha is None else alpha) if tau is None else ("tau", tau)
    rates = torch.as_tensor(given, dtype=torch.float64, device="cpu").detach()
    if rates.shape not in ((), (hidden_size,)):
        raise ValueError(f"{name} must be a number or ({hidden_size},), got {tuple(rates.shape)}")
    if tau is not None:
        if not dt > 0:
            raise ValueError(f"dt must be greater than 0, got {dt}")
        name, rates = "dt / tau", dt / rates
    largest = 1.0 if not learn_alpha else math.nextafter(1.0, 0.0)
    if not ((rates > 0) & (rates <= largest)).all():
        wanted = "in (0, 1)" if learn_alpha else "in (0, 1]"
        raise ValueError(f"{name} must be {wanted}, got {rates.tolist()}")
    return rates
