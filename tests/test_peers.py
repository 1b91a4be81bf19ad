"""benchmarks/run.py and its modules: which libraries run, which are rejected, what is reported."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ceilings
import contest
import gated_rule
import numpy as np
import peers
import pytest
import report as reports
import run
import speedups
from cases import Case, Data, data, one_hot_vectors, result_names
from rich.console import Console

from rnnfast import bench, reference
from rnnfast.bench import timing

CASES = [
    Case(4, 3, 5, 7),
    Case(1, 1, 1, 1),
    Case(9, 1, 16, 16),
    Case(5, 2, 4, 6, directions=2),
    Case(5, 2, 6, 6, layers=2),
    Case(5, 2, 6, 6, layers=2, directions=2),
    Case(6, 3, 4, 5, lengths=(6, 4, 1)),
    Case(5, 3, 6, 8, one_hot=True),
    Case(5, 3, 16, 16, dtype="bfloat16"),
]
CASES += [replace(case, cell=cell) for cell in ("gru", "lstm") for case in CASES]
THEIRS = bench.THEIRS["rnn"]
ALWAYS = (bench.OURS, contest.KERNELS, THEIRS, "torch.compile", bench.NUMPY)


@pytest.fixture(scope="module")
def everyone():
    everyone = contest.contestants("rnn")
    contest.PATIENCE = 1200  # torch.compile takes minutes on a busy machine
    with contest.started(everyone, threads=1):
        yield {contestant.name: contestant for contestant in everyone}


def _truth(case: Case, given: Data, mode: str) -> list[np.ndarray]:
    """Return what a contestant must return, from NumPy in float64, row by row."""
    x = one_hot_vectors(case, given.x).astype(np.float64)
    weights = [w.astype(np.float64) for w in given.weights]
    run = _rnn if case.cell == "rnn" else _gated
    output, dx = np.zeros_like(given.dy, np.float64), np.zeros_like(x)
    states = [np.zeros((case.layers * case.directions, case.B, case.H)) for _ in case.states]
    dweights = [np.zeros_like(w) for w in weights]
    for b, steps in enumerate(case.lengths or [case.T] * case.B):
        row = np.s_[:steps, b : b + 1]
        dy = given.dy[row].astype(np.float64)
        output[row], finals, dx[row], dw = run(case, x[row], weights, dy)
        for state, final in zip(states, finals, strict=True):
            state[:, b : b + 1] = final
        dweights = [a + b for a, b in zip(dweights, dw, strict=True)]
    if mode == "forward":
        return [output, *states]
    return ([] if case.one_hot else [dx]) + dweights


def _rnn(case, x, weights, dy):
    """Return the output, the final states, and the gradients of the input and of the weights."""
    options = {"num_layers": case.layers, "bidirectional": case.directions == 2}
    outputs, h_n = reference.rnn(x, None, weights, **options)
    given = (x, None, weights, outputs, dy, np.zeros_like(h_n))
    dx, _, dw = reference.rnn_backward(*given, **options)
    return outputs[-1], [h_n], dx, dw


def _gated(case, x, weights, dy):
    """Do what `_rnn` does for a GRU or an LSTM."""
    wanted = {"num_layers": case.layers, "bidirectional": case.directions == 2}
    described = SimpleNamespace(cell=case.cell, H=case.H, **wanted)
    zeros = np.zeros((case.layers * case.directions, x.shape[1], case.H))
    no_reset = np.zeros(x.shape[:-1], bool)
    given = (x, zeros, zeros, weights, no_reset, dy, zeros, zeros)
    output, h_n, c_n, dx, _, _, dw = gated_rule.sequences(described, *given)
    return output, [h_n, c_n][: len(case.states)], dx, dw


def _is_first(case):
    """Return whether `case` is the first one of its cell."""
    return case == replace(CASES[0], cell=case.cell)


@pytest.mark.parametrize("mode", bench.MODES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.cell} {case}")
def test_contestants_are_right(everyone, case, mode):
    truth = _truth(case, data(case), mode)
    names = result_names(case, mode)
    ran = set()
    for name, contestant in everyone.items():
        # Compilation takes seconds for each case, so torch.compile runs for the first case only.
        compiled = name == "torch.compile" and not _is_first(case)
        if contestant.absent or compiled or (name == bench.NUMPY and case.cell != "rnn"):
            continue
        try:
            results = contestant.ask("prepare", case, mode)
        except peers.NotRunError as error:
            # The contestant itself gives a short reason. An unexpected exception would have ":".
            assert ":" not in str(error)
            continue
        assert not bench.disagreement(names, results, truth, contest.TOLERANCE[case.dtype]), name
        assert contestant.ask("sample", 2) > 0
        ran.add(name)
    assert THEIRS in ran
    assert {bench.OURS, contest.KERNELS} <= ran
    assert ("torch.compile" in ran) == _is_first(case)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_contestants_of_gated_cells(cell):
    names = [contestant.name for contestant in contest.contestants(cell)]
    rnn = [contestant.name for contestant in contest.contestants("rnn")]
    assert names == [bench.THEIRS[cell] if name == THEIRS else name for name in rnn[:-1]]
    assert rnn[-1] == bench.NUMPY


@pytest.mark.parametrize("name", [c.name for c in contest.contestants("rnn")])
def test_installed(everyone, name):
    if everyone[name].absent:
        assert name not in ALWAYS
        assert everyone[name].absent.startswith("not installed: pip install")
        pytest.skip(everyone[name].absent)
    assert everyone[name].version


def test_a_missing_library_is_named(tmp_path):
    contestant = contest.Contestant("oneDNN", "OneDNN", str(tmp_path))
    with contest.started([contestant], threads=1):
        assert contestant.version is None
        assert contestant.absent == "not installed: pip install 'rnnfast[peers]'"


def test_nobody_runs_unless_asked(everyone):
    contestant = everyone[bench.NUMPY]
    contestant.ask("prepare", CASES[0], "forward")
    stat = Path(f"/proc/{contestant._process.pid}/stat")
    deadline = time.monotonic() + 60
    while stat.read_text().rpartition(")")[2].split()[0] != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stat.read_text().rpartition(")")[2].split()[0] == "T"
    assert contestant.ask("sample", 1) > 0


def test_the_number_of_threads(everyone):
    for contestant in everyone.values():
        if not contestant.absent:
            assert len(os.sched_getaffinity(contestant._process.pid)) == 1
    with pytest.raises(ValueError, match="threads"):
        contest.Contestant("NumPy", "NumPy").start(threads=10**6)


def test_the_dead_are_left_out_and_come_back(everyone):
    numpy = everyone[bench.NUMPY]
    chosen = [everyone[bench.OURS], everyone[THEIRS], numpy]
    numpy.ask("prepare", CASES[0], "forward")
    numpy._process.kill()
    samples, not_run = contest.measure(CASES[0], "forward", chosen, repeats=2)
    assert samples.keys() == {bench.OURS, THEIRS}
    assert not_run == {bench.NUMPY: "its process died"}
    samples, not_run = contest.measure(CASES[0], "forward", chosen, repeats=2)
    assert samples.keys() == {bench.OURS, THEIRS, bench.NUMPY}
    assert not not_run


def test_the_silent_are_left_out(everyone, monkeypatch):
    numpy = everyone[bench.NUMPY]
    monkeypatch.setattr(contest, "PATIENCE", 0)
    send = numpy._process.send_signal
    monkeypatch.setattr(  # the process is not continued, so it stays stopped
        numpy._process, "send_signal", lambda number: number == signal.SIGCONT or send(number)
    )
    with pytest.raises(peers.NotRunError, match="no answer in 0 s"):
        numpy.ask("prepare", Case(200, 1, 64, 64), "forward")


class Fake:
    """A contestant that runs in the process of the test."""

    absent = None
    version = "1"

    def __init__(self, name, wrong=1.0, fails_at="", seconds=1e-3):
        self.name, self.wrong, self.fails_at, self.seconds = name, wrong, fails_at, seconds
        self.sampled = False

    def start(self, threads):
        pass

    def close(self):
        pass

    def ask(self, method, *values):
        if method == self.fails_at:
            raise peers.NotRunError("too tired", self.name)
        if method == "prepare":
            results = _truth(values[0], data(values[0]), values[1])
            return [*results[:-1], results[-1] * self.wrong]
        self.sampled = True
        return self.seconds


def _fakes(*others, theirs=THEIRS):
    return [Fake(bench.OURS, seconds=2e-3), Fake(theirs, seconds=4e-3), *others]


def test_the_wrong_are_not_timed():
    wrong, broken = Fake("wrong", wrong=1.001), Fake("nan", wrong=np.nan)
    samples, not_run = contest.measure(CASES[0], "training", _fakes(wrong, broken), repeats=2)
    assert samples.keys() == {bench.OURS, THEIRS}
    assert not_run["wrong"].startswith("wrong: gradient of bias_hh_l0 differs by")
    assert not_run.keys() == {"wrong", "nan"}
    assert not (wrong.sampled or broken.sampled)


def test_who_fails_while_it_is_timed_is_left_out():
    samples, not_run = contest.measure(
        CASES[0], "forward", _fakes(Fake("weak", fails_at="sample")), repeats=2
    )
    assert samples.keys() == {bench.OURS, THEIRS}
    assert not_run == {"weak": "too tired"}


@pytest.mark.parametrize("fails_at", ["prepare", "sample"])
def test_nothing_is_measured_without_the_baseline(fails_at):
    chosen = [Fake(bench.OURS), Fake(THEIRS, fails_at=fails_at)]
    with pytest.raises(RuntimeError, match=r"nn\.RNN at 4,3,5,7: too tired"):
        contest.measure(CASES[0], "forward", chosen, repeats=2)


def test_rnnfast_must_be_right():
    chosen = [Fake(bench.OURS, wrong=1.001), Fake(THEIRS)]
    with pytest.raises(RuntimeError, match=r"rnnfast and nn\.RNN disagree at 4,3,5,7: h_n differs"):
        contest.measure(CASES[0], "forward", chosen, repeats=2)


def test_flop_and_ceiling():
    # 10 steps x 3 rows x (5 + 7) x 7 multiplications, and as many additions. Training: three times.
    case = Case(10, 3, 5, 7)
    assert case.flop("forward") == 5040
    assert case.flop("training") == 3 * 5040
    assert case.recurrent_flop == 2940
    # 10 steps read 7 x 7 floats at 2 GB/s: 980 ns. The other 2100 FLOP at 4 GFLOP/s: 525 ns.
    assert case.least_seconds("forward", 4, 2) == pytest.approx(1505e-9)
    # Training has twice as many steps, and 3 x 5040 - 2 x 2940 FLOP in large products.
    assert case.least_seconds("training", 4, 2) == pytest.approx((1960 + 2310) * 1e-9)
    # If the weights are in the cache, or if there are more rows, only the products limit the time.
    assert case.least_seconds("forward", 4, 1e9) == pytest.approx(1260e-9)
    assert Case(10, 5, 5, 7).least_seconds("forward", 4, 2) == pytest.approx(2100e-9)
    # Two directions double everything. The second layer reads both directions of the first.
    assert Case(10, 3, 5, 7, directions=2).flop("forward") == 2 * 5040
    assert Case(10, 3, 5, 7, layers=2).flop("forward") == 5040 + 2 * 10 * 3 * 14 * 7
    assert Case(10, 3, 5, 7, layers=2, directions=2).flop("forward") == 10080 + 4 * 30 * 21 * 7
    assert Case(10, 3, 5, 7, one_hot=True).flop("forward") == 2940
    assert Case(4, 3, 5, 7, lengths=(4, 2, 1)).flop("forward") == 2 * 7 * 12 * 7
    assert Case(10, 3, 5, 7, dtype="bfloat16").weight_bytes() == 98
    # A step moves 49 + 35/10 + 3 x (5 + 14) floats for 504 FLOP.
    assert case.intensity() == pytest.approx(504 / (4 * 109.5))
    # A GRU has the products of three RNNs. An LSTM has those of four, and moves c as well as h.
    gru, lstm = replace(case, cell="gru"), replace(case, cell="lstm")
    for gated, gates in ((gru, 3), (lstm, 4)):
        assert gated.flop("training") == gates * 3 * 5040
        assert gated.recurrent_flop == gates * 2940
        assert gated.weight_bytes() == gates * 196
        assert gated.least_seconds("training", 4, 2) == pytest.approx(gates * 4270e-9)
    assert gru.intensity() == pytest.approx(3 * 504 / (4 * (3 * 52.5 + 57)))
    assert lstm.intensity() == pytest.approx(4 * 504 / (4 * (4 * 52.5 + 3 * (5 + 28))))
    both = Case(10, 3, 5, 7, layers=2, directions=2)
    assert replace(both, cell="gru").flop("forward") == 3 * both.flop("forward")


def test_ceilings_are_of_this_machine(monkeypatch):
    monkeypatch.setattr(timing, "GEMM_SIZE", 64)
    monkeypatch.setattr(ceilings, "MEMORY_BYTES", 1 << 22)
    measured = ceilings.measure(["float32"], [196, 1 << 16], threads=2)
    assert measured["read_gbs"].keys() == {"196", "65536"}
    assert measured["levels"].keys() >= {"memory"}
    for values in (measured["gemm_gflops"], measured["read_gbs"], measured["levels"]):
        assert all(0 < value < 1e6 for value in values.values())
    assert 0 < measured["copy_gbs"] < 1e6
    assert ceilings.best({"a": {"b": 1, "c": 5}, "d": 2}, {"a": {"b": 3, "c": 4}, "d": 1}) == {
        "a": {"b": 3, "c": 5},
        "d": 2,
    }


@pytest.fixture
def fake_run(monkeypatch):
    """Let run.py measure small cases with contestants of known speed. One is a default shape."""
    weak, absent = Fake("weak", fails_at="sample"), Fake("absent")
    absent.absent, absent.version = "not installed: pip install absent", None
    wrong = Fake("half", wrong=2.0, seconds=1e-3)
    wrong.ask = lambda method, *values: (
        Fake.ask(Fake("half", wrong=1.0 if _is_first(values[0]) else 2.0), method, *values)
        if method == "prepare"
        else 1e-3
    )
    special = [CASES[0], Case(6, 3, 5, 7), Case(6, 3, 5, 7, lengths=(6, 4, 1))]
    monkeypatch.setattr(bench, "DEFAULT_SHAPES", [bench.Shape(4, 3, 5, 7)])
    monkeypatch.setattr(
        run, "special_cases", lambda cell: [replace(case, cell=cell) for case in special[1:]]
    )
    monkeypatch.setattr(
        contest, "contestants", lambda cell: _fakes(wrong, weak, absent, theirs=bench.THEIRS[cell])
    )
    monkeypatch.setattr(timing, "GEMM_SIZE", 64)
    monkeypatch.setattr(ceilings, "MEMORY_BYTES", 1 << 22)


def test_run_writes_its_files(fake_run, tmp_path, capsys):
    run.main(["--repeats", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    suffixes = sorted(path.name.rpartition("-")[2] for path in tmp_path.iterdir())
    assert len(suffixes) == 4
    [written] = tmp_path.glob("*.json")
    report = json.loads(written.read_text())
    assert written.with_suffix(".md").read_text().strip() in printed
    for image in tmp_path.glob("*.png"):
        assert image.read_bytes().startswith(b"\x89PNG")
    assert report["command"] == "python benchmarks/run.py --repeats 2"
    assert [r["default"] for r in report["cases"]] == [True, False, False]

    first, second, _ = report["cases"]
    for mode in bench.MODES:
        assert first[mode]["fastest_other"] == "half"
        assert first[mode]["first"] is False
        assert second[mode]["fastest_other"] == "nn.RNN"
        assert second[mode]["first"] is True
        assert second[mode]["not_run"]["half"].startswith("wrong: ")
        assert first[mode]["of_ceiling"] == pytest.approx(first[mode]["ceiling_ms"] / 2)
        assert report["geometric_mean"][mode] == pytest.approx(
            {"nn.RNN": 2.0, "half": 0.5, "fastest other": 0.5}
        )
    table = reports.table_rows(report, "forward")
    heading = ["T,B,I,H", "rnnfast", "nn.RNN", "half", "ceiling", "of it", "fastest other"]
    assert table[0] == [*heading, "ratio", "first"]
    assert [row[0] for row in table[1:]] == [
        "4,3,5,7", "mean ratio", "6,3,5,7", "6,3,5,7 lengths 1..6",
    ]  # fmt: skip
    assert table[1][1:4] == ["2", "4", "1"]
    assert table[1][6:] == ["half", "0.50", "no"]
    assert table[2][1:4] == ["", "2.00", "0.50"]
    assert table[3][1:4] == ["2", "4", "not run: wrong"]
    assert table[3][6:] == ["nn.RNN", "2.00", "yes"]
    assert "weak: too tired." in printed
    assert "Absent: absent (not installed: pip install absent)." in printed
    assert "half at 6,3,5,7: wrong: h_n differs" in printed
    # The time of 2 ms is divided by 6 + 4 + 1 tokens, and by 18 tokens.
    assert "181.82 us for each of 11 tokens; without the lengths 111.11 us" in printed
    # The ratios are 0.5, 2 and 2.
    assert "takes 1.26 times as long as rnnfast, by the geometric mean over all 3 rows" in printed


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_run_of_a_gated_cell(fake_run, tmp_path, capsys, cell):
    run.main(["--cell", cell, "--repeats", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert all(f"-{cell}" in path.name for path in tmp_path.iterdir())
    [written] = tmp_path.glob(f"*-{cell}.json")
    assert {path.name for path in tmp_path.iterdir()} == {
        written.stem + ending for ending in (".json", ".md", ".png", "-roofline.png")
    }
    report = json.loads(written.read_text())
    assert report["command"] == f"python benchmarks/run.py --cell {cell} --repeats 2"
    assert report["cell"] == cell
    assert {result["cell"] for result in report["cases"]} == {cell}
    assert [r["default"] for r in report["cases"]] == [True, False, False]
    theirs = bench.THEIRS[cell]
    assert report["geometric_mean"]["training"][theirs] == pytest.approx(2.0)
    assert f"; {cell.upper()}, float32, " in printed
    assert reports.table_rows(report, "forward")[0][1:3] == ["rnnfast", theirs]
    assert theirs in speedups.speedups(report).axes[0].get_xlabel()


def test_run_of_some_cases_writes_nothing(fake_run, tmp_path, capsys):
    run.main(["--repeats", "2", "--out", str(tmp_path), "--only", "6,3,5,7"])
    printed = capsys.readouterr().out
    assert "| 6,3,5,7 " in printed
    assert "| 4,3,5,7 " not in printed
    assert "mean ratio" not in printed
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        run.main(["--only", "nothing"])
    assert "no case has this in its name" in capsys.readouterr().err


def test_what_has_no_kernel_is_reported_all_the_same(monkeypatch):
    monkeypatch.setattr(timing, "GEMM_SIZE", 64)
    monkeypatch.setattr(ceilings, "MEMORY_BYTES", 1 << 22)
    chosen = [Fake(bench.OURS, fails_at="prepare"), Fake(THEIRS)]
    report = run.measure([CASES[0]], chosen, 2, Console(quiet=True)) | {"command": ""}
    row = reports.table_rows(report, "forward")[1]
    assert row[0] == "4,3,5,7"
    assert "rnnfast: too tired." in reports.markdown(report)
    reports.comparison(report)
    reports.roofline(report)
