"""`rnnfast eval`, `generate`, `score` and `complete`: commands that use a saved model."""

from __future__ import annotations

import argparse
import contextlib
import heapq
import io
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from rich.markup import escape
from rich.table import Column, Table

from .. import lm
from .._common import progress
from .._common.runtime import set_up
from .._common.text import counted, lines, standard_input
from ..lm.language_model import LanguageModel
from .options import MODEL, TEXTS, Commands, add_command, add_flag, add_option
from .output import Output, printable

BY_UNIT = ("perplexity_per_word", "bits_per_character", "bits_per_byte")
BY_UNIT_LINE = (
    "in units of all levels: perplexity {perplexity_per_word:.6g} per word, "
    "{bits_per_character:.4f} bits per character, {bits_per_byte:.4f} per byte"
)


def evaluate(args: argparse.Namespace, output: Output) -> int:
    """Measure the cross-entropy of one model, or of a mixture, on a text."""
    models = [_load(args, path) for path in args.model]
    names = args.model + ["cache"] * args.cache
    if len(names) > 1 and not args.tune:
        raise lm.UserError("a mixture needs --tune TEXT: give a text that is not used otherwise")
    if args.tune and len(names) == 1:
        raise lm.UserError("--tune TEXT is for a mixture: give more models or --cache, or omit it")
    text = lm.read_text(args.data)
    with progress.bar(output.progress, "{task.completed:,.0f} tokens") as bar:
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
        f"{counted(whole.tokens, 'token')}: cross-entropy {whole.loss:.4f} nats, perplexity "
        f"{whole.perplexity:.3f}, {whole.bits_per_token:.4f} bits per token"
    )
    if whole.zeroprobs:
        output.text.print(zeroprobs_line(whole))
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


def zeroprobs_line(result: lm.Evaluation) -> str:
    """Return the line about the tokens of probability zero, of which there is at least one."""
    has = "has" if result.tokens == 1 else "have"
    line = f"{result.zeroprobs:,} of {counted(result.tokens, 'token')} {has} probability zero"
    without = result.perplexity_without_zeroprobs
    return line if without is None else f"{line}; perplexity {without:.6g} without them"


def _components(components: list[dict]) -> Table:
    table = Table(
        "component", Column("weight", justify="right"), Column("perplexity", justify="right")
    )
    for component in components:
        value = "" if component["perplexity"] is None else f"{component['perplexity']:.3f}"
        table.add_row(escape(component["model"]), f"{component['weight']:.4f}", value)
    return table


def generate(args: argparse.Namespace, output: Output) -> int:
    """Generate a text, printed as it is made."""
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
    """Print the log probability of sentences and of their tokens."""
    if bool(args.sentences) == bool(args.data):
        raise lm.UserError("give sentences, or --data TEXT with a sentence on each line")
    if args.best is not None and args.best < 1:
        raise lm.UserError(f"--best must be at least 1, not {args.best}")
    model = _load(args, args.model)
    if args.data:
        output.json_lines(_scores_of_lines(args, model, output))
        return 0
    results = [model.score(sentence) for sentence in args.sentences]
    results.sort(key=lambda result: -result.logprob)  # stable: equal ones stay in the given order
    results = results[: args.best]
    for result in results:
        table = Table(title=escape(result.text), title_justify="left", show_footer=True)
        table.add_column("token", counted(len(result.tokens), "token"))
        table.add_column("log p", f"{result.logprob:.4f}", justify="right")
        for token, logprob in result.tokens:
            table.add_row(escape(printable(token)), f"{logprob:.4f}")
        output.text.print(table)
        whole = lm.Evaluation.of(np.array([p for _, p in result.tokens]), model.log_zero)
        output.text.print(
            f"cross-entropy {whole.loss:.4f} nats, perplexity {whole.perplexity:.3f}, "
            f"{whole.bits_per_token:.4f} bits per token"
        )
        if whole.zeroprobs:
            output.text.print(zeroprobs_line(whole))
        output.text.print()
    if len(results) > 1:
        table = Table("log p", "the most probable first")
        for result in results:
            table.add_row(f"{result.logprob:.4f}", escape(result.text))
        output.text.print(table)
    output.json([result.to_json() for result in results])
    return 0


def _scores_of_lines(
    args: argparse.Namespace, model: LanguageModel, output: Output
) -> Iterator[dict]:
    """Print log p and the sentence of each line of a text, and yield what the JSON has of it."""
    text = lm.open_text(args.data)
    # Results that appear in the terminal show the progress themselves.
    hidden = output.stream.isatty() and not args.best
    with progress.bar(output.progress, "{task.completed:,.0f} characters", hidden) as bar:
        task = bar.add_task("score", total=len(text))

        def results() -> Iterator[tuple[int, lm.Score]]:
            for number, line in enumerate(lines(text), 1):
                try:
                    yield number, model.score(line)
                except lm.UserError as error:
                    raise lm.UserError(f"{args.data}, line {number}: {error}") from error
                bar.advance(task, len(line) + 1)

        shown: Iterable[tuple[int, lm.Score]] = results()
        if args.best:
            # The first of equal sentences comes first, as it does after sorting.
            shown = heapq.nlargest(args.best, shown, key=lambda result: result[1].logprob)
        for number, result in shown:
            output.stream.write(f"{result.logprob:.4f}\t{result.text}\n")
            output.stream.flush()
            yield {"line": number, **result.to_json()}


def complete(args: argparse.Namespace, output: Output) -> int:
    """Suggest the next token after each line of standard input."""
    model = _load(args, args.model)
    model.complete("", args.top_k)  # finds a wrong --top-k before a line is asked for
    output.json_lines(_completions(model, args.top_k, output))
    return 0


def _completions(model: LanguageModel, top_k: int, output: Output) -> Iterator[dict]:
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
            output.text.print(f"{probability:8.4f}  {escape(printable(token))}")
        suggestions = [{"token": token, "probability": p} for token, p in best]
        yield {"text": text, "suggestions": suggestions}


def _lines(prompt: str) -> Iterator[str]:
    """Yield the lines of standard input without their ends, until there are no more."""
    try:
        if not sys.stdin.isatty():
            # As for texts: UTF-8 in every locale, and a byte order mark is not part of the text.
            if isinstance(sys.stdin, io.TextIOWrapper):  # a stream of characters has no encoding
                sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
            yield from (line.rstrip("\n") for line in sys.stdin)
            return
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() then edits lines and has a history
        while True:
            try:
                yield input(prompt)
            except (EOFError, KeyboardInterrupt):  # Ctrl-D and Ctrl-C end the command
                print(file=sys.stderr)
                return
    except UnicodeDecodeError as error:
        raise lm.UserError(
            "standard input is not UTF-8 text: convert it, e.g. with iconv"
        ) from error


def _load(args: argparse.Namespace, path: str) -> lm.NeuralLM | lm.NgramLM:
    device = args.device or "cpu"
    set_up(device, args.threads)
    return lm.load(path, device)


def register(commands: Commands) -> None:
    """Add the commands to `commands`, what `ArgumentParser.add_subparsers` returned."""
    about = "Measure the cross-entropy of a model, or of a mixture of models, on a text."
    sub = add_command(commands, "eval", evaluate, about, epilog=TEXTS)
    sub.add_argument("model", metavar="MODEL", nargs="+", help=MODEL)
    add_option(sub, "data", str, "Text to predict, as one stream", "TEXT", required=True)
    add_option(sub, "tune", str, "Text to find the weights of a mixture on", "TEXT")
    add_flag(sub, "cache", "Mix in a cache: the unigrams of the last words")
    about = "Let neural models go on learning while they predict, with this learning rate"
    add_option(sub, "dynamic", float, about, "LR")

    about = "Generate a text with a model, and print it as it is made."
    sub = add_command(commands, "generate", generate, about)
    sub.add_argument("model", metavar="MODEL", help=MODEL)
    add_option(sub, "prompt", str, "Text to continue", "TEXT", default="", shown="none")
    add_option(sub, "length", int, "Tokens to generate", default=400)
    about = "Temperature of the distribution: 1 leaves it as it is, 0 takes the most probable token"
    add_option(sub, "temperature", float, about, "T", default=1.0, shown=1)
    add_option(sub, "top_k", int, "Draw from the K most probable tokens", "K", shown="all")
    about = "Draw from the fewest tokens whose probabilities add up to P"
    add_option(sub, "top_p", float, about, "P", shown=1)
    about = "Seed of the draws; the same seed gives the same text"
    add_option(sub, "seed", int, about, "S", shown="random")
    add_flag(sub, "sentence", "Stop at the end of the line")

    about = (
        "Compute the log probability of sentences, token by token, and rank them; or of the lines "
        "of a text, in their order."
    )
    sub = add_command(commands, "score", score, about, epilog=TEXTS)
    sub.add_argument("model", metavar="MODEL", help=MODEL)
    about = "Sentence to score. The most probable is printed first"
    sub.add_argument("sentences", nargs="*", metavar="SENTENCE", help=about)
    about = (
        "Text with a sentence on each line. Each gets a line: log p, a tab and the sentence. The "
        "JSON has an object on each line, with the number of the sentence's line"
    )
    add_option(sub, "data", str, about, "TEXT")
    about = "Print only the N most probable sentences, the most probable first"
    add_option(sub, "best", int, about, shown="all")

    about = "Suggest the next token after each line that is typed or read from standard input."
    sub = add_command(commands, "complete", complete, about)
    sub.add_argument("model", metavar="MODEL", help=MODEL)
    add_option(sub, "top_k", int, "Suggestions for a line", "K", default=10)
