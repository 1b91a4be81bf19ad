"""How many times as fast as `nn.RNN`, `nn.GRU` and `nn.LSTM` of torch is rnnfast on this machine?

    from rnnfast import bench

    report = bench.measure([bench.Shape(T=100, B=32, I=128, H=128)], cell="gru")
    print(report["geometric_mean"])

An absolute time means little on a machine that runs other programs too, so this package measures
ratios. Both modules hold the same weights, and their results must agree before anything is timed.
Their samples alternate in one run, so noise hits both, and medians are compared. The speed that a
large matrix product reaches in the same run, on the same threads, says how much is left to gain.
"""

from .comparison import (
    DEFAULT_SHAPES,
    MODES,
    NUMPY,
    OURS,
    THEIRS,
    TOLERANCE,
    Shape,
    context,
    disagreement,
    measure,
    summarise,
)
from .plot import figure
from .report import format_ms, headline, markdown, markdown_table, show, table_rows, warn_if_busy
from .timing import (
    GEMM_SIZE,
    Timer,
    alternate,
    gemm_gflops,
    geometric_mean,
    median_seconds,
    milliseconds,
    timer,
)

__all__ = [
    "DEFAULT_SHAPES",
    "GEMM_SIZE",
    "MODES",
    "NUMPY",
    "OURS",
    "THEIRS",
    "TOLERANCE",
    "Shape",
    "Timer",
    "alternate",
    "context",
    "disagreement",
    "figure",
    "format_ms",
    "gemm_gflops",
    "geometric_mean",
    "headline",
    "markdown",
    "markdown_table",
    "measure",
    "median_seconds",
    "milliseconds",
    "show",
    "summarise",
    "table_rows",
    "timer",
    "warn_if_busy",
]
