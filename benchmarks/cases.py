"""The cases that are measured, their data, and the least time that each one can take.

This module imports NumPy and nothing else, because the process of every contestant imports it (see
contest.py).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
STREAMED_ROWS = 4  # up to this many batch rows, reading W_hh takes longer than the arithmetic


@dataclass(frozen=True)
class Case:
    """One call of an RNN with tanh, a GRU or an LSTM, with biases and without initial states.

    T is the number of time steps, B of batch rows, I the input size, and H the hidden size. With
    `lengths` (B numbers, none above T, never increasing) the batch is packed. With `one_hot` the
    input is int64 tokens in [0, I).
    """

    T: int
    B: int
    I: int  # noqa: E741 - this letter stands for the input size in the whole project
    H: int
    layers: int = 1
    directions: int = 1
    lengths: tuple[int, ...] | None = None
    one_hot: bool = False
    dtype: str = "float32"  # or "bfloat16"
    cell: str = "rnn"  # or "gru" or "lstm"

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
    def gates(self) -> int:
        """The number of products with W_ih and with W_hh for each unit."""
        return GATES[self.cell]

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the final states."""
        return ("h_n", "c_n") if self.cell == "lstm" else ("h_n",)

    @property
    def tokens(self) -> int:
        """The number of rows of all time steps together, without padding."""
        return sum(self.lengths) if self.lengths else self.T * self.B

    @property
    def bytes_per_element(self) -> int:
        """The size of one number of `dtype`."""
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def recurrent_flop(self) -> int:
        """The operations of all products with W_hh in one pass over the sequence."""
        return self.layers * self.directions * 2 * self.tokens * self.gates * self.H**2

    def flop(self, mode: str) -> int:
        """Return the operations of all products.

        One-hot input needs no product: the forward pass looks rows up, and the gradient is a sum.
        """
        inputs = 0 if self.one_hot else self.I
        inputs += (self.layers - 1) * self.directions * self.H
        projection = self.directions * 2 * self.tokens * self.gates * self.H * inputs
        forward = projection + self.recurrent_flop
        # The backward pass has two products for each one in the forward pass.
        return 3 * forward if mode == "training" else forward

    def weight_bytes(self) -> int:
        """Return the size of one W_hh.

        Every step must read W_hh again, because h_t needs h_{t-1}.
        """
        return self.gates * self.H**2 * self.bytes_per_element

    def least_seconds(self, mode: str, gemm_gflops: float, read_gbs: float) -> float:
        """Return the shortest time that the machine's ceilings allow.

        All products run at the speed of a large one, `gemm_gflops`. With few rows the limit may be
        reading instead: each step reads W_hh at `read_gbs`, twice in training, and only the
        products over all time steps at once run at `gemm_gflops`. Those are the input projection
        and, in training, its gradients and the gradient of W_hh.
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
        """Return the FLOP per byte that must move in a forward step of one layer and direction.

        A step reads W_hh, its input and the state before, and writes the new state, which is h, and
        for an LSTM also c. W_ih is read once a call, because its product can have all time steps at
        once.
        """
        rows, units = self.tokens / self.T, self.gates * self.H
        elements = units * (self.H + self.I / self.T)
        elements += rows * (self.I + 2 * len(self.states) * self.H)
        return 2 * rows * units * (self.I + self.H) / (elements * self.bytes_per_element)


class Data(NamedTuple):
    """The arrays of a case, float32, with zeros for padding.

    In a bfloat16 case their values are such that bfloat16 can hold them.
    """

    x: np.ndarray  # [T, B, I], or int64 tokens [T, B]
    weights: list[np.ndarray]  # the flat list of torch's module
    dy: np.ndarray  # [T, B, D*H], the gradient of the output
    mask: np.ndarray | None  # bool [T, B, 1], false for padding


def data(case: Case) -> Data:
    """Return the arrays of a case. They are the same in every process."""
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
            units = case.gates * case.H
            for shape in ((units, inputs), (units, case.H), (units,), (units,)):
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
    """Return the input as vectors, for libraries that take no tokens."""
    return np.eye(case.I, dtype=np.float32)[x] if case.one_hot else x


def result_names(case: Case, mode: str) -> list[str]:
    """Return the names of the arrays that a call returns, in their order."""
    if mode == "forward":
        return ["output", *case.states]
    names = [] if case.one_hot else ["gradient of input"]
    for layer in range(case.layers):
        for suffix in ("", "_reverse")[: case.directions]:
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                names.append(f"gradient of {kind}_l{layer}{suffix}")
    return names


def special_cases(cell: str) -> list[Case]:
    """Return cases beside the default shapes: sizes and inputs of other people's models."""
    lengths = tuple(int(n) for n in np.linspace(100, 10, 32).round())
    cases = [
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
    return [replace(case, cell=cell) for case in cases]
