"""Functions without state.

They are :func:`rnn`, :func:`gru`, :func:`lstm`, :func:`leaky_rnn`, :func:`linear_cross_entropy` and
:func:`dropout`.

They run on rnnfast's kernels where there is one, and otherwise on torch's own operators. The
modules in `rnnfast.nn` call them.
"""

from ._dropout import dropout
from ._leaky import leaky_rnn
from ._loss import linear_cross_entropy
from ._rnn import gru, lstm, rnn

__all__ = ["dropout", "gru", "leaky_rnn", "linear_cross_entropy", "lstm", "rnn"]
