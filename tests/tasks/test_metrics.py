"""Chunks of tags and their F1. The values are those of seqeval 1.2.2, in both of its modes."""

import warnings

import numpy as np
import pytest

from rnnfast._common.errors import DataWarning
from rnnfast.tasks import SequenceTagger
from rnnfast.tasks.metrics import SCHEMES, Scheme, why_no_scheme

from .helpers import FROZEN

TAGS = ["O", "B-NP", "I-NP", "B-VP", "I-VP", "I-PP"]
IOB2 = Scheme("IOB2")

IOBES = (
    [["B-PER", "I-PER", "E-PER", "O", "S-LOC", "O"], ["S-PER", "B-ORG", "E-ORG", "O"]],
    [["B-PER", "E-PER", "S-PER", "O", "S-LOC", "O"], ["S-PER", "B-ORG", "I-ORG", "O"]],
)
IOE = (
    [["I-NP", "E-NP", "O", "E-VP", "I-NP", "E-NP", "E-NP"]],
    [["I-NP", "E-NP", "O", "I-VP", "I-NP", "I-NP", "E-NP"]],
)


def rewritten(tags, write):
    return tuple([[write(tag) for tag in one] for one in part] for part in tags)


def type_first(tag):
    return tag if tag == "O" else f"{tag[2:]}-{tag[0]}"


def test_chunks():
    tags = ["I-NP", "I-NP", "B-NP", "O", "I-VP", "I-NP", "B-PP", "I-PP"]
    expected = {(0, 2, "NP"), (2, 3, "NP"), (4, 5, "VP"), (5, 6, "NP"), (6, 8, "PP")}
    assert IOB2.chunks(tags) == expected
    assert IOB2.chunks([]) == set() and IOB2.chunks(["O"]) == set()
    y, predicted = [["B-NP", "I-NP", "O"], ["B-VP"]], [["B-NP", "O", "B-NP"], ["B-VP"]]
    assert IOB2.f1(y, predicted) == pytest.approx(2 * 1 / (2 + 3))
    assert IOB2.f1([["O"]], [["O"]]) == 0.0
    assert Scheme.of(TAGS) == IOB2
    assert not Scheme.of(["O"]) and not Scheme.of(["B-NP", "X"]) and not Scheme.of([1, 2])


@pytest.mark.parametrize(
    "tags, scheme, f1, strict",
    [
        (IOBES, Scheme("IOBES"), 2 / 3, 0.5),
        (rewritten(IOBES, lambda tag: tag[0]), Scheme("IOBES"), 2 / 3, 0.5),
        (rewritten(IOBES, type_first), Scheme("IOBES", suffix=True), 2 / 3, 0.5),
        (
            # The default mode of seqeval takes "B-PER", "L-PER", "U-PER" for one chunk and gives 1.
            rewritten(IOBES, lambda tag: tag.replace("E-", "L-").replace("S-", "U-")),
            Scheme("BILOU"),
            2 / 3,
            0.5,
        ),
        (IOE, Scheme("IOE2"), 4 / 7, 1 / 3),
        (rewritten(IOE, type_first), Scheme("IOE2", suffix=True), 4 / 7, 1 / 3),
    ],
)
def test_f1_of_every_scheme(tags, scheme, f1, strict):
    y, predicted = tags
    assert Scheme.of(tag for one in y + predicted for tag in one) == scheme
    assert scheme.f1(y, predicted) == pytest.approx(f1, abs=1e-12)
    assert scheme.f1(y, predicted, strict=True) == pytest.approx(strict, abs=1e-12)


@pytest.mark.parametrize("suffix", [False, True])
@pytest.mark.parametrize("types", [["X"], ["X", "Y-Z"], [""]])
@pytest.mark.parametrize("name", SCHEMES)
def test_f1_is_that_of_seqeval(name, types, suffix):
    metrics = pytest.importorskip("seqeval.metrics")
    schemes = pytest.importorskip("seqeval.scheme")

    def tag(letter, kind):
        return "-".join(part for part in ((kind, letter) if suffix else (letter, kind)) if part)

    letters, _, _ = SCHEMES[name]
    tags = ["O", *(tag(letter, kind) for letter in letters for kind in types)]
    scheme = Scheme.of(tags)
    assert scheme == Scheme(name, suffix and types != [""])
    rng = np.random.default_rng(1)
    for _ in range(20):
        both = tuple([rng.choice(tags, n).tolist() for n in (1, 5, 30)] for _ in range(2))
        known = rewritten(both, lambda tag: tag.replace("L", "E").replace("U", "S"))
        expected = metrics.f1_score(*known, suffix=suffix, zero_division=0)
        assert scheme.f1(*both) == pytest.approx(expected, abs=1e-12)
        strict = {"mode": "strict", "scheme": getattr(schemes, name), "zero_division": 0}
        expected = metrics.f1_score(*both, suffix=suffix, **strict)
        assert scheme.f1(*both, strict=True) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "labels, why",
    [
        (["O", "PER", "LOC"], "'LOC' is not a tag such as"),
        (["B-PER", "M-PER", "E-PER", "O"], "'M-PER' is not a tag such as"),
        (["B_PER", "I_PER", "O"], "'B_PER' is not a tag such as"),
        (["b-per", "i-per", "o"], "'b-per' is not a tag such as"),
        (["B-PER", "PER-I", "O"], "no scheme .* has all of its tags, among them B-PER, O, PER-I"),
        (["B-PER", "L-PER", "E-PER"], "no scheme .* has all of its tags"),
        (["S", "O"], "no scheme .* has all of its tags, among them O, S"),
        (["NN", "VB", "."], None),
        ([1, 2], None),
    ],
)
@pytest.mark.usefixtures("one_thread")
def test_accuracy_is_explained(labels, why):
    """Labels that look like tags and are of no scheme get a reason. Other labels need none."""
    assert Scheme.of(labels) is None
    tagger = SequenceTagger(**FROZEN)
    X, y = [["w"] * len(labels)], [labels]
    if why is None:
        assert why_no_scheme(labels) is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tagger.fit(X, y)
    else:
        with pytest.warns(DataWarning, match=f"accuracy, not the F1 of chunks, because {why}"):
            tagger.fit(X, y)
    assert tagger.metric == "accuracy" and tagger.scores(X, y).keys() == {"accuracy"}
    assert tagger.scores(X, y)["accuracy"] == tagger.score(X, y)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("tags", [IOBES, rewritten(IOBES, lambda tag: tag[0])])
def test_a_tagger_of_whole_chunks(tags):
    y = tags[0]
    X = [[str(i) for i, _ in enumerate(one)] for one in y]
    tagger = SequenceTagger(**FROZEN).fit(X, y)
    predicted = tagger.predict(X)
    scheme = Scheme("IOBES")
    scores = tagger.scores(X, y)
    assert tagger.metric == "chunk F1" and tagger.score(X, y) == scores["chunk F1"]
    assert scores["chunk F1"] == scheme.f1(y, predicted)
    assert scores["strict chunk F1"] == scheme.f1(y, predicted, strict=True)
