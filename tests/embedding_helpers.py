"""Helpers for the tests of word vectors: a text whose words fall into three groups."""

import numpy as np

from rnnfast import lm

RNG = np.random.default_rng(0)
GROUPS = [["cat", "dog", "cow"], ["red", "blue", "green"], ["one", "two", "six"]]
# Each line keeps to one group: words of a group are near one another and to no others.
TEXT = "\n".join(" ".join(RNG.choice(GROUPS[k % 3], 6)) for k in range(300)) + "\n"
VOCAB = lm.Vocabulary.build("word", [TEXT])


def group_of(word):
    return next(k for k, group in enumerate(GROUPS) if word in group)


def neighbours_are_of_the_group(vectors):
    for group in GROUPS:
        for word in group:
            near = [other for other, _ in vectors.neighbours(word, 2)]
            assert set(near) == set(group) - {word}, (word, near)
