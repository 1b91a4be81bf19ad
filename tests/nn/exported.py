"""A model for the tests of exporters, and a run of an ONNX model."""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnnfast import FastRNN

INPUT_SIZE, HIDDEN_SIZE = 5, 6


class Reader(nn.Module):
    """A FastRNN that reads a padded batch in one of several ways, and a linear layer.

    Args:
        reading: ``"whole"`` if all sequences have T time steps. For sequences of variable lengths
            ``"packed"``, ``"sorted"`` (packed, and the lengths never increase) or ``"lengths"``
            (the argument of FastRNN).
        tokens, with_hx: whether the input is one-hot tokens, and whether there is an ``hx``.
        options: the arguments of FastRNN.
    """

    def __init__(self, reading="whole", tokens=False, with_hx=True, **options):
        super().__init__()
        self.rnn = FastRNN(INPUT_SIZE, HIDDEN_SIZE, **options)
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
            arguments["hx"] = torch.randn(states, B, HIDDEN_SIZE)
        if self.reading != "whole":
            lengths = torch.randint(1, T + 1, (B,))
            is_sorted = self.reading == "sorted"
            arguments["lengths"] = lengths.sort(descending=True).values if is_sorted else lengths
        return arguments

    def dynamic(self, dim):
        """Return the dimensions T and B of each argument, as ``{axis: dim}``."""
        every = {"x": {0: dim, 1: dim}, "hx": {1: dim}, "lengths": {0: dim}}
        return {name: every[name] for name in self.example(2, 2)}

    def with_torch(self):
        """Return the same model with an ``nn.RNN``, which has the same weights."""
        model = copy.deepcopy(self)
        model.rnn.__class__ = nn.RNN
        if self.reading == "lengths":
            model.reading = "packed"
        return model

    def expected(self, x, hx=None, lengths=None):
        """Return the result of ``nn.RNN``."""
        x = F.one_hot(x, INPUT_SIZE).float() if self.tokens else x
        return self.with_torch()(x, hx, lengths)


def load_onnx(file):
    """Return a function that runs the ONNX model in ``file``, a path or bytes, on tensors."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1  # further threads would spin
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])

    def run(**arguments):
        feed = {name: tensor.numpy() for name, tensor in arguments.items()}
        return tuple(map(torch.from_numpy, session.run(None, feed)))

    return run
