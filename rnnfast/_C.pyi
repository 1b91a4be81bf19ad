"""The native module, compiled from csrc. Only `rnnfast._ops` and `rnnfast/__init__.py` call it.

The headers in csrc/api describe the arguments. The functions check sizes, dtypes, devices and
strides, and write their results into the tensors that are given last.
"""

from collections.abc import Sequence

from torch import Tensor

def empty(shape: Sequence[int], like: Tensor, /) -> Tensor: ...
def empty_like(tensors: Sequence[Tensor | None], /) -> list[Tensor | None]: ...
def forward(
    x: Tensor,
    h0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    num_layers: int,
    batch_first: bool,
    relu: bool,
    bias: bool,
    threads: int,
    outs: list[Tensor],
    h_n: Tensor,
    reset: Tensor | None,
    /,
) -> None: ...
def backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    outs: list[Tensor],
    x: Tensor,
    h0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    num_layers: int,
    batch_first: bool,
    relu: bool,
    bias: bool,
    threads: int,
    dx: Tensor | None,
    dh0: Tensor | None,
    dw: list[Tensor],
    between: list[Tensor],
    reset: Tensor | None,
    /,
) -> None: ...
def gated_forward(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    cell: str,
    num_layers: int,
    batch_first: bool,
    bias: bool,
    threads: int,
    outs: list[Tensor],
    h_n: Tensor,
    c_n: Tensor | None,
    saved: list[Tensor],
    reset: Tensor | None,
    /,
) -> None: ...
def gated_backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    outs: list[Tensor],
    saved: list[Tensor],
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    cell: str,
    num_layers: int,
    batch_first: bool,
    bias: bool,
    threads: int,
    dx: Tensor | None,
    dh0: Tensor | None,
    dc0: Tensor | None,
    dw: list[Tensor],
    between: list[Tensor],
    reset: Tensor | None,
    /,
) -> None: ...
def leaky_forward(
    x: Tensor,
    h0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    bias: bool,
    alpha: Tensor,
    current: bool,
    nonlinearity: str,
    threads: int,
    noise: Tensor | None,
    noise_scale: Tensor | None,
    seed: Tensor | None,
    out: Tensor,
    h_n: Tensor,
    states: Tensor | None,
    saved: Tensor | None,
    reset: Tensor | None,
    /,
) -> None: ...
def leaky_backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dstates: Tensor | None,
    out: Tensor,
    states: Tensor | None,
    saved: Tensor | None,
    x: Tensor,
    h0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    bias: bool,
    alpha: Tensor,
    current: bool,
    nonlinearity: str,
    threads: int,
    dx: Tensor | None,
    dh0: Tensor | None,
    dw: list[Tensor],
    dalpha: Tensor | None,
    dnoise: Tensor | None,
    reset: Tensor | None,
    /,
) -> None: ...
def normal(seed: Tensor, threads: int, out: Tensor, /) -> None: ...
def linear_cross_entropy(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    b: Tensor | None,
    dloss: Tensor | None,
    scale: float | None,
    threads: int,
    loss: Tensor,
    dx: Tensor | None,
    dw: Tensor | None,
    db: Tensor | None,
    /,
) -> None: ...
def dropout(x: Tensor, seed: Tensor, p: float, threads: int, out: Tensor, /) -> None: ...
def glove_epoch(
    starts: Tensor,
    shifts: Tensor,
    row: Tensor,
    column: Tensor,
    log_x: Tensor,
    weight: Tensor,
    words: Tensor,
    contexts: Tensor,
    lr: float,
    threads: int,
    /,
) -> float: ...
def isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str, /) -> None: ...

# These exist only if `cuda` is true; csrc/bindings/cuda.cpp describes them.
class CudaError(RuntimeError): ...

def cuda_choose(
    T: int,
    B: int,
    H: int,
    directions: int,
    backward: bool,
    precision: str,
    force: str | None,
    /,
) -> tuple[str, bool, str]: ...
def cuda_workspace(
    B: int, H: int, directions: int, backward: bool, precision: str, force: str | None, /
) -> int: ...
def cuda_prefers_torch(B: int, H: int, directions: int, precision: str, /) -> bool: ...
def cuda_run(
    T: int,
    B: int,
    H: int,
    backward: bool,
    relu: bool,
    precision: str,
    force: str | None,
    batch_first: bool,
    starts: Tensor | None,
    reset: Tensor | None,
    leak: tuple | None,
    directions: list[tuple],
    workspace: Tensor,
    stream: int,
    /,
) -> None: ...
def cuda_upload(numbers: list[int], to: Tensor, stream: int, /) -> None: ...

cuda: bool
openmp: bool
compiler: str

class Sampler:
    def __init__(
        self,
        table: Tensor,
        layers: list[tuple[Tensor, Tensor | None, Tensor, Tensor]],
        decoder_w: Tensor,
        decoder_b: Tensor,
        cell: str,
        temperature: float,
        top_k: int,
        top_p: float,
        stop: int,
        seed: int,
        threads: int,
        /,
    ) -> None: ...
    def feed(self, tokens: list[int], /) -> None: ...
    def generate(self, n: int, /) -> list[int]: ...

class Stepper:
    def __init__(
        self,
        batch_size: int,
        weights: list[Tensor],
        cell: str,
        biases: int,
        threads: int,
        alpha: Tensor | None,
        current: bool,
        nonlinearity: str,
        /,
    ) -> None: ...
    def step(self, x: Tensor, out: Tensor, /) -> None: ...
    @property
    def states(self) -> int: ...
    def read_state(self, *states: Tensor) -> None: ...
    def write_state(self, *states: Tensor) -> None: ...
    def reset(self, rows: list[int], /) -> None: ...

class Reservoir:
    def __init__(
        self,
        w_ih: Tensor,
        bias: Tensor | None,
        alpha: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        values: Tensor,
        nonlinearity: str,
        current: bool,
        threads: int,
        /,
    ) -> None: ...
    @property
    def units(self) -> int: ...
    def run(
        self,
        x: Tensor,
        first: Tensor | None,
        reset: Tensor | None,
        addend: Tensor | None,
        r: Tensor,
        last: Tensor,
        states: Tensor | None,
        /,
    ) -> None: ...
