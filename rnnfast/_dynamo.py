"""Lets torch.compile trace FastRNN, whose forward is one operator.

Dynamo refuses every instance of nn.RNN, for tracing nn.RNN.forward would unroll its time steps; the
one switch, ``torch._dynamo.config.allow_rnn``, is for all modules of the process. Here it is on
while Dynamo looks at a FastRNN, and at nothing else.
"""

import importlib.abc
import importlib.util
import sys

_BUILDER = "torch._dynamo.variables.builder"


def allow(cls):
    """Let Dynamo trace the instances of ``cls``, now or, at no cost before, once it is imported."""
    if _BUILDER in sys.modules:
        _patch(sys.modules[_BUILDER], cls)
    else:
        sys.meta_path.insert(0, _AfterImport(cls))


def _patch(builder, cls):
    if not (
        hasattr(builder.config, "allow_rnn") and hasattr(builder.VariableBuilder, "wrap_module")
    ):
        return  # another torch, which may trace nn.RNN by itself; if not, it says so
    wrap_module = builder.VariableBuilder.wrap_module

    def wrap(self, value):
        with builder.config.patch(allow_rnn=builder.config.allow_rnn or isinstance(value, cls)):
            return wrap_module(self, value)

    builder.VariableBuilder.wrap_module = wrap


class _AfterImport(importlib.abc.MetaPathFinder):
    """Importing Dynamo takes a second, so wait until somebody else does."""

    def __init__(self, cls):
        self.cls = cls

    def find_spec(self, name, path, target=None):
        if name != _BUILDER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            _patch(module, self.cls)

        spec.loader.exec_module = exec_module
        return spec
