"""n-gram models: against dictionaries and recursion, and NLTK."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_helpers import DATA, PERIODIC, WORDS, fit_ngrams, needs_brown, small_config, zipf
from ngram_reference import REFERENCES, contexts

from rnnfast import lm
from rnnfast.lm.ngram.smoothing import SMOOTHINGS, discounts

READINGS = pytest.mark.parametrize("stream", [False, True], ids=["sentences", "stream"])
SMOOTHING = pytest.mark.parametrize("smoothing", SMOOTHINGS)


def check_against_reference(text, other, order, smoothing, stream, k=0.3, everywhere=True):
    """Every token of `other`, and the whole distribution after each of its contexts."""
    model = fit_ngrams(text, order, smoothing, stream=stream, k=k)
    size, boundary = len(model.vocab), model.vocab.boundary
    ids, others = (model.vocab.encode_stream(t).tolist() for t in (text, other))
    reference = REFERENCES[smoothing](ids, size, boundary, order, stream, k)
    given = contexts(others, boundary, stream, order)
    expected = [reference.p(w, h) for w, h in zip(others, given, strict=True)]
    actual = np.exp(model.logprobs(np.array(others, dtype=np.int64)))
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-90)
    if everywhere:
        for t, context in enumerate(given):
            expected = [reference.p(w, context) for w in range(size)]
            actual = np.exp(model.next_logprobs(np.array([boundary, *others[:t]])))
            np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-90)
            if smoothing != "stupid":
                assert sum(actual) == pytest.approx(1, abs=1e-9)
    return reference


# ---- estimation


@READINGS
@SMOOTHING
@pytest.mark.parametrize("order", range(1, 8))
def test_small_texts_by_the_definitions(order, smoothing, stream):
    for text in ("a", "a\n", "\n\n", "a a a", "a\n\nb a\n", "a b c a b\nb c", WORDS[:90]):
        other = "b a a b zebra\n\na a\nthe cat sat on a cat\n" + text
        check_against_reference(text, other, order, smoothing, stream)


@READINGS
@SMOOTHING
def test_larger_text_by_the_definitions(smoothing, stream):
    """Large enough that every discount is estimated."""
    # After "a b" no count is so small that Good-Turing takes anything from it.
    text, other = zipf(8000) + "a b c\n" * 9, zipf(400, seed=1) + "zebra w1 w2\nw5 zebra\na b w1\n"
    order = 4
    reference = check_against_reference(text, other, order, smoothing, stream, everywhere=False)
    if smoothing == "mkn":
        for n in range(2, order + 1):
            assert len({reference.discount(n, c) for c in (1, 2, 3)}) == 3
            assert reference.discount(n, 2) not in (1.0, reference.discount(n, 1))
    if smoothing == "katz":
        assert reference.kept(3, 6) == 6 and 0 < reference.kept(3, 5) < 5  # Good-Turing
        assert reference.kept(2, 6) < 6  # absolute


@given(
    text=st.text("aab \n", min_size=1, max_size=60),
    other=st.text("abz \n", max_size=20),
    order=st.integers(1, 7),
    smoothing=st.sampled_from(list(SMOOTHINGS)),
    stream=st.booleans(),
)
@settings(max_examples=150)
def test_any_text_by_the_definitions(text, other, order, smoothing, stream):
    check_against_reference(text, other, order, smoothing, stream)


def test_stupid_backoff_is_no_distribution():
    model = fit_ngrams(WORDS, 3, "stupid")
    assert np.exp(model.next_logprobs(model.vocab.encode("\nthe"))).sum() > 1.01


def test_discounts_fall_back():
    """As on characters, where every one has a high count and KenLM gives up."""
    three = np.repeat([1, 2, 3, 4], [8, 4, 2, 1])
    y = 8 / 16
    expected = [0, 1 - 2 * y * 4 / 8, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2]
    np.testing.assert_allclose(discounts(three, True), expected)
    np.testing.assert_allclose(discounts(three, False), [0, y, y, y])
    for n in ([8, 4, 0, 9], [8, 4, 9, 1]):  # no threes; so many that D2 would be negative
        np.testing.assert_allclose(discounts(np.repeat([1, 2, 3, 4], n), True), [0, y, y, y])
    for counts in (np.array([5, 900, 44]), np.array([1, 1, 3]), np.array([2, 2])):
        assert discounts(counts, True).tolist() == [0, 0.5, 1, 1.5]
        assert discounts(counts, False).tolist() == [0, 0.5, 0.5, 0.5]


@READINGS
def test_characters(stream):
    text = PERIODIC[:300]
    model = fit_ngrams(text, 6, level="char", stream=stream)
    for context in ("", "a1b", "a1b1a2b2\na", "\n\n", "zzz"):
        p = np.exp(model.next_logprobs(model.vocab.encode("\n" + context)))
        assert p.sum() == pytest.approx(1, abs=1e-12) and p.min() > 0
    # The fifth character back tells what comes next, and only `stream` sees over the line's end.
    loss = model.evaluate(PERIODIC).loss
    assert loss < 0.05 and model.evaluate("zebra").tokens == 5
    following = np.exp(model.next_logprobs(model.vocab.encode("\na1b1a2b2\n")))
    assert following[model.vocab.encode("a")[0]] > 0.95


@pytest.mark.parametrize("stream", [False, True])
@SMOOTHING
def test_nothing_is_more_likely_than_certain(smoothing, stream):
    """The rounding of interpolation must not make p more than 1: of one token all is known."""
    vocab = lm.Vocabulary.build("char", ["\n"])
    for n in range(1, 40):
        ids = vocab.encode("\n" * n)
        each = lm.NgramLM.fit(vocab, ids, 3, smoothing, 0.3, stream).logprobs(ids)
        assert (each <= 0).all() and (smoothing == "stupid" or each == pytest.approx(0, abs=1e-9))


def test_perplexity_is_of_the_same_tokens_as_an_rnns():
    text = "the cat sat\n\non a zebra"
    for stream in (False, True):
        result = fit_ngrams(WORDS, 3, stream=stream).evaluate(text)
        assert result.tokens == 9 and math.isfinite(result.loss)


def test_text_without_a_token_is_refused():
    vocab = lm.Vocabulary.build("word", ["a"])
    with pytest.raises(lm.UserError, match="no token"):
        lm.NgramLM.fit(vocab, vocab.encode(""))
    assert fit_ngrams("a").logprobs(vocab.encode("")).shape == (0,)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"order": 0}, "order must be at least 1, not 0"),
        ({"smoothing": "good"}, "smoothing must be one of .*mkn, not 'good'"),
        ({"k": 0.0}, "k must be a positive number, not 0.0"),
        ({"k": math.nan}, "k must be"),
    ],
)
def test_bad_settings_are_refused(options, says):
    with pytest.raises(lm.UserError, match=says):
        fit_ngrams("a b\n", **options)


def test_tokens_of_another_vocabulary_are_refused():
    vocab = lm.Vocabulary.build("word", ["a"])
    for ids in ([0, 3], [-1]):
        with pytest.raises(lm.UserError, match=r"ids must be in \[0, 3\)"):
            lm.NgramLM.fit(vocab, np.array(ids))


def test_baselines_of_a_training_run():
    corpus = lm.corpus.split("the cat sat\n" * 60 + "the dog sat\n" * 40)
    rnn, report = lm.train(small_config("word", epochs=1), corpus)
    ids = rnn.vocab.encode_stream(corpus.train)
    for order, name in ((1, "unigram"), (2, "bigram")):
        model = lm.NgramLM.fit(rnn.vocab, ids, order, "mkn", stream=True)
        assert report["baselines"][name]["valid_loss"] == model.evaluate(corpus.valid).loss


# ---- generation


@READINGS
@SMOOTHING
def test_generation_draws_the_models_probabilities(smoothing, stream):
    """The second token of texts after "the", by Pearson's chi-square at 4 standard deviations."""
    model = fit_ngrams(WORDS, 3, smoothing, stream=stream)
    sampler, _ = model.sampler(temperature=0.8, top_k=99, top_p=1.0, stop=None, seed=1)
    boundary, the, unk = model.vocab.boundary, model.vocab.encode("the")[0], model.vocab.unk
    drawn = Counter()
    for _ in range(4000):
        sampler.feed([boundary, the])
        drawn.update(sampler.generate(1))
    p = np.exp(model.next_logprobs(np.array([boundary, the])) / 0.8)
    p[unk] = 0
    expected = 4000 * p / p.sum()
    counts = np.array([drawn[token] for token in range(len(expected))])
    likely = expected > 5
    assert counts[expected < 1e-9].sum() == 0
    statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    freedom = likely.sum() - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom) + 6


def test_generation_keeps_the_most_probable():
    model = fit_ngrams(WORDS, 2)
    given = model.vocab.encode("\nthe")
    logprobs = model.next_logprobs(given)
    logprobs[model.vocab.unk] = -np.inf
    ranked = [model.vocab.tokens[i] for i in np.argsort(-logprobs)]
    p = np.sort(np.exp(logprobs))[::-1] / np.exp(logprobs).sum()
    for options, kept in (
        ({"top_k": 1}, 1),
        ({"top_k": 3}, 3),
        ({"top_p": p[0] - 1e-9}, 1),
        ({"top_p": p[:2].sum() - 1e-9}, 2),
        ({"top_p": p[:2].sum() + 1e-9}, 3),
        ({"top_k": 2, "top_p": p[0] / p[:2].sum() + 1e-9}, 2),
        ({"temperature": 0}, 1),
        ({"temperature": 1e-308}, 1),
    ):
        drawn = {model.generate("the", 1, seed=seed, **options) for seed in range(150)}
        assert drawn == {
            model.vocab.decode([*given[1:], model.vocab.encode(w)[0]]) for w in ranked[:kept]
        }


@READINGS
@pytest.mark.parametrize("level", ["char", "word"])
def test_generated_text(level, stream):
    model = fit_ngrams(WORDS, 3, level=level, stream=stream)
    texts = [model.generate("the", 200, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2] and texts[0].startswith("the")
    assert len(model.vocab.encode(texts[0][3:])) == 200 and "<unk>" not in texts[0]
    sentence = model.generate("the", 1000, seed=1, sentence=True)
    assert sentence.count("\n") == 1 and sentence.endswith("\n")
    assert "<unk>" not in model.generate(length=500, temperature=50, seed=3)
    assert model.generate("zebra ", 5, seed=1).startswith("zebra ")


def test_generation_where_only_unk_was_seen():
    """`<unk>` is never generated, so the shorter context has its way."""
    vocab = lm.Vocabulary.build("word", ["a a a b b b"])
    for smoothing in SMOOTHINGS:
        model = lm.NgramLM.fit(vocab, vocab.encode_stream("a zebra\n" * 9), 2, smoothing)
        assert "<unk>" not in model.generate("a", 50, seed=1)


# ---- another program


@pytest.mark.parametrize("smoothing", ["mle", "add-k", "stupid", "kn"])
def test_nltk_agrees_where_it_means_the_same(smoothing):
    """Bigram models, after every context that was seen, of every word that was seen.

    For NLTK `<s>` is a word too. It is in the vocabulary, so the divisor of add-k has one k more,
    and among the unigrams, so the frequencies that stupid backoff ends with are lower. Kneser-Ney
    is given its discount and has none for unigrams, which give a word never seen nothing: there
    the discounted counts can be compared, and the weights, but not what these multiply.
    """
    models = pytest.importorskip("nltk.lm", reason="no nltk here (pip install nltk)")
    from nltk.lm.preprocessing import padded_everygram_pipeline

    text, k = zipf(500), 0.3
    lines = [line.split() for line in text.splitlines()]
    bigrams = Counter(
        pair for line in lines for pair in zip(["<s>", *line], [*line, "</s>"], strict=True)
    )
    discount = discounts(np.array(list(bigrams.values())), False)[1]
    theirs = {
        "mle": models.MLE(2),
        "add-k": models.Lidstone(k, 2),
        "stupid": models.StupidBackoff(order=2),
        "kn": models.KneserNeyInterpolated(2, discount),
    }[smoothing]
    theirs.fit(*padded_everygram_pipeline(2, lines))
    ours = fit_ngrams(text, 2, smoothing, k=k)
    vocab, tokens = ours.vocab, sum(map(len, lines)) + len(lines)
    unigram = np.exp(ours.ngrams[0].logprobs)
    for context in sorted({v for v, _ in bigrams}):
        followers = [c for (v, _), c in bigrams.items() if v == context]
        given = vocab.encode("\n" if context == "<s>" else f"\n{context}")
        p = np.exp(ours.next_logprobs(given))
        for i, word in enumerate(vocab.tokens):
            if i == vocab.unk:
                continue
            word = "</s>" if i == vocab.boundary else word
            expected, actual = theirs.score(word, [context]), p[i]
            if smoothing == "add-k":
                expected *= (sum(followers) + k * (len(vocab) + 1)) / (
                    sum(followers) + k * len(vocab)
                )
            if smoothing == "stupid" and (context, word) not in bigrams:
                expected *= (tokens + len(lines)) / tokens
            if smoothing == "kn":
                weight = discount * len(followers) / sum(followers)
                expected -= weight * theirs.score(word)
                actual -= weight * unigram[i]
            assert actual == pytest.approx(expected, rel=1e-9, abs=1e-12)


# ---- a real corpus


@needs_brown
def test_brown():
    text, test = ((DATA / "brown" / f"{split}.txt").read_text() for split in ("train", "test"))
    # lmplz -o 5 and query of KenLM 0.3.0 have this perplexity.
    assert fit_ngrams(text, 5).evaluate(test).perplexity == pytest.approx(376.3565, rel=1e-6)
    vocab = lm.Vocabulary.build("word", [text], min_count=4)
    ids = vocab.encode_stream(text)
    runs = ((1, "mkn"), (3, "katz"), (3, "kn"), (3, "mkn"), (5, "mkn"))
    models = [lm.NgramLM.fit(vocab, ids, *run) for run in runs]
    perplexities = [model.evaluate(test).perplexity for model in models]
    assert perplexities == sorted(perplexities, reverse=True) and perplexities[-1] < 150
