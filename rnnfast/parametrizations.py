"""Constraints on the weights of an RNN, for :mod:`torch.nn.utils.parametrize`.

    import torch
    from torch.nn.utils.parametrize import register_parametrization

    from rnnfast import FastRNN
    from rnnfast.parametrizations import DalesLaw, Mask, NoSelfConnections

    rnn = FastRNN(10, 100, nonlinearity="relu")
    register_parametrization(rnn, "weight_hh_l0", Mask(torch.rand(100, 100) < 0.1))
    register_parametrization(rnn, "weight_hh_l0", NoSelfConnections())
    register_parametrization(rnn, "weight_hh_l0", DalesLaw([1] * 80 + [-1] * 20))

An optimizer changes the unconstrained weight, ``rnn.parametrizations.weight_hh_l0.original``. The
weight that satisfies the constraints is computed from it once in each call of the RNN, not once in
each time step, and the kernels read it as it is. Several constraints apply in the order in which
they are registered. A weight that satisfies a constraint stays as it is when the constraint is
registered, and so does a weight that is assigned: ``rnn.weight_hh_l0 = weight``.

A module with parametrizations is saved by its ``state_dict``. To load it, register the same
parametrizations first. Register them on a module that is on its device, or move the module there
afterwards.

In the shapes, H is the number of hidden units and R a rank. ``weight_hh`` is (H, H): its row i has
the connections to unit i, and its column j has those from unit j.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["DalesLaw", "LowRank", "Mask", "NoSelfConnections", "scale_spectral_radius_"]


class DalesLaw(nn.Module):
    """Give all connections from a unit the same sign (Dale's law; Song et al. 2016).

    A unit with the sign 1 is excitatory, and one with the sign -1 is inhibitory. If a weight of a
    different sign is registered or assigned, its sign is changed and its absolute value kept.

    Args:
        signs: H numbers that are 1 or -1, as a vector or a list.
        rectifier: what is done to an unconstrained weight ``v`` of a unit of the sign ``s``.
            ``"abs"``: the weight is ``s |v|``. ``"relu"``: it is ``v`` if that has the sign ``s``,
            otherwise 0, and then it has no gradient. Default: ``"abs"``.

    Raises:
        ValueError: ``signs`` is not a vector of 1 and -1 or does not fit the weight, or
            ``rectifier`` is unknown.

    Example:
        >>> import torch
        >>> from torch.nn.utils.parametrize import register_parametrization
        >>> from rnnfast import FastRNN
        >>> from rnnfast.parametrizations import DalesLaw
        >>> rnn = FastRNN(3, 5)
        >>> _ = register_parametrization(rnn, "weight_hh_l0", DalesLaw([1, 1, 1, 1, -1]))
        >>> bool((rnn.weight_hh_l0[:, :4] >= 0).all() and (rnn.weight_hh_l0[:, 4] <= 0).all())
        True
    """

    signs: Tensor

    def __init__(self, signs: Tensor | Sequence[int], rectifier: str = "abs"):
        super().__init__()
        given = torch.as_tensor(signs)
        if given.dim() != 1 or not bool((given.abs() == 1).all()):
            raise ValueError(f"signs must be a vector of 1 and -1, got {signs!r}")
        if rectifier not in ("abs", "relu"):
            raise ValueError(f"rectifier must be 'abs' or 'relu', got {rectifier!r}")
        self.rectifier = rectifier
        # int8 stays what it is when the module is converted to a different dtype, and its product
        # with a weight has the dtype of the weight.
        self.register_buffer("signs", given.to(torch.int8))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight (..., H) for an unconstrained weight."""
        if self.rectifier == "relu":
            return (weight * self.signs).relu() * self.signs
        return self.right_inverse(weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return an unconstrained weight for a weight."""
        if weight.shape[-1:] != self.signs.shape:
            raise ValueError(
                f"signs must have one element for each of the {weight.shape[-1]} columns of the "
                f"weight, got {len(self.signs)}"
            )
        return weight.abs() * self.signs

    def extra_repr(self) -> str:
        """Return the numbers of units of each sign and the rectifier."""
        excitatory = int((self.signs > 0).sum())
        inhibitory = len(self.signs) - excitatory
        return f"{excitatory} excitatory, {inhibitory} inhibitory, rectifier={self.rectifier!r}"


class Mask(nn.Module):
    """Remove connections: a fixed mask decides which weights may differ from zero.

    Args:
        mask: 1 or true where a connection exists, otherwise 0 or false, in the shape of the weight.

    Raises:
        ValueError: an element of ``mask`` is not 0 or 1, or its shape is not that of the weight.

    Example:
        >>> import torch
        >>> from torch.nn.utils.parametrize import register_parametrization
        >>> from rnnfast import FastRNN
        >>> from rnnfast.parametrizations import Mask
        >>> rnn = FastRNN(3, 5)
        >>> _ = register_parametrization(rnn, "weight_hh_l0", Mask(torch.ones(5, 5).tril()))
        >>> bool(rnn.weight_hh_l0.triu(1).any())
        False
    """

    mask: Tensor

    def __init__(self, mask: Tensor | Sequence[Sequence[int]]):
        super().__init__()
        given = torch.as_tensor(mask)
        if not bool(((given == 0) | (given == 1)).all()):
            raise ValueError("mask must have no elements except 0 and 1")
        self.register_buffer("mask", given.to(torch.int8))  # for the reason given in DalesLaw

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight for an unconstrained weight."""
        if weight.shape != self.mask.shape:
            raise ValueError(
                f"mask must have the shape of the weight, {tuple(weight.shape)}, got "
                f"{tuple(self.mask.shape)}"
            )
        return weight * self.mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return an unconstrained weight for a weight."""
        return self.forward(weight)

    def extra_repr(self) -> str:
        """Return the shape and the number of connections."""
        return f"shape={tuple(self.mask.shape)}, connections={int(self.mask.sum())}"


class NoSelfConnections(nn.Module):
    """Remove the connection from each unit to itself: the diagonal of the weight is zero.

    Raises:
        ValueError: the weight is not square.

    Example:
        >>> from torch.nn.utils.parametrize import register_parametrization
        >>> from rnnfast import FastRNN
        >>> from rnnfast.parametrizations import NoSelfConnections
        >>> rnn = FastRNN(3, 5)
        >>> _ = register_parametrization(rnn, "weight_hh_l0", NoSelfConnections())
        >>> rnn.weight_hh_l0.diagonal().tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0]
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight (H, H) for an unconstrained weight."""
        _check_square(weight)
        return torch.diagonal_scatter(weight, weight.new_zeros(len(weight)))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return an unconstrained weight for a weight."""
        return self.forward(weight)


class LowRank(nn.Module):
    """Make the weight ``m n^T / H`` with parameters m and n of R columns each.

    This is the structured connectivity of Mastrogiuseppe & Ostojic (2018). The parameters are
    ``original0``, m (H, R), and ``original1``, n (H, R), of
    ``rnn.parametrizations.weight_hh_l0``. They are new parameters, so make the optimizer after
    this parametrization. It must be the first one of a weight.

    If a weight of a rank of at most R is registered or assigned, it stays as it is except for
    rounding. Otherwise the nearest weight of rank R takes its place.

    Args:
        rank: R.

    Raises:
        ValueError: ``rank`` is not an integer in [1, H], or the weight is not square.

    Example:
        >>> import torch
        >>> from torch.nn.utils.parametrize import register_parametrization
        >>> from rnnfast import FastRNN
        >>> from rnnfast.parametrizations import LowRank
        >>> rnn = FastRNN(3, 50)
        >>> _ = register_parametrization(rnn, "weight_hh_l0", LowRank(2))
        >>> vectors = rnn.parametrizations.weight_hh_l0
        >>> _ = torch.nn.init.normal_(vectors.original0), torch.nn.init.normal_(vectors.original1)
        >>> int(torch.linalg.matrix_rank(rnn.weight_hh_l0))
        2
    """

    def __init__(self, rank: int):
        super().__init__()
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank must be an integer of at least 1, got {rank!r}")
        self.rank = rank

    def forward(self, m: Tensor, n: Tensor) -> Tensor:
        """Return the weight (H, H) for m (H, R) and n (H, R)."""
        return (m / len(n)) @ n.t()

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return m and n for a weight, from its largest singular values."""
        _check_square(weight)
        H = len(weight)
        if self.rank > H:
            raise ValueError(f"rank must be in [1, {H}] for this weight, got {self.rank}")
        u, s, vh = torch.linalg.svd(weight.to("cpu", torch.float64))
        root = (s[: self.rank] * H).sqrt()
        m, n = u[:, : self.rank] * root, vh[: self.rank].t() * root
        return m.to(weight).contiguous(), n.to(weight).contiguous()

    def extra_repr(self) -> str:
        """Return the rank."""
        return f"rank={self.rank}"


@torch.no_grad()
def scale_spectral_radius_(weight: Tensor, radius: float) -> Tensor:
    """Scale a weight in place, so that the largest absolute value of its eigenvalues is ``radius``.

    This is how the recurrent weights of a reservoir are initialised (Jaeger 2001). The scaled
    weight still satisfies the constraints of this module. For a weight that has
    parametrizations, assign the result, as in the example.

    Args:
        weight: (H, H) of any floating-point dtype.
        radius: the new spectral radius, at least 0.

    Returns:
        ``weight``.

    Raises:
        ValueError: ``weight`` is not a square floating-point matrix, or its spectral radius is 0
            or not finite, or ``radius`` is negative or not finite.

    Example:
        >>> import torch
        >>> from torch.nn.utils.parametrize import register_parametrization
        >>> from rnnfast import FastRNN, diagnostics
        >>> from rnnfast.parametrizations import NoSelfConnections, scale_spectral_radius_
        >>> rnn = FastRNN(3, 50, dtype=torch.float64)
        >>> _ = scale_spectral_radius_(rnn.weight_hh_l0, 0.9)
        >>> round(diagnostics.spectral_radius(rnn).item(), 6)
        0.9
        >>> _ = register_parametrization(rnn, "weight_hh_l0", NoSelfConnections())
        >>> rnn.weight_hh_l0 = scale_spectral_radius_(rnn.weight_hh_l0.detach(), 0.9)
        >>> round(diagnostics.spectral_radius(rnn).item(), 6)
        0.9
    """
    if not weight.is_floating_point():
        raise ValueError(f"weight must be a floating-point tensor, got {weight.dtype}")
    _check_square(weight)
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius must be at least 0 and finite, got {radius}")
    if not bool(weight.isfinite().all()):
        raise ValueError("weight must be finite, but an element is infinite or NaN")
    present = torch.linalg.eigvals(weight.to("cpu", torch.float64)).abs().max().item()
    if present == 0:
        raise ValueError("weight must have an eigenvalue that is not 0, otherwise it has no scale")
    return weight.mul_(radius / present)


def _check_square(weight: Tensor) -> None:
    if weight.dim() != 2 or weight.shape[0] != weight.shape[1]:
        raise ValueError(f"weight must be square, (H, H), got {tuple(weight.shape)}")
