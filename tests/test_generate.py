"""The native sampler: its tokens against float64 NumPy, its draws against softmax."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import rnnfast
from rnnfast import _ops

SIZES = [(1, 1, 1), (2, 7, 2), (65, 65, 1), (257, 200, 3), (65, 7, 3), (2, 65, 2), (257, 1, 1)]
GATES = {"gru": 3, "lstm": 4}
ALL = {"temperature": 1.0, "top_k": 1 << 40, "top_p": 1.0, "stop": None, "seed": 0}


@dataclass
class Model:
    """Weights as `_ops.sampler` takes them, and the logits they give by plain NumPy in float64."""

    table: torch.Tensor  # (V, G * H)
    layers: list  # (W_hh, W_ih or None, b_ih, b_hh)
    decoder: tuple  # (V, H), (V)
    cell: str = "tanh"

    @classmethod
    def random(cls, V, H, L, cell="tanh"):
        """States of order 1 that forget, lest a rounding grow; all tokens about as probable."""
        generator = torch.Generator().manual_seed(0)

        def draw(*shape, scale):
            return scale * (2 * torch.rand(shape, generator=generator) - 1)

        G = GATES.get(cell, 1)

        def draw_layer(k):
            scale = 1.5 * ((1 + bool(k)) * H) ** -0.5
            w_ih = draw(G * H, H, scale=scale) if k else None
            biases = (draw(G * H, scale=0.1) for _ in range(2))
            return draw(G * H, H, scale=scale), w_ih, *biases

        layers = [draw_layer(k) for k in range(L)]
        decoder = draw(V, H, scale=3 * H**-0.5), draw(V, scale=0.2)
        model = cls(draw(V, G * H, scale=2), layers, decoder, cell)
        mean = model.logits(np.random.default_rng(0).integers(V, size=50)).mean(0)
        model.decoder = decoder[0], torch.from_numpy(decoder[1].numpy() - mean).float()
        return model

    def sampler(self, **options):
        return _ops.sampler(self.table, self.layers, self.decoder, self.cell, **ALL | options)

    def logits(self, tokens):
        """After each of `tokens`, from the state zero: (n, V)."""
        H = self.layers[0][0].shape[1]
        states = [(np.zeros(H), np.zeros(H)) for _ in self.layers]  # h and c
        weight, bias = (t.double().numpy() for t in self.decoder)
        rows = []
        for token in tokens:
            for k, layer in enumerate(self.layers):
                w_hh, w_ih, b_ih, b_hh = (t if t is None else t.double().numpy() for t in layer)
                x = w_ih @ states[k - 1][0] if k else self.table[token].double().numpy()
                states[k] = step(self.cell, x + b_ih, w_hh @ states[k][0] + b_hh, *states[k])
            rows.append(weight @ states[-1][0] + bias)
        return np.array(rows)


def step(cell, x, z, h, c):
    """Return the next h and c for the parts of the gates that come from the input and from h."""
    if cell in ("tanh", "relu"):
        return np.tanh(x + z) if cell == "tanh" else np.maximum(x + z, 0), c
    x, z = (np.split(part, GATES[cell]) for part in (x, z))
    sigmoids = [1 / (1 + np.exp(-a - b)) for a, b in zip(x, z, strict=True)]
    if cell == "gru":
        r, u, _ = sigmoids
        return (1 - u) * np.tanh(x[2] + r * z[2]) + u * h, c
    i, f, _, o = sigmoids
    c = f * c + i * np.tanh(x[2] + z[2])
    return o * np.tanh(c), c


def bigram(logits, **options):
    """A sampler whose logits after token v are row v of `logits` (V, V), to the last bit.

    H = V, W_hh = 0, ReLU: the state after v is the unit vector v.
    """
    V = len(logits)
    layers = [(torch.zeros(V, V), None, torch.zeros(V), torch.zeros(V))]
    decoder = (torch.tensor(logits, dtype=torch.float32).T, torch.zeros(V))
    return Model(torch.eye(V), layers, decoder, "relu").sampler(**options)


def probabilities(logits, temperature=1.0, top_k=1 << 40, top_p=1.0):
    """What a token is drawn from: softmax, then the top k, then the nucleus of those. Float64."""
    p = np.exp((np.asarray(logits) - np.max(logits)) / temperature)
    order = np.argsort(-p, kind="stable")
    p[order[top_k:]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0
    return p / p.sum()


@pytest.mark.parametrize("cell", ["tanh", "relu", "gru", "lstm"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_greedy_tokens_are_the_most_probable(isa, size, cell):
    """Given tokens between its own keep it from running in circles; the state spans all calls."""
    model = Model.random(*size, cell)
    V = size[0]
    sampler = model.sampler(temperature=0)
    given = np.random.default_rng(1)
    tokens, drawn = [], []
    for n in (1, 0, 3, 2) * 10:
        prompt = given.integers(V, size=given.integers(1, 4)).tolist()
        sampler.feed(prompt)
        tokens += prompt
        drawn += range(len(tokens), len(tokens) + n)
        tokens += sampler.generate(n)
    tokens, drawn = np.array(tokens), np.array(drawn)
    # The two most probable are never nearer than 4e-4.
    np.testing.assert_array_equal(tokens[drawn], model.logits(tokens)[drawn - 1].argmax(1))
    assert len(set(tokens[drawn])) >= min(V, 2)


FILTERS = [
    {},
    {"temperature": 0.3},
    {"temperature": 4.0},
    {"top_k": 3},
    {"top_p": 0.6},
    {"top_p": 0.95, "temperature": 2.0},
    {"top_k": 5, "top_p": 0.7},
    {"top_k": 4, "top_p": 0.99, "temperature": 0.7},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_draws_have_the_probabilities_of_softmax(options):
    """Pearson's chi-square over the transitions of a bigram model, each row a distribution."""
    V, n = 11, 60_000
    logits = np.random.default_rng(2).normal(size=(V, V)).astype(np.float32)
    sampler = bigram(logits, seed=3, **options)
    sampler.feed([0])
    tokens = [0, *sampler.generate(n)]
    counts = np.zeros((V, V))
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    expected = np.array([probabilities(row, **options) for row in logits])
    assert not counts[expected == 0].any()
    expected *= counts.sum(1, keepdims=True)
    likely = expected > 0
    statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    freedom = likely.sum() - (expected.sum(1) > 0).sum()
    # Wilson and Hilferty's approximation of the quantile at 4 standard deviations.
    limit = freedom * (1 - 2 / (9 * freedom) + 4 * math.sqrt(2 / (9 * freedom))) ** 3
    assert 0 < statistic < limit


@pytest.mark.parametrize("V", [1, 2, 65, 257])
@pytest.mark.parametrize("options", FILTERS[3:], ids=str)
def test_what_is_left_out_is_never_drawn_and_the_rest_is(isa, V, options):
    """A thousand draws from one distribution, over a vocabulary of any size, on every kernel."""
    logits = np.random.default_rng(V).normal(size=V).astype(np.float32)
    sampler = bigram(np.tile(logits, (V, 1)), seed=5, **options)
    sampler.feed([0])
    expected = probabilities(logits, **options)
    n = 1000
    drawn = np.bincount(sampler.generate(n), minlength=V)
    assert not drawn[expected == 0].any()
    assert drawn[n * expected > 20].all()


def support(logits, **options):
    sampler = bigram(np.tile(np.float32(logits), (len(logits), 1)), **options)
    sampler.feed([0])
    return set(sampler.generate(500))


def test_order_and_edges_of_the_filters():
    # Equal probabilities are exact: half of four is two, the lower numbers first.
    assert support([0.0] * 4, top_p=0.5) == {0, 1}
    assert support([0.0] * 4, top_p=0.51) == {0, 1, 2}
    assert support([0.0] * 4, top_k=3) == {0, 1, 2}
    assert support([0.0, 1.0, 1.0, 0.0], top_k=1) == {1}
    assert support([0.0, 1.0, 1.0, 0.0], temperature=0) == {1}
    assert support([0.0] * 4, top_p=1e-300) == {0}
    assert support([0.0] * 4, top_p=math.nextafter(1, 0)) == {0, 1, 2, 3}
    assert support([0.0] * 4, top_k=1 << 62) == {0, 1, 2, 3}
    # 0.4 of all is 0.57 of the two that top-k leaves: it alone reaches 0.55.
    logits = np.log([0.1, 0.4, 0.2, 0.3])
    assert support(logits, top_p=0.55) == {1, 3}
    assert support(logits, top_p=0.55, top_k=2) == {1}
    # At temperature 4 it is 0.3 of all.
    assert support(logits, top_p=0.35) == {1}
    assert support(logits, top_p=0.35, temperature=4) == {1, 3}


def support_of_bias(bias, **options):
    """As `support`; here a logit may be -inf, which a product with zeros would make NaN."""
    return set(constant(bias).sampler(**options).generate(500))


def constant(bias):
    """A model that gives every token these logits whatever came before."""
    V = len(bias)
    layers = [(torch.zeros(1, 1), None, torch.zeros(1), torch.zeros(1))]
    return Model(torch.zeros(V, 1), layers, (torch.zeros(V, 1), torch.tensor(bias)))


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_k": 3}], ids=str)
def test_extreme_temperatures(filters):
    logits = [-80.0, 3.0, 3.0, -math.inf, 88.0, 1e38]
    for temperature in (5e-324, 1e-300, 1e-38):
        assert support_of_bias(logits, temperature=temperature, **filters) == {5}
    even = {1, 4, 5} if "top_k" in filters else {0, 1, 2, 4, 5}
    assert support_of_bias(logits, temperature=1e300, **filters) == even


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", [{"temperature": 0}, *FILTERS[::3]], ids=str)
def test_blocks_and_seeds(isa, size, options):
    model = Model.random(*size)

    def text(draws, prompt=((0, size[0] - 1),), seed=7):
        sampler = model.sampler(seed=seed, **options)
        for part in prompt:
            sampler.feed(list(part))
        return [token for n in draws for token in sampler.generate(n)]

    whole = text([60])
    assert len(whole) == 60
    for draws in ([1] * 60, [0, 59, 1], [13] * 4 + [8]):
        assert text(draws) == whole
    assert text([60], prompt=((0,), (), (size[0] - 1,))) == whole
    if size[0] > 2 and "temperature" not in options:
        assert text([60], seed=8) != whole


@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm"])
@pytest.mark.parametrize("size", [(65, 512, 1), (700, 300, 2)], ids=str)
def test_threads_change_no_token(num_threads, size, cell):
    """Each call after the first is by one thread or by all, whatever was faster."""
    model = Model.random(*size, cell)
    texts = []
    for threads in (1, 2, 3, 8):
        num_threads(threads)
        sampler = model.sampler(seed=3)
        texts.append([token for n in [1, 1, *[20] * 10] for token in sampler.generate(n)])
    assert all(text == texts[0] for text in texts)


def test_banned_and_stop_tokens():
    bias = [0.0, -math.inf, 1.0, 2.0]
    for options in FILTERS:
        assert 1 not in support_of_bias(bias, **options)
    assert support_of_bias([-math.inf, 0.0], temperature=0) == {1}
    sampler = constant(bias).sampler(stop=3, seed=1)
    lines = [sampler.generate(40) for _ in range(50)]
    assert all(line[-1] == 3 and 3 not in line[:-1] for line in lines)
    assert len({len(line) for line in lines}) > 3
    # It goes on from there, and a block that it ends differs in nothing else.
    sampler, expected = constant(bias).sampler(stop=3, seed=1), [*itertools.chain(*lines)]
    assert [sampler.generate(1) for _ in expected] == [[token] for token in expected]


def test_no_probabilities():
    with pytest.raises(OverflowError, match="logits of the next token are not finite"):
        constant([-math.inf, -math.inf]).sampler().generate(1)
    for bad in (math.nan, math.inf):
        for bias in ([0.0, bad], [bad, 0.0]):
            for options in (*FILTERS, {"temperature": 0}):
                with pytest.raises(OverflowError):
                    constant(bias).sampler(**options).generate(1)
    # 0 -> 1 -> 2 -> 3, whose input overflows: what came before is not lost with the block.
    chain = np.roll(np.eye(4), 1, axis=1)
    layers = [(torch.zeros(4, 4), None, torch.zeros(4), torch.zeros(4))]
    table = torch.eye(4)
    table[3] = math.inf
    model = Model(table, layers, (torch.tensor(chain.T).float(), torch.zeros(4)), "relu")
    sampler = model.sampler(temperature=0)
    sampler.feed([0])
    assert sampler.generate(10) == [1, 2, 3]
    for _ in range(2):
        with pytest.raises(OverflowError):
            sampler.generate(10)
    assert sampler.generate(0) == []


def test_tokens_out_of_range_are_refused_before_any_is_read():
    sampler, other = (Model.random(5, 7, 2).sampler() for _ in range(2))
    for wrong in (5, -1, 1 << 62, -(1 << 63)):
        with pytest.raises(IndexError, match=rf"token {wrong} is not in \[0, 5\)"):
            sampler.feed([1, wrong])
    assert sampler.generate(20) == other.generate(20)


def test_weights_are_copied_and_may_be_strided(isa):
    model = Model.random(65, 7, 2)
    expected = model.sampler().generate(50)
    strided = Model(
        model.table.t().contiguous().t(),
        [
            tuple(t if t is None else torch.stack([t, t], -1)[..., 0] for t in layer)
            for layer in model.layers
        ],
        tuple(torch.stack([t, t], -1)[..., 0] for t in model.decoder),
    )
    sampler = strided.sampler()
    tensors = (strided.table, *itertools.chain(*strided.layers), *strided.decoder)
    for tensor in filter(lambda t: t is not None, tensors):
        assert not tensor.is_contiguous()
        tensor.zero_()
    assert sampler.generate(50) == expected


def test_a_sampler_keeps_its_instruction_set(isa):
    model = Model.random(65, 33, 2)
    expected = model.sampler().generate(50)
    sampler = model.sampler()
    rnnfast.set_isa("generic")
    assert sampler.generate(50) == expected


WEIGHTS = ("weight_hh", "weight_ih", "bias_ih", "bias_hh")
PARTS = ["table", "weight_hh of layer 0", "weight_ih of layer 1", "bias_hh of layer 1"]
PARTS += ["decoder bias"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("wrong", ["shape", "dtype"])
def test_wrong_tensors_are_refused(part, wrong):
    def damage(name, tensor):
        if name != part:
            return tensor
        return tensor.double() if wrong == "dtype" else tensor[..., :-1]

    model = Model.random(5, 7, 2)
    model.table = damage("table", model.table)
    model.layers = [
        tuple(damage(f"{name} of layer {k}", t) for name, t in zip(WEIGHTS, layer, strict=True))
        for k, layer in enumerate(model.layers)
    ]
    model.decoder = model.decoder[0], damage("decoder bias", model.decoder[1])
    # The table's own shape says what V and H are: others are wrong then.
    named = "decoder weight" if (part, wrong) == ("table", "shape") else part
    with pytest.raises(RuntimeError, match=f"{named} must be"):
        model.sampler()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": math.nan},
        {"stop": 5},
        {"stop": -2},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        Model.random(5, 7, 1).sampler(**options)


def test_sizes_out_of_range_are_refused():
    model = Model.random(5, 7, 1)
    with pytest.raises(ValueError, match="at least 1 layer"):
        Model(model.table, [], model.decoder).sampler()
    with pytest.raises(RuntimeError, match="table must be"):
        Model(torch.zeros(0, 7), model.layers, (torch.zeros(0, 7), torch.zeros(0))).sampler()
    with pytest.raises(ValueError, match="n must be zero or more, got -1"):
        model.sampler().generate(-1)
