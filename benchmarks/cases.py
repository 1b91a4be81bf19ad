"""What is measured: the cases, their data, and what each one costs at the least.

Imports NumPy and nothing else, because every contestant's process reads it (see contest.py).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

STREAMED_ROWS = 4  # up to so many batch rows, reading W_hh bounds a step and not its arithmetic


@dataclass(frozen=True)
class Case:
    """One call: T time steps, B batch rows, I input size, H hidden size; tanh, biases, no h_0.

    With ``lengths`` (B numbers, none above T, never increasing) the batch is packed; with
    ``one_hot`` the input is int64 tokens in [0, I).
    """

    T: int
    B: int
    I: int  # noqa: E741 - the letter of the whole project
    H: int
    layers: int = 1
    directions: int = 1
    lengths: tuple[int, ...] | None = None
    one_hot: bool = False
    dtype: str = "float32"  # or "bfloat16"

    def __str__(self) -> str:
        words = [f"{self.T},{self.B},{self.I},{self.H}"]
        if self.layers > 1:
            words.append(f"{self.layers} layers")
        if self.directions > 1:
            words.append("bidirectional")
        if self.lengths:
            words.append(f"lengths {self.lengths[-1]}..{self.lengths[0]}")
        if self.one_hot:
            words.append("one-hot")
        if self.dtype != "float32":
            words.append(self.dtype)
        return " ".join(words)

    @property
    def tokens(self) -> int:
        """Rows of all time steps together, padding left out."""
        return sum(self.lengths) if self.lengths else self.T * self.B

    @property
    def bytes_per_element(self) -> int:
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def recurrent_flop(self) -> int:
        """Of all products with W_hh of one pass over the sequence."""
        return self.layers * self.directions * 2 * self.tokens * self.H**2

    def flop(self, mode: str) -> int:
        """Of all products. One-hot input is a look-up and its gradient a sum: no product."""
        inputs = 0 if self.one_hot else self.I
        inputs += (self.layers - 1) * self.directions * self.H
        forward = self.directions * 2 * self.tokens * self.H * inputs + self.recurrent_flop
        # Each product of the forward has two more in the backward.
        return 3 * forward if mode == "training" else forward

    def weight_bytes(self) -> int:
        """Of one W_hh, which every step must read again, because h_t needs h_{t-1}."""
        return self.H**2 * self.bytes_per_element

    def least_seconds(self, mode: str, gemm_gflops: float, read_gbs: float) -> float:
        """The time that the machine's ceilings allow.

        All products at the speed of a large one; with few rows, W_hh read at ``read_gbs`` once a
        step, and once more in the backward, and the products that have all time steps at once
        (the input projection, and in training its gradients and that of W_hh) at ``gemm_gflops``.
        """
        seconds = self.flop(mode) / gemm_gflops
        if self.B <= STREAMED_ROWS:
            passes = 2 if mode == "training" else 1
            steps = passes * self.layers * self.directions * self.T
            streamed = steps * self.weight_bytes() / read_gbs
            batched = (self.flop(mode) - passes * self.recurrent_flop) / gemm_gflops
            seconds = max(seconds, streamed + batched)
        return 1e-9 * seconds

    def intensity(self) -> float:
        """FLOP of the forward per byte that must move in a step, of one layer and direction.

        A step reads W_hh, its input and h_{t-1} and writes h_t. W_ih is read once a call: its
        product can have all time steps at once.
        """
        rows = self.tokens / self.T
        elements = self.H**2 + self.H * self.I / self.T + rows * (self.I + 2 * self.H)
        return 2 * rows * self.H * (self.I + self.H) / (elements * self.bytes_per_element)


class Data(NamedTuple):
    """The arrays of a case, float32 (for bfloat16: values that it can hold), padding zero."""

    x: np.ndarray  # [T, B, I], or int64 tokens [T, B]
    weights: list[np.ndarray]  # the flat list of nn.RNN
    dy: np.ndarray  # [T, B, D*H], the gradient of the output
    mask: np.ndarray | None  # bool [T, B, 1]: not padding


def data(case: Case) -> Data:
    """The same in every process."""
    generator = np.random.default_rng(0)

    def held(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float32)
        if case.dtype == "bfloat16":
            array = (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        return array

    weights = []
    for layer in range(case.layers):
        inputs = case.directions * case.H if layer else case.I
        for _ in range(case.directions):
            for shape in ((case.H, inputs), (case.H, case.H), (case.H,), (case.H,)):
                weights.append(held(generator.uniform(-1, 1, shape) * case.H**-0.5))
    if case.one_hot:
        x = generator.integers(case.I, size=(case.T, case.B))
    else:
        x = held(generator.standard_normal((case.T, case.B, case.I)))
    dy = held(generator.standard_normal((case.T, case.B, case.directions * case.H)))
    mask = None
    if case.lengths:
        mask = (np.arange(case.T)[:, None] < np.array(case.lengths))[..., None]
        x, dy = x * mask, dy * mask
    return Data(x, weights, dy, mask)


def one_hot_vectors(case: Case, x: np.ndarray) -> np.ndarray:
    """The input as vectors, for those who take no tokens."""
    return np.eye(case.I, dtype=np.float32)[x] if case.one_hot else x


def result_names(case: Case, mode: str) -> list[str]:
    """Of the arrays that a call returns, in their order."""
    if mode == "forward":
        return ["output", "h_n"]
    names = [] if case.one_hot else ["gradient of input"]
    for layer in range(case.layers):
        for suffix in ("", "_reverse")[: case.directions]:
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                names.append(f"gradient of {kind}_l{layer}{suffix}")
    return names


def special_cases() -> list[Case]:
    """Beside the default shapes: what other people's models and inputs look like."""
    lengths = tuple(int(n) for n in np.linspace(100, 10, 32).round())
    return [
        Case(35, 33, 257, 257),  # no multiple of any tile
        Case(70, 20, 650, 650),
        Case(10, 1, 16, 16),
        Case(10, 8, 64, 64),
        Case(200, 4, 512, 512),
        Case(100, 32, 256, 256, lengths=lengths),
        Case(100, 1, 256, 256, directions=2),
        Case(100, 32, 256, 256, directions=2),
        Case(200, 1, 256, 256, layers=2),
        Case(100, 50, 65, 512, one_hot=True),
        Case(512, 1, 1024, 1024, dtype="bfloat16"),
        Case(100, 32, 512, 512, dtype="bfloat16"),
    ]
