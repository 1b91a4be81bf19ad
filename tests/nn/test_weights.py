"""Code outside of the module changes its weights. ``FastRNN`` uses those that ``nn.RNN`` uses."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from rnnfast import FastRNN

W_HH, OTHER_W_HH = "weight_hh_l0", "weight_hh_other"


def make(cls):
    torch.manual_seed(0)
    return cls(3, 4, 2, dtype=torch.float64)


def lora(cls):
    """Return a subclass that replaces the whole list in each call."""

    class Lora(cls):
        def forward(self, input, hx=None):
            weights = [getattr(self, name) for name in self._flat_weights_names]
            weights[1] = weights[1] + self.low_rank @ self.low_rank.T
            self._flat_weights = weights
            return super().forward(input, hx)

    Lora.__name__ = cls.__name__
    return Lora


def set_list(module, w):
    module._flat_weights = [w if name == W_HH else p for name, p in module.named_parameters()]


def set_element_of_list(module, w):
    module._flat_weights[5] = w


def set_list_of_a_module_without_the_weight(module, w):
    weights = [w, *module.parameters()]
    del module.weight_hh_l0
    module._flat_weights = [*weights[1:2], w, *weights[3:]]


def set_list_after_a_weight(module, w):
    """nn.RNN drops the list in the next call, because a weight has changed."""
    module.weight_ih_l1 = nn.Parameter(2 * module.weight_ih_l1.detach())
    set_list(module, w)


def set_list_after_a_weight_and_a_call(module, w):
    module.weight_ih_l1 = nn.Parameter(2 * module.weight_ih_l1.detach())
    module(torch.ones(5, 2, 3, dtype=w.dtype))
    set_list(module, w)


def set_list_after_another_dtype(module, w):
    module.float().double()
    set_list(module, w)


def set_list_of_a_copy(module, w):
    module.__dict__ = copy.copy(module).__dict__
    set_list(module, w)


def set_list_of_a_parametrized_module(module, w):
    """Parametrized weights are new in each call, so nn.RNN never uses its list."""
    parametrize.register_parametrization(module, "bias_hh_l1", nn.Tanh())
    set_list(module, w)


def set_list_before_a_functional_call(module, w):
    set_list(module, w)
    functional_call(module, {W_HH: 2 * w.detach()}, torch.ones(5, 2, 3, dtype=w.dtype))


def tie_weights(module, w):
    module.weight_hh_l1 = module.weight_hh_l0
    module._flat_weights[1] = w


def set_plain_tensor(module, w):
    del module.weight_hh_l0
    module.weight_hh_l0 = w


def set_plain_tensor_and_list(module, w):
    del module.weight_hh_l0
    module.weight_hh_l0 = w.detach()
    module(torch.ones(5, 2, 3, dtype=w.dtype))
    module._flat_weights[1] = w


def set_parameter_in_the_dictionary(module, w):
    module._parameters[W_HH] = w


def rename_weight(module, w):
    module.register_parameter(OTHER_W_HH, nn.Parameter(w.detach().clone()))
    module._flat_weights_names = [
        OTHER_W_HH if name == W_HH else name for name in module._flat_weights_names
    ]


def flatten(module, w):
    set_list(module, w)
    module.flatten_parameters()


CHANGES = [
    set_list,
    set_element_of_list,
    set_list_of_a_module_without_the_weight,
    set_list_after_a_weight,
    set_list_after_a_weight_and_a_call,
    set_list_after_another_dtype,
    set_list_of_a_copy,
    set_list_of_a_parametrized_module,
    set_list_before_a_functional_call,
    tie_weights,
    set_plain_tensor,
    set_plain_tensor_and_list,
    set_parameter_in_the_dictionary,
    rename_weight,
    flatten,
]


def results(module, w):
    """Return the outputs of four calls, of one and of several steps, and their gradients."""
    torch.manual_seed(1)
    outputs = []
    for T in (5, 1, 1, 5):
        outputs += module(torch.randn(T, 2, 3, dtype=torch.float64))
    wanted = [w, *module.parameters()]
    loss = sum(output.square().sum() for output in outputs)
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    gradients = [
        torch.zeros_like(t) if g is None else g for t, g in zip(wanted, gradients, strict=True)
    ]
    return outputs + gradients


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_weights_are_those_of_nn_rnn(change):
    both = []
    for cls in (nn.RNN, FastRNN):
        module = make(cls)
        w = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
        change(module, w)
        both.append(results(module, w))
    torch.testing.assert_close(*both, rtol=1e-10, atol=1e-12)


def test_list_set_in_each_call():
    """LoRA and wrappers that share weights set the list before they call ``super().forward``."""
    both = []
    for cls in (nn.RNN, FastRNN):
        module = make(lora(cls))
        module.low_rank = nn.Parameter(torch.randn(4, 1, dtype=torch.float64))
        both.append(results(module, module.low_rank))
    torch.testing.assert_close(*both, rtol=1e-10, atol=1e-12)
    assert both[1][8].any(), "the gradient of low_rank"


def test_list_under_compile():
    module = make(FastRNN)
    set_list(module, torch.randn(4, 4, dtype=torch.float64))
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
    module.weight_ih_l1 = nn.Parameter(2 * module.weight_ih_l1.detach())
    torch.testing.assert_close(compiled(x), module(x))
    set_list(module, torch.randn(4, 4, dtype=torch.float64))
    torch.testing.assert_close(compiled(x), module(x))


def test_all_weights():
    theirs, ours = make(nn.RNN), make(FastRNN)
    for layer, expected in zip(ours.all_weights, theirs.all_weights, strict=True):
        torch.testing.assert_close(layer, expected)
    assert ours.all_weights[0][1] is ours.weight_hh_l0


def test_a_shallow_copy_shares_its_weights():
    module = make(FastRNN)
    other = copy.copy(module)
    other.weight_hh_l0 = nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(module(x), other(x))


def _replace_by_none(weights):
    weights[1] = None


@pytest.mark.parametrize(
    "change, error, match",
    [
        (list.pop, ValueError, "must have 4 tensors for each layer"),
        (lambda weights: weights.append(weights[0]), ValueError, "must have 4 tensors for each"),
        (list.clear, IndexError, "out of range"),
        (_replace_by_none, TypeError, "weights must be tensors, got NoneType"),
    ],
    ids=["short", "long", "empty", "None"],
)
def test_a_list_that_does_not_fit_is_refused(change, error, match):
    module = make(FastRNN)
    change(module._flat_weights)
    with pytest.raises(error, match=match):
        module(torch.randn(5, 2, 3, dtype=torch.float64))
