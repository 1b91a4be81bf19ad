"""The modules :class:`FastRNN`, :class:`FastRNNCell`, :class:`LeakyRNN` and :class:`Dropout`.

:func:`accelerate` swaps :class:`FastRNN` into an existing model. :func:`restore` is the way back.
:class:`Stepper` runs a :class:`FastRNN` one time step at a time.
"""

from ._dropout import Dropout
from ._leaky import LeakyRNN
from ._rnn import FastRNN, FastRNNCell
from ._stepper import Stepper
from ._swap import accelerate, restore

__all__ = ["Dropout", "FastRNN", "FastRNNCell", "LeakyRNN", "Stepper", "accelerate", "restore"]
