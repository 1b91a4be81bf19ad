"""`rnnfast.bench`: what it measures, reports and refuses. No test asserts a time."""

import io
import math
import re
import time

import pytest
import torch
from rich.console import Console

from rnnfast import FastGRU, FastLSTM, FastRNN, bench
from rnnfast.bench import comparison, timing

pytestmark = pytest.mark.usefixtures("small_products")

SHAPES = [bench.Shape(3, 2, 5, 4), bench.Shape(1, 1, 1, 1)]


def _replace(monkeypatch, cell, ours):
    """Let `measure` use the class `ours` for the cell."""
    monkeypatch.setitem(comparison.CELLS, cell, comparison.CELLS[cell]._replace(ours=ours))


@pytest.fixture(scope="module")
def report():
    report = bench.measure(SHAPES, repeats=3, numpy=True)
    report["command"] = "rnnfast bench"
    return report


def test_report(report):
    assert [[r["T"], r["B"], r["I"], r["H"]] for r in report["shapes"]] == [[3, 2, 5, 4], [1] * 4]
    for result in report["shapes"]:
        for mode, others in (("forward", {"nn.RNN", "NumPy"}), ("training", {"nn.RNN"})):
            figures = result[mode]
            assert figures["rounds"] == 3
            assert figures["ms"].keys() == {"rnnfast"} | others
            assert figures["ratio"].keys() == others
            for spread in figures["ms"].values():
                assert 0 < spread["p20"] <= spread["median"] <= spread["p80"]
            for other, ratio in figures["ratio"].items():
                medians = figures["ms"][other]["median"], figures["ms"]["rnnfast"]["median"]
                assert ratio["of_medians"] == pytest.approx(medians[0] / medians[1])
                assert ratio["p20"] <= ratio["p80"]
            assert figures["of_gemm"] == pytest.approx(figures["gflops"] / report["gemm_gflops"])
    # 3 steps x 2 rows x (5 + 4) x 4 multiplications, and as many additions
    first = report["shapes"][0]
    for mode, flop in (("forward", 432), ("training", 3 * 432)):
        figures = first[mode]
        assert figures["gflops"] == pytest.approx(1e-6 * flop / figures["ms"]["rnnfast"]["median"])


def test_geometric_mean(report):
    for mode, means in report["geometric_mean"].items():
        for other, mean in means.items():
            a, b = (r[mode]["ratio"][other]["of_medians"] for r in report["shapes"])
            assert mean == pytest.approx(math.sqrt(a * b))


def test_numpy_is_optional():
    report = bench.measure(SHAPES[:1], repeats=1)
    assert report["shapes"][0]["forward"]["ms"].keys() == {"rnnfast", "nn.RNN"}


@pytest.mark.parametrize(
    ("cell", "ours", "theirs", "gates"),
    [("gru", FastGRU, "nn.GRU", 3), ("lstm", FastLSTM, "nn.LSTM", 4)],
)
def test_gated_cells(cell, ours, theirs, gates, monkeypatch):
    called = []

    class Spy(ours):
        def forward(self, input, hx=None):
            called.append(torch.is_grad_enabled())
            return super().forward(input, hx)

    _replace(monkeypatch, cell, Spy)
    report = bench.measure(SHAPES, cell=cell, repeats=1)
    assert set(called) == {False, True}
    assert report["cell"] == cell
    first = report["shapes"][0]
    for mode, passes in (("forward", 1), ("training", 3)):
        assert first[mode]["ratio"].keys() == {theirs}
        flop = passes * gates * 432
        ms = first[mode]["ms"]["rnnfast"]["median"]
        assert first[mode]["gflops"] == pytest.approx(1e-6 * flop / ms)
    assert f"; {cell.upper()}, float32, " in bench.headline(report)
    assert theirs in bench.markdown(report | {"command": ""})
    assert theirs in bench.figure(report).axes[0].get_xlabel()


def test_a_wrong_cell_state_is_not_timed(monkeypatch):
    class Wrong(FastLSTM):
        def forward(self, input, hx=None):
            output, (h_n, c_n) = super().forward(input, hx)
            return output, (h_n, c_n * 1.001)

    _replace(monkeypatch, "lstm", Wrong)
    with pytest.raises(RuntimeError, match=r"nn\.LSTM disagree at T,B,I,H = 3,2,5,4: c_n differs"):
        bench.measure(SHAPES[:1], cell="lstm", repeats=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_threads(dtype, monkeypatch):
    seen = set()

    class Spy(FastRNN):
        def forward(self, input, hx=None):
            seen.add((input.dtype, self.weight_hh_l0.dtype, torch.get_num_threads()))
            return super().forward(input, hx)

    _replace(monkeypatch, "rnn", Spy)
    before = torch.get_num_threads()
    threads = before + 1
    report = bench.measure(SHAPES[:1], dtype=dtype, threads=threads, repeats=1)
    assert seen == {(dtype, dtype, threads)}
    assert report["dtype"] == str(dtype).removeprefix("torch.")
    assert report["threads"] == threads
    assert torch.get_num_threads() == before


def test_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    bench.measure(SHAPES[:1], repeats=1)
    assert torch.equal(torch.get_rng_state(), before)


def _wrong_output(output, h_n):
    return output * 1.001, h_n


def _nan(output, h_n):
    return output, h_n + math.nan


def _wrong_gradient(output, h_n):
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient * 1.001)
    return output, h_n


@pytest.mark.parametrize(
    ("damage", "named"),
    [(_wrong_output, "output"), (_nan, "h_n"), (_wrong_gradient, "gradient of input")],
)
def test_refuses_to_time_what_disagrees(damage, named, monkeypatch):
    class Wrong(FastRNN):
        def forward(self, input, hx=None):
            return damage(*super().forward(input, hx))

    _replace(monkeypatch, "rnn", Wrong)
    monkeypatch.setattr(comparison, "alternate", lambda *args: pytest.fail("timed all the same"))
    with pytest.raises(RuntimeError, match=f"disagree at T,B,I,H = 3,2,5,4: {named} differs"):
        bench.measure(SHAPES[:1], repeats=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"repeats": 0},
        {"threads": 0},
        {"dtype": torch.bfloat16},
        {"cell": "elman"},
        {"numpy": True, "cell": "gru"},
    ],
    ids=lambda w: next(iter(w)),
)
def test_refuses_bad_arguments(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        bench.measure(SHAPES[:1], **wrong)


def test_samples_alternate_and_the_order_turns_round():
    ran = []

    def call(name):
        def record():
            ran.append(name)
            time.sleep(2 * timing.SAMPLE_SECONDS)  # so that a sample times one call

        return record

    samples = bench.alternate({name: bench.timer(call(name)) for name in "abc"}, repeats=3)
    assert "".join(ran).endswith("aabbccbbccaaccaabb")
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3, "c": 3}


def test_ways_to_multiply_that_are_slow_are_only_probed(monkeypatch):
    ran = []

    def products(n, dtype):
        return [
            lambda: ran.append(("fast", n)),
            lambda: time.sleep(0.01) or ran.append(("slow", n)),
        ]

    monkeypatch.setattr(timing, "_products", products)
    assert bench.gemm_gflops(torch.float32) > 0
    probe = timing.GEMM_SIZE // 8
    assert set(ran) == {("fast", probe), ("slow", probe), ("fast", timing.GEMM_SIZE)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_speed_of_a_large_product(dtype):
    assert 0 < bench.gemm_gflops(dtype) < math.inf


def test_tables(report):
    text = re.sub(" +", " ", bench.markdown(report))
    console = Console(width=80, file=io.StringIO())
    bench.show(report, console)
    shown = console.file.getvalue()
    for mode in bench.MODES:
        result = report["shapes"][0][mode]
        row = [
            "3,2,5,4",
            f"{result['ms']['rnnfast']['median']:.3g}",
            f"{result['ms']['nn.RNN']['median']:.3g}",
            f"{result['ratio']['nn.RNN']['of_medians']:.2f}",
        ]
        assert "| " + " | ".join(row) + " |" in text
        assert any(all(cell in line for cell in row) for line in shown.splitlines())
        mean = f"{report['geometric_mean'][mode]['nn.RNN']:.2f}"
        assert f"| geometric mean | | | {mean} |" in text
    # Every row of a Markdown table has as many cells as its heading.
    for table in text.split("### ")[1:]:
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize(("load", "busy"), [(0.1, False), (1.1, True)])
def test_a_busy_machine_is_named(report, load, busy):
    console = Console(width=100, file=io.StringIO())
    bench.show(report | {"load": load * report["machine"]["cores"]}, console)
    assert ("was busy" in console.file.getvalue()) == busy


def test_plot_shows_the_ratios(report):
    labels = {text.get_text() for text in bench.figure(report).axes[0].texts}
    for result in report["shapes"]:
        for mode in bench.MODES:
            assert f"{result[mode]['ratio']['nn.RNN']['of_medians']:.2f}" in labels
