"""The modules of rnnfast.

They are :class:`FastRNN`, :class:`FastGRU`, :class:`FastLSTM`, :class:`FastRNNCell`,
:class:`LeakyRNN` and :class:`Dropout`. :func:`accelerate` swaps the first three into an existing
model. :func:`restore` is the way back. :class:`Stepper` runs a module one time step at a time.
"""

from ._dropout import Dropout
from ._gated import FastGRU, FastLSTM
from ._leaky import LeakyRNN
from ._rnn import FastRNN, FastRNNCell
from ._stepper import Stepper
from ._swap import accelerate, restore

__all__ = [
    "Dropout",
    "FastGRU",
    "FastLSTM",
    "FastRNN",
    "FastRNNCell",
    "LeakyRNN",
    "Stepper",
    "accelerate",
    "restore",
]
