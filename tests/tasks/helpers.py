"""Settings for quick training, and two small data sets of texts."""

import numpy as np

QUICK = {
    "embedding_size": 8,
    "hidden_size": 8,
    "epochs": 12,
    "batch_size": 8,
    "lr": 0.02,
    "patience": None,
    "dropout": 0.0,
    "word_dropout": 0.0,
}
FROZEN = {**QUICK, "epochs": 1, "lr": 1e-30}  # training that changes nothing

RNG = np.random.default_rng(0)
# The class is which of two words comes first. A bag of words cannot tell the classes apart.
TEXTS = [" ".join(RNG.permutation(["a", "b", *"xyz"[: RNG.integers(4)]])) for _ in range(120)]
ORDER = ["ab" if text.index("a") < text.index("b") else "ba" for text in TEXTS]

GOOD, BAD = ("good", "fine", "great"), ("bad", "dull", "poor")
FILMS = [f"a {word} film" for word in (*GOOD, *BAD)] * 10
SIDES = (["pos"] * 3 + ["neg"] * 3) * 10
