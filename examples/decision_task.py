"""Train a network of leaky units to say which of two noisy inputs is larger.

The task is PerceptualDecisionMaking-v0 of neurogym, after Britten et al. (1992): for two seconds
the inputs differ by less than their noise, and then the network has to choose. It must therefore
add up what it sees, over 20 time constants of its units.

    python examples/decision_task.py                        # a few seconds, to see that it runs
    python examples/decision_task.py --trials 10000         # until it is as good as it gets
    python examples/decision_task.py --trials 10000 --loop  # beside the usual Python loop
"""

import argparse
import time

import gymnasium
import neurogym  # noqa: F401 - adds its tasks to gymnasium
import numpy as np
import torch
from torch import nn

from rnnfast import LeakyRNN

gymnasium.logger.min_level = gymnasium.logger.ERROR  # a task has no pictures, which it warns of
TAU, DT = 100, 20  # milliseconds: the time constant of a unit, and the length of a time step


class Network(nn.Module):
    """Leaky units, and a readout of their rates: 0 to wait, 1 or 2 to choose."""

    def __init__(self, hidden_size=64):
        super().__init__()
        self.rnn = LeakyRNN(3, hidden_size, tau=TAU, dt=DT, nonlinearity="relu", noise=0.05)
        # A unit forgets with the time constant tau. One that excites itself as much remembers.
        nn.init.eye_(self.rnn.weight_hh_l0)
        self.readout = nn.Linear(hidden_size, 3)

    def forward(self, x):
        rates, _ = self.rnn(x)
        return self.readout(rates[-1])


class LoopNetwork(Network):
    """This is the same network as a loop over time steps, which is how it is usually written."""

    def forward(self, x):
        rnn, alpha = self.rnn, DT / TAU
        r = x.new_zeros(x.shape[1], rnn.hidden_size)
        for x_t in x:
            p = x_t @ rnn.weight_ih_l0.T + r @ rnn.weight_hh_l0.T + rnn.bias_l0
            if self.training:
                p = p + (2 / alpha) ** 0.5 * rnn.noise * torch.randn_like(p)
            r = (1 - alpha) * r + alpha * torch.relu(p)
        return self.readout(r)


def make_trials(count, seed):
    """Return the inputs, (T, count, 3), the right choices and the coherences, both (count)."""
    task = gymnasium.make("PerceptualDecisionMaking-v0", dt=DT).unwrapped
    task.seed(seed)
    inputs, choices, coherences = [], [], []
    for _ in range(count):
        coherences.append(task.new_trial()["coh"])
        inputs.append(task.ob)
        choices.append(task.gt[-1])
    inputs = torch.from_numpy(np.stack(inputs, axis=1))
    return inputs, torch.tensor(choices), torch.tensor(coherences)


def is_correct(network, trials):
    """Return which trials the network gets right without noise, 1 or 0 for each."""
    network.eval()
    with torch.no_grad():
        answers = network(trials[0]).argmax(1)
    network.train()
    return (answers == trials[1]).float()


def train(network, trials, fresh, batch_size=50):
    """Train on each trial once. Return ten points of the learning curve: (seconds, accuracy)."""
    batches = list(zip(trials[0].split(batch_size, 1), trials[1].split(batch_size), strict=True))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))
    curve, seconds = [], 0.0
    for k, (x, choices) in enumerate(batches, 1):
        start = time.perf_counter()
        loss = nn.functional.cross_entropy(network(x), choices)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seconds += time.perf_counter() - start
        if k * 10 // len(batches) > (k - 1) * 10 // len(batches):
            curve.append((seconds, is_correct(network, fresh).mean()))
    return curve


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--trials", type=int, default=1000, help="Trials to train on (default: 1000)")
parser.add_argument("--loop", action="store_true", help="Also train the network as a loop")
args = parser.parse_args()

torch.manual_seed(0)
trials, fresh = make_trials(args.trials, seed=0), make_trials(1000, seed=1)
networks = {"LeakyRNN": Network()}
if args.loop:
    networks["loop"] = LoopNetwork()
    networks["loop"].load_state_dict(networks["LeakyRNN"].state_dict())
curves = [train(network, trials, fresh) for network in networks.values()]
print("trials ", *(f"{name:>19}" for name in networks))
for k, points in enumerate(zip(*curves, strict=True), 1):
    print(f"{k * args.trials // 10:6d} ", *(f"{s:8.2f} s {a:8.1%}" for s, a in points))

correct, coherences = is_correct(networks["LeakyRNN"], fresh), fresh[2]
print(f"LeakyRNN chooses right in {correct.mean():.1%} of 1000 fresh trials, without noise:")
for coherence in coherences.unique():
    print(f"  coherence {coherence:4.1f}: {correct[coherences == coherence].mean():6.1%}")
print("At coherence 0 the inputs do not differ, so about 90% in all is as good as it gets.")
