"""Swap the modules of rnnfast into an existing model, and back."""

from typing import TypeVar

from torch import nn

from ._dropout import Dropout
from ._gated import FastGRU, FastLSTM
from ._recurrent import REGULARISERS
from ._rnn import FastRNN, FastRNNCell

_Model = TypeVar("_Model", bound=nn.Module)

_FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: FastRNN,
    nn.GRU: FastGRU,
    nn.LSTM: FastLSTM,
}
_TORCH = {fast: torchs for torchs, fast in _FAST.items()}
_TORCH |= {FastRNNCell: nn.RNNCell, Dropout: nn.Dropout}


def _modules(model):
    """Return the modules inside ``model`` by name, after a check of its type."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return dict(model.named_modules())


def accelerate(model: _Model) -> _Model:
    """Turn the recurrent modules of torch inside ``model`` into those of rnnfast, in place.

    Every ``nn.RNN`` becomes a :class:`FastRNN`, every ``nn.GRU`` a :class:`FastGRU` and every
    ``nn.LSTM`` a :class:`FastLSTM`. The modules stay the same objects with the same parameters,
    buffers and hooks. Only their class changes, so optimizers and other references stay valid.
    Subclasses are left alone, because they may have changed ``forward``. ``nn.RNNCell``,
    ``nn.GRUCell`` and ``nn.LSTMCell`` are left alone, because their single steps would not be
    faster. :func:`restore` is the way back.

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
        if type(module) in _FAST:
            module.__class__ = _FAST[type(module)]
    return model


def restore(model: _Model) -> _Model:
    """Turn rnnfast's modules inside ``model`` into those of ``torch.nn``, in place.

    This undoes :func:`accelerate`. Tools that look for the exact classes of ``torch.nn`` need it,
    for example ``torch.jit.script``, ``torch.ao.quantization.quantize_dynamic`` and counters of
    operations such as ptflops and thop. :class:`FastRNN`, :class:`FastGRU`, :class:`FastLSTM`,
    :class:`FastRNNCell` and :class:`Dropout` become ``nn.RNN``, ``nn.GRU``, ``nn.LSTM``,
    ``nn.RNNCell`` and ``nn.Dropout``. The modules stay the same objects with the same parameters,
    buffers and hooks. Subclasses are left alone.

    Args:
        model: any ``nn.Module``; it may itself be a :class:`FastRNN`.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: a module has a regulariser that torch's module does not have. Nothing is
            changed then.

    Example:
        >>> import rnnfast, torch
        >>> model = rnnfast.accelerate(torch.nn.Sequential(torch.nn.RNN(10, 20)))
        >>> scripted = torch.jit.script(rnnfast.restore(model))
    """
    modules = _modules(model)
    for name, module in modules.items():
        if type(module) not in _FAST.values():
            continue
        for regulariser in REGULARISERS:
            if p := getattr(module, regulariser):
                raise ValueError(
                    f"nn.{_TORCH[type(module)].__name__} has no {regulariser}, but module {name!r} "
                    f"has {regulariser}={p}: set it to 0 first"
                )
    for module in modules.values():
        if type(module) in _TORCH:
            for regulariser in REGULARISERS:
                vars(module).pop(regulariser, None)
            module.__class__ = _TORCH[type(module)]
    return model
