"""A model for the tests of exporters, and a run of an ONNX model."""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import rnnfast
from rnnfast import FastRNN

INPUT_SIZE, HIDDEN_SIZE = 5, 6


class Reader(nn.Module):
    """A recurrent module that reads a padded batch in one of several ways, and a linear layer.

    Args:
        reading: ``"whole"`` if all sequences have T time steps. For sequences of variable lengths
            ``"packed"``, ``"sorted"`` (packed, and the lengths never increase) or ``"lengths"``
            (the argument of our modules).
        tokens, with_hx: whether the input is one-hot tokens, and whether there is an ``hx``.
        cls: the class of the recurrent module.
        options: its arguments.
    """

    def __init__(self, reading="whole", tokens=False, with_hx=True, cls=FastRNN, **options):
        super().__init__()
        self.rnn = cls(INPUT_SIZE, HIDDEN_SIZE, **options)
        self.head = nn.Linear(HIDDEN_SIZE * (1 + self.rnn.bidirectional), 4)
        self.reading, self.tokens, self.with_hx = reading, tokens, with_hx

    def forward(self, x, hx=None, lengths=None):
        output, h_n = self._run(x, hx, lengths)
        return self.head(output), h_n

    def _run(self, x, hx, lengths):
        if self.reading == "whole":
            return self.rnn(x, hx)
        if self.reading == "lengths":
            return self.rnn(x, hx, lengths=lengths)
        batch_first = self.rnn.batch_first
        packed = pack_padded_sequence(x, lengths, batch_first, self.reading == "sorted")
        output, h_n = self.rnn(packed, hx)
        T = x.size(1 if batch_first else 0)
        return pad_packed_sequence(output, batch_first, total_length=T)[0], h_n

    def example(self, T, B):
        """Return arguments for T time steps and B sequences of random lengths."""
        rows = (B, T) if self.rnn.batch_first else (T, B)
        x = torch.randint(INPUT_SIZE, rows) if self.tokens else torch.randn(*rows, INPUT_SIZE)
        arguments = {"x": x}
        if self.with_hx:
            states = self.rnn.num_layers * (1 + self.rnn.bidirectional)
            hx = [torch.randn(states, B, HIDDEN_SIZE) for _ in range(1 + self.is_lstm)]
            arguments["hx"] = tuple(hx) if self.is_lstm else hx[0]
        if self.reading != "whole":
            lengths = torch.randint(1, T + 1, (B,))
            is_sorted = self.reading == "sorted"
            arguments["lengths"] = lengths.sort(descending=True).values if is_sorted else lengths
        return arguments

    @property
    def is_lstm(self):
        return isinstance(self.rnn, nn.LSTM)

    def dynamic(self, dim):
        """Return the dimensions T and B of each argument, as ``{axis: dim}``."""
        hx = ({1: dim}, {1: dim}) if self.is_lstm else {1: dim}
        every = {"x": {0: dim, 1: dim}, "hx": hx, "lengths": {0: dim}}
        return {name: every[name] for name in self.example(2, 2)}

    def with_torch(self):
        """Return the same model with a module of torch, which has the same weights."""
        model = rnnfast.restore(copy.deepcopy(self))
        if self.reading == "lengths":
            model.reading = "packed"
        return model

    def expected(self, x, hx=None, lengths=None):
        """Return the result of torch's module."""
        x = F.one_hot(x, INPUT_SIZE).float() if self.tokens else x
        return self.with_torch()(x, hx, lengths)


def load_onnx(file):
    """Return a function that runs the ONNX model in ``file``, a path or bytes, on tensors."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1  # further threads would spin
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])

    def run(**arguments):
        leaves = [t for value in arguments.values() for t in tree_leaves(value)]
        names = [value.name for value in session.get_inputs()]
        feed = {name: tensor.numpy() for name, tensor in zip(names, leaves, strict=True)}
        return tuple(map(torch.from_numpy, session.run(None, feed)))

    return run
