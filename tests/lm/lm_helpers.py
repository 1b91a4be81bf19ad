"""What the tests of the language models share: small texts and small, quick settings."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rnnfast import lm
from rnnfast.lm.neural.models import build

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("RNNFAST_DATA", ROOT.parent / "shared" / "data"))
needs_brown = pytest.mark.skipif(
    not (DATA / "brown").is_dir(), reason=f"no Brown corpus in {DATA} (RNNFAST_DATA names it)"
)

PERIODIC = "a1b1a2b2\n" * 400  # the last character alone does not tell the next
WORDS = "the cat sat on the mat\nthe dog sat on the cat\n\na cat and a dog\n" * 40

SMALL = {"emsize": 8, "nhid": 16, "batch_size": 4, "bptt": 10, "threads": 1, "lr": 0.01}
CORPUS = lm.corpus.split(PERIODIC)
STEPS = math.ceil(len(CORPUS.train) // 4 / 10)  # of an epoch with the settings SMALL

# An ARPA file of the bigrams of two words, "a" and "b".
ARPA = r"""\data\
ngram 1=5
ngram 2=3

\1-grams:
-99	<s>	-0.3
-0.6	</s>
-1.5	<unk>
-0.5	b	-0.2
-0.7	a	-0.1

\2-grams:
-0.2	<s> b
-0.4	a </s>
-0.8	b a

\end\
"""


def records(folder):
    """The log without what the clock has a part in."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def zipf(tokens, seed=0):
    """Text of 60 words, the likely ones far more likely, that follow one another unevenly."""
    rng = np.random.default_rng(seed)
    rows = rng.permuted(np.tile(1 / np.arange(1, 61) ** 1.3, (60, 1)), axis=1)
    rows = (rows / rows.sum(1, keepdims=True)).cumsum(1)
    word, words = 0, []
    for draw in rng.random(tokens):
        word = min(int(np.searchsorted(rows[word], draw)), 59)
        words.append("\n" if word == 7 else f"w{word}")
    return " ".join(words).replace(" \n ", "\n") + "\n"


def fit_ngrams(text, order=3, smoothing="mkn", level="word", stream=False, **options):
    vocab = lm.Vocabulary.build(level, [text], max_vocab=300 if level == "bpe" else None, unk=True)
    return lm.NgramLM.fit(
        vocab, vocab.encode_stream(text), order, smoothing, stream=stream, **options
    )


def small_config(level="char", **changes):
    tied = {"emsize": 16} if level in ("word", "bpe") else {}
    return lm.Config.defaults(level, **{**SMALL, **tied, "epochs": 2, **changes})


def small_model(level="char", text=None, seed=0, **changes):
    """An untrained model with weights large enough that its probabilities are far from even."""
    text = text or (PERIODIC if level == "char" else WORDS)
    vocab = lm.Vocabulary.build(level, [text], max_vocab=300 if level == "bpe" else None)
    torch.manual_seed(seed)
    model = build(small_config(level, **changes), vocab).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.1 * torch.randn_like(parameter))
    return model


def same_weights(a, b):
    a, b = dict(a.named_parameters()), dict(b.named_parameters())
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
