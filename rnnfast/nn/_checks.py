"""Checks of the arguments of the modules in `rnnfast.nn`."""

import numbers
import warnings

import torch
from torch.nn.utils.rnn import PackedSequence

from .. import _torch
from .._ops import is_one_hot

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def probability(name, p):
    """Return ``p`` as a float, or raise the error that ``nn.RNN`` raises for its dropout."""
    if not isinstance(p, numbers.Number) or isinstance(p, bool) or not 0 <= p <= 1:
        raise ValueError(f"{name} should be a number in range [0, 1], a probability, got {p!r}")
    return float(p)


def warn_of_one_hot_vectors(tokens, batch_first):
    """Warn if ``tokens``, with as many columns as inputs, look like the one-hot vectors (T, I).

    There may be rows of zeros at the end, as padding. Tokens hardly ever have exactly one 1 and
    otherwise zeros in each row.
    """
    # A look at the first row takes 3 us of a call of 24 us. Its sum on the device would take 10 us.
    if not _torch.has_readable_values(tokens) or sum(tokens[0].tolist()) != 1:
        return
    ones = tokens.sum(1)
    if tokens.max() == 1 and bool((ones[1:] <= ones[:-1]).all()):
        layout = "(B, T)" if batch_first else "(T, B)"
        warnings.warn(
            f"input is int64 of shape {tuple(tokens.shape)} and is read as a batch of tokens, "
            f"{layout}, but it looks like the one-hot vectors of one sequence, (T, I). Vectors "
            "must be floating-point: input.float(). The tokens of one sequence have shape (T,).",
            stacklevel=5,
        )


def checked_lengths(input, lengths, batch_first):
    """Return ``lengths`` as a tensor, after checks of everything except its values."""
    if isinstance(input, PackedSequence) or input.dim() + is_one_hot(input) != 3:
        raise ValueError("lengths must be None unless input is a padded batch")
    if not isinstance(lengths, torch.Tensor):
        try:
            lengths = torch.as_tensor(lengths, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"lengths must be integers (B,), got {lengths!r}") from None
    if lengths.is_meta:
        raise ValueError("lengths must have values, got a tensor on the device meta")
    B = input.shape[0 if batch_first else 1]
    if lengths.dtype not in _INTEGERS or lengths.shape != (B,):
        raise ValueError(
            f"lengths must be integers ({B},), got {lengths.dtype} {tuple(lengths.shape)}"
        )
    return lengths.to(torch.int64)


def packed_like(t, input, name):
    """Return the data of ``t``, after a check that it is packed like ``input``."""
    if not isinstance(t, PackedSequence):
        raise ValueError(
            f"{name} must be a PackedSequence like input, got {type(t).__name__}. For a padded "
            f"{name} give the padded input and its lengths: rnn(input, lengths=lengths)"
        )
    order, expected = t.sorted_indices, input.sorted_indices
    if order is None or expected is None:
        same_order = order is expected
    else:
        same_order = torch.equal(order.to(expected.device), expected)
    if not torch.equal(t.batch_sizes, input.batch_sizes) or not same_order:
        raise ValueError(
            f"{name} must be packed like input: from the same lengths in the same order"
        )
    return t.data
