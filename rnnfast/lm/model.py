"""The recurrent language model: embedding, Elman RNN, linear decoder."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .. import _ops, functional
from ..nn import FastRNN
from .batches import shifted
from .config import CHAR, Config
from .errors import UserError
from .evaluate import Evaluation, Score, evaluate, generate, one_thread, score
from .vocab import Vocabulary

CHUNK = 1024  # tokens a call: long enough that the output layer is one big GEMM
CHUNK_LOGITS = 1 << 24  # and few enough logits (64 MB) for a vocabulary of words
BLOCK = 64  # tokens a call of the sampler: the reader, and Ctrl-C, wait for so many
BLOCK_WEIGHTS = 1 << 26  # and for so many weights to go through, some 10 ms
INPUT_STD = 0.5  # of what the input adds to the hidden units at the start


class RNNLM(nn.Module):
    """p(w_t | w_1 .. w_{t-1}) by an Elman RNN (Mikolov et al. 2010).

    With `tied` the decoder shares the embedding's weights (Press & Wolf 2017), which needs
    emsize == nhid. Dropout is between the layers and on the output, and on the embeddings of words:
    there are too few characters to overfit theirs.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        emsize: int,
        nhid: int,
        nlayers: int = 1,
        nonlinearity: str = "tanh",
        dropout: float = 0.0,
        tied: bool = False,
    ):
        super().__init__()
        if tied and emsize != nhid:
            raise UserError(f"tied needs emsize equal to nhid, not {emsize} and {nhid}")
        self.vocab = vocab
        self.encoder = nn.Embedding(len(vocab), emsize)
        self.rnn = FastRNN(
            emsize,
            nhid,
            nlayers,
            nonlinearity=nonlinearity,
            # torch warns of dropout with one layer, where there is no place for it.
            dropout=dropout if nlayers > 1 else 0.0,
        )
        self.decoder = nn.Linear(nhid, len(vocab))
        self.dropout = nn.Dropout(dropout)
        if tied:
            self.decoder.weight = self.encoder.weight
        self._init_weights(tied)

    @classmethod
    def from_config(cls, config: Config, vocab: Vocabulary) -> RNNLM:
        names = ("emsize", "nhid", "nlayers", "nonlinearity", "dropout", "tied")
        return cls(vocab, **{name: getattr(config, name) for name in names})

    def _init_weights(self, tied: bool) -> None:
        # Measured, validation loss in nats. What the input adds matters: tied small embeddings
        # under torch's own W_ih all but vanish (600 KB of Brown, 4 epochs: perplexity 64.2, so
        # scaled 58.0). An orthogonal W_hh helps while updates are few (built-in text, 256 units,
        # batch 50, 5 epochs: 1.518 against 1.532 with torch's) and not later (512 units, batch 24,
        # 3 epochs: 1.287 and 1.289).
        if tied:
            nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        scale = (0.1 / 3**0.5 if tied else 1.0) * self.encoder.embedding_dim**0.5
        for name, weight in self.rnn.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(weight)
            elif name == "weight_ih_l0":
                nn.init.normal_(weight, std=INPUT_STD / scale)
            elif name.startswith("bias"):
                nn.init.zeros_(weight)
        nn.init.zeros_(self.decoder.bias)

    def forward(
        self, ids: torch.Tensor, hx: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ids: int64 (T, B); hx: (L, B, H) or None for zeros -> logits (T, B, V), h_n (L, B, H)."""
        output, hn = self.recur(ids, hx)
        return self.decoder(output), hn

    def recur(
        self, ids: torch.Tensor, hx: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `forward`, but without the output layer: the last layer's states (T, B, H), h_n."""
        if self.vocab.level == CHAR and len(self.vocab) <= ids.numel():
            output, hn = self._recur_by_table(ids, hx)
        elif self.vocab.level == CHAR:
            output, hn = self.rnn(self.encoder(ids), hx)
        else:
            output, hn = self.rnn(self.dropout(self.encoder(ids)), hx)
        return self.dropout(output), hn

    def _recur_by_table(
        self, ids: torch.Tensor, hx: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same with the input product taken once a character, not once a position."""
        rnn = self.rnn
        weight_ih, *others = rnn.parameters()
        table = self.encoder.weight @ weight_ih.t()
        return functional.rnn(
            ids,
            hx,
            [table.t(), *others],
            num_layers=rnn.num_layers,
            nonlinearity=rnn.nonlinearity,
            dropout=rnn.dropout,
            training=self.training,
        )

    @torch.inference_mode()
    def logprobs(
        self, ids: np.ndarray, on_chunk: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """log p(ids[t] | boundary, ids[0] .. ids[t-1]) of all tokens, float64 (n,), nats.

        The stream is one sequence, whatever the batch size of training was: the hidden state
        starts at zero, carries over from chunk to chunk, and every token is predicted exactly
        once. `on_chunk` is called with the number of tokens done.
        """
        inputs, targets = (torch.from_numpy(a) for a in shifted(ids, self.vocab.boundary))
        device = self.decoder.weight.device
        chunk = min(CHUNK, max(1, CHUNK_LOGITS // len(self.vocab)))
        result = np.empty(len(ids))
        was_training = self.training
        self.eval()
        try:
            hidden = None
            for start in range(0, len(ids), chunk):
                part = slice(start, start + chunk)
                with one_thread():
                    output, hidden = self.recur(inputs[part, None].to(device), hidden)
                logits = self.decoder(output)
                loss = F.cross_entropy(logits[:, 0], targets[part].to(device), reduction="none")
                result[part] = -loss.double().cpu().numpy()
                if on_chunk:
                    on_chunk(min(start + chunk, len(ids)))
        finally:
            self.train(was_training)
        return result

    @torch.inference_mode()
    def sampler(self, **options):
        """A native sampler with these weights, without `<unk>`, and the tokens to ask of it a time.

        `options` are those of `rnnfast._ops.sampler`, which says what a sampler does.
        """
        parameters = [self.encoder.weight, self.decoder.weight, self.decoder.bias]
        parameters += self.rnn.parameters()
        embedding, decoder_w, decoder_b, *rnn = (p.to("cpu", torch.float32) for p in parameters)
        with one_thread():  # so that the table has the same bits with any number of threads
            table = embedding @ rnn[0].t()
        layers = []
        for k in range(0, len(rnn), 4):
            w_ih, w_hh, b_ih, b_hh = rnn[k : k + 4]
            layers.append((torch.cat([w_hh, w_ih], 1) if k else w_hh, b_ih + b_hh))
        if self.vocab.unk is not None:
            decoder_b = decoder_b.index_fill(0, torch.tensor(self.vocab.unk), -math.inf)
        relu = self.rnn.nonlinearity == "relu"
        block = max(1, min(BLOCK, BLOCK_WEIGHTS // sum(p.numel() for p in self.parameters())))
        return _ops.sampler(table, layers, (decoder_w, decoder_b), relu, **options), block

    def evaluate(self, text: str) -> Evaluation:
        """Cross-entropy of a text read as one stream; see `rnnfast.lm.evaluate`."""
        return evaluate(self, self.vocab.encode_stream(text))

    def score(self, sentence: str) -> Score:
        """Log probability of one sentence and of each of its tokens."""
        return score(self, sentence)

    def generate(self, prompt: str = "", length: int = 200, **options) -> str:
        """The prompt and `length` tokens more; options as in `rnnfast.lm.generate`."""
        return "".join(generate(self, prompt, length, **options))
