"""Integer tokens give the same results as one-hot vectors, but no vectors are built."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from rnnfast import FastRNN

VOCAB = 11


def run(module, input, hx=None):
    """Return output, h_n and all gradients of a loss that weighs each of them differently."""
    module.zero_grad()
    output, h_n = module(input, hx)
    output = output.data if isinstance(output, PackedSequence) else output
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    ((output * weights).sum() + h_n.sin().sum()).backward()
    return [output, h_n, *(p.grad.clone() for p in module.parameters())]


def assert_same(tokens, vectors):
    for ours, theirs in zip(tokens, vectors, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (33, 5), (5, 33)])
def test_equals_one_hot_vectors(shape, bias, batch_first, bidirectional):
    torch.manual_seed(0)
    module = FastRNN(
        VOCAB,
        17,
        2,
        bias=bias,
        batch_first=batch_first,
        bidirectional=bidirectional,
        dtype=torch.float64,
    )
    tokens = torch.randint(VOCAB, shape)
    hx = torch.randn(2 * (1 + bidirectional), shape[0 if batch_first else 1], 17).double()
    vectors = F.one_hot(tokens, VOCAB).double()
    assert_same(run(module, tokens, hx), run(module, vectors, hx))
    assert_same(run(module, tokens.t().contiguous().t()), run(module, vectors))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed(bidirectional):
    torch.manual_seed(0)
    module = FastRNN(VOCAB, 17, bidirectional=bidirectional, dtype=torch.float64)
    tokens, lengths = torch.randint(VOCAB, (9, 4)), torch.tensor([2, 9, 1, 9])
    vectors = F.one_hot(tokens, VOCAB).double()
    assert_same(
        *(
            run(module, pack_padded_sequence(x, lengths, enforce_sorted=False))
            for x in (tokens, vectors)
        )
    )


def test_unbatched():
    module = FastRNN(VOCAB, 5, dtype=torch.float64)
    tokens = torch.randint(VOCAB, (6,))
    assert_same(run(module, tokens), run(module, F.one_hot(tokens, VOCAB).double()))


def test_table_given_by_columns():
    """A w_ih whose transpose is contiguous, like the product with an embedding, is not copied."""
    torch.manual_seed(0)
    module = FastRNN(VOCAB, 5, dtype=torch.float64)
    tokens = torch.randint(VOCAB, (6, 2))
    expected = module(tokens)[0]
    module.weight_ih_l0.data = module.weight_ih_l0.data.t().contiguous().t()
    assert torch.equal(module(tokens)[0], expected)


def test_torch_path_too():
    torch.manual_seed(0)
    module = FastRNN(VOCAB, 5, dtype=torch.bfloat16)
    tokens = torch.randint(VOCAB, (6, 2))
    assert torch.equal(module(tokens)[0], module(F.one_hot(tokens, VOCAB).bfloat16())[0])


@pytest.mark.parametrize("token", [-1, VOCAB, 2**40])
def test_token_out_of_range(token):
    module = FastRNN(VOCAB, 5)
    tokens = torch.zeros(6, 2, dtype=torch.int64)
    tokens[3, 1] = token
    with pytest.raises(IndexError, match=rf"token {token} is not in \[0, {VOCAB}\)"):
        module(tokens)


def test_double_backward():
    torch.manual_seed(0)
    module = FastRNN(VOCAB, 3, dtype=torch.float64)
    tokens = torch.randint(VOCAB, (4, 2))
    second = []
    for input in (tokens, F.one_hot(tokens, VOCAB).double()):
        (first,) = torch.autograd.grad(
            module(input)[0].pow(2).sum(), module.weight_ih_l0, create_graph=True
        )
        second.append(torch.autograd.grad(first.pow(2).sum(), list(module.parameters())))
    assert_same(*second)


# One-hot vectors that are int64, as F.one_hot makes them


VECTORS = {
    "one_hot": F.one_hot(torch.tensor([2, 0, 3, 3, 1]), 6),
    "identity": torch.eye(6, dtype=torch.int64),
    "one step": F.one_hot(torch.tensor([3]), 6),
    "padded": F.pad(F.one_hot(torch.tensor([0, 5, 2]), 6), (0, 0, 0, 4)),
}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("vectors", VECTORS.values(), ids=VECTORS)
def test_warning_of_int64_vectors(device, vectors, batch_first):
    """The message says how the input was read, and how to get what nn.RNN computes."""
    theirs = nn.RNN(6, 4, batch_first=batch_first, device=device)
    ours = FastRNN(6, 4, batch_first=batch_first, device=device)
    ours.load_state_dict(theirs.state_dict())
    vectors = vectors.to(device)
    layout = r"\(B, T\)" if batch_first else r"\(T, B\)"
    with pytest.warns(UserWarning, match=rf"read as.*tokens, {layout}.*input\.float\(\)") as seen:
        assert ours(vectors)[0].shape == (*vectors.shape, 4)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(ours(vectors.float()), theirs(vectors.float()))


TOKENS = {
    "random": torch.randint(6, (20, 6), generator=torch.Generator().manual_seed(0)),
    "padding": torch.zeros(5, 6, dtype=torch.int64),
    "first step": torch.ones(1, 6, dtype=torch.int64),
    "two values": torch.tensor([[0, 1, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0]]),
    "another batch size": torch.eye(5, dtype=torch.int64),
    "one sequence": torch.tensor([0, 0, 1, 0, 0, 0]),
    "nothing": torch.zeros(5, 0, dtype=torch.int64),
}


@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
def test_no_warning_of_honest_tokens(device, tokens):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FastRNN(6, 4, device=device)(tokens.to(device))


def test_no_look_at_tokens_without_values():
    vectors = VECTORS["one_hot"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        FastRNN(6, 4, device="meta")(vectors.to("meta"))
        torch.compile(FastRNN(6, 4), backend="eager", fullgraph=True)(vectors)
        torch.func.vmap(FastRNN(6, 4))(vectors[None])
        torch.export.export(FastRNN(6, 4), (vectors,))


def test_error_of_a_batch_of_int64_vectors():
    with pytest.raises(ValueError, match="Vectors must be floating-point, also one-hot vectors"):
        FastRNN(6, 4)(VECTORS["one_hot"][:, None])


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (1, 3)])
def test_tokens_of_another_dtype(shape, dtype):
    with pytest.raises(ValueError, match=r"okens must be int64: call input\.long\(\)"):
        FastRNN(3, 4)(torch.zeros(shape, dtype=dtype))
