"""Mixtures of models, the cache and dynamic evaluation against straightforward computations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_helpers import PERIODIC, WORDS, fit_ngrams, same_weights, small_model, zipf
from torch.nn import functional as F

from rnnfast import lm
from rnnfast.lm.mixture import CACHE_SIZES, cache_logprobs, dynamic_logprobs, mix, tune

OTHER = "the cat sat on a dog\na cat and the dog\n" * 9


def test_weights_are_the_best_of_a_fine_grid():
    rng = np.random.default_rng(0)
    each = np.log(rng.uniform(0.01, 1, (2, 400)) ** [[1], [2]])
    grid = np.linspace(0, 1, 2001)[1:-1]
    losses = [-mix(each, np.array([w, 1 - w])).mean() for w in grid]
    weights = tune(each)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] == pytest.approx(grid[np.argmin(losses)], abs=2e-3)
    assert -mix(each, weights).mean() <= min(losses) + 1e-6


def test_weights_of_components_that_are_useless_or_alike():
    each = np.log([[0.5, 0.2, 0.4], [0.1, 0.1, 0.1]])
    np.testing.assert_allclose(tune(each), [1, 0], atol=1e-3)
    assert tune(each[:1]).tolist() == [1]
    np.testing.assert_allclose(tune(each[[0, 0]]), 0.5)
    never = np.array([[-1.0, -2.0], [-np.inf, -np.inf]])
    np.testing.assert_allclose(tune(never), [1, 0], atol=1e-3)
    assert np.isfinite(mix(never, tune(never))).all()


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 12))
@settings(max_examples=100)
def test_cache_counts_what_was_last(ids, size):
    expected = []
    for t, token in enumerate(ids):
        last = ids[max(0, t - size) : t]
        expected.append(last.count(token) / len(last) if last else 0)
    actual = np.exp(cache_logprobs(np.array(ids, dtype=np.int64), size))
    np.testing.assert_allclose(actual, expected)


@pytest.mark.parametrize("model", ["rnn", "window"])
def test_dynamic_evaluation_is_a_loop_of_updates(model):
    model = small_model("word", model=model, dropout=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = model.vocab.encode_stream(OTHER[:200])
    done = []
    actual = dynamic_logprobs(model, ids, 0.5, done.append)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert done[-1] == len(ids) and len(done) == -(-len(ids) // 20)

    expected, state = [], None
    stream = torch.tensor([model.vocab.boundary, *ids])
    for start in range(0, len(ids), 20):
        inputs = stream[start : start + 20][: len(ids) - start]
        logits, state = model(inputs[:, None], state)
        losses = F.cross_entropy(logits[:, 0], stream[start + 1 :][: len(inputs)], reduction="none")
        expected += losses.tolist()
        model.zero_grad()
        losses.mean().backward()
        norm = math.sqrt(sum(p.grad.pow(2).sum().item() for p in model.parameters()))
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.5 * p.grad / max(norm, 1)
        state = state.detach()
    np.testing.assert_allclose(-actual, expected, rtol=1e-4)


def test_dynamic_evaluation_learns_and_says_where_it_diverges():
    model = small_model()
    text = PERIODIC[:2000]
    ids = model.vocab.encode(text)
    assert dynamic_logprobs(model, ids, 0.1).mean() > model.logprobs(ids).mean() + 0.5
    with pytest.raises(lm.UserError, match=r"lr of dynamic evaluation .* not nan"):
        dynamic_logprobs(model, ids, math.nan)
    with pytest.raises(lm.UserError, match="dynamic evaluation diverged at token"):
        dynamic_logprobs(model, ids, 1e38)
    assert same_weights(model, small_model())


@pytest.mark.parametrize("lr", [None, 0.3])
@pytest.mark.parametrize("cache", [False, True])
def test_a_mixture_is_the_weighted_sum(cache, lr):
    rnn = small_model("word", text=WORDS)
    # The same words with other numbers.
    ngram = fit_ngrams(WORDS + "sat sat sat\n" * 90, 2)
    assert rnn.vocab.tokens != ngram.vocab.tokens
    models = [rnn, ngram, fit_ngrams(WORDS, 1)]
    mixture = lm.Mixture.tune(models, OTHER, cache, lr)
    assert len(mixture.weights) == 3 + cache and mixture.weights.sum() == pytest.approx(1)
    assert mixture.cache_size in (CACHE_SIZES if cache else (None,))
    ids = rnn.vocab.encode_stream(WORDS[:300])
    p = [dynamic_logprobs(rnn, ids, lr) if lr else rnn.logprobs(ids)]
    p += [model.logprobs(model.vocab.encode_stream(WORDS[:300])) for model in models[1:]]
    if cache:
        p.append(cache_logprobs(ids, mixture.cache_size))
    expected = np.log(mixture.weights @ np.exp(p))
    np.testing.assert_allclose(mixture.logprobs(WORDS[:300]), [*p, expected], rtol=1e-6)
    *each, whole = mixture.evaluate(WORDS[:300])
    assert [one.loss for one in each] == pytest.approx([-row.mean() for row in p[:3]])
    assert whole.loss == pytest.approx(-expected.mean())
    best = mixture.evaluate(OTHER)
    assert best[-1].loss <= min(one.loss for one in best) + 1e-5


def test_the_cache_helps_where_words_come_again():
    ngram = fit_ngrams(zipf(2000), 2)
    text = "\n".join(f"w{i} w{i} w{i} w{i}" for i in range(40, 59))
    mixture = lm.Mixture.tune([ngram], text, cache=True)
    assert mixture.weights[1] > 0.3 and mixture.cache_size == 100
    one, both = mixture.evaluate(text)
    assert both.loss < one.loss - 0.5


def test_models_of_other_words_are_refused():
    a, b = fit_ngrams(WORDS, 2), fit_ngrams("the zebra\n", 2)
    with pytest.raises(lm.UserError, match=r"'cat' to one is '<unk>' to another: .* --vocab"):
        lm.Mixture.tune([a, b], "the cat\n")
    assert lm.Mixture.tune([a, b], "the\n").weights.sum() == pytest.approx(1)
    characters = fit_ngrams(WORDS, 2, level="char")
    with pytest.raises(lm.UserError, match="no token to tune"):
        lm.Mixture.tune([characters], "")
    with pytest.raises(lm.UserError, match="no token to evaluate"):
        lm.Mixture([characters], np.ones(1)).evaluate("")


def test_a_mixture_of_no_model_is_refused():
    with pytest.raises(lm.UserError, match="there is no model to mix"):
        lm.Mixture.tune([], "the cat\n")


def test_models_of_other_levels_and_merges_are_refused():
    a, b = fit_ngrams(WORDS, 2), fit_ngrams(WORDS, 2, level="char")
    with pytest.raises(lm.UserError, match="mixed need one level, not char and word"):
        lm.Mixture.tune([a, b], WORDS)
    pytest.importorskip("tokenizers")
    a, b = fit_ngrams(WORDS, 2, level="bpe"), fit_ngrams("sat\n" * 9, 2, level="bpe")
    assert len(a.vocab.encode_stream(WORDS)) != len(b.vocab.encode_stream(WORDS))
    with pytest.raises(lm.UserError, match=r"mixed need one vocabulary, but what is .* --vocab"):
        lm.Mixture.tune([a, b], WORDS)


@pytest.mark.parametrize("lr", [0.1, -3.0])
def test_dynamic_evaluation_needs_a_model_that_learns(lr):
    with pytest.raises(lm.UserError, match="dynamic evaluation needs a neural model"):
        lm.Mixture([fit_ngrams(WORDS, 2)], np.ones(1), lr=lr).evaluate(WORDS)
