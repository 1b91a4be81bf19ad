"""Train a recurrent policy by PPO on CartPole without its velocities.

The policy sees where the cart and the pole are, but not how fast they move, so it has to remember.
Where an episode ends in one of the environments, the state of the policy begins anew there: by
stepper.reset(rows) while it acts, and by reset= when it learns from the whole rollout.

    python examples/recurrent_policy.py                                # a few seconds
    python examples/recurrent_policy.py --updates 60 --without-resets  # in full, beside one without
"""

import argparse
import time
from statistics import mean, median

import gymnasium
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from rnnfast import FastRNN

STEPS, ENVS, EPOCHS, DISCOUNT = 128, 16, 4, 0.99


def read(policy, output):
    """Return the distribution of the two actions, and the value of the state."""
    logits, value = policy["readout"](output).split((2, 1), dim=-1)
    return torch.distributions.Categorical(logits=logits), value.squeeze(-1)


def look(results):
    """Return the positions and angles in what reset() or step() has returned, (ENVS, 2)."""
    return torch.tensor([(float(seen[0]), 10 * float(seen[2])) for seen, *_ in results])


@torch.no_grad()
def rollouts(policy, with_resets):
    """Yield rollouts: the first state, tensors (STEPS, ENVS), and the returns of the episodes."""
    envs = [gymnasium.make("CartPole-v1") for _ in range(ENVS)]
    stepper = policy["rnn"].stepper(ENVS)
    seen = look([env.reset(seed=k) for k, env in enumerate(envs)])
    ends, lengths = torch.zeros(ENVS, dtype=torch.bool), torch.zeros(ENVS)
    while True:
        hx, steps, returns = stepper.state, [], []
        for _ in range(STEPS):
            resets = ends & with_resets
            stepper.reset(resets)
            actions, value = read(policy, stepper.step(seen))
            action = actions.sample()
            results = [env.step(a) for env, a in zip(envs, action.tolist(), strict=True)]
            ends = torch.tensor([is_over or is_late for _, _, is_over, is_late, _ in results])
            steps.append((seen, resets, action, actions.log_prob(action), value, ends))
            seen = look([envs[k].reset() if ends[k] else results[k] for k in range(ENVS)])
            lengths += 1  # each step has the reward 1
            returns += lengths[ends].tolist()
            lengths[ends] = 0
        yield (hx, *map(torch.stack, zip(*steps, strict=True))), returns


def cut(rnn, seen, hx, resets):
    """Return rnn(seen, hx, reset=resets)[0]. Each part between two resets becomes a sequence."""
    parts, states = [], []
    for k in range(ENVS):
        starts = resets[1:, k].nonzero().flatten() + 1
        parts += seen[:, k].tensor_split(starts)
        states += [hx[:, k] * ~resets[0, k], *torch.zeros(len(starts), *hx[:, k].shape)]
    output, _ = rnn(pack_sequence(parts, enforce_sorted=False), torch.stack(states, 1))
    return torch.cat(unpack_sequence(output)).view(ENVS, STEPS, -1).transpose(0, 1)


def update(policy, optimizer, rollout, by_cutting=False):
    """Learn from a rollout by PPO (Schulman et al. 2017)."""
    rnn, (hx, seen, resets, action, log_prob, values, ends) = policy["rnn"], rollout
    targets, target = torch.empty_like(values), values[-1]
    # Discounted sums of rewards of 1 - DISCOUNT. The last value stands for the steps that follow.
    for t in reversed(range(STEPS)):
        target = targets[t] = 1 - DISCOUNT + DISCOUNT * ~ends[t] * target
    gains = nn.functional.layer_norm(targets - values, values.shape)
    for _ in range(EPOCHS):
        output = cut(rnn, seen, hx, resets) if by_cutting else rnn(seen, hx, reset=resets)[0]
        actions, values = read(policy, output)
        ratio = (actions.log_prob(action) - log_prob).exp()
        gain = torch.minimum(ratio * gains, ratio.clamp(0.8, 1.2) * gains).mean()
        loss = nn.functional.mse_loss(values, targets) - gain - 0.01 * actions.entropy().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()


def train(count, with_resets):
    """Print the mean return in each tenth of the training. Return the arguments of `update`."""
    torch.manual_seed(0)
    policy, returns = nn.ModuleDict({"rnn": FastRNN(2, 64), "readout": nn.Linear(64, 3)}), []
    optimizer = torch.optim.Adam(policy.parameters())
    print(f"{'with' if with_resets else 'without'} resets:".ljust(15), end="")
    for k, (rollout, ended) in zip(range(count), rollouts(policy, with_resets), strict=False):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - k / count)
        update(policy, optimizer, rollout)
        returns += ended
        if (k + 1) * 10 // count > k * 10 // count and returns:
            print(f"{mean(returns):6.1f}", end="", flush=True)
            returns = []
    print()
    return policy, optimizer, rollout


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--updates", type=int, default=20, help="Updates to train for (default: 20)")
parser.add_argument("--without-resets", action="store_true", help="Also train without resets")
args = parser.parse_args()

print("mean return of the episodes in each tenth of the training, of at most 500")
last = train(args.updates, with_resets=True)
if args.without_resets:
    train(args.updates, with_resets=False)
ms = {False: [], True: []}
for by_cutting in [False, True] * 5:
    start = time.perf_counter()
    update(*last, by_cutting)
    ms[by_cutting].append(1e3 * (time.perf_counter() - start))
print("an update takes {:.1f} ms with reset=, and {:.1f} ms cut".format(*map(median, ms.values())))
