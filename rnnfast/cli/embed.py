"""`rnnfast embed`: train word vectors on a text, and ask which words are near one another."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from rich.markup import escape
from rich.table import Table

from .. import lm
from .._common.errors import UserError
from .._common.files import check_writable
from .._common.runtime import set_up
from ..embeddings import Vectors, glove, skipgram
from ..embeddings.vectors import check_suffix
from .options import Commands, add_command, add_option
from .output import Output

METHODS: dict[str, Callable[..., Vectors]] = {"glove": glove, "skipgram": skipgram}


def embed(args: argparse.Namespace, output: Output) -> int:
    """Train vectors or load them, and print neighbours and analogies."""
    if bool(args.train) == bool(args.vectors) or bool(args.train) != bool(args.out):
        raise UserError("give --train FILE and --out FILE for new vectors, or --vectors FILE")
    if args.top < 1:
        raise UserError(f"--top must be at least 1, not {args.top}")
    set_up("cpu", args.threads)
    if args.train:
        vectors, report = _train(args, output)
    else:
        if not (args.neighbours or args.analogy):
            raise UserError("give --neighbours WORD or --analogy A B C, to ask the vectors")
        vectors, report = Vectors.load(args.vectors), {}
    report |= {"words": len(vectors), "dim": vectors.matrix.shape[1]}
    if args.neighbours:
        report["neighbours"] = {w: vectors.neighbours(w, args.top) for w in args.neighbours}
        for word, found in report["neighbours"].items():
            output.text.print(_table(word, found))
    if args.analogy:
        a, b, c = args.analogy
        report["analogy"] = vectors.analogy(a, b, c, args.top)
        output.text.print(_table(f"{a} : {b} = {c} : ?", report["analogy"]))
    output.json(report)
    return 0


def _train(args: argparse.Namespace, output: Output) -> tuple[Vectors, dict]:
    """Train vectors and save them. Return them and the first entries of the report."""
    check_suffix(args.out)
    check_writable(args.out, "--out")
    text = lm.read_text(args.train)
    vocab = lm.Vocabulary.build("word", [text], args.min_count)
    for word in [*(args.neighbours or ()), *(args.analogy or ())]:
        if word not in vocab.tokens:
            raise UserError(
                f"{word!r} is not seen --min-count {args.min_count} times in {args.train}"
            )
    names = ("dim", "window", "epochs", "lr", "seed")
    settings = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    history: list[dict] = []

    def progress(record: dict) -> None:
        history.append(record)
        rate = record.get("cooccurrences_per_second")
        output.progress.print(
            f"epoch {record['epoch']}  loss {record['loss']:.6g}"
            + (f"  {rate:,.0f} co-occurrences/s" if rate else "")
        )

    began = time.monotonic()
    vectors = METHODS[args.method](text, vocab, **settings, progress=progress)
    seconds = time.monotonic() - began
    vectors.save(args.out)
    output.text.print(escape(f"{len(vectors):,} words in {seconds:.1f} s, saved in {args.out}"))
    return vectors, {"method": args.method, "seconds": seconds, "history": history}


def _table(title: str, found: list[tuple[str, float]]) -> Table:
    table = Table(title=escape(title), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for token, cosine in found:
        table.add_row(escape(token), f"{cosine:.3f}")
    return table


def register(commands: Commands) -> None:
    """Add the command to `commands`, what `ArgumentParser.add_subparsers` returned."""
    about = "Train word vectors on a text, and print neighbours and analogies of words."
    sub = add_command(commands, "embed", embed, about, device=False)
    files = "word2vec's .txt or .bin, also with .gz, or .safetensors"
    add_option(sub, "train", str, "Train on this UTF-8 text, one sentence a line", "FILE")
    add_option(sub, "out", str, f"Write the vectors to this file ({files})", "FILE")
    about = "Use the vectors of this file, instead of --train"
    add_option(sub, "vectors", str, about, "FILE")
    about = "Print the words whose vectors are the nearest to those of these words"
    add_option(sub, "neighbours", str, about, "WORD", nargs="+")
    about = "Complete the analogy: the first word is to the second as the third is to which"
    add_option(sub, "analogy", str, about, "WORD", nargs=3)
    add_option(sub, "top", int, "Words to print for a neighbourhood or analogy", default=10)
    group = sub.add_argument_group("training")
    about = "Method of training; skipgram needs gensim"
    add_option(group, "method", None, about, choices=METHODS, default="glove")
    about = "Replace words that are rarer than this by <unk>"
    add_option(group, "min_count", int, about, default=5)
    add_option(group, "dim", int, "Size of a vector", shown=100)
    about = "Largest distance, in words, at which two words are near one another"
    add_option(group, "window", int, about, shown="10; 5 for skipgram")
    add_option(group, "epochs", int, "Passes over the text", shown="25; 10 for skipgram")
    add_option(group, "lr", float, "Learning rate", shown="0.05; 0.025 for skipgram")
    add_option(group, "seed", int, "Seed of the initial vectors and of the order", "S", shown=1)
