"""The neural language models: embedding, RNN or a window of tokens, linear decoder."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ... import _ops, functional
from ..._common.errors import UserError
from ..._common.runtime import one_thread
from ...diagnostics import spectral_radius
from ...nn import Dropout, FastRNN
from ..config import RNN, WINDOW, Config
from ..data.batches import shifted
from ..data.vocabulary import Vocabulary
from ..language_model import LanguageModel
from ..sampling import ContextSampler
from .adaptive import AdaptiveDecoder
from .cells import CELLS
from .sampling import RecurrentSampler

# The limits of one call that evaluates: so many tokens make the output layer one large matrix
# product, and so many logits (64 MB) bound the memory for a vocabulary of words.
CHUNK_TOKENS = 1024
CHUNK_LOGITS = 1 << 24
# The limits of one call of the native sampler. The reader, and Ctrl-C, wait until it ends: a
# call may draw so many tokens, and may go through so many weights, which takes some 10 ms.
SAMPLED_TOKENS = 64
SAMPLED_WEIGHTS = 1 << 26
INPUT_STD = 0.5  # standard deviation of what the input adds to a hidden unit at the start


class LockedDropout(nn.Dropout):
    """Dropout of (T, ...) with one mask for all T."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.p):
            return x
        return x * F.dropout(x.new_ones(x.shape[1:]), self.p)


class NeuralLM(LanguageModel, nn.Module):
    """p(w_t | tokens before it): embeddings, `features` of the tokens so far, a linear decoder.

    Subclasses make the features. With `tied` the decoder shares the embedding's weights (Press &
    Wolf 2017), which needs as many features as emsize. Dropout is on the features, and on the
    embeddings of words: there are too few characters to overfit theirs. With `locked_dropout` its
    masks are the same at all steps of a call, one for each sequence; `embedding_dropout` is the
    probability that a token's embedding is zero wherever it occurs in a call (both: Gal &
    Ghahramani 2016). With `adaptive` the decoder is an `AdaptiveDecoder`, and not tied.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        emsize: int,
        dropout: float,
        locked_dropout: bool,
        embedding_dropout: float,
    ):
        super().__init__()
        self.vocab = vocab
        self.encoder = nn.Embedding(len(vocab), emsize)
        self.dropout = (LockedDropout if locked_dropout else Dropout)(dropout)
        self.embedding_dropout = embedding_dropout

    def _add_decoder(
        self, nfeatures: int, tied: bool, adaptive: bool, input_weight: torch.Tensor
    ) -> None:
        """The output layer, and the start values of all but the hidden layers.

        `input_weight` is what the first of these multiplies embeddings by, (H, inputs).
        """
        emsize = self.encoder.embedding_dim
        if tied and nfeatures != emsize:
            raise UserError(f"tied needs as many features as emsize {emsize}, not {nfeatures}")
        if adaptive:
            self.decoder = AdaptiveDecoder(nfeatures, len(self.vocab))
        else:
            self.decoder = nn.Linear(nfeatures, len(self.vocab))
            nn.init.zeros_(self.decoder.bias)
        if tied:
            self.decoder.weight = self.encoder.weight
            nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        # What the input adds matters: tied small embeddings under torch's own W_ih all but vanish
        # (600 KB of Brown, 4 epochs: validation perplexity 64.2, so scaled 58.0).
        scale = (0.1 / 3**0.5 if tied else 1.0) * input_weight.shape[1] ** 0.5
        nn.init.normal_(input_weight, std=INPUT_STD / scale)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        embedded = self.encoder(ids)
        if self.training and self.embedding_dropout:
            kept = F.dropout(embedded.new_ones(len(self.vocab)), self.embedding_dropout)
            embedded = embedded * kept[ids].unsqueeze(-1)
        return embedded if self.vocab.letters else self.dropout(embedded)

    def features(
        self, ids: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `forward`, but what the output layer gets, (T, B, features), in place of logits."""
        raise NotImplementedError

    def forward(
        self, ids: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ids: int64 (T, B) -> logits (T, B, V), and the state with which the next ids go on.

        `state` None is the start of a text, with a boundary as the first of `ids`.
        """
        output, state = self.features(ids, state)
        return self.decoder(output), state

    def loss(
        self, ids: torch.Tensor, targets: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ids, targets: int64 (T, B) -> mean of -log p(targets), nats, and the state.

        The cross-entropy of what `forward` returns, without all its logits at once.
        """
        output, state = self.features(ids, state)
        return self._cross_entropy(output, targets), state

    def spectral_radii(self) -> list[float]:
        """Of the recurrent weights of each layer."""
        return []

    def _cross_entropy(
        self, output: torch.Tensor, targets: torch.Tensor, reduction: str = "mean"
    ) -> torch.Tensor:
        output, targets = output.flatten(0, 1), targets.flatten()
        if isinstance(self.decoder, AdaptiveDecoder):
            losses = self.decoder.losses(output, targets)
            return losses if reduction == "none" else losses.mean()
        return functional.linear_cross_entropy(
            output,
            self.decoder.weight,
            targets,
            linear_bias=self.decoder.bias,
            reduction=reduction,
        )

    @torch.inference_mode()
    def logprobs(
        self, ids: np.ndarray, on_chunk: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """log p(ids[t] | boundary, ids[0] .. ids[t-1]) of all tokens, float64 (n,), nats.

        The stream is one sequence, whatever the batch size of training was: the state carries
        over from chunk to chunk, and every token is predicted exactly once. `on_chunk` is called
        with the number of tokens done.
        """
        inputs, targets = (torch.from_numpy(a) for a in shifted(ids, self.vocab.boundary))
        device = self.encoder.weight.device
        chunk = min(CHUNK_TOKENS, max(1, CHUNK_LOGITS // len(self.vocab)))
        result = np.empty(len(ids))
        state = None
        with self._evaluating():
            for start in range(0, len(ids), chunk):
                part = slice(start, start + chunk)
                with one_thread():
                    output, state = self.features(inputs[part, None].to(device), state)
                loss = self._cross_entropy(output, targets[part].to(device), "none")
                result[part] = -loss.double().cpu().numpy()
                if on_chunk:
                    on_chunk(min(start + chunk, len(ids)))
        return result

    @torch.inference_mode()
    def next_logprobs(self, context: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(context).to(self.encoder.weight.device)
        with self._evaluating(), one_thread():
            output, _ = self.features(ids[:, None])
            logits = self.decoder(output[-1:])[0, 0]
        return logits.double().log_softmax(0).cpu().numpy()

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout, whatever the mode is and stays."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)


class RNNLM(NeuralLM):
    """p(w_t | w_1 .. w_{t-1}) by an RNN (Mikolov et al. 2010), with dropout between layers.

    `cell` is "tanh" or "relu", Elman's, "lstm" or "gru"; `weight_dropout` that of W_hh (Merity et
    al. 2018). Its state is h_n, (L, B, H), of an LSTM h_n and c_n, (2L, B, H); a text starts at
    zeros.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        emsize: int,
        nhid: int,
        nlayers: int = 1,
        cell: str = "tanh",
        dropout: float = 0.0,
        tied: bool = False,
        locked_dropout: bool = False,
        weight_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        adaptive: bool = False,
    ):
        super().__init__(vocab, emsize, dropout, locked_dropout, embedding_dropout)
        cls = CELLS[cell] if cell in CELLS else partial(FastRNN, nonlinearity=cell)
        # torch warns of dropout with one layer, where there is no place for it.
        between = {"variational_dropout" if locked_dropout else "dropout": dropout * (nlayers > 1)}
        self.rnn = cls(emsize, nhid, nlayers, **between, weight_dropout=weight_dropout)
        self._add_decoder(nhid, tied, adaptive, self.rnn.weight_ih_l0)
        self._reset_hidden_layers()

    @torch.no_grad()
    def _reset_hidden_layers(self) -> None:
        # An orthogonal W_hh helps while updates are few (built-in text, 256 units, batch 50, 5
        # epochs: validation loss 1.518 against 1.532 nats with torch's) and not later (512 units,
        # batch 24, 3 epochs: 1.287 and 1.289).
        nhid = self.rnn.hidden_size
        for name, weight in self.rnn.named_parameters():
            if name.startswith("weight_hh"):
                for gate in weight.split(nhid):
                    nn.init.orthogonal_(gate)
            elif name.startswith("bias"):
                nn.init.zeros_(weight)
                if isinstance(self.rnn, nn.LSTM) and name.startswith("bias_hh"):
                    # Remember at first (Jozefowicz et al. 2015, section 2.2).
                    nn.init.ones_(weight[nhid : 2 * nhid])

    def features(
        self, ids: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._has_table and len(self.vocab) <= ids.numel():
            output, hn = self._recur_by_table(ids, state)
        else:
            output, hn = self.rnn(self.embed(ids), state)
        return self.dropout(output) if self.dropout.p else output, hn

    @torch.no_grad()
    def spectral_radii(self) -> list[float]:
        """The largest |eigenvalue| of W_hh of each layer; of gated cells, with many W_hh, none."""
        if not self.is_elman:
            return []
        return spectral_radius(self.rnn, torch.float32)[:, 0].tolist()

    @property
    def is_elman(self) -> bool:
        return isinstance(self.rnn, FastRNN)

    @property
    def _has_table(self) -> bool:
        if not self.is_elman or not self.vocab.letters:
            return False
        return not (self.training and (self.embedding_dropout or self.rnn.variational_dropout))

    def _recur_by_table(
        self, ids: torch.Tensor, hx: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same with the input product taken once a token, not once a position."""
        rnn = self.rnn
        weight_ih, *others = rnn._weights()
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
    def sampler(self, **options):
        """A native one, but for gated cells and an adaptive decoder."""
        if not self.is_elman or isinstance(self.decoder, AdaptiveDecoder):
            # A copy, because generated text is that of the weights at the time of the call.
            model = copy.deepcopy(self, {id(self.vocab): self.vocab})
            return RecurrentSampler(model.to("cpu", torch.float32).eval(), **options), 1
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
        block = max(
            1, min(SAMPLED_TOKENS, SAMPLED_WEIGHTS // sum(p.numel() for p in self.parameters()))
        )
        return _ops.sampler(table, layers, (decoder_w, decoder_b), relu, **options), block


class WindowLM(NeuralLM):
    """p(w_t | the order - 1 tokens before it) by one hidden layer over their embeddings.

    With `direct` the embeddings are features as well, so that they are also connected to the output
    (Bengio et al. 2003, section 2). Its state are the last order - 2 tokens, (order - 2, B), and
    before a text there are boundaries.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        emsize: int,
        nhid: int,
        order: int = 5,
        cell: str = "tanh",
        dropout: float = 0.0,
        tied: bool = False,
        direct: bool = False,
        locked_dropout: bool = False,
        embedding_dropout: float = 0.0,
        adaptive: bool = False,
    ):
        super().__init__(vocab, emsize, dropout, locked_dropout, embedding_dropout)
        self.order, self.direct = order, direct
        inputs = (order - 1) * emsize
        self.hidden = nn.Linear(inputs, nhid)
        self.activation = getattr(torch, cell)
        nfeatures = nhid + inputs if direct else nhid
        self._add_decoder(nfeatures, tied, adaptive, self.hidden.weight)
        nn.init.zeros_(self.hidden.bias)

    def features(
        self, ids: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        steps, batch_size = ids.shape
        if state is None:
            state = ids.new_full((self.order - 2, batch_size), self.vocab.boundary)
        ids = torch.cat([state, ids])
        embedded = self.embed(ids)
        window = torch.cat([embedded[t : t + steps] for t in range(self.order - 1)], -1)
        output = self.dropout(self.activation(self.hidden(window)))
        return torch.cat([output, window], -1) if self.direct else output, ids[steps:]

    def next_logprobs(self, context: np.ndarray) -> np.ndarray:
        return super().next_logprobs(context[1 - self.order :])  # all that it sees

    def sampler(self, **options):
        return ContextSampler(self, **options), 1


MODELS = {RNN: RNNLM, WINDOW: WindowLM}


def build(config: Config, vocab: Vocabulary) -> NeuralLM:
    """A new model of the settings, from torch's random numbers."""
    cls = MODELS[config.model]
    names = inspect.signature(cls).parameters.keys() - {"vocab"}
    return cls(vocab, **{name: getattr(config, name) for name in names})
