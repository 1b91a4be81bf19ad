"""Presets: settings for three budgets of time, which need no knowledge of language models.

On one core of an AMD EPYC (Zen 4) and a million words or characters, a small model takes minutes,
a medium one about half an hour and a large one hours. docs/results.md says which of them have been
run, and what they reached.
"""

from __future__ import annotations

from typing import Any

from .data.vocabulary import BPE, BYTE, CHAR, WORD

PRESETS = ("small", "medium", "large")

# At the default rate, 4e-3, the training loss of the large model of characters rises from the 11th
# epoch on.
_LETTERS: dict[str, dict[str, Any]] = {
    "small": {"nhid": 256, "epochs": 10},
    "medium": {"nhid": 512, "epochs": 40},
    "large": {"nhid": 1024, "dropout": 0.25, "weight_dropout": 0.2, "lr": 2e-3, "epochs": 70},
}
_PIECES: dict[str, dict[str, Any]] = {
    "small": {"epochs": 5},
    "medium": {"emsize": 400, "nhid": 400, "dropout": 0.5, "epochs": 16},
    "large": {"emsize": 650, "nhid": 650, "dropout": 0.5, "epochs": 30},
}
# The tokens of BPE are not numbered by how frequent they are, as a sampled softmax needs them.
_WORDS = {name: {**settings, "sampled_softmax": 2000} for name, settings in _PIECES.items()}
SETTINGS = {CHAR: _LETTERS, BYTE: _LETTERS, BPE: _PIECES, WORD: _WORDS}
