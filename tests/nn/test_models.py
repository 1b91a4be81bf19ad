"""``accelerate`` on typical models: training gives the same losses as before."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnfast
from rnnfast import FastGRU, FastLSTM, FastRNN

TEXT = "the quick brown fox jumps over the lazy dog; " * 6


class CharacterRNN(nn.Module):
    """An embedding and two layers with dropout; the state is carried from window to window."""

    def __init__(self):
        super().__init__()
        self.alphabet = sorted(set(TEXT))
        self.embedding = nn.Embedding(len(self.alphabet), 8)
        self.rnn = nn.RNN(8, 24, 2, batch_first=True, dropout=0.2)
        self.decoder = nn.Linear(24, len(self.alphabet))

    def losses(self):
        ids = torch.tensor([self.alphabet.index(c) for c in TEXT])
        batch = ids[: 4 * (len(ids) // 4)].reshape(4, -1)
        hidden = None
        for start in range(0, batch.shape[1] - 13, 12):
            window = batch[:, start : start + 13]
            output, hidden = self.rnn(self.embedding(window[:, :-1]), hidden)
            hidden = hidden.detach()
            yield F.cross_entropy(self.decoder(output).flatten(0, 1), window[:, 1:].flatten())


class Seq2Seq(nn.Module):
    """A model that reverses digits: a bidirectional encoder, then a decoder.

    Half of the time the decoder reads its own output.
    """

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.encoder = nn.RNN(8, 16, bidirectional=True)
        self.bridge = nn.Linear(32, 16)
        self.decoder = nn.RNN(8, 16, nonlinearity="relu")
        self.output = nn.Linear(16, 11)

    def losses(self):
        for step in range(12):
            source = torch.randint(10, (7, 16))
            target = source.flip(0)
            _, h_n = self.encoder(self.embedding(source))
            hidden = self.bridge(torch.cat([h_n[0], h_n[1]], -1)).tanh()[None]
            start = torch.full((1, 16), 10)
            if step % 2:
                given = self.embedding(torch.cat([start, target[:-1]]))
                logits = self.output(self.decoder(given, hidden)[0])
            else:
                token, steps = start, []
                for _ in target:
                    output, hidden = self.decoder(self.embedding(token), hidden)
                    steps.append(self.output(output))
                    token = steps[-1].argmax(-1)
                logits = torch.cat(steps)
            yield F.cross_entropy(logits.flatten(0, 1), target.flatten())


class Tagger(nn.Module):
    """A tagger of sentences of any length, packed unsorted. The loss ignores the padding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.rnn = nn.RNN(8, 12, 2, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(24, 3)

    def losses(self):
        for _ in range(12):
            lengths = torch.randint(1, 10, (8,))
            lengths[3] = 9
            words = torch.randint(1, 20, (8, 9))
            words[torch.arange(9) >= lengths[:, None]] = 0
            tags = (words.roll(1, 1) + words) % 3
            packed = pack_padded_sequence(
                self.embedding(words), lengths, batch_first=True, enforce_sorted=False
            )
            output, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
            tags[words == 0] = -100
            yield F.cross_entropy(self.tags(output).flatten(0, 1), tags.flatten())


class Policy(nn.Module):
    """REINFORCE on a memory game: name at each step what was seen two steps ago."""

    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(4, 16)
        self.rnn = nn.RNN(16, 16)
        self.action = nn.Linear(16, 4)

    def losses(self):
        for _ in range(10):
            seen = torch.randint(4, (8, 6))
            first, second = torch.zeros(6, 16).to(self.action.weight), None
            log_probs, rewards = [], []
            for t in range(8):
                first = self.cell(F.one_hot(seen[t], 4).to(first), first)
                output, second = self.rnn(first[None], second)
                chosen = Categorical(logits=self.action(output[0]))
                action = chosen.sample()
                log_probs.append(chosen.log_prob(action))
                rewards.append((action == seen[t - 2]).to(first) if t > 1 else torch.zeros(6))
            rewards = torch.stack(rewards)
            returns = rewards.flip(0).cumsum(0).flip(0)
            yield -(torch.stack(log_probs) * (returns - returns.mean())).mean()


class SpeechTagger(nn.Module):
    """Two bidirectional GRUs over packed frames, and an LSTM that reads their output."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(6, 12, 2, batch_first=True, bidirectional=True)
        self.reader = nn.LSTM(24, 10, batch_first=True)
        self.phones = nn.Linear(10, 4)

    def losses(self):
        for _ in range(12):
            lengths = torch.randint(2, 15, (8,))
            lengths[3] = 14
            frames = torch.randn(8, 14, 6).to(self.phones.weight)
            labels = frames[..., :4].cumsum(1).argmax(-1)
            packed = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
            output, _ = pad_packed_sequence(self.encoder(packed)[0], batch_first=True)
            output, _ = self.reader(output)
            labels[torch.arange(14) >= lengths[:, None]] = -100
            yield F.cross_entropy(self.phones(output).flatten(0, 1), labels.flatten())


def train(cls, dtype, accelerated):
    torch.manual_seed(0)
    model = cls().to(dtype)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    if accelerated:  # the optimizer already has the parameters
        assert rnnfast.accelerate(model) is model
        ours = (FastRNN, FastGRU, FastLSTM)
        assert all(type(m) in ours for m in model.modules() if isinstance(m, nn.RNNBase))
    losses = []
    for loss in model.losses():
        optimiser.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("cls", [CharacterRNN, Seq2Seq, Tagger, Policy, SpeechTagger])
def test_accelerated_model_trains_to_the_same_losses(cls):
    before = train(cls, torch.float64, accelerated=False)
    assert before[0] != before[-1]
    torch.testing.assert_close(train(cls, torch.float64, True), before, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("cls", [CharacterRNN, Tagger, SpeechTagger])
def test_in_single_precision(cls):
    """The random numbers are the same. Rounding errors grow over the steps, but stay small."""
    before = train(cls, torch.float32, accelerated=False)
    torch.testing.assert_close(train(cls, torch.float32, True), before, rtol=1e-4, atol=1e-5)
