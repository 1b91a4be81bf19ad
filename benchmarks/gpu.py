"""FastRNN on the CUDA kernels against nn.RNN on cuDNN, on the GPU at hand.

    python benchmarks/gpu.py results.json [--seconds 150] [--notes FILE ...]

Samples of the two alternate in one run, timed by CUDA events, with the L2 cache flushed before
each; medians. Both hold the same weights and must agree before they are timed. The ceilings, a copy
in device memory and a large product in each dtype, are measured in the same run. Writes the JSON
after every case, and at the end beside it the table (.md) and, with matplotlib, the plot (.png).
Cases that fail are named there with the reason, and so are those that were not run because the
seconds were over or the device did not answer any more. Notes, such as what tests printed, stay.

Two measurements take a user's view. The wall time of whole calls with short sequences is decided by
the host: many calls follow one another, and the device is waited for at the end. And `rnnfast train
--device cuda` runs with its defaults, with the kernels and with nn.RNN.
"""

import argparse
import datetime
import io
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import rnnfast
from rnnfast import FastRNN
from rnnfast._common.files import write_atomic

# The widest first: when time runs out, the shapes in the middle of the claim are there.
HIDDEN = (512, 1024, 256, 2048, 128, 384, 768, 64)
BATCH = (16, 64, 1, 256, 4, 128)
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
}
# Largest difference of the two, relative to the largest element; gradients sum over all steps.
TOLERANCE = {"bfloat16": 0.1, "float16": 0.02, "tf32": 0.02, "float32": 1e-4}
ROUNDS = 11
# Short sequences, (T, B, H), and calls of one sample.
SHORT = ((4, 16, 128), (16, 32, 256), (35, 20, 200), (64, 16, 512))
CALLS = 50
TRAIN_SECONDS = 12


def cases():
    """(T, B, H, layers, packed, dtype), I = H."""
    for H, B, dtype in itertools.product(HIDDEN, BATCH, ("bfloat16", "float32", "tf32")):
        yield 512, B, H, 1, False, dtype
    for H, dtype in itertools.product((512, 1024), DTYPES):
        yield 512, 64, H, 2, False, dtype
        yield 512, 64, H, 1, True, dtype
        yield 1024, 16, H, 1, False, dtype
    for H, B in itertools.product(HIDDEN, BATCH):
        yield 512, B, H, 1, False, "float16"


def elapsed(call):
    """Milliseconds of the device, which waits at first for the host to be ahead of it."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(2_000_000)  # clock cycles: about a millisecond
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def ceilings():
    """Bytes a second of a copy, read and written; FLOP a second of a product."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    times = [elapsed(lambda: target.copy_(source)) for _ in range(7)]
    result = {"copy_gbs": 2 * source.numel() / statistics.median(times) / 1e6, "tflops": {}}
    for name, dtype in DTYPES.items():
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a = torch.randn(8192, 8192, device="cuda").to(dtype)
        times = [elapsed(lambda a=a: torch.mm(a, a)) for _ in range(7)]
        result["tflops"][name] = 2 * 8192**3 / statistics.median(times) / 1e9
    torch.backends.cuda.matmul.allow_tf32 = False
    return result


def difference(ours, theirs):
    relative = [
        (a.float() - b.float()).abs().max() / (b.float().abs().max() + 1e-30)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack(relative).max().item()  # NaN if one is


def measure(T, B, H, layers, packed, dtype, flush):
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    theirs = nn.RNN(H, H, layers, device="cuda", dtype=DTYPES[dtype])
    ours = FastRNN(H, H, layers, device="cuda", dtype=DTYPES[dtype])
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, H, device="cuda", dtype=DTYPES[dtype])
    rows = T * B
    if packed:
        lengths = torch.linspace(T, T // 2, B).long()
        x = nn.utils.rnn.pack_padded_sequence(x, lengths)
        rows = int(lengths.sum())

    def forward(module):
        with torch.no_grad():
            output, h_n = module(x)
        return output.data if packed else output, h_n

    grad = torch.randn(rows, H, device="cuda", dtype=DTYPES[dtype])

    def training(module):
        output, _ = module(x)
        output = output.data if packed else output.flatten(0, 1)
        return output, *torch.autograd.grad(output, list(module.parameters()), grad)

    result = {
        "T": T, "B": B, "H": H, "layers": layers, "packed": packed, "dtype": dtype,
        "plan": rnnfast.cuda_plan(T, B, H, DTYPES[dtype]),
        "plan_backward": rnnfast.cuda_plan(T, B, H, DTYPES[dtype], backward=True),
    }  # fmt: skip
    # 2 H (I + H) operations a row and layer.
    work = rows * layers * 4 * H * H
    for mode, call, passes in (("forward", forward, 1), ("training", training, 3)):
        for module in (ours, theirs):
            module.train(mode == "training")  # to cuDNN they are not the same
        found, expected = call(ours), call(theirs)
        deviation = difference(found, expected)
        if not deviation <= TOLERANCE[dtype]:
            raise AssertionError(f"{mode} differs from nn.RNN by {deviation:.3g}")
        samples = {"rnnfast": [], "nn.RNN": []}
        for i in range(ROUNDS):
            pair = [("rnnfast", ours), ("nn.RNN", theirs)]
            for name, module in pair if i % 2 else pair[::-1]:
                flush.zero_()
                samples[name].append(elapsed(lambda c=call, m=module: c(m)))
        ms = {name: statistics.median(times) for name, times in samples.items()}
        result[mode] = {
            "ms": ms,
            "samples": samples,
            "us_a_step": {name: 1000 * time / T / layers for name, time in ms.items()},
            "ratio": ms["nn.RNN"] / ms["rnnfast"],
            "tflops": passes * work / ms["rnnfast"] / 1e9,
            "deviation": deviation,
        }
    return result


def short_calls():
    """Microseconds of wall time of a call: a row a shape and dtype."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    rows = []
    for (T, B, H), dtype in itertools.product(SHORT, ("float32", "bfloat16")):
        theirs = nn.RNN(H, H, device="cuda", dtype=DTYPES[dtype])
        ours = FastRNN(H, H, device="cuda", dtype=DTYPES[dtype])
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(T, B, H, device="cuda", dtype=DTYPES[dtype])

        def forward(module, x=x):
            with torch.no_grad():
                module(x)

        def training(module, x=x):
            module(x)[0].sum().backward()

        row = {"T": T, "B": B, "H": H, "dtype": dtype}
        for mode, call in (("forward", forward), ("training", training)):
            samples = {"rnnfast": [], "nn.RNN": []}
            for i in range(ROUNDS):
                pair = [("rnnfast", ours), ("nn.RNN", theirs)]
                for name, module in pair if i % 2 else pair[::-1]:
                    call(module)
                    torch.cuda.synchronize()
                    begin = time.perf_counter()
                    for _ in range(CALLS):
                        call(module)
                    torch.cuda.synchronize()
                    samples[name].append(1e6 * (time.perf_counter() - begin) / CALLS)
            row[mode] = {name: statistics.median(times) for name, times in samples.items()}
        rows.append(row)
    return rows


def train_speed():
    """Tokens a second of `rnnfast train` on built-in text, with the kernels and with nn.RNN."""
    speeds = {}
    for name, kernel in (("rnnfast", "auto"), ("nn.RNN", "torch")):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "rnnfast", "train", "--device", "cuda"]
            command += ["--max-seconds", str(TRAIN_SECONDS), "--out", f"{folder}/run"]
            subprocess.run(
                [*command, "--json", f"{folder}/report.json"],
                env={**os.environ, "RNNFAST_CUDA_KERNEL": kernel},
                check=True,
                capture_output=True,
            )
            report = json.loads(Path(folder, "report.json").read_text())
            speeds[name] = report["tokens_per_second"]
    return speeds


def answers():
    """Whether the device still runs anything: after some errors it does not in this process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def describe(case):
    T, B, H, layers, packed, dtype = case
    return f"{dtype} T{T} B{B} H{H}{f' L{layers}' if layers > 1 else ''}{' packed' * packed}"


def markdown(report):
    lines = [
        f"{report['gpu']}, driver {report['driver']}, CUDA {report['cuda']}, torch "
        f"{report['torch']}, {report['date']}, `{report['command']}`",
        "",
        f"Ceilings: copy {report['ceilings']['copy_gbs']:.0f} GB/s; TFLOP/s "
        + ", ".join(f"{name} {t:.0f}" for name, t in report["ceilings"]["tflops"].items()),
        "",
        "Microseconds a step and layer, the projections and weight gradients included.",
        "",
        "| case | predicted | forward | nn.RNN | ratio | with backward | nn.RNN | ratio | kernel |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for r in report["cases"]:
        keys = ("T", "B", "H", "layers", "packed", "dtype")
        row = [describe([r[key] for key in keys])]
        row.append(re.search(r"predicted ([\d.]+)", r["plan"])[1])
        for mode in ("forward", "training"):
            steps = r[mode]["us_a_step"]
            row += [f"{steps['rnnfast']:.2f}", f"{steps['nn.RNN']:.2f}", f"{r[mode]['ratio']:.2f}"]
        lines.append(f"| {' | '.join([*row, r['plan'].split(' kernel')[0]])} |")
    for mode in ("forward", "training"):
        if report["cases"]:
            mean = statistics.geometric_mean(r[mode]["ratio"] for r in report["cases"])
            lines += ["", f"Geometric mean of the ratios, {mode}: {mean:.2f}"]
    if report["short"]:
        lines += [
            "",
            "Whole calls of short sequences, microseconds of wall time, one after another.",
            "",
            "| case | forward | nn.RNN | with backward | nn.RNN |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for r in report["short"]:
            times = [r[mode][name] for mode in ("forward", "training") for name in r["forward"]]
            name = describe([r["T"], r["B"], r["H"], 1, False, r["dtype"]])
            lines.append(f"| {name} | {' | '.join(f'{t:.0f}' for t in times)} |")
    if report["train"]:
        speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in report["train"].items())
        lines += ["", f"Tokens a second of `rnnfast train --device cuda`: {speeds}"]
    if report["failed"]:
        lines += ["", "Failed:", "", *(f"- {c}: {why}" for c, why in report["failed"].items())]
    if report["not_run"]:
        lines += ["", f"Not run: {', '.join(report['not_run'])}"]
    for name, text in report["notes"].items():
        lines += ["", f"{name}:", "", "```", text.strip(), "```"]
    return "\n".join(lines) + "\n"


def plot(report, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    for axes, mode in zip(figure.subplots(1, 2, sharey=True), ("forward", "training"), strict=True):
        for dtype in DTYPES:
            for name, style in (("rnnfast", "-"), ("nn.RNN", ":")):
                points = sorted(
                    (r["H"], r[mode]["us_a_step"][name])
                    for r in report["cases"]
                    if (r["T"], r["B"], r["layers"], r["packed"], r["dtype"])
                    == (512, 64, 1, False, dtype)
                )
                if points:
                    axes.loglog(*zip(*points, strict=True), style, label=f"{name}, {dtype}")
        axes.set(xlabel="H", title=f"{mode}, B = 64")
    axes.legend()
    figure.axes[0].set_ylabel("microseconds a step")
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomic(path, image.getvalue())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("--seconds", type=float, default=150, help="for the cases together")
    parser.add_argument("--notes", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu.py: there is no CUDA device")
    rnnfast.set_cuda_kernel("auto")
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    report = {
        "gpu": properties.name,
        "driver": driver,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "command": f"python {' '.join(sys.argv)}",
        "notes": {path.stem: path.read_text() for path in arguments.notes},
        "ceilings": ceilings(),
        "cases": [],
        "short": [],
        "train": {},
        "failed": {},
        "not_run": [describe(case) for case in cases()],
    }
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    start = time.monotonic()
    for case in cases():
        if time.monotonic() - start > arguments.seconds or not answers():
            break
        name = describe(case)
        report["not_run"].remove(name)
        try:
            result = measure(*case, flush)
        except (RuntimeError, ValueError, AssertionError) as error:
            report["failed"][name] = str(error).split("\n")[0]
            print(f"{name}: {error}", flush=True)
        else:
            report["cases"].append(result)
            ratios = ", ".join(f"{m} {result[m]['ratio']:.2f}" for m in ("forward", "training"))
            print(f"{name}: {ratios}; {result['plan']}", flush=True)
        write_atomic(arguments.json, (json.dumps(report, indent=1) + "\n").encode())
    for name, view in (("short", short_calls), ("train", train_speed)):
        try:
            report[name] = view()
        except (RuntimeError, subprocess.CalledProcessError) as error:
            report["failed"][name] = str(error).split("\n")[0]
    write_atomic(arguments.json, (json.dumps(report, indent=1) + "\n").encode())
    write_atomic(arguments.json.with_suffix(".md"), markdown(report).encode())
    try:
        plot(report, arguments.json.with_suffix(".png"))
    except ImportError:
        print("gpu.py: no plot without matplotlib")
    if report["failed"] or not report["cases"]:
        sys.exit(f"gpu.py: {len(report['failed'])} cases failed, {len(report['cases'])} were timed")


if __name__ == "__main__":
    main()
