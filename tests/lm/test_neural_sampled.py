"""The sampled softmax compared with the full one."""

import pytest
import torch
from lm_helpers import small_model, zipf

from rnnfast.lm.neural.sampled import sampled_cross_entropy


@pytest.mark.parametrize("samples", [10, 60])
def test_sampled_softmax_has_the_minimum_of_the_full_one(samples):
    """The expected gradient is zero where the model has the probabilities of the targets."""
    size = 300
    odds = 1 / torch.arange(1, size + 1).double()
    decoder = torch.nn.Linear(1, size).double()
    with torch.no_grad():
        decoder.bias.copy_((odds / odds.sum()).log())
    features = torch.zeros(20, 1).double()
    generator = torch.manual_seed(0)
    for _ in range(4000):
        targets = torch.multinomial(odds, 20, replacement=True, generator=generator)
        sampled_cross_entropy(features, decoder, targets, samples).backward()
    mean = decoder.bias.grad / 4000
    for part in torch.arange(size).split(60):
        expected = (odds / odds.sum())[part].sum()
        assert abs(mean[part].sum()) < 0.05 * expected


def test_sampled_softmax_of_everything_is_the_full_one():
    model = small_model("word", zipf(500), sampled_softmax=10, dropout=0.0)
    ids = model.vocab.encode_stream(zipf(500))[:121]
    inputs, targets = (torch.from_numpy(part)[:, None] for part in (ids[:-1], ids[1:]))
    full = model.loss(inputs, targets)[0]
    assert model.train().loss(inputs, targets)[0].item() == pytest.approx(full.item(), rel=1e-5)
    assert len(model.vocab) < 120 + 5
    few = model.loss(inputs[:5], targets[:5])[0]
    assert few < model.eval().loss(inputs[:5], targets[:5])[0]
