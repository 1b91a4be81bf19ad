"""Swap :class:`FastRNN` into an existing model, and back."""

from typing import TypeVar

from torch import nn

from ._dropout import Dropout
from ._rnn import _REGULARISERS, FastRNN, FastRNNCell

_Model = TypeVar("_Model", bound=nn.Module)


def _modules(model):
    """Return the modules inside ``model`` by name, after a check of its type."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return dict(model.named_modules())


def accelerate(model: _Model) -> _Model:
    """Turn every ``nn.RNN`` inside ``model`` into a :class:`FastRNN`, in place.

    The modules stay the same objects with the same parameters, buffers and hooks. Only their class
    changes, so optimizers and other references stay valid. Subclasses of ``nn.RNN`` are left alone,
    because they may have changed ``forward``. An ``nn.RNNCell`` is left alone, because its single
    steps would not be faster. :func:`restore` is the way back.

    Args:
        model: any ``nn.Module``; it may itself be an ``nn.RNN``.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a module.

    Example:
        >>> import rnnfast, torch
        >>> model = torch.nn.Sequential(torch.nn.RNN(10, 20))
        >>> rnnfast.accelerate(model)
        Sequential(
          (0): FastRNN(10, 20)
        )
    """
    for module in _modules(model).values():
        if type(module) is nn.RNN:
            module.__class__ = FastRNN
    return model


def restore(model: _Model) -> _Model:
    """Turn rnnfast's modules inside ``model`` into those of ``torch.nn``, in place.

    This undoes :func:`accelerate`. Tools that look for the exact classes of ``torch.nn`` need it,
    for example ``torch.jit.script``, ``torch.ao.quantization.quantize_dynamic`` and counters of
    operations such as ptflops and thop. :class:`FastRNN`, :class:`FastRNNCell` and :class:`Dropout`
    become ``nn.RNN``, ``nn.RNNCell`` and ``nn.Dropout``. The modules stay the same objects with the
    same parameters, buffers and hooks. Subclasses are left alone.

    Args:
        model: any ``nn.Module``; it may itself be a :class:`FastRNN`.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: a :class:`FastRNN` has a regulariser that ``nn.RNN`` does not have. Nothing is
            changed then.

    Example:
        >>> import rnnfast, torch
        >>> model = rnnfast.accelerate(torch.nn.Sequential(torch.nn.RNN(10, 20)))
        >>> scripted = torch.jit.script(rnnfast.restore(model))
    """
    modules = _modules(model)
    for name, module in modules.items():
        for regulariser in _REGULARISERS if type(module) is FastRNN else ():
            if p := getattr(module, regulariser):
                raise ValueError(
                    f"nn.RNN has no {regulariser}, but module {name!r} has {regulariser}={p}: "
                    "set it to 0 first"
                )
    for module in modules.values():
        if type(module) in (FastRNN, FastRNNCell, Dropout):
            for regulariser in _REGULARISERS:
                vars(module).pop(regulariser, None)
            module.__class__ = type(module).__base__
    return model
