"""Train a speech model with torch.nn's recurrent layers, and after accelerate(): losses and time.

The model has the shape of small speech recognisers in the manner of Deep Speech 2 (Amodei et al.
2016): a convolution over the frames, two bidirectional layers over packed batches, and the CTC
loss. The speech is artificial: each of 28 sounds is a spectrum that lasts for some frames, with
noise. Both trainings begin with the same weights, see the same batches, and take turns, so that
their times can be compared.
"""

import argparse
import copy
import time

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnfast

SOUNDS, BANDS, SIZE, BATCH = 28, 40, 128, 16


class SpeechModel(nn.Module):
    """Log-probabilities of the sounds, and of no sound, at every second frame."""

    def __init__(self, kind):
        super().__init__()
        self.convolution = nn.Conv1d(BANDS, SIZE, 5, stride=2, padding=2)
        self.rnn = kind(SIZE, SIZE, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * SIZE, SOUNDS + 1)

    def forward(self, frames, lengths):
        """Return (T, B, sounds) for frames (B, bands, T), and the lengths of the sequences."""
        x = torch.relu(self.convolution(frames)).transpose(1, 2)
        lengths = (lengths + 1) // 2
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        x, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(x).log_softmax(-1).transpose(0, 1), lengths


def utterances(generator, spectra):
    """Return frames (B, bands, T), their lengths, the sounds, and the numbers of sounds."""
    frames, sounds = [], []
    for _ in range(BATCH):
        spoken = generator.integers(SOUNDS, size=generator.integers(8, 30))
        times = generator.integers(4, 13, size=len(spoken))
        frames.append(torch.from_numpy(np.repeat(spectra[spoken], times, axis=0)).float())
        sounds.append(torch.from_numpy(spoken) + 1)
    lengths = torch.tensor([len(f) for f in frames])
    batch = nn.utils.rnn.pad_sequence(frames, batch_first=True)
    batch += torch.from_numpy(generator.standard_normal(batch.shape)).float()
    counts = torch.tensor([len(s) for s in sounds])
    return batch.transpose(1, 2).contiguous(), lengths, torch.cat(sounds), counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    about = "Recurrent layers (default: gru)"
    parser.add_argument("--cell", choices=("rnn", "gru", "lstm"), default="gru", help=about)
    parser.add_argument("--steps", type=int, default=200, help="Updates (default: 200)")
    args = parser.parse_args()

    generator = np.random.default_rng(0)
    spectra = generator.standard_normal((SOUNDS, BANDS))
    torch.manual_seed(0)
    plain = SpeechModel(getattr(nn, args.cell.upper()))
    models = {"torch": plain, "rnnfast": rnnfast.accelerate(copy.deepcopy(plain))}
    optimizers = {name: torch.optim.Adam(m.parameters(), 1e-3) for name, m in models.items()}
    losses, seconds = ({name: [] for name in models} for _ in range(2))
    loss_of = nn.CTCLoss()
    for step in range(args.steps):
        frames, lengths, sounds, counts = utterances(generator, spectra)
        for name, model in models.items():
            start = time.perf_counter()
            logits, logit_lengths = model(frames, lengths)
            loss = loss_of(logits, sounds, logit_lengths, counts)
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            seconds[name].append(time.perf_counter() - start)
            losses[name].append(loss.item())
        if step % 20 == 0 or step + 1 == args.steps:
            pairs = "  ".join(f"{name} {values[-1]:.5f}" for name, values in losses.items())
            print(f"update {step + 1}: loss {pairs}", flush=True)
    apart = np.abs(np.subtract(*losses.values())) / np.array(losses["torch"])
    ms = {name: 1e3 * float(np.median(values)) for name, values in seconds.items()}
    print(f"largest relative difference of the losses: {apart.max():.1e}")
    print(
        f"median update, {torch.get_num_threads()} threads: torch {ms['torch']:.1f} ms, rnnfast "
        f"{ms['rnnfast']:.1f} ms, {ms['torch'] / ms['rnnfast']:.2f} times as fast"
    )


if __name__ == "__main__":
    main()
