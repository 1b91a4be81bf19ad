"""All samples that PyTorch's database of modules has for the parents of our recurrent modules.

Our modules are checked as PyTorch's test_modules.py checks their parents: against the reference, by
gradcheck, by gradgradcheck, with strides and with wrong inputs. In addition 16 bits are checked by
the rule of `rule`.
"""

import pytest
import torch
from test_module import check_rule, differentiate, each, flat, in_float64
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.utils._pytree import tree_flatten, tree_unflatten

from rnnfast import FastGRU, FastLSTM, FastRNN, FastRNNCell

FAST = {nn.RNN: FastRNN, nn.GRU: FastGRU, nn.LSTM: FastLSTM, nn.RNNCell: FastRNNCell}

INFOS_OF = {info.module_cls: info for info in module_db if info.module_cls in FAST}
INFOS = list(INFOS_OF.values())
ids = {"ids": lambda info: info.module_cls.__name__}


def samples(info, dtype, device="cpu", training=True):
    """Return (our module, its parent class with the same weights, arguments, the sample)."""
    options = {"device": device, "dtype": dtype, "requires_grad": True, "training": training}
    # PyTorch has packed samples of nn.RNN and nn.GRU only.
    packed = {"with_packed_sequence": True} if info.module_cls in (nn.RNN, nn.GRU) else {}
    torch.manual_seed(0)
    for sample in info.module_inputs_func(info, **options, **packed):
        made = sample.constructor_input
        theirs = info.module_cls(*made.args, **made.kwargs).to(device, dtype).train(training)
        ours = FAST[info.module_cls](*made.args, **made.kwargs).to(device, dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        assert not sample.forward_input.kwargs
        yield ours, theirs, sample.forward_input.args, sample


def detached(arguments):
    return [each(torch.Tensor.detach, argument) for argument in arguments]


def test_the_database_has_them():
    assert {info.module_cls for info in INFOS} == set(FAST)
    assert all(set(info.dtypes) == {torch.float32, torch.float64} for info in INFOS)
    for cls, count in ((nn.RNN, 32), (nn.GRU, 16), (nn.LSTM, 0)):
        of_cls = [arguments for _, _, arguments, _ in samples(INFOS_OF[cls], torch.float32)]
        packed = sum(isinstance(arguments[0], PackedSequence) for arguments in of_cls)
        assert packed >= count and len(of_cls) - packed >= max(count, 16)
    assert len(list(samples(INFOS_OF[nn.RNNCell], torch.float32))) >= 3


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("info", INFOS, **ids)
def test_forward_and_gradients(device, info, dtype, training):
    """The tolerances are those of PyTorch's own tests."""
    for ours, theirs, arguments, sample in samples(info, dtype, device, training):
        arguments = detached(arguments)
        expected = differentiate(theirs, *arguments)
        for name, tensor in differentiate(ours, *arguments).items():
            torch.testing.assert_close(tensor, expected[name], msg=name)
        if not isinstance(arguments[0], PackedSequence):
            expected = sample.reference_fn(ours, *arguments)
            torch.testing.assert_close(ours(*arguments), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("info", INFOS, **ids)
def test_16_bits(device, info, dtype):
    """Each sample meets the rule, except that the gradients of biases meet it together.

    The samples have two hidden units, so that the gradient of a bias may be a sum of a few terms
    that cancel. The error of nn.RNN in a single sample is then small by chance.
    """
    biases = ([], [], [])
    for ours, theirs, arguments, _ in samples(info, dtype, device):
        arguments = detached(arguments)
        results = [differentiate(module, *arguments) for module in (ours, theirs)]
        results.append(in_float64(theirs, *arguments))
        for of_run, result in zip(biases, results, strict=True):
            names = [name for name in result if name.startswith("d bias")]
            of_run.append({name: result.pop(name) for name in names})
        check_rule(*results, dtype)
    check_rule(*map(joined, biases), dtype)


def joined(results):
    """Return the tensors that have the same name in several results as one vector."""
    names = {name for result in results for name in result}
    return {
        name: torch.cat([result[name].flatten().cpu() for result in results if name in result])
        for name in names
    }


@pytest.mark.parametrize("info", INFOS, **ids)
def test_gradcheck(info):
    for ours, _, arguments, _ in samples(info, torch.float64):
        arguments = detached(arguments)
        first, states = flat(arguments[0])[0], tree_flatten(arguments[1:])
        names = [name for name, _ in ours.named_parameters()]

        def run(x, *values, ours=ours, arguments=arguments, states=states, names=names):
            count = len(states[0])
            if isinstance(arguments[0], PackedSequence):
                x = PackedSequence(x, *arguments[0][1:])
            inputs = (x, *tree_unflatten(values[:count], states[1]))
            weights = dict(zip(names, values[count:], strict=True))
            return tuple(flat(torch.func.functional_call(ours, weights, inputs)))

        values = [t.detach().requires_grad_() for t in (first, *states[0], *ours.parameters())]
        assert torch.autograd.gradcheck(run, values, fast_mode=True)
        assert torch.autograd.gradgradcheck(run, values, fast_mode=True)


@pytest.mark.parametrize("info", INFOS, **ids)
def test_strides(info):
    """Gaps between the elements of a tensor do not change the results."""

    def spread(tensor):
        return torch.stack([tensor, tensor], -1).flatten(-2)[..., ::2]

    for ours, _, arguments, _ in samples(info, torch.float32):
        arguments = detached(arguments)
        strided = [each(spread, argument) for argument in arguments]
        expected = differentiate(ours, *arguments)
        for name, tensor in differentiate(ours, *strided).items():
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("info", INFOS, **ids)
def test_error_inputs(device, info, dtype):
    cls = FAST[info.module_cls]
    options = {"device": device, "dtype": dtype, "requires_grad": True, "training": True}
    errors = info.module_error_inputs_func(info, **options)
    assert len(errors) > 5
    for error in errors:
        made = error.module_error_input.constructor_input
        if error.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                cls(*made.args, **made.kwargs)
        else:
            module = cls(*made.args, **made.kwargs)
            given = error.module_error_input.forward_input
            with pytest.raises(error.error_type, match=error.error_regex):
                module(*given.args, **given.kwargs)
