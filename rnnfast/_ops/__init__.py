"""The operators ``torch.ops.rnnfast.*``, and the only Python code that calls the native module.

- ``schema.py``: the definitions of the operators and their fakes, which infer shapes.
- ``cpu.py`` and ``cuda.py``: the implementations for each type of device.
- ``dispatch.py``: which implementation runs a call.
- ``padded.py``: the operators for sequences of variable lengths in graphs of ``torch.export``.
- ``flops.py``: the number of floating-point operations of each operator.

The operators have no gradient of their own. The autograd Functions are in `rnnfast.functional`.
"""

from . import flops
from .cpu import glove_epoch, reservoir, run_reservoir, sampler, stepper
from .dispatch import (
    dropout,
    gated_rnn,
    gated_rnn_backward,
    has_dropout_kernel,
    has_gated_kernel,
    has_leaky_kernel,
    has_loss_kernel,
    has_rnn_kernel,
    is_torch_faster,
    leaky_rnn,
    leaky_rnn_backward,
    linear_cross_entropy,
    normal,
    rnn_backward,
    rnn_forward,
)
from .padded import gated_rnn_padded, rnn_padded
from .schema import (
    NONLINEARITIES,
    GatedDescriptor,
    LeakyDescriptor,
    RNNDescriptor,
    is_one_hot,
    shape_of_rows,
)

__all__ = [
    "NONLINEARITIES",
    "GatedDescriptor",
    "LeakyDescriptor",
    "RNNDescriptor",
    "dropout",
    "flops",
    "gated_rnn",
    "gated_rnn_backward",
    "gated_rnn_padded",
    "glove_epoch",
    "has_dropout_kernel",
    "has_gated_kernel",
    "has_leaky_kernel",
    "has_loss_kernel",
    "has_rnn_kernel",
    "is_one_hot",
    "is_torch_faster",
    "leaky_rnn",
    "leaky_rnn_backward",
    "linear_cross_entropy",
    "normal",
    "reservoir",
    "rnn_backward",
    "rnn_forward",
    "rnn_padded",
    "run_reservoir",
    "sampler",
    "shape_of_rows",
    "stepper",
]
