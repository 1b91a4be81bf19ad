"""The module :class:`Dropout`."""

from torch import Tensor, nn

from .. import functional


class Dropout(nn.Dropout):
    """A drop-in for :class:`torch.nn.Dropout` that uses rnnfast's kernel on the CPU.

    It draws a different random mask for the same seed. :func:`rnnfast.functional.dropout` describes
    what runs on the kernel.

    Args:
        p: probability of zeroing an element, in [0, 1]. Default: 0.5.

    Raises:
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> import torch
        >>> from rnnfast.nn import Dropout
        >>> x = torch.ones(1000)
        >>> sorted(set(Dropout(0.5)(x).tolist()))
        [0.0, 2.0]
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input``, a tensor of any shape, with dropout applied in training."""
        return functional.dropout(input, self.p, self.training)
