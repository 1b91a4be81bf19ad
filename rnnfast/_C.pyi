# A Sequence of csrc/rnn.h: address, elements from step to step, elements from row to row.
_View = tuple[int, int, int]

def forward_float32(
    T: int,
    B: int,
    I: int,
    H: int,
    batch_sizes: int,
    reverse: bool,
    relu: bool,
    threads: int,
    x: _View,
    w_ih: int,
    w_hh: int,
    b_ih: int,
    b_hh: int,
    h0: int,
    h: _View,
    tokens: _View,
    table: int,
    /,
) -> None: ...
def backward_float32(
    T: int,
    B: int,
    I: int,
    H: int,
    batch_sizes: int,
    reverse: bool,
    relu: bool,
    threads: int,
    h: _View,
    w_hh: int,
    dy: _View,
    dh_n: int,
    dpre: _View,
    dh0: int,
    x: _View,
    w_ih: int,
    h0: int,
    dx: _View,
    add_dx: bool,
    dw_ih: int,
    dw_hh: int,
    db: int,
    tokens: _View,
    dtable: int,
    /,
) -> None: ...

forward_float64 = forward_float32
backward_float64 = backward_float32

def isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str, /) -> None: ...

openmp: bool
compiler: str
