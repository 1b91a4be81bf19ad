"""All samples that PyTorch's database of modules has for ``nn.RNN`` and ``nn.RNNCell``.

``FastRNN`` and ``FastRNNCell`` are checked as PyTorch's test_modules.py checks their parents:
against the reference, by gradcheck, by gradgradcheck, with strides and with wrong inputs. In
addition 16 bits are checked by the rule of `rule`.
"""

import pytest
import torch
from test_module import check, differentiate
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

from rnnfast import FastRNN, FastRNNCell

FAST = {nn.RNN: FastRNN, nn.RNNCell: FastRNNCell}

INFOS_OF = {info.module_cls: info for info in module_db if info.module_cls in FAST}
INFOS = list(INFOS_OF.values())
ids = {"ids": lambda info: info.module_cls.__name__}


def samples(info, dtype, device="cpu", training=True):
    """Return (our module, its parent class with the same weights, arguments, the sample)."""
    options = {"device": device, "dtype": dtype, "requires_grad": True, "training": training}
    packed = {"with_packed_sequence": True} if info.module_cls is nn.RNN else {}
    torch.manual_seed(0)
    for sample in info.module_inputs_func(info, **options, **packed):
        made = sample.constructor_input
        theirs = info.module_cls(*made.args, **made.kwargs).to(device, dtype).train(training)
        ours = FAST[info.module_cls](*made.args, **made.kwargs).to(device, dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        assert not sample.forward_input.kwargs
        yield ours, theirs, sample.forward_input.args, sample


def detached(arguments):
    return [
        PackedSequence(a.data.detach(), *a[1:]) if isinstance(a, PackedSequence) else a.detach()
        for a in arguments
    ]


def test_the_database_has_both():
    assert {info.module_cls for info in INFOS} == set(FAST)
    assert all(set(info.dtypes) == {torch.float32, torch.float64} for info in INFOS)
    rnn = [arguments for _, _, arguments, _ in samples(INFOS_OF[nn.RNN], torch.float32)]
    packed = sum(isinstance(arguments[0], PackedSequence) for arguments in rnn)
    assert packed >= 32 and len(rnn) - packed >= 32
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
    for ours, theirs, arguments, _ in samples(info, dtype, device):
        check(theirs, ours, *detached(arguments))


@pytest.mark.parametrize("info", INFOS, **ids)
def test_gradcheck(info):
    for ours, _, arguments, _ in samples(info, torch.float64):
        tensors = [a.data if isinstance(a, PackedSequence) else a for a in arguments]
        names = [name for name, _ in ours.named_parameters()]

        def run(*values, ours=ours, arguments=arguments, tensors=tensors, names=names):
            inputs, weights = values[: len(tensors)], values[len(tensors) :]
            if isinstance(arguments[0], PackedSequence):
                inputs = (PackedSequence(inputs[0], *arguments[0][1:]), *inputs[1:])
            weights = dict(zip(names, weights, strict=True))
            output = torch.func.functional_call(ours, weights, inputs)
            if isinstance(output, torch.Tensor):
                return output
            output, h_n = output
            return output.data if isinstance(output, PackedSequence) else output, h_n

        values = [t.detach().requires_grad_() for t in (*tensors, *ours.parameters())]
        assert torch.autograd.gradcheck(run, values, fast_mode=True)
        assert torch.autograd.gradgradcheck(run, values, fast_mode=True)


@pytest.mark.parametrize("info", INFOS, **ids)
def test_strides(info):
    """Gaps between the elements of a tensor do not change the results."""

    def spread(tensor):
        return torch.stack([tensor, tensor], -1).flatten(-2)[..., ::2]

    for ours, _, arguments, _ in samples(info, torch.float32):
        arguments = detached(arguments)
        strided = [
            PackedSequence(spread(a.data), *a[1:]) if isinstance(a, PackedSequence) else spread(a)
            for a in arguments
        ]
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
