"""The network of every estimator: embeddings, an RNN, pooling and a linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ..embeddings import Vectors
from ..nn import Dropout, FastGRU, FastLSTM, FastRNN
from .inputs import Tokens

GATED: dict[str, type[FastGRU] | type[FastLSTM]] = {"gru": FastGRU, "lstm": FastLSTM}
CELLS = ("tanh", "relu", *GATED)
POOLINGS = ("last", "mean", "max")
# The standard deviation of what the input adds to a hidden unit before training.
INPUT_STD = 0.25
# The standard deviation of embeddings before training. It is small so that the few updates of a
# rare word outweigh the random start. Accuracy on one fold of sentence polarity, with one network
# and small variations of the other settings:
#   1.0:  0.73
#   0.1:  0.75 to 0.76
#   0.05: 0.77 to 0.78
EMBEDDING_STD = 0.05


class Embedding(nn.Module):
    """An embedding table for tokens with F features: a token has the sum of F rows.

    In training, the row of a feature is replaced by the row for unknown values with probability
    `word_dropout`. In this way the unknown values get useful embeddings, and the network learns not
    to rely on single values.

    Args:
        rows: The number of rows of the table.
        unknown: The row for unknown values of each feature, int64 (F,).
        size: The size of an embedding, E.
        word_dropout: The probability of replacing a row in training.
    """

    unknown: torch.Tensor

    def __init__(self, rows: int, unknown: torch.Tensor, size: int, word_dropout: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, size) * EMBEDDING_STD / len(unknown) ** 0.5)
        self.register_buffer("unknown", unknown, persistent=False)
        self.word_dropout = word_dropout

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (T, B, E) of tokens, which are rows of the table (T, B, F)."""
        if self.training and self.word_dropout:
            dropped = torch.rand(ids.shape, device=ids.device) < self.word_dropout
            ids = torch.where(dropped, self.unknown, ids)
        bags = F.embedding_bag(ids.flatten(0, 1), self.weight, mode="sum")
        return bags.view(*ids.shape[:2], -1)


class SequenceNetwork(nn.Module):
    """An RNN with a linear layer, for a sequence or for each of its time steps.

    Args:
        embedding: The embeddings of the tokens, or None if the input is vectors.
        input_size: The size of the embeddings or vectors, I.
        hidden_size: The number of hidden units of each layer and direction.
        num_layers: The number of recurrent layers.
        bidirectional: Whether a second RNN reads the sequence backwards.
        cell: "tanh" or "relu" for an Elman RNN, "gru" or "lstm".
        dropout: The probability of dropout on the vectors, between layers and before the linear
            layer.
        pooling: What the linear layer reads: "last" is the last state of each direction, "mean" and
            "max" are the mean and the largest value of each unit over the time steps. With None
            the linear layer reads the state at every time step.
        outputs: The number of outputs, O.
    """

    def __init__(
        self,
        embedding: Embedding | None,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        cell: str,
        dropout: float,
        pooling: str | None,
        outputs: int,
    ):
        super().__init__()
        self.embedding = embedding
        cls = GATED[cell] if cell in GATED else partial(FastRNN, nonlinearity=cell)
        self.rnn: FastRNN | FastGRU | FastLSTM = cls(
            input_size,
            hidden_size,
            num_layers,
            bidirectional=bidirectional,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        self.dropout = Dropout(dropout)
        self.pooling = pooling
        self.head = nn.Linear(hidden_size * (1 + bidirectional), outputs)
        for name, parameter in self.rnn.named_parameters():
            if name.startswith("weight_hh"):
                for gate in parameter.split(hidden_size):
                    nn.init.orthogonal_(gate)
            elif name.startswith("weight_ih_l0"):
                scale = (1.0 if embedding is None else EMBEDDING_STD) * input_size**0.5
                nn.init.normal_(parameter, std=INPUT_STD / scale)
            elif name.startswith("bias"):
                nn.init.zeros_(parameter)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the outputs for a padded batch.

        Args:
            x: Tokens, int64 (T, B, F), or vectors, float (T, B, I). The padding has no influence.
            lengths: The number of time steps of each sequence, int64 (B,), from 0 to T. The states
                of a sequence without time steps are zeros.

        Returns:
            The outputs (B, O), or (T, B, O) if `pooling` is None.
        """
        if self.embedding is not None:
            x = self.embedding(x)
        states, h_n = self.rnn(self.dropout(x), lengths=lengths)
        if isinstance(h_n, tuple):  # h and c of an LSTM
            h_n, _ = h_n
        if self.pooling == "last":
            D = 1 + self.rnn.bidirectional
            states = torch.cat(tuple(h_n[-D:]), -1)
        elif self.pooling == "mean":
            states = states.sum(0) / lengths[:, None].clamp(min=1).to(states)
        elif self.pooling == "max":
            steps = torch.arange(len(states), device=states.device)
            past = steps[:, None] >= lengths.clamp(min=1).to(states.device)
            states = states.masked_fill(past[..., None], -torch.inf).amax(0)
        return self.head(self.dropout(states))

    def run(self, sequences: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the outputs for sequences of different lengths, on the device of the weights.

        Args:
            sequences: B encoded sequences, int64 (T, F) or float32 (T, I) with any T each.

        Returns:
            The outputs (B, O). If `pooling` is None, the outputs of all time steps without padding,
            one sequence after the other: (N, O), where N is the sum of the lengths.
        """
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        x = pad_sequence(list(sequences))
        if not len(x):  # max pooling needs a step
            x = x.new_zeros(1, *x.shape[1:])
        outputs = self(x.to(self.head.weight.device), lengths)
        if self.pooling is not None:
            return outputs
        mask = torch.arange(len(outputs)) < lengths[:, None]
        return outputs.transpose(0, 1)[mask.to(outputs.device)]


def start_from_vectors(network: SequenceNetwork, tokens: Tokens, vectors: Vectors) -> float:
    """Copy the vectors to the embeddings of the words in `tokens`, and return their scale.

    The vectors are scaled so that their root mean square is that of the embeddings before. The
    embeddings of words without a vector do not change.
    """
    assert network.embedding is not None  # it has tokens
    weight = network.embedding.weight.detach()[tokens.word_rows]
    # The first row is for unknown words, and not for the empty word, which a file may have.
    _, *words = tokens.words
    return vectors.initialise(weight, [None, *words])


def add_words(
    vectors: Vectors, tokens: Tokens, networks: list[SequenceNetwork], scales: list[float]
) -> Tokens:
    """Give the words that only `vectors` has their embeddings, after the training.

    During the training they would cost each update the time of all vectors in the file, and only
    weight decay would change them.

    Args:
        vectors: The vectors from which the embeddings started.
        tokens: The tokens of the training data.
        networks: The trained networks, whose embeddings get more rows.
        scales: The scale of the vectors in each network, from `start_from_vectors`.

    Returns:
        The tokens of the training data together with the new words.
    """
    table = set(tokens.words)
    new = [i for i, token in enumerate(vectors.tokens) if token not in table]
    extended = tokens.with_words(vectors.tokens[i] for i in new)
    end = tokens.word_rows.stop
    for network, scale in zip(networks, scales, strict=True):
        embedding = network.embedding
        assert embedding is not None
        weight = embedding.weight.detach()
        rows = scale * torch.from_numpy(vectors.matrix[new]).to(weight)
        embedding.weight = nn.Parameter(torch.cat([weight[:end], rows, weight[end:]]))
        embedding.unknown = extended.unknown.to(weight.device)
    return extended
