"""`rnnfast ngram`: count an n-gram model and evaluate it."""

from __future__ import annotations

import argparse
import time

from rich.markup import escape

from .. import lm
from .._common.files import check_writable
from .._common.text import compressed, counted, parts
from ..lm.data.vocabulary import LEVELS
from .options import (
    MAX_VOCAB,
    MIN_COUNT,
    TEXTS,
    Commands,
    add_command,
    add_flag,
    add_option,
    add_vocab_option,
)
from .output import Output
from .score import BY_UNIT, BY_UNIT_LINE, zeroprobs_line

ZEROPROBS = ("zeroprobs", "perplexity_without_zeroprobs")


def ngram(args: argparse.Namespace, output: Output) -> int:
    """Count an n-gram model, evaluate it, and save it."""
    if args.arpa:
        check_writable(args.arpa, "--arpa")
        list(compressed(args.arpa, []))  # a missing package is an error now, not after the counting
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
    whole, figures = _test_figures(model, test)
    report = {
        "order": model.order,
        "smoothing": model.smoothing,
        "train_tokens": len(ids),
        **figures,
        "ngrams": ngrams,
        "seconds": seconds,
    }
    sizes = ", ".join(f"{count:,} {n}-grams" for n, count in enumerate(ngrams, 1))
    output.text.print(f"{counted(len(ids), 'token')}: {sizes}, in {seconds:.2f} s")
    if whole is not None:
        line = "test: {test_tokens:,} tokens, {oov:,} of them <unk>; perplexity {perplexity:.6g}"
        if report["perplexity_without_oov"] is not None:
            line += ", {perplexity_without_oov:.6g} without <unk>"
        output.text.print(line.format(**report))
        if whole.zeroprobs:
            output.text.print(zeroprobs_line(whole))
        output.text.print(BY_UNIT_LINE.format(**report))
    if args.arpa:
        line = f"saved in {args.arpa}; for more text: rnnfast generate {args.arpa}"
        output.text.print(escape(line))
    output.json(report)
    return 0


def _test_figures(model: lm.NgramLM, test: str | None) -> tuple[lm.Evaluation | None, dict]:
    """Return the evaluation of the test text, and what the report has of it."""
    names = ("test_tokens", "oov", "perplexity", "perplexity_without_oov", *ZEROPROBS, *BY_UNIT)
    if test is None:
        return None, dict.fromkeys(names)
    ids = model.vocab.encode_stream(test)
    each, known = model.logprobs(ids), ids != model.vocab.unk
    whole = lm.Evaluation.of(each, model.log_zero)
    without = None
    if known.any():
        without = lm.Evaluation.of(each[known], model.log_zero).perplexity
    values = (
        *(len(ids), int((~known).sum()), whole.perplexity, without),
        *(whole.zeroprobs, whole.perplexity_without_zeroprobs),
    )
    return whole, dict(zip(names, (*values, *whole.by_unit(test).values()), strict=True))


def register(commands: Commands) -> None:
    """Add the command to `commands`, what `ArgumentParser.add_subparsers` returned."""
    about = "Count an n-gram model and evaluate it."
    sub = add_command(commands, "ngram", ngram, about, device=False, threads=False, epilog=TEXTS)
    add_option(sub, "train", str, "Text to count", "TEXT", required=True)
    add_option(sub, "test", str, "Text to measure the perplexity of", "TEXT")
    add_option(sub, "order", int, "Length of the longest n-grams", default=5)
    about = (
        "Smoothing: maximum likelihood, add-k, stupid backoff, Katz, Kneser-Ney, or modified "
        "Kneser-Ney"
    )
    add_option(sub, "smoothing", None, about, choices=lm.ngram.SMOOTHINGS, default="mkn")
    add_option(sub, "k", float, "Count that add-k adds to each n-gram", default=1.0)
    add_option(sub, "level", None, "What a token is", choices=LEVELS, default="word")
    add_option(sub, "min_count", int, MIN_COUNT, default=1)
    shown = f"{lm.Config.defaults('bpe').max_vocab} for bpe"
    add_option(sub, "max_vocab", int, MAX_VOCAB, also="--vocab-size", shown=shown)
    add_vocab_option(sub)
    about = "Continue contexts across the ends of lines, as an RNN does"
    add_flag(sub, "stream", about)
    about = "Save the model in this ARPA file, compressed if it ends with .gz, .bz2, .xz or .zst"
    add_option(sub, "arpa", str, about, "PATH")
