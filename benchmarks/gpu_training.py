"""Time the training of language models on a GPU, with a CUDA graph of the step and without.

The models have two layers of words: 200 units in float32, and 650 units with autocast to bfloat16.
Samples with the graph and without alternate. The output is a table of tokens a second, the median
of the samples, which `benchmarks/gpu.sh train` keeps in its log.
"""

import argparse
import statistics
import time

import numpy as np
import torch

import rnnfast
from rnnfast import lm

CASES = {
    "2 x 200": {"nhid": 200, "emsize": 200},
    "2 x 650, bf16": {"nhid": 650, "emsize": 650, "bf16": True},
}
VOCABULARY, TOKENS = 10_000, 200_000
WARM_UP = 20  # steps


def corpus():
    """Return a random text that has every word, and frequent ones much more often."""
    random = np.random.default_rng(0)
    shares = 1 / np.arange(1, VOCABULARY + 1)
    ids = random.choice(VOCABULARY, TOKENS, p=shares / shares.sum())
    words = [f"w{i}" for i in (*range(VOCABULARY), *ids)]
    return lm.corpus.split(" ".join(words) + "\n")


def tokens_per_second(trainer, seconds):
    """Train for about so many seconds, and return the speed."""
    begin, step = time.perf_counter(), trainer.state.step
    while time.perf_counter() - begin < seconds:
        trainer.train_step()
    torch.cuda.synchronize()
    passed = time.perf_counter() - begin
    return (trainer.batches.tokens(trainer.state.step) - trainer.batches.tokens(step)) / passed


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of a sample")
    parser.add_argument("--samples", type=int, default=3, help="samples of each trainer")
    args = parser.parse_args()
    text = corpus()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, tokens a second")
    print(f"{'model':16} {'kernels':8} {'eager':>10} {'graph':>10} {'ratio':>6}")
    for kernel in (None, "auto") if rnnfast.build_info()["cuda"] else (None,):
        rnnfast.set_cuda_kernel(kernel)
        for name, sizes in CASES.items():
            trainers = {}
            for graph in (False, True):
                config = lm.Config.defaults(
                    "word", nlayers=2, device="cuda", epochs=1000, cuda_graph=graph, **sizes
                )
                trainers[graph] = lm.prepare(config, text)
                for _ in range(WARM_UP):
                    trainers[graph].train_step()
            speeds = {graph: [] for graph in trainers}
            for _ in range(args.samples):
                for graph, trainer in trainers.items():
                    speeds[graph].append(tokens_per_second(trainer, args.seconds))
            eager, replayed = (statistics.median(speeds[graph]) for graph in (False, True))
            kernels = "cuDNN" if kernel is None else "rnnfast"
            print(
                f"{name:16} {kernels:8} {eager:10,.0f} {replayed:10,.0f} {replayed / eager:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
