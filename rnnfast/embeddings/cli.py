"""`rnnfast embed`: word vectors of a text, and what is near what."""

from __future__ import annotations

import argparse
import time

from rich.markup import escape
from rich.table import Table

from .._common.errors import UserError
from .._common.files import check_writable
from .._common.runtime import set_up
from ..lm import Vocabulary, corpus
from .glove import glove
from .skipgram import skipgram
from .vectors import Vectors, check_suffix

METHODS = {"glove": glove, "skipgram": skipgram}


def register(command) -> None:
    """Add the command; `command(name, run, about)` makes its parser."""
    sub = command("embed", embed, "Vectors of words from a text, and their neighbours.", False)
    files = "word2vec's .txt or .bin, or .safetensors"
    sub.add_argument("--train", metavar="FILE", help="UTF-8 text, a sentence a line")
    sub.add_argument("--out", metavar="FILE", help=f"write the vectors: {files}")
    sub.add_argument("--vectors", metavar="FILE", help="or use the ones there are")
    sub.add_argument("--neighbours", metavar="WORD", nargs="+", help="words of the nearest vectors")
    sub.add_argument("--analogy", metavar="WORD", nargs=3, help="A is to B as C is to what")
    sub.add_argument("--top", type=int, default=10, metavar="N", help="of both: so many (10)")
    group = sub.add_argument_group("training")
    group.add_argument(
        "--method", choices=METHODS, default="glove", help="skipgram needs gensim (glove)"
    )
    group.add_argument(
        "--min-count", type=int, default=5, metavar="N", help="rarer words become <unk> (5)"
    )
    group.add_argument("--dim", type=int, metavar="N", help="size of a vector (100)")
    group.add_argument(
        "--window", type=int, metavar="N", help="largest distance of words (10; skipgram 5)"
    )
    group.add_argument("--epochs", type=int, metavar="N", help="(25; skipgram 10)")
    group.add_argument("--lr", type=float, metavar="X", help="learning rate (0.05; skipgram 0.025)")
    group.add_argument("--seed", type=int, metavar="S", help="of start and order (1)")


def embed(args: argparse.Namespace, output) -> int:
    if bool(args.train) == bool(args.vectors) or bool(args.train) != bool(args.out):
        raise UserError("give --train FILE and --out FILE for new vectors, or --vectors FILE")
    if args.top < 1:
        raise UserError(f"--top must be at least 1, not {args.top}")
    set_up("cpu", args.threads)
    report: dict = {}
    if args.train:
        check_suffix(args.out)
        check_writable(args.out, "--out")
        text = corpus.read_text(args.train)
        vocab = Vocabulary.build("word", [text], args.min_count)
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
        report |= {"method": args.method, "seconds": seconds, "history": history}
        output.text.print(escape(f"{len(vectors):,} words in {seconds:.1f} s, saved in {args.out}"))
    else:
        if not (args.neighbours or args.analogy):
            raise UserError("give --neighbours WORD or --analogy A B C, to ask the vectors")
        vectors = Vectors.load(args.vectors)
    report |= {"words": len(vectors), "dim": vectors.matrix.shape[1]}
    if args.neighbours:
        report["neighbours"] = {w: vectors.neighbours(w, args.top) for w in args.neighbours}
        for word, found in report["neighbours"].items():
            output.text.print(_table(word, found))
    if args.analogy:
        report["analogy"] = vectors.analogy(*args.analogy, args.top)
        a, b, c = args.analogy
        output.text.print(_table(f"{a} : {b} = {c} : ?", report["analogy"]))
    output.json(report)
    return 0


def _table(title: str, found: list[tuple[str, float]]) -> Table:
    table = Table(title=escape(title), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for token, cosine in found:
        table.add_row(escape(token), f"{cosine:.3f}")
    return table
