"""Probabilities: evaluation, scores and generated text against straightforward computations."""

import copy
import json
import math
import sys

import numpy as np
import pytest
import torch
from lm_helpers import PERIODIC, WORDS, same_weights, small_config, small_model, zipf
from torch import nn
from torch.nn import functional as F

from rnnfast import lm
from rnnfast.lm import evaluate as evaluate_function
from rnnfast.lm.language_model import bits, perplexity
from rnnfast.lm.neural.models import build

pytestmark = pytest.mark.usefixtures("one_thread")


def step_by_step(model, ids):
    """The chain rule one token at a time, in float64."""
    model = model.double()
    hidden, token, total = None, model.vocab.boundary, []
    with torch.no_grad():
        for target in ids:
            logits, hidden = model(torch.tensor([[token]]), hidden)
            probabilities = logits[0, 0].softmax(0)
            assert float(probabilities.sum()) == pytest.approx(1)
            total.append(math.log(float(probabilities[target])))
            token = int(target)
    model.float()
    return np.array(total)


def test_forward_shapes_and_layers():
    for cell, states in (("tanh", 1), ("relu", 1), ("gru", 1), ("lstm", 2)):
        for changes in ({}, {"nlayers": 2, "dropout": 0.5}):
            model = small_model(cell=cell, **changes)
            logits, hidden = model(torch.zeros(7, 3, dtype=torch.int64))
            assert logits.shape == (7, 3, len(model.vocab))
            assert hidden.shape == (states * changes.get("nlayers", 1), 3, 16)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gated_cells_are_torchs_and_start_orthogonal(cell):
    model = build(small_config(cell=cell, nlayers=2), small_model().vocab).double()
    rnn = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](8, 16, 2, dtype=torch.float64)
    rnn.load_state_dict(model.rnn.state_dict())
    ids = torch.from_numpy(model.vocab.encode(PERIODIC[:60])).view(30, 2)
    expected, _ = rnn(model.encoder(ids))
    torch.testing.assert_close(model.eval()(ids)[0], model.decoder(expected))
    for name, p in rnn.named_parameters():
        if name.startswith("weight_hh"):
            for gate in p.float().view(-1, 16, 16):
                torch.testing.assert_close(gate @ gate.t(), torch.eye(16))
        elif name.startswith("bias"):
            forget = cell == "lstm" and name.startswith("bias_hh")
            assert p.view(-1, 16).sum(1).tolist() == (
                [0, 16, 0, 0] if forget else [0] * (len(p) // 16)
            )


def test_tied_shares_the_weights():
    model = small_model("word", tied=True)
    assert model.decoder.weight is model.encoder.weight
    with pytest.raises(lm.UserError, match="as many features as emsize 8, not 16"):
        lm.RNNLM(model.vocab, 8, 16, tied=True)


@pytest.mark.parametrize("kind", [{}, {"cell": "gru"}, {"model": "window"}], ids=str)
def test_adaptive_softmax(tmp_path, kind):
    """Grave et al. (2017), token by token; and everything else agrees with it."""
    text = zipf(2000)
    model = small_model("word", text, adaptive=True, **kind)
    size, decoder = len(model.vocab), model.decoder
    ids = model.vocab.encode_stream(text)[:120]
    inputs = torch.tensor([model.vocab.boundary, *ids[:-1].tolist()])[:, None]
    features, _ = model.double().features(inputs)
    logits, _ = model(inputs)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(120, 1).double())
    first, second = size // 20, size // 5
    expected = np.empty((120, size))
    head = decoder.head(features)[:, 0].log_softmax(-1).detach().numpy()
    expected[:, :first] = head[:, :first]
    for k, (start, stop) in enumerate(((first, second), (second, size))):
        down, up = (layer.weight.detach().numpy() for layer in decoder.tail[k])
        assert down.shape[0] == 16 // 4 ** (k + 1)
        scores = features[:, 0].detach().numpy() @ down.T @ up.T
        within = scores - np.logaddexp.reduce(scores, 1, keepdims=True)
        expected[:, start:stop] = head[:, first + k : first + k + 1] + within
    np.testing.assert_allclose(logits[:, 0].detach().numpy(), expected, atol=1e-9)
    loss, _ = model.loss(inputs, torch.from_numpy(ids)[:, None])
    each = expected[np.arange(120), ids]
    assert loss.item() == pytest.approx(-each.mean())
    np.testing.assert_allclose(model.logprobs(ids), each)
    np.testing.assert_allclose(model.float().logprobs(ids), each, rtol=1e-3)

    greedy, state = [model.vocab.boundary], None
    for _ in range(10):
        row, state = model(torch.tensor([[greedy[-1]]]), state)
        greedy.append(int(row[0, 0].index_fill(0, torch.tensor(model.vocab.unk), -9e9).argmax()))
    assert model.generate(length=10, temperature=0) == model.vocab.decode(greedy[1:])
    lm.save(model, small_config("word", adaptive=True, **kind), tmp_path / "model")
    assert same_weights(model, lm.load(tmp_path / "model"))


def test_adaptive_softmax_needs_many_words():
    with pytest.raises(lm.UserError, match="20 tokens or more"):
        small_model("word", adaptive=True)
    # Of the others no token's number says how frequent it is.
    others = [(level, {"tied": False}) for level in ("char", "byte", "bpe")]
    for level, changes in (*others, ("word", {"tied": True})):
        with pytest.raises(lm.UserError, match="adaptive needs words"):
            small_config(level, adaptive=True, **changes)


WINDOWS = [
    {"model": "window", "order": order, **more}
    for order in (2, 3, 5)
    for more in ({}, {"cell": "relu", "direct": True})
]


@pytest.mark.parametrize("changes", WINDOWS, ids=str)
def test_window_is_the_formula(changes):
    """Bengio et al. (2003), section 2: y = b + W x + U tanh(d + H x), word by word."""
    model = small_model(**changes, nhid=7).double()
    p = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    ids = model.vocab.encode(PERIODIC[:40])
    padded = [model.vocab.boundary] * (changes["order"] - 1) + ids.tolist()
    logits, _ = model(torch.from_numpy(np.array([model.vocab.boundary, *ids[:-1]]))[:, None])
    for t, actual in enumerate(logits.detach().numpy()[:, 0]):
        x = np.concatenate([p["encoder.weight"][i] for i in padded[t : t + changes["order"] - 1]])
        h = p["hidden.bias"] + p["hidden.weight"] @ x
        h = np.maximum(h, 0) if "cell" in changes else np.tanh(h)
        w = p["decoder.weight"]
        expected = p["decoder.bias"] + w[:, :7] @ h
        if "direct" in changes:
            expected += w[:, 7:] @ x
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)
        following = model.next_logprobs(np.array([model.vocab.boundary, *ids[:t]]))
        np.testing.assert_allclose(np.exp(following).sum(), 1)
        np.testing.assert_allclose(following - following[0], expected - expected[0], atol=1e-10)


# ---- regularisers


@pytest.mark.parametrize("changes", [{}, {"cell": "lstm"}, {"model": "window"}], ids=str)
@pytest.mark.parametrize("locked", [False, True])
def test_locked_dropout_is_one_mask_for_all_steps(locked, changes):
    model = small_model("word", dropout=0.5, locked_dropout=locked, **changes)
    ids = torch.full((9, 3), model.vocab.boundary)
    for call in (model.embed, lambda ids: model.features(ids)[0]):
        model.eval()
        assert not (call(ids) == 0).any()
        zero = call(model.train() and ids) == 0
        assert 0.2 < zero.float().mean() < 0.8
        assert bool((zero == zero[:1]).all()) == locked
        assert not torch.equal(zero[:, 0], zero[:, 1]) and not torch.equal(zero, call(ids) == 0)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "window"])
@pytest.mark.parametrize("level", ["char", "word"])
def test_embedding_dropout_drops_whole_tokens(level, kind):
    kind = {"cell": kind} if kind == "lstm" else {"model": kind}
    model = small_model(level, dropout=0.0, embedding_dropout=0.4, **kind)
    ids = torch.from_numpy(model.vocab.encode_stream(PERIODIC[:60] if level == "char" else WORDS))
    ids = ids[: len(ids) // 2 * 2].view(-1, 2)
    plain = copy.deepcopy(model)
    torch.manual_seed(3)
    output, _ = model.train().features(ids)
    torch.manual_seed(3)
    kept = F.dropout(torch.ones(len(model.vocab)), 0.4)
    assert 0 < (kept == 0).sum() < len(kept)
    with torch.no_grad():
        plain.encoder.weight.mul_(kept[:, None])
    torch.testing.assert_close(output, plain.features(ids)[0])


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_regularised_layers_are_torchs_with_masks_between(cell, locked, monkeypatch):
    """Masks by shape, not by chance, and the same in layers of torch one after the other."""

    def mask(shape, p):
        generator = torch.Generator().manual_seed(sum(shape))
        return (torch.rand(shape, generator=generator) >= p).double() / (1 - p)

    def dropout(x, p=0.5, training=True, inplace=False):
        return x * mask(x.shape, p) if training and p else x

    changes = {"dropout": 0.3, "weight_dropout": 0.4, "locked_dropout": locked}
    model = small_model(cell=cell, nlayers=3, **changes).double()
    x, state = (
        torch.randn(7, 5, 8).double(),
        torch.randn(3 * (1 + (cell == "lstm")), 5, 16).double(),
    )
    monkeypatch.setattr(F, "dropout", dropout)
    monkeypatch.setattr("rnnfast.functional.dropout", dropout)
    for hx in (None, state):
        model.zero_grad()
        y, parts, grads = x, [], {}
        output, last = model.train().rnn(x, hx)
        output.pow(2).sum().backward()
        cls = {"tanh": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell]
        for k in range(3):
            layer = cls(len(y[0, 0]), 16, dtype=torch.float64)
            for name, p in layer.named_parameters():
                own = getattr(model.rnn, name.replace("l0", f"l{k}"))
                p.data = own.detach() * (mask(p.shape, 0.4) if "weight_hh" in name else 1)
                grads[name.replace("l0", f"l{k}")] = p
            h = (torch.zeros_like(state) if hx is None else hx)[k::3, None].unbind()
            y = y * mask((5, 16) if locked else (7, 5, 16), 0.3) if k else y
            y, h = layer(y, h if cell == "lstm" else h[0])
            parts.append(torch.cat(h) if cell == "lstm" else h)
        y.pow(2).sum().backward()
        torch.testing.assert_close(output, y)
        torch.testing.assert_close(last, torch.stack(parts, 1).flatten(0, 1))
        for name, p in grads.items():
            expected = p.grad * (mask(p.shape, 0.4) if "weight_hh" in name else 1)
            torch.testing.assert_close(getattr(model.rnn, name).grad, expected)


@pytest.mark.parametrize("cell", ["tanh", "lstm"])
def test_regularisers_act_in_training_only(cell):
    changes = {"dropout": 0.5, "nlayers": 2, "cell": cell}
    locked = {"locked_dropout": True, "weight_dropout": 0.5, "embedding_dropout": 0.5}
    plain, model = small_model(**changes), small_model(**changes, **locked)
    assert plain.score("a1b2") == model.score("a1b2")
    assert plain.generate(length=20, seed=1) == model.generate(length=20, seed=1)


TABLES = [{}, {"nlayers": 2, "cell": "relu"}, {"nlayers": 2, "weight_dropout": 0.5}]
TABLES += [{"cell": "gru"}, {"nlayers": 2, "cell": "lstm"}]


@pytest.mark.parametrize("changes", TABLES, ids=str)
def test_characters_by_table_are_embeddings(changes):
    """The input product taken once a character changes neither the logits nor a gradient."""
    model = small_model(dropout=0.0, **changes).double().train()
    ids = torch.from_numpy(model.vocab.encode(PERIODIC[:60])).view(30, 2)
    assert len(model.vocab) <= ids.numel()
    results = []
    for call in (lambda: model.features(ids), lambda: model.rnn(model.encoder(ids))):
        model.zero_grad()
        torch.manual_seed(0)
        output, _ = call()
        output.pow(3).sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((output, gradients))
    (by_table, ours), (by_embedding, theirs) = results
    torch.testing.assert_close(by_table, by_embedding, rtol=1e-10, atol=1e-12)
    assert ours.keys() == theirs.keys() and "encoder.weight" in ours
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-10, atol=1e-12, msg=name)


GATED = [{"cell": "lstm", "nlayers": 2}, {"cell": "gru"}]


@pytest.mark.parametrize("changes", [{}, {"nlayers": 2}, *GATED, *WINDOWS], ids=str)
def test_carried_state_is_one_long_pass(changes):
    model = small_model(**changes)
    ids = torch.from_numpy(model.vocab.encode(PERIODIC[:60])).view(30, 2)
    whole, last = model(ids)
    hidden, parts = None, []
    for chunk in ids.split(7):
        logits, hidden = model(chunk, hidden)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(hidden, last)


@pytest.mark.parametrize("changes", [{"nlayers": 2}, *GATED, {"model": "window"}], ids=str)
@pytest.mark.parametrize("level", ["char", "word"])
@pytest.mark.parametrize("chunk", [3, 1024])
def test_evaluate_is_the_chain_rule(level, chunk, changes, monkeypatch):
    monkeypatch.setattr(sys.modules["rnnfast.lm.neural.models"], "CHUNK_TOKENS", chunk)
    model = small_model(level, dropout=0.5, **changes)
    ids = model.vocab.encode_stream(PERIODIC[:50] if level == "char" else WORDS[:150])
    expected = step_by_step(model, ids)
    model.train()  # evaluation is without dropout whatever the mode, and leaves the mode
    np.testing.assert_allclose(model.logprobs(ids), expected, rtol=2e-4)
    result = lm.evaluate(model, ids)
    assert model.training
    assert result.tokens == len(ids)
    assert result.loss == pytest.approx(-expected.mean(), rel=1e-4)
    assert result.perplexity == pytest.approx(math.exp(-expected.mean()), rel=1e-4)
    assert result.bits_per_token == pytest.approx(-expected.mean() / math.log(2), rel=1e-4)


def test_number_of_threads_is_left_as_it_was():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = small_model()
        model.score("a1")
        pieces = lm.generate(model, length=3)
        next(pieces)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_evaluate_needs_a_token():
    with pytest.raises(lm.UserError):
        evaluate_function(small_model(), np.array([], dtype=np.int64))


def test_perplexity_of_a_diverged_model_is_a_number():
    assert math.isfinite(perplexity(1e6))
    assert bits(math.log(2)) == pytest.approx(1)


@pytest.mark.parametrize(("level", "sentence"), [("char", "a1b2"), ("word", "the zebra sat")])
def test_score_adds_up_and_is_what_evaluate_says(level, sentence):
    model = small_model(level)
    score = model.score(sentence)
    result = model.evaluate(sentence + "\n")
    assert score.text == sentence
    assert score.logprob == pytest.approx(sum(logprob for _, logprob in score.tokens))
    assert score.logprob == pytest.approx(-result.loss * result.tokens)
    names = [token for token, _ in score.tokens]
    expected = [*"a1b2", "\n"] if level == "char" else ["the", "<unk>", "sat", "<eos>"]
    assert names == expected
    assert len(model.score("").tokens) == 1


@pytest.mark.parametrize("changes", [{}, *GATED, {"model": "window"}], ids=str)
@pytest.mark.parametrize("level", ["char", "word"])
def test_generation_depends_on_the_seed_alone(level, changes):
    model = small_model(level, **changes)
    texts = [model.generate(length=40, seed=seed) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
    assert len(model.vocab.encode(texts[0])) == 40
    state = torch.get_rng_state()
    model.generate(length=5)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("level", ["char", "word"])
@pytest.mark.parametrize(
    "changes", [{}, {"nlayers": 3, "cell": "relu"}, *GATED, {"model": "window"}], ids=str
)
def test_top_one_is_the_most_probable_token(level, changes):
    model = small_model(level, **changes)
    prompt = "a1" if level == "char" else "the cat"
    ids = model.vocab.encode(prompt).tolist()
    for _ in range(20):
        logits, _ = model(torch.tensor([[model.vocab.boundary], *([i] for i in ids)]))
        row = logits[-1, 0].clone()
        if model.vocab.unk is not None:
            row[model.vocab.unk] = -math.inf
        ids.append(int(row.argmax()))
    expected = model.vocab.decode(ids)
    assert model.generate(prompt, 20, top_k=1) == expected
    assert model.generate(prompt, 20, temperature=0) == expected
    assert model.generate(prompt, 20, temperature=1e-6, seed=1) == expected
    assert model.generate(prompt, 20, temperature=1e-300, top_k=2, seed=1) == expected
    assert model.generate(prompt, 20, top_p=1e-9, seed=1) == expected


def test_generated_tokens_have_the_models_probabilities():
    model = small_model()
    logits, _ = model(torch.tensor([[model.vocab.boundary]]))
    expected = logits[0, 0].softmax(0).detach()
    drawn = [model.generate(length=1, seed=seed) for seed in range(1500)]
    counts = torch.tensor([drawn.count(token) for token in model.vocab.tokens])
    deviation = (expected * (1 - expected) / len(drawn)).sqrt()
    assert ((counts / len(drawn) - expected).abs() < 4.5 * deviation + 1e-3).all()
    three = {model.vocab.tokens[i] for i in expected.topk(3).indices}
    assert {model.generate(length=1, top_k=3, seed=seed) for seed in range(200)} == three
    # Just under the share of the three most probable, so that it takes all of them.
    share = float(expected.topk(3).values.sum()) - 1e-3
    assert {model.generate(length=1, top_p=share, seed=seed) for seed in range(200)} == three


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
@pytest.mark.parametrize("level", ["char", "word"])
def test_generation_depends_on_weights_and_options_alone(level, cell, monkeypatch, num_threads):
    model = small_model(level, nhid=65, emsize=65, nlayers=2, dropout=0.5, cell=cell)

    def again():
        return model.generate("the" if level == "word" else "a1", 200, seed=1)

    expected = again()
    for threads in (1, 2):
        num_threads(threads)
        assert again() == expected
    for block, weights in ((1, 1 << 26), (7, 1 << 26), (64, 1)):
        monkeypatch.setattr(sys.modules["rnnfast.lm.neural.models"], "SAMPLED_TOKENS", block)
        monkeypatch.setattr(sys.modules["rnnfast.lm.neural.models"], "SAMPLED_WEIGHTS", weights)
        assert again() == expected
    model.train()  # no dropout in what it writes, and it stays in training
    assert again() == expected and model.training
    model.double()
    assert again() == expected and model.decoder.weight.dtype == torch.float64


def test_generation_is_a_stream_of_one_piece_a_token():
    model = small_model()
    assert len(list(lm.generate(model, length=100, seed=1))) == 100
    pieces = lm.generate(model, "a1", length=10**15)
    assert next(pieces) == "a1" and len(next(pieces)) == 1
    assert list(lm.generate(model, length=0)) == []


def test_a_state_that_overflows_ends_the_text():
    model = small_model(cell="relu")
    with torch.no_grad():
        model.rnn.weight_hh_l0.copy_(1e6 * torch.eye(16))
        model.rnn.bias_ih_l0.fill_(1)
    pieces = lm.generate(model, length=1000, seed=1)
    assert next(pieces)
    with pytest.raises(lm.UserError, match="state has overflowed"):
        list(pieces)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("changes", [{"adaptive": True}, {"cell": "lstm"}, {"model": "window"}])
def test_logits_that_are_not_finite_end_the_text(changes, temperature):
    model = small_model("word", zipf(500), tied=False, **changes)
    with torch.no_grad():
        model.encoder.weight[model.vocab.tokens.index("w3")] = math.inf
    pieces = lm.generate(model, "w1 w2 w3", 99, seed=1, temperature=temperature)
    assert next(pieces) == "w1 w2 w3"
    with pytest.raises(lm.UserError, match=r"no more text .* not finite"):
        next(pieces)


def test_sentence_stops_at_the_boundary():
    model = small_model("word")
    text = model.generate("the", 1000, seed=1, sentence=True)
    assert text.startswith("the") and text.count("\n") == 1 and text.endswith("\n")
    assert "<unk>" not in model.generate(length=500, seed=1, temperature=5)


def test_prompts_and_words_are_set_apart_once():
    model = small_model("word")
    for prompt in ("the", "the ", "the\n"):
        text = model.generate(prompt, 3, seed=2)
        assert text.startswith(prompt) and "  " not in text and "\n " not in text


@pytest.mark.parametrize(
    "options",
    [
        {"length": -1},
        {"temperature": -1},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"seed": -1},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(lm.UserError):
        lm.generate(small_model(), **options)


@pytest.mark.parametrize(
    "changes",
    [{}, {"nlayers": 2}, *GATED, {"tied": True, "emsize": 16}, {"model": "window", "direct": True}],
)
def test_save_and_load(tmp_path, changes):
    model = small_model(**changes)
    config = lm.Config.defaults(
        "char", **{"emsize": 8, "nhid": 16, "epochs": 1, "dropout": 0.1, **changes}
    )
    lm.save(model, config, tmp_path / "model")
    state = torch.get_rng_state()
    again = lm.load(tmp_path / "model")
    assert torch.equal(state, torch.get_rng_state())
    assert same_weights(model, again) and not again.training
    assert again.vocab.tokens == model.vocab.tokens
    assert again.generate("a", 20, seed=1) == model.generate("a", 20, seed=1)
    with pytest.raises(lm.UserError, match="--overwrite"):
        lm.save(model, config, tmp_path / "model")
    lm.save(small_model(seed=5, **changes), config, tmp_path / "model", overwrite=True)
    assert not same_weights(model, lm.load(tmp_path / "model"))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_device_that_is_not_there(tmp_path):
    lm.save(small_model(), small_config(), tmp_path / "model")
    with pytest.raises(lm.UserError, match="device 'warp' is not available"):
        lm.load(tmp_path / "model", "warp")


def test_models_of_the_first_release_load(tmp_path):
    """Their `cell` was called `nonlinearity`, and there were fewer settings."""
    model = small_model(cell="relu", nlayers=2)
    lm.save(model, small_config(cell="relu", nlayers=2), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    settings = json.loads(path.read_text())
    new = {"cell", "locked_dropout", "weight_dropout", "embedding_dropout", "checkpoint_interval"}
    new |= {"adaptive", "optimizer", "average", "accumulate", "bf16", "compile", "tensorboard"}
    old = {name: value for name, value in settings["config"].items() if name not in new}
    settings["config"] = {**old, "nonlinearity": "relu"}
    path.write_text(json.dumps(settings))
    again = lm.load(tmp_path / "model")
    assert same_weights(model, again)
    assert again.score("a1b2").logprob == model.score("a1b2").logprob
