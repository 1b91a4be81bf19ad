"""``restore`` is the way back from ``accelerate``, and from modules made as rnnfast's."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.nn.quantized import dynamic

import rnnfast
from rnnfast import FastGRU, FastLSTM, FastRNN, FastRNNCell
from rnnfast.nn import Dropout


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(3, 4, 2)
        self.cell = nn.RNNCell(4, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        output, _ = self.rnn(x)
        return self.head(self.cell(output[-1]))


def test_restored_model_is_that_before():
    model, x = Model(), torch.randn(5, 2, 3)
    before, expected = copy.deepcopy(model), model(x)
    parameters = list(model.parameters())
    hooked = []
    model.rnn.register_forward_hook(lambda *_: hooked.append(True))
    rnn = rnnfast.accelerate(model).rnn
    assert type(rnn) is FastRNN
    assert rnnfast.restore(model) is model
    assert type(model.rnn) is nn.RNN and model.rnn is rnn
    assert vars(model.rnn).keys() == vars(before.rnn).keys()
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model(x), expected) and hooked == [True]
    assert type(rnnfast.accelerate(model).rnn) is FastRNN


def test_modules_made_as_those_of_rnnfast():
    """Their attributes become those of torch's modules too."""
    model = nn.Sequential(FastRNN(3, 4, dropout=0.5, num_layers=2), FastRNNCell(4, 5), Dropout(0.2))
    rnnfast.restore(model)
    assert [type(module) for module in model] == [nn.RNN, nn.RNNCell, nn.Dropout]
    plain = [nn.RNN(3, 4, dropout=0.5, num_layers=2), nn.RNNCell(4, 5), nn.Dropout(0.2)]
    for module, expected in zip(model, plain, strict=True):
        assert vars(module).keys() == vars(expected).keys()
        assert repr(module) == repr(expected)


@pytest.mark.parametrize("made", ["accelerated", "constructed"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script(made):
    model = nn.Sequential(nn.RNN(3, 4, 2) if made == "accelerated" else FastRNN(3, 4, 2))
    rnnfast.accelerate(model)
    x = torch.randn(5, 2, 3)
    expected, _ = model(x)
    scripted = torch.jit.script(rnnfast.restore(model))
    torch.testing.assert_close(scripted(x)[0], expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantisation():
    """An accelerated cell is not hidden from ``quantize_dynamic``, and a FastRNNCell comes back."""
    classes = {nn.Linear, nn.RNNCell}
    model = torch.ao.quantization.quantize_dynamic(rnnfast.accelerate(Model()), classes)
    assert type(model.cell) is dynamic.RNNCell
    model = nn.Sequential(FastRNNCell(4, 5))
    model = torch.ao.quantization.quantize_dynamic(rnnfast.restore(model), classes)
    assert type(model[0]) is dynamic.RNNCell


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "cls, fast, options",
    [(nn.GRU, FastGRU, {}), (nn.LSTM, FastLSTM, {}), (nn.LSTM, FastLSTM, {"proj_size": 2})],
    ids=str,
)
def test_gated_cells(cls, fast, options):
    """They go to rnnfast's classes and back, and can be scripted and quantised then."""
    model, x = nn.Sequential(cls(3, 4, 2, **options)), torch.randn(5, 2, 3)
    before, expected, names = model[0], model(x), vars(model[0]).keys()
    assert type(rnnfast.accelerate(model)[0]) is fast and isinstance(model[0], cls)
    assert repr(model[0]) == repr(cls(3, 4, 2, **options)).replace(cls.__name__, fast.__name__)
    torch.testing.assert_close(model(x), expected)
    assert type(rnnfast.restore(model)[0]) is cls and model[0] is before
    assert vars(model[0]).keys() == names
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    made = nn.Sequential(fast(3, 4, weight_dropout=0.5))
    with pytest.raises(ValueError, match=rf"nn\.{cls.__name__} has no weight_dropout"):
        rnnfast.restore(made)
    if not options:
        quantised = torch.ao.quantization.quantize_dynamic(model, {cls})
        assert type(quantised[0]) is getattr(dynamic, cls.__name__)


@pytest.mark.parametrize("name", ["variational_dropout", "weight_dropout", "zoneout"])
def test_regularisers_are_not_lost(name):
    model = nn.ModuleDict({"first": FastRNN(3, 4), "second": FastRNN(4, 4, **{name: 0.25})})
    with pytest.raises(ValueError, match=f"no {name}, but module 'second' has {name}=0.25"):
        rnnfast.restore(model)
    assert type(model["first"]) is FastRNN, "nothing is changed"
    setattr(model["second"], name, 0.0)
    assert type(rnnfast.restore(model)["second"]) is nn.RNN


def test_other_classes_are_left_alone():
    class Own(FastRNN):
        pass

    model = nn.Sequential(Own(3, 4), nn.LSTM(3, 4))
    rnnfast.restore(model)
    assert [type(module) for module in model] == [Own, nn.LSTM]
    for function in (rnnfast.accelerate, rnnfast.restore):
        with pytest.raises(TypeError, match=r"model must be .*Module, got list"):
            function([FastRNN(3, 4)])
