"""The neural language models: embeddings, an RNN or a window of tokens, and a decoder."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ... import _ops, functional
from ..._common.errors import UserError
from ..._common.runtime import one_thread
from ...diagnostics import spectral_radius
from ...nn import Dropout, FastGRU, FastRNN
from ..config import RNN, WINDOW, Config
from ..data.batches import shifted
from ..data.vocabulary import Vocabulary
from ..language_model import LanguageModel, TokenSampler
from ..sampling import ContextSampler
from .adaptive import AdaptiveDecoder
from .cells import GATED, LSTM, LockedDropout, run_on_tokens
from .sampled import sampled_cross_entropy
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


class NeuralLM(LanguageModel, nn.Module):
    """The base class of neural models: embeddings, `features` of the tokens so far, a decoder.

    Subclasses implement `features`. Shapes: T time steps, B sequences, V tokens in the vocabulary.
    Dropout is on the features, and at word and BPE level on the embeddings. There are too few
    characters to overfit their embeddings.

    Args:
        vocab: The vocabulary.
        emsize: The size of the embeddings.
        dropout: The probability of dropout.
        locked_dropout: Use the same mask at all time steps of a call. Each sequence has its own
            mask (Gal & Ghahramani 2016).
        embedding_dropout: The probability that the embedding of a token is zero wherever it occurs
            in a call (Gal & Ghahramani 2016).

    Attributes:
        vocab: The vocabulary.
        encoder: The embeddings, an nn.Embedding with weight (V, emsize).
        decoder: The output layer, an nn.Linear or an `AdaptiveDecoder`. A linear decoder may share
            the weights of the embeddings (Press & Wolf 2017).
        sampled_softmax: The number of tokens in a `sampled_cross_entropy`, or None.
    """

    sampled_softmax: int | None = None

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
        self.decoder: AdaptiveDecoder | nn.Linear

    def _add_decoder(
        self, nfeatures: int, tied: bool, adaptive: bool, input_weight: torch.Tensor
    ) -> None:
        """Add the output layer, and initialise all weights except those of the hidden layers.

        `input_weight`, (H, inputs), multiplies the embeddings in the first hidden layer.
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
        # Tied embeddings are small. With torch's own initialisation of W_ih they would add almost
        # nothing to the hidden units, so W_ih is scaled. On 600 KB of Brown, this lowers validation
        # perplexity after 4 epochs from 64.2 to 58.0.
        scale = (0.1 / 3**0.5 if tied else 1.0) * input_weight.shape[1] ** 0.5
        nn.init.normal_(input_weight, std=INPUT_STD / scale)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings, (T, B, emsize), of ids, int64 (T, B), with dropout in training."""
        embedded = self.encoder(ids)
        if self.training and self.embedding_dropout:
            kept = F.dropout(embedded.new_ones(len(self.vocab)), self.embedding_dropout)
            embedded = embedded * kept[ids].unsqueeze(-1)
        return embedded if self.vocab.letters else self.dropout(embedded)

    def features(
        self, ids: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the decoder gets, (T, B, features), and the state; see `forward`."""
        raise NotImplementedError

    def forward(
        self, ids: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits, (T, B, V), of the tokens after `ids`, and the state after `ids`.

        Args:
            ids: Token numbers, int64 (T, B).
            state: The state that the call for the tokens before `ids` returned. None is the start
                of a text, and the first of `ids` is then a boundary.
        """
        output, state = self.features(ids, state)
        return self.decoder(output), state

    def loss(
        self, ids: torch.Tensor, targets: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean of -log p(targets), in nats, and the state after `ids`.

        This is the cross-entropy of the logits that `forward` returns. A linear decoder does not
        keep all logits in memory. With `sampled_softmax`, it is an approximation in training. `ids`
        and `targets` are int64 (T, B).
        """
        output, state = self.features(ids, state)
        if self.training and self.sampled_softmax and isinstance(self.decoder, nn.Linear):
            flat = output.flatten(0, 1), self.decoder, targets.flatten()
            return sampled_cross_entropy(*flat, self.sampled_softmax), state
        return self._cross_entropy(output, targets), state

    def spectral_radii(self) -> list[float]:
        """Return the spectral radius of the recurrent weights of each layer that has one."""
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
        """Return log p(ids[t] | boundary, ids[0] .. ids[t-1]) of every token: float64 (n,), nats.

        The stream is read as one sequence in chunks, with the state carried over, so every token is
        predicted exactly once. `on_chunk` is called with the number of tokens that are done.
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
        """Return log p of every token after `context`; see `LanguageModel.next_logprobs`."""
        ids = torch.from_numpy(context).to(self.encoder.weight.device)
        with self._evaluating(), one_thread():
            output, _ = self.features(ids[:, None])
            logits = self.decoder(output[-1:])[0, 0]
        return logits.double().log_softmax(0).cpu().numpy()

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Switch to eval mode while the body of a `with` statement runs."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)


class RNNLM(NeuralLM):
    """A recurrent language model: p(w_t | w_1 .. w_{t-1}) (Mikolov et al. 2010).

    The state is h_n, (L, B, H). For an LSTM it is h_n and then c_n, (2L, B, H). A text starts with
    a state of zeros.

    Args:
        vocab: The vocabulary.
        emsize: The size of the embeddings.
        nhid: The number of hidden units H.
        nlayers: The number of layers L.
        cell: "tanh" or "relu" for an Elman RNN, "lstm" or "gru".
        dropout: The probability of dropout; see `NeuralLM`. It is also between the layers.
        tied: Share the weights of the embeddings and the decoder. Needs `emsize` equal to `nhid`.
        locked_dropout: Use the same mask of dropout at all time steps; see `NeuralLM`.
        weight_dropout: The probability of dropout on the recurrent weights (Merity et al. 2018).
        embedding_dropout: The probability of dropping an embedding; see `NeuralLM`.
        adaptive: Use an `AdaptiveDecoder`, which cannot be tied.

    Raises:
        UserError: `tied` is given and `emsize` is not `nhid`, or `adaptive` is given and there are
            fewer than 20 tokens.

    Example:
        >>> import torch
        >>> from rnnfast import lm
        >>> model = lm.RNNLM(lm.Vocabulary.build("char", ["abc"]), emsize=8, nhid=16)
        >>> logits, state = model(torch.zeros(5, 2, dtype=torch.int64))
        >>> logits.shape, state.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 16]))
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
        cls = GATED[cell] if cell in GATED else partial(FastRNN, nonlinearity=cell)
        # torch warns if dropout is given with one layer, because it is only between layers.
        between = {"variational_dropout" if locked_dropout else "dropout": dropout * (nlayers > 1)}
        self.rnn: FastRNN | FastGRU | LSTM = cls(
            emsize, nhid, nlayers, **between, weight_dropout=weight_dropout
        )
        self._add_decoder(nhid, tied, adaptive, self.rnn.weight_ih_l0)
        self._reset_hidden_layers()

    @torch.no_grad()
    def _reset_hidden_layers(self) -> None:
        # An orthogonal W_hh helps a short training. Validation loss on the built-in text in nats,
        # orthogonal and with torch's own initialisation:
        #   256 units, batch 50, 5 epochs  1.518 and 1.532
        #   512 units, batch 24, 3 epochs  1.287 and 1.289
        nhid = self.rnn.hidden_size
        for name, weight in self.rnn.named_parameters():
            if name.startswith("weight_hh"):
                for gate in weight.split(nhid):
                    nn.init.orthogonal_(gate)
            elif name.startswith("bias"):
                nn.init.zeros_(weight)
                if isinstance(self.rnn, nn.LSTM) and name.startswith("bias_hh"):
                    # The forget gate starts open (Jozefowicz et al. 2015, section 2.2).
                    nn.init.ones_(weight[nhid : 2 * nhid])

    def features(
        self, ids: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the decoder gets, (T, B, features), and the state; see `NeuralLM.forward`."""
        rnn = self.rnn
        if self._has_table and len(self.vocab) <= ids.numel():
            output, hn = self._recur_by_table(ids, state)
        else:
            output, hn = rnn(self.embed(ids), state)
        return self.dropout(output) if self.dropout.p else output, hn

    @torch.no_grad()
    def spectral_radii(self) -> list[float]:
        """Return the largest |eigenvalue| of W_hh of each layer.

        The list is empty for gated cells, which have several recurrent matrices in a layer.
        """
        if not isinstance(self.rnn, FastRNN):
            return []
        return spectral_radius(self.rnn, torch.float32)[:, 0].tolist()

    @property
    def _has_table(self) -> bool:
        if not self.vocab.letters:
            return False
        return not (self.training and (self.embedding_dropout or self.rnn.variational_dropout))

    def _recur_by_table(
        self, ids: torch.Tensor, state: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the RNN with a table of W_ih times each embedding.

        The input product is then computed once for each token of the vocabulary, and not once for
        each position.
        """
        weight_ih, *others = self.rnn._weights()
        table = self.encoder.weight @ weight_ih.t()
        return run_on_tokens(self.rnn, ids, state, [table.t(), *others])

    @torch.inference_mode()
    def sampler(self, **options: Any) -> tuple[TokenSampler, int]:
        """Return a sampler; see `LanguageModel.sampler`.

        It is a native one, except for an adaptive decoder.
        """
        if isinstance(self.decoder, AdaptiveDecoder):
            # The copy keeps the weights of this moment while the model may be trained further.
            model = copy.deepcopy(self, {id(self.vocab): self.vocab})
            return RecurrentSampler(model.to("cpu", torch.float32).eval(), **options), 1
        parameters = [self.encoder.weight, self.decoder.weight, self.decoder.bias]
        parameters += self.rnn.parameters()
        embedding, decoder_w, decoder_b, *rnn = (p.to("cpu", torch.float32) for p in parameters)
        with one_thread():  # the table has the same bits with any number of threads
            table = embedding @ rnn[0].t()
        layers = []
        for k in range(0, len(rnn), 4):
            w_ih, w_hh, b_ih, b_hh = rnn[k : k + 4]
            layers.append((w_hh, w_ih if k else None, b_ih, b_hh))
        if self.vocab.unk is not None:
            decoder_b = decoder_b.index_fill(0, torch.tensor(self.vocab.unk), -math.inf)
        cell = self.rnn.mode.removeprefix("RNN_").lower()
        block = max(
            1, min(SAMPLED_TOKENS, SAMPLED_WEIGHTS // sum(p.numel() for p in self.parameters()))
        )
        return _ops.sampler(table, layers, (decoder_w, decoder_b), cell, **options), block


class WindowLM(NeuralLM):
    """A feed-forward model of a window: p(w_t | the order - 1 tokens before it).

    One hidden layer reads the embeddings of the tokens in the window (Bengio et al. 2003, section
    2). The state is the last order - 2 tokens, int64 (order - 2, B). A text starts after
    boundaries.

    Args:
        vocab: The vocabulary.
        emsize: The size of the embeddings.
        nhid: The number of hidden units.
        order: The number of tokens that the window spans, the predicted token included.
        cell: "tanh" or "relu".
        dropout: The probability of dropout; see `NeuralLM`.
        tied: Share the weights of the embeddings and the decoder. Needs `emsize` equal to `nhid`.
        direct: Connect the embeddings to the decoder as well.
        locked_dropout: Use the same mask of dropout at all time steps; see `NeuralLM`.
        embedding_dropout: The probability of dropping an embedding; see `NeuralLM`.
        adaptive: Use an `AdaptiveDecoder`, which cannot be tied.

    Raises:
        UserError: As for `RNNLM`.
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
        """Return what the decoder gets, (T, B, features), and the state; see `NeuralLM.forward`."""
        steps, batch_size = ids.shape
        if state is None:
            state = ids.new_full((self.order - 2, batch_size), self.vocab.boundary)
        ids = torch.cat([state, ids])
        embedded = self.embed(ids)
        window = torch.cat([embedded[t : t + steps] for t in range(self.order - 1)], -1)
        output = self.dropout(self.activation(self.hidden(window)))
        return torch.cat([output, window], -1) if self.direct else output, ids[steps:]

    def next_logprobs(self, context: np.ndarray) -> np.ndarray:
        """Return log p of every token after `context`; see `LanguageModel.next_logprobs`."""
        return super().next_logprobs(context[1 - self.order :])  # the tokens that it can see

    def sampler(self, **options: Any) -> tuple[TokenSampler, int]:
        """Return a sampler; see `LanguageModel.sampler`."""
        return ContextSampler(self, **options), 1


MODELS = {RNN: RNNLM, WINDOW: WindowLM}


def build(config: Config, vocab: Vocabulary) -> NeuralLM:
    """Return a new model with the settings `config`, initialised by torch's generator."""
    cls = MODELS[config.model]
    names = inspect.signature(cls).parameters.keys() - {"vocab"}
    model = cls(vocab, **{name: getattr(config, name) for name in names})
    model.sampled_softmax = config.sampled_softmax
    return model
