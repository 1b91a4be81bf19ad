"""The command line over `rnnfast.lm` and `rnnfast.bench`; `parser()` has the commands.

Exit status: 0 done; 2 for input the user can mend, with one line on stderr; 128 + the signal's
number (130 for Ctrl-C) for a training run that was stopped, after it was saved.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from . import bench, lm
from ._common.files import check_writable, write_atomic
from ._common.runtime import rank, set_up
from ._common.text import parts, standard_input
from ._version import __version__
from .diagnostics import cli as diagnostics
from .embeddings import Vectors
from .embeddings import cli as embeddings
from .lm.config import ELMAN, GATED, OPTIMIZERS, SCHEDULES
from .lm.data.vocabulary import LEVELS
from .lm.language_model import bits, perplexity
from .lm.storage import RunFolder
from .lm.training import curves
from .lm.training.distributed import joined
from .lm.training.report import report as report_of
from .lm.training.runs import prepare, resume
from .tasks import cli as tasks

DEFAULT_SECONDS = 60.0  # of a run on the built-in corpus
COMPARE_SECONDS = 300.0  # of each neural model in a comparison
DEFAULT_EPOCHS = 10  # of a run on the user's own text
SAMPLE_LENGTH = {"char": 400, "byte": 400, "word": 80, "bpe": 120}
UNITS = {"char": "character", "byte": "byte", "word": "word", "bpe": "token"}
BY_UNIT = ("perplexity_per_word", "bits_per_character", "bits_per_byte")
BY_UNIT_LINE = (
    "in units of all levels: perplexity {perplexity_per_word:.6g} per word, "
    "{bits_per_character:.4f} bits per character, {bits_per_byte:.4f} per byte"
)
LONGEST_LINE = 1000
SAMPLE_TEMPERATURE = 0.7  # a short training leaves the tail of the distribution noisy


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return its exit status."""
    if sys.stdout is None:  # closed, as by `>&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the program
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character of the text must not end the program.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(argv)
    try:
        return args.run(args, Output(args.json))
    except lm.UserError as error:
        line = " ".join(str(error).splitlines())
        print(f"rnnfast: error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rnnfast: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # As `| head` does. What is left in the buffer has nowhere to go at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


class Output:
    """Text for people on stdout, progress on stderr, one JSON object where --json says.

    With `--json -` stdout has the JSON and nothing else: the text goes to stderr.
    """

    def __init__(self, target: str | None):
        self.target = target
        self.stream = sys.stderr if target == "-" else sys.stdout
        # A line in a file may be as long as a table is wide.
        width = None if self.stream.isatty() else LONGEST_LINE
        self.text = Console(file=self.stream, width=width, highlight=False, soft_wrap=True)
        self.progress = Console(stderr=True, highlight=False, soft_wrap=True)
        if target not in (None, "-"):
            check_writable(target, "--json")

    def json(self, data) -> None:
        if self.target is None:
            return
        text = json.dumps(data, indent=1) + "\n"
        if self.target == "-":
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            write_atomic(self.target, text.encode())

    def json_lines(self, records: Iterable) -> None:
        """One object a line: on standard output at once, in a file when all are there."""
        lines = (json.dumps(record) + "\n" for record in records)
        if self.target not in (None, "-"):
            write_atomic(self.target, (line.encode() for line in lines))
            return
        for line in lines:
            if self.target == "-":
                sys.stdout.write(line)
                sys.stdout.flush()


# ---- commands


def train(args: argparse.Namespace, output: Output) -> int:
    with joined(args.device or "cpu"):
        if rank() == 0:
            return _train(args, output)
        try:
            _trainer(args).run()
        except lm.Interrupted as interrupted:
            return 128 + interrupted.signum
        return 0


def _train(args: argparse.Namespace, output: Output) -> int:
    trainer = _trainer(args)
    config, folder = trainer.config, trainer.folder
    unit = UNITS[config.level]
    about = (
        f"{len(trainer.train):,} {unit}s to train on, {len(trainer.valid):,} to validate; "
        f"{len(trainer.vocab):,} symbols\n"
        f"{_kind(config)}, {config.nlayers} x {config.nhid} units, "
        f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters"
    )
    output.text.print(escape(about))
    try:
        with TrainingProgress(output.progress, config) as progress:
            trainer.run(progress.step, progress.validation)
    except lm.Interrupted as interrupted:
        where = folder.final
        output.text.print(
            escape(
                f"stopped at step {trainer.state.step}: saved in {where}; go on with "
                f"rnnfast train --resume {where}"
            )
        )
        return 128 + interrupted.signum
    report = report_of(trainer)
    output.text.print(_results(report, _name(config)))
    sample = trainer.model.generate(
        length=SAMPLE_LENGTH[config.level], temperature=SAMPLE_TEMPERATURE, seed=config.seed
    )
    output.text.print(f"\n[bold]A sample[/] (temperature {SAMPLE_TEMPERATURE}):")
    output.text.print(escape(sample.strip("\n")))
    output.text.print(
        escape(
            f"\n{report['tokens']:,} tokens in {report['seconds']:.1f} s, "
            f"{report['tokens_per_second']:,.0f} a second. Saved in {folder.final}; "
            f"more text: rnnfast generate {folder.final}"
        )
    )
    output.json(report)
    return 0


def _trainer(args: argparse.Namespace):
    changes = {name: getattr(args, name) for name in _SETTINGS}
    paths = (args.data, args.train, args.valid, args.test, args.vocab)
    given = any(paths[:4])
    if args.resume:
        if args.out or args.overwrite:
            raise lm.UserError("--resume goes on in its own folder: leave --out and --overwrite")
        if args.embeddings:
            raise lm.UserError("--resume goes on with the embeddings it has: leave --embeddings")
        if args.vocab:
            raise lm.UserError("--resume goes on with the vocabulary it has: leave --vocab")
        corpus = lm.corpus.read(*paths) if given else None
        return resume(args.resume, changes, corpus)
    changes = {name: value for name, value in changes.items() if value is not None}
    if not changes.keys() & {"epochs", "max_seconds"}:
        budget = {"epochs": DEFAULT_EPOCHS} if given else {"max_seconds": DEFAULT_SECONDS}
        changes.update(budget)
    config = lm.Config.defaults(changes.pop("level", "char"), **changes)
    if args.embeddings:
        vectors = Vectors.load_of_size(args.embeddings, config.emsize, "emsize")
    corpus = lm.corpus.read(*paths)
    folder = None
    if rank() == 0:
        folder = RunFolder(args.out, args.overwrite) if args.out else RunFolder.fresh()
    trainer = prepare(config, corpus, folder)
    if args.embeddings:
        try:
            vectors.initialise(trainer.model.encoder.weight, trainer.vocab.tokens)
        except lm.UserError:
            if folder is not None:
                folder.discard()
            raise
    return trainer


def compare(args: argparse.Namespace, output: Output) -> int:
    if args.plot:
        bench.check_plot(args.plot)
    names = ("level", "min_count", "max_vocab", "epochs", "max_seconds", "threads", "device")
    settings = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if not settings.keys() & {"epochs", "max_seconds"}:
        settings["max_seconds"] = COMPARE_SECONDS

    def run(trainer: lm.Trainer) -> None:
        output.progress.print(escape(f"{_name(trainer.config)}, in {trainer.folder.final}"))
        with TrainingProgress(output.progress, trainer.config) as progress:
            trainer.run(progress.step, progress.validation)

    corpus = lm.corpus.read(None, args.train, args.valid, args.test, args.vocab)
    try:
        models = lm.compare(corpus, settings, args.out, run)
    except lm.Interrupted as interrupted:
        output.text.print(f"stopped: the same command goes on where {escape(args.out)} stands")
        return 128 + interrupted.signum
    output.text.print(_comparison(models))
    output.json(models)
    if args.plot:
        bench.save_figure(_comparison_figure(models), args.plot)
    return 0


def plot(args: argparse.Namespace, output: Output) -> int:
    bench.check_plot(args.output)
    runs = {run: curves.read_log(run) for run in args.runs}
    report = []
    for run, records in runs.items():
        steps, losses = curves.curve(records, "valid")
        if not steps and not curves.curve(records, "train")[0]:
            raise lm.UserError(f"the log of {run} has no loss yet: let the run go on")
        best = min(losses, default=None)
        line = f"{run}: no validation yet"
        if best is not None:
            line = f"{run}: best validation {best:.4f} nats, at step {steps[losses.index(best)]}"
        output.text.print(escape(line))
        report.append({"run": run, "best_valid_loss": best, "log": records})
    bench.save_figure(curves.figure(runs, args.x), args.output)
    output.text.print(escape(f"drawn in {args.output}"))
    output.json(report)
    return 0


def ngram(args: argparse.Namespace, output: Output) -> int:
    if args.arpa:
        check_writable(args.arpa, "--arpa")
    train = lm.open_text(args.train)
    test = lm.read_text(args.test) if args.test else None
    words = parts(lm.open_text(args.vocab) if args.vocab else train)
    max_vocab = args.max_vocab
    if max_vocab is None:
        max_vocab = lm.Config.defaults(args.level).max_vocab
    vocab = lm.Vocabulary.build(args.level, words, args.min_count, max_vocab, unk=True)
    ids = vocab.encode_stream(train)
    began = time.monotonic()
    model = lm.NgramLM.fit(vocab, ids, args.order, args.smoothing, args.k, args.stream)
    seconds = time.monotonic() - began
    if args.arpa:
        lm.arpa.write(model, args.arpa)
    ngrams = [len(entries.keys) for entries in model.ngrams]
    report = {
        "order": model.order,
        "smoothing": model.smoothing,
        "train_tokens": len(ids),
        **_test_figures(model, test),
        "ngrams": ngrams,
        "seconds": seconds,
    }
    sizes = ", ".join(f"{count:,} {n}-grams" for n, count in enumerate(ngrams, 1))
    output.text.print(f"{len(ids):,} tokens: {sizes}, in {seconds:.2f} s")
    if test is not None:
        line = "test: {test_tokens:,} tokens, {oov:,} of them <unk>; perplexity {perplexity:.6g}"
        if report["perplexity_without_oov"] is not None:
            line += ", {perplexity_without_oov:.6g} without <unk>"
        output.text.print(line.format(**report))
        output.text.print(BY_UNIT_LINE.format(**report))
    if args.arpa:
        output.text.print(escape(f"saved in {args.arpa}; more text: rnnfast generate {args.arpa}"))
    output.json(report)
    return 0


def _test_figures(model: lm.NgramLM, test: str | None) -> dict:
    names = ("test_tokens", "oov", "perplexity", "perplexity_without_oov", *BY_UNIT)
    if test is None:
        return dict.fromkeys(names)
    ids = model.vocab.encode_stream(test)
    each, known = model.logprobs(ids), ids != model.vocab.unk
    whole = lm.Evaluation(len(ids), float(-each.mean()))
    without = perplexity(-each[known].mean()) if known.any() else None
    values = (len(ids), int((~known).sum()), whole.perplexity, without)
    return dict(zip(names, (*values, *whole.by_unit(test).values()), strict=True))


def evaluate(args: argparse.Namespace, output: Output) -> int:
    models = [_load(args, path) for path in args.model]
    names = args.model + ["cache"] * args.cache
    if (len(names) > 1) != bool(args.tune):
        raise lm.UserError("--tune TEXT is for a mixture, which needs it: a text of its own")
    text = lm.read_text(args.data)
    with _bar(output.progress, "{task.completed:,.0f} tokens") as bar:
        task = bar.add_task("eval", total=None)

        def on_chunk(done: int) -> None:
            bar.update(task, completed=done)

        if len(names) > 1:
            tuning = lm.read_text(args.tune)
            mixture = lm.Mixture.tune(models, tuning, args.cache, args.dynamic, on_chunk)
        else:
            mixture = lm.Mixture(models, np.ones(1), lr=args.dynamic)
        *each, whole = mixture.evaluate(text, on_chunk)
    output.text.print(
        f"{whole.tokens:,} tokens: cross-entropy {whole.loss:.4f} nats, perplexity "
        f"{whole.perplexity:.3f}, {whole.bits_per_token:.4f} bits per token"
    )
    report = {**whole.to_json(), **whole.by_unit(text)}
    output.text.print(BY_UNIT_LINE.format(**report))
    if len(names) > 1:
        report["cache_size"] = mixture.cache_size
        perplexities = [result.perplexity for result in each] + [None] * args.cache
        report["components"] = [
            {"model": name, "weight": float(weight), "perplexity": value}
            for name, weight, value in zip(names, mixture.weights, perplexities, strict=True)
        ]
        output.text.print(_components(report["components"]))
    output.json(report)
    return 0


def join(args: argparse.Namespace, output: Output) -> int:
    model, config = lm.join_folders(args.model)
    lm.save(model, config, args.out, args.overwrite)
    parameters = sum(p.numel() for p in model.parameters())
    output.text.print(
        f"{config.cell} RNN, {config.nlayers} x {config.nhid} units, {parameters:,} parameters. "
        f"Saved in {escape(args.out)}"
    )
    output.json({"models": args.model, "nhid": config.nhid, "parameters": parameters})
    return 0


def generate(args: argparse.Namespace, output: Output) -> int:
    pieces = []
    for piece in lm.generate(
        _load(args, args.model),
        args.prompt,
        args.length,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        sentence=args.sentence,
    ):
        pieces.append(piece)
        output.stream.write(piece)
        output.stream.flush()
    text = "".join(pieces)
    if not text.endswith("\n"):
        output.stream.write("\n")
    output.json({"text": text})
    return 0


def score(args: argparse.Namespace, output: Output) -> int:
    model = _load(args, args.model)
    results = [model.score(sentence) for sentence in args.sentences]
    results.sort(key=lambda result: -result.logprob)  # stable: equals stay as they were given
    for result in results:
        table = Table(title=escape(result.text), title_justify="left", show_footer=True)
        table.add_column("token", f"{len(result.tokens)} tokens")
        table.add_column("log p", f"{result.logprob:.4f}", justify="right")
        for token, logprob in result.tokens:
            table.add_row(escape(_shown(token)), f"{logprob:.4f}")
        output.text.print(table)
        mean = -result.logprob / len(result.tokens)
        output.text.print(
            f"per token {-mean:.4f} nats, {bits(mean):.4f} bits, "
            f"perplexity {perplexity(mean):.3f}\n"
        )
    if len(results) > 1:
        table = Table("log p", "the most probable first")
        for result in results:
            table.add_row(f"{result.logprob:.4f}", escape(result.text))
        output.text.print(table)
    output.json([result.to_json() for result in results])
    return 0


def complete(args: argparse.Namespace, output: Output) -> int:
    model = _load(args, args.model)
    model.complete("", args.top_k)  # a bad top-k is found before a line is asked for
    output.json_lines(_completions(model, args.top_k, output))
    return 0


def _completions(model, top_k: int, output: Output) -> Iterator[dict]:
    typed = standard_input().isatty()
    for text in _lines("" if output.target == "-" else "> "):
        try:
            best = model.complete(text, top_k)
        except lm.UserError as error:
            if not typed:
                raise
            output.progress.print(escape(str(error)))
            continue
        if not typed:
            output.text.print(escape(f"> {text}"))
        for token, probability in best:
            output.text.print(f"{probability:8.4f}  {escape(_shown(token))}")
        suggestions = [{"token": token, "probability": p} for token, p in best]
        yield {"text": text, "suggestions": suggestions}


def _lines(prompt: str) -> Iterator[str]:
    """Lines of standard input without their ends, until there are no more."""
    try:
        if not sys.stdin.isatty():
            yield from (line.rstrip("\r\n") for line in sys.stdin)
            return
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() then edits lines and has a history)
        while True:
            try:
                yield input(prompt)
            except (EOFError, KeyboardInterrupt):  # Ctrl-D and Ctrl-C are how to leave
                print(file=sys.stderr)
                return
    except UnicodeDecodeError as error:
        raise lm.UserError("standard input is not UTF-8 text") from error


def _shown(token: str) -> str:
    return token if token.isprintable() and token.strip() == token else repr(token)


def _load(args: argparse.Namespace, path: str) -> lm.NeuralLM | lm.NgramLM:
    device = args.device or "cpu"
    set_up(device, args.threads)
    return lm.load(path, device)


# ---- what people see


class TrainingProgress:
    """A bar on a terminal; elsewhere a plain line every log interval."""

    def __init__(self, console: Console, config: lm.Config):
        self.console, self.config = console, config
        self.bar = _bar(console, "{task.fields[about]}")

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        self.task = self.bar.add_task("train", total=1.0, about="")
        return self

    def __exit__(self, *exception) -> None:
        self.bar.stop()

    def step(self, step) -> None:
        about = f"loss {step.loss:.3f}  lr {step.lr:.1e}  {step.tokens_per_second:,.0f} tokens/s"
        self.bar.update(self.task, completed=min(step.progress, 1.0), about=about)
        if not self.console.is_terminal and step.step % self.config.log_interval == 0:
            self.console.print(
                f"step {step.step}  epoch {step.epoch:.2f}  {step.seconds:.1f} s  {about}"
            )

    def validation(self, record: dict) -> None:
        loss = record["valid_loss"]
        self.console.print(
            f"step {record['step']}  epoch {record['epoch']:.2f}  {record['seconds']:.1f} s  "
            f"train {record['train_loss']:.4f}  valid {loss:.4f} nats, {bits(loss):.4f} bits, "
            f"perplexity {perplexity(loss):.3f}"
        )


def _bar(console: Console, about: str) -> Progress:
    columns = (BarColumn(), TextColumn(about), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _comparison(models: list[dict]) -> Table:
    columns = {
        "valid": "valid_perplexity",
        "test": "test_perplexity",
        "test, words alone": "test_perplexity_of_words",
    }
    if models[0]["test_perplexity_of_words"] is None:
        columns.popitem()
    rows = []
    for model in models:
        costs = (model["bytes"] / 1e6, model["train_seconds"])
        row = [f"{model[key]:.2f}" for key in columns.values()] + [f"{c:.1f}" for c in costs]
        rows.append([*row, f"{model['tokens_per_second']:,.0f}"])
    table = Table("model", title="perplexity, and what it costs", title_justify="left")
    names = (*columns, "MB", "training, s", "tokens/s scored")
    for name, figures in zip(names, zip(*rows, strict=True), strict=True):
        # Where the terminal is narrow, the models' names are cut into lines; figures stay whole.
        whole = max(map(len, [*name.split(), *figures]))
        table.add_column(name.replace(" ", "\n"), justify="right", min_width=whole)
    for model, row in zip(models, rows, strict=True):
        table.add_row(model["model"], *row)
    return table


def _comparison_figure(models: list[dict]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.4 * len(models)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh([m["model"] for m in models], [m["test_perplexity"] for m in models])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.set_xlabel("perplexity of the test text")
    return figure


def _components(components: list[dict]) -> Table:
    table = Table(
        "component", Column("weight", justify="right"), Column("perplexity", justify="right")
    )
    for one in components:
        value = "" if one["perplexity"] is None else f"{one['perplexity']:.3f}"
        table.add_row(escape(one["model"]), f"{one['weight']:.4f}", value)
    return table


def _name(config: lm.Config) -> str:
    if config.model == "window":
        return f"window of {config.order} tokens"
    return config.cell.upper() if config.cell in GATED else "RNN"


def _kind(config: lm.Config) -> str:
    return _name(config) if config.cell in GATED else f"{config.cell} {_name(config)}"


def _results(report: dict, name: str) -> Table:
    rows = [(f"{n}, valid", b["valid_loss"]) for n, b in report["baselines"].items()]
    rows.append((f"{name}, valid", report["valid_loss"]))
    if report["test_loss"] is not None:
        rows.append((f"{name}, test", report["test_loss"]))
    unit = UNITS[report["level"]]
    table = Table()
    table.add_column("model")
    for name in ("nats", f"bits per {unit}", "perplexity"):
        table.add_column(name, justify="right")
    for name, loss in rows:
        table.add_row(name, f"{loss:.4f}", f"{bits(loss):.4f}", f"{perplexity(loss):.3f}")
    return table


# ---- arguments

TEXTS = (
    "A text is a file in UTF-8, perhaps compressed by gzip, bzip2, xz or zstd; a directory: "
    "all files in it but hidden ones and those of models, in the order of their paths; or - for "
    "standard input."
)
MODEL = "folder that rnnfast train made, or ARPA file of an n-gram model"
VOCAB = "text whose words, or merges, make the vocabulary (the training text)"
MAX_VOCAB = "word and BPE level: at most so many tokens"
CELLS = ELMAN + GATED
_SETTINGS = [field.name for field in fields(lm.Config)]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="rnnfast",
        description="RNN and n-gram language models.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"rnnfast {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name, run, about, device=True, threads=True, epilog=None):
        sub = commands.add_parser(
            name, help=about, description=about, epilog=epilog, allow_abbrev=False
        )
        sub.set_defaults(run=run)
        sub.add_argument(
            "--json", metavar="PATH", help="write the result as JSON; - for standard output"
        )
        if threads:
            sub.add_argument(
                "--threads", type=int, metavar="N", help="CPU threads (torch's default)"
            )
        if device:
            sub.add_argument("--device", metavar="NAME", help="cpu (default), cuda, cuda:1, ...")
        return sub

    about = "Train a model. Without arguments: a minute on built-in text."
    sub = command("train", train, about, epilog=TEXTS)
    _train_arguments(sub)

    about = "Count an n-gram model and test it."
    sub = command("ngram", ngram, about, device=False, threads=False, epilog=TEXTS)
    _ngram_arguments(sub)

    about = "Cross-entropy of a model, or of several mixed, on a text read as one stream."
    sub = command("eval", evaluate, about, epilog=TEXTS)
    sub.add_argument("model", metavar="MODEL", nargs="+", help=MODEL)
    sub.add_argument("--data", required=True, metavar="TEXT", help="text to predict")
    sub.add_argument("--tune", metavar="TEXT", help="text to find the weights of a mixture on")
    sub.add_argument("--cache", action="store_true", help="mix in the last words, unigrams of them")
    sub.add_argument(
        "--dynamic", type=float, metavar="LR", help="neural models go on learning, at this rate"
    )

    about = "One RNN whose logits are the mean of several RNNs': an ensemble in one model."
    sub = command("join", join, about, device=False, threads=False)
    sub.add_argument("model", metavar="MODEL", nargs="+", help="folder that rnnfast train made")
    sub.add_argument("--out", required=True, metavar="DIR", help="model folder")
    sub.add_argument("--overwrite", action="store_true", help="replace the model --out holds")

    sub = command("generate", generate, "Text from a model, printed as it is made.")
    sub.add_argument("model", metavar="MODEL", help=MODEL)
    sub.add_argument("--prompt", default="", metavar="TEXT", help="text to go on from (none)")
    sub.add_argument("--length", type=int, default=400, metavar="N", help="tokens to make (400)")
    sub.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="1 as trained; 0 greedy (1)"
    )
    sub.add_argument("--top-k", type=int, metavar="K", help="draw from the K most probable (all)")
    sub.add_argument(
        "--top-p", type=float, metavar="P", help="from the fewest that make up this share (1)"
    )
    sub.add_argument("--seed", type=int, metavar="S", help="the same text each time (random)")
    sub.add_argument("--sentence", action="store_true", help="stop at the end of the line")

    about = "Log probability of sentences by the chain rule, token by token, the best first."
    sub = command("score", score, about)
    sub.add_argument("model", metavar="MODEL", help=MODEL)
    sub.add_argument("sentences", nargs="+", metavar="SENTENCE")

    about = "Train n-grams, window, RNN and LSTM on one text; mix; a table."
    sub = command("compare", compare, about, epilog=TEXTS)
    _compare_arguments(sub)

    about = "What may come next, after each line typed or read from standard input."
    sub = command("complete", complete, about)
    sub.add_argument("model", metavar="MODEL", help=MODEL)
    sub.add_argument("--top-k", type=int, default=10, metavar="K", help="suggestions a line (10)")

    about = "Draw the learning curves of runs, from their logs."
    sub = command("plot", plot, about, device=False, threads=False)
    sub.add_argument("runs", metavar="RUN", nargs="+", help="folder that rnnfast train made")
    sub.add_argument(
        "--output",
        type=bench.plot_path,
        default=Path("learning-curves.png"),
        metavar="FILE",
        help="draw here, .png or .svg (learning-curves.png)",
    )
    sub.add_argument("--x", choices=curves.AXES, default="steps", help="axis to draw over (steps)")

    for room in (tasks, diagnostics, embeddings):
        room.register(command)

    sub = command("bench", bench.run, "Time FastRNN against torch.nn.RNN on the CPU.", device=False)
    bench.add_arguments(sub)
    return top


def _setting(group, name, type_, about, also=None, **options):
    levels = {level: getattr(lm.Config.defaults(level), name) for level in LEVELS}
    values = {value: [n for n, v in levels.items() if v == value] for value in levels.values()}
    shown = [f"{', '.join(names)}: {value}" for value, names in values.items() if value is not None]
    if len(values) == 1:
        shown = [str(value) for value in values if value is not None]
    shown = f" ({'; '.join(shown)})" if shown else ""
    if "choices" not in options and "action" not in options:
        options.setdefault("metavar", "N" if type_ is int else "X")
    if type_ is not None:
        options["type"] = type_
    names = ["--" + name.replace("_", "-")] + [also] * bool(also)
    group.add_argument(*names, help=about + shown, **options)


def _text_arguments(group) -> None:
    group.add_argument("--level", choices=LEVELS, help="what a token is (char)")
    _setting(group, "min_count", int, "word level: rarer words become <unk>")
    _setting(group, "max_vocab", int, MAX_VOCAB, also="--vocab-size")
    group.add_argument("--vocab", metavar="TEXT", help=VOCAB)


def _train_arguments(sub: argparse.ArgumentParser) -> None:
    text = sub.add_argument_group("text (without any: Python's language reference)")
    text.add_argument("--data", metavar="TEXT", help="first 90%% to train on, rest to validate")
    text.add_argument("--train", metavar="TEXT", help="or one text a split")
    text.add_argument("--valid", metavar="TEXT")
    text.add_argument("--test", metavar="TEXT", help="evaluated once, at the end")
    _text_arguments(text)

    model = sub.add_argument_group("model")
    _setting(model, "model", None, "", choices=("rnn", "window"))
    _setting(model, "order", int, "window: tokens it spans, the one predicted included")
    flag = argparse.BooleanOptionalAction
    _setting(model, "direct", None, "window: connect embeddings to the output too", action=flag)
    _setting(model, "emsize", int, "size of the embeddings")
    _setting(model, "nhid", int, "hidden units of a layer")
    _setting(model, "nlayers", int, "layers")
    _setting(model, "cell", None, "of the hidden layers; window: tanh or relu", choices=CELLS)
    _setting(model, "dropout", float, "on embeddings of words, between layers, on the output")
    about = "the same dropout at all steps of a chunk (variational)"
    _setting(model, "locked_dropout", None, about, action=flag)
    _setting(model, "weight_dropout", float, "rnn: on the recurrent weights (DropConnect)")
    _setting(model, "embedding_dropout", float, "on whole words or characters")
    about = "adaptive softmax, for large vocabularies of words; not tied"
    _setting(model, "adaptive", None, about, action=flag)
    _setting(model, "tied", None, "share embedding and output weights", action=flag)

    model.add_argument(
        "--embeddings", metavar="FILE", help="vectors for them to begin with (rnnfast embed)"
    )

    how = sub.add_argument_group("training")
    _setting(how, "batch_size", int, "lanes the text is cut into")
    _setting(how, "bptt", int, "tokens of truncated back-propagation")
    _setting(how, "optimizer", None, "", choices=OPTIMIZERS)
    _setting(how, "lr", float, "learning rate; SGD 10")
    _setting(how, "eps", float, "AdamW: the larger, the less rare words move")
    about = "over the budget, halved when stuck, none"
    _setting(how, "lr_schedule", None, about, choices=SCHEDULES)
    _setting(how, "weight_decay", float, "on weights that are no embeddings; SGD 1.2e-06")
    about = "validate and save averaged weights once the loss of N validations before was lower"
    _setting(how, "average", int, about)
    _setting(how, "clip", float, "largest norm of the gradient, 0 for any")
    _setting(how, "accumulate", int, "parts an update's batch is cut into, to save memory")
    _setting(how, "bf16", None, "autocast to bfloat16", action=flag)
    _setting(how, "compile", None, "torch.compile the training step", action=flag)
    _setting(how, "epochs", int, f"passes over the text ({DEFAULT_EPOCHS} with a text of yours)")
    _setting(how, "max_seconds", float, f"time budget ({DEFAULT_SECONDS:g} on the built-in text)")
    _setting(how, "seed", int, "of weights, dropout and sample")

    run = sub.add_argument_group("run")
    run.add_argument("--out", metavar="DIR", help="model folder (rnnfast-model, rnnfast-model-2)")
    run.add_argument("--overwrite", action="store_true", help="replace the model --out holds")
    run.add_argument("--resume", metavar="DIR", help="go on with a run, its settings and text")
    _setting(run, "log_interval", int, "steps from one line of the log to the next")
    about = "write the log for TensorBoard too, to DIR/tensorboard"
    _setting(run, "tensorboard", None, about, action=flag)
    _setting(run, "checkpoint_interval", float, "seconds from one checkpoint to the next")


def _compare_arguments(sub: argparse.ArgumentParser) -> None:
    for name, about in (("train", "to train on"), ("valid", "to tune on"), ("test", "to test on")):
        sub.add_argument(f"--{name}", required=True, metavar="TEXT", help=f"text {about}")
    _text_arguments(sub)
    _setting(sub, "epochs", int, "passes of a neural model over the text")
    _setting(sub, "max_seconds", float, f"time for each ({COMPARE_SECONDS:g} if no epochs)")
    sub.add_argument(
        "--out",
        metavar="DIR",
        default="rnnfast-compare",
        help="folder of the neural models; those it has are not trained again (rnnfast-compare)",
    )
    sub.add_argument("--plot", type=bench.plot_path, metavar="PATH", help="draw here, .png or .svg")


def _ngram_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--train", required=True, metavar="TEXT", help="text to count")
    sub.add_argument("--test", metavar="TEXT", help="text to take the perplexity of")
    sub.add_argument("--order", type=int, default=5, metavar="N", help="longest n-grams (5)")
    sub.add_argument(
        "--smoothing",
        choices=lm.ngram.SMOOTHINGS,
        default="mkn",
        help="maximum likelihood, add-k, stupid backoff, Katz, Kneser-Ney, modified (mkn)",
    )
    sub.add_argument("--k", type=float, default=1.0, metavar="X", help="what add-k adds (1)")
    sub.add_argument("--level", choices=LEVELS, default="word", help="tokens (word)")
    sub.add_argument(
        "--min-count", type=int, default=1, metavar="N", help="rarer words become <unk> (1)"
    )
    sub.add_argument("--max-vocab", "--vocab-size", type=int, metavar="N", help=MAX_VOCAB)
    sub.add_argument("--vocab", metavar="TEXT", help=VOCAB)
    sub.add_argument(
        "--stream", action="store_true", help="contexts run on over the ends of lines, as an RNN's"
    )
    sub.add_argument("--arpa", metavar="PATH", help="save the model")
