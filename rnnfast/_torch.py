"""Every question that rnnfast asks torch's private API, each as one function.

A private name may change with any release of torch. Where the installed torch lacks a name, the
function here gives an answer that is always correct, even if it makes rnnfast slower.
``tests/test_torch_private.py`` reports which names the installed torch has.

Some functions are torch's own without a wrapper, because a wrapper would take 50 ns in each call.
"""

import contextlib
import functools
import importlib.abc
import importlib.util
import sys
import threading
import weakref
from types import SimpleNamespace

import torch
from torch.nn.utils.parametrize import is_parametrized

# The first release of torch that rnnfast supports. torch 2.10 has DLPack's C exchange API, too, but
# its Dynamo cannot read the properties of a RNNDescriptor.
OLDEST = "2.11"

# Whether the installed torch has each private name that is asked for.
HAS: dict[str, bool] = {}


def _private(name, otherwise):
    """Return the attribute of torch with the dotted ``name``, or ``otherwise`` if there is none."""
    value = functools.reduce(lambda owner, part: getattr(owner, part, None), name.split("."), torch)
    HAS[name] = value is not None
    return otherwise if value is None else value


def _owner(name, otherwise):
    """Return the owner of the attribute ``name``, whose value changes, so that it is read anew.

    If there is no such attribute, return an object that always has the value ``otherwise``.
    """
    path, _, attribute = name.rpartition(".")
    owner = _private(path, None)
    HAS[name] = hasattr(owner, attribute)
    return owner if HAS[name] else SimpleNamespace(**{attribute: otherwise})


# DLPack


# rnnfast._C reads and makes tensors with this API. It is the only question without a fallback: each
# other way takes much longer, or needs the headers of one version of torch.
if _private("Tensor.__dlpack_c_exchange_api__", None) is None:
    raise ImportError(
        f"rnnfast needs torch {OLDEST} or later, got torch {torch.__version__}, which lacks "
        "torch.Tensor.__dlpack_c_exchange_api__ (DLPack's C exchange API). Install a later torch: "
        f"pip install 'torch>={OLDEST}'"
    )


# Transforms


_get_interpreter_stack = _private("_C._functorch.get_interpreter_stack", None)
_VMAP = _private("_C._functorch.TransformType.Vmap", None)
_forward_ad = _owner("autograd.forward_ad._current_level", 0)

# is_in_transform() returns whether a transform of torch.func, for example vmap, is active.
is_in_transform = _private("_C._are_functorch_transforms_active", lambda: True)


def is_in_transform_or_forward_ad():
    """Return whether a transform of torch.func or forward-mode AD is active."""
    return is_in_transform() or _forward_ad._current_level >= 0


def is_in_vmap():
    """Return whether ``torch.func.vmap`` is among the active transforms.

    While torch.compile traces a transform the answer is True, because Dynamo does not know which
    transforms are active.
    """
    if not is_in_transform():
        return False
    if torch.compiler.is_compiling() or _get_interpreter_stack is None or _VMAP is None:
        return True
    return any(level.key() == _VMAP for level in _get_interpreter_stack() or ())


def _can_reach_storage(tensor):
    try:
        tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return False
    return True


_has_storage = _private("_C._has_storage", _can_reach_storage)


def is_batch_of_vmap(tensor):
    """Return whether ``tensor`` stands for a batch of tensors, so that it has no memory of its own.

    ``torch.autograd.grad(..., is_grads_batched=True)`` calls a backward pass with such tensors
    although the forward pass ran outside of ``vmap``.
    """
    return (
        type(tensor) is torch.Tensor
        and not torch.compiler.is_compiling()
        and not _has_storage(tensor)
    )


# Autocast


def _is_autocast_enabled_on_a_device():
    return any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))


# is_any_autocast_enabled() returns whether autocast is enabled on a device of any type.
is_any_autocast_enabled = _private("_C._is_any_autocast_enabled", _is_autocast_enabled_on_a_device)


# The dispatcher


_len_dispatch_stack = _private("_C._len_torch_dispatch_stack", lambda: 1)
_is_tracing = _private("_C._is_tracing", torch.jit.is_tracing)
_profiler = _owner("autograd.profiler._is_profiler_enabled", True)


def is_dispatcher_observed():
    """Return whether a compiler, tracer, profiler or dispatch mode must see every operator.

    Otherwise an operator's implementation may be called directly. This saves the microseconds that
    the dispatcher takes.
    """
    return bool(
        torch.compiler.is_compiling()
        or _len_dispatch_stack()
        or _is_tracing()
        or _profiler._is_profiler_enabled
    )


# Modules that take long to import


def when_imported(name, call):
    """Call ``call(module)`` with the module ``name``: now, or right after it is first imported."""
    if name in sys.modules:
        call(sys.modules[name])
    else:
        sys.meta_path.insert(0, _CallOnImport(name, call))


class _CallOnImport(importlib.abc.MetaPathFinder):
    """Finds no module, but calls a function right after the import of one."""

    def __init__(self, name, call):
        self.name, self.call = name, call

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self.call(module)

        spec.loader.exec_module = exec_module
        return spec


# torch.compile


# disable_dynamo(function) returns a function that Dynamo calls and never traces, even after a graph
# break. The public decorator imports Dynamo, which takes a second.
disable_dynamo = _private("_disable_dynamo", torch.compiler.disable)

_BUILDER = "torch._dynamo.variables.builder"


def let_dynamo_trace(cls):
    """Let Dynamo trace the instances of ``cls``, subclasses of ``nn.RNN`` that are one operator.

    Dynamo refuses every ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM``, because tracing ``forward`` would
    unroll its time steps. ``torch._dynamo.config.allow_rnn`` is its only switch, for all modules of
    the process. Here the switch is on only while Dynamo looks at an instance of ``cls``.

    Importing Dynamo takes a second. If it is not yet imported, this function waits until it is.
    """
    when_imported(_BUILDER, lambda builder: _patch_builder(builder, cls))


def _patch_builder(builder, cls):
    """Patch Dynamo's module ``builder``, and return whether it has the names that this needs.

    A torch without these names may trace ``nn.RNN`` by itself. If not, its own error says so.
    """
    if not (
        hasattr(builder.config, "allow_rnn") and hasattr(builder.VariableBuilder, "wrap_module")
    ):
        return False
    wrap_module = builder.VariableBuilder.wrap_module

    def wrap(self, value):
        with builder.config.patch(allow_rnn=builder.config.allow_rnn or isinstance(value, cls)):
            return wrap_module(self, value)

    builder.VariableBuilder.wrap_module = wrap
    return True


# cuDNN and oneDNN


def may_run_on_cudnn(input):
    """Return whether torch's own RNN operators may run on cuDNN for ``input``."""
    return input.is_cuda and torch.backends.cudnn.enabled


def without_cudnn():
    """Return a context in which cuDNN is disabled."""
    return _without(torch.backends.cudnn, _set_cudnn_enabled)


def without_onednn():
    """Return a context in which oneDNN is disabled."""
    return _without(torch.backends.mkldnn, _set_onednn_enabled)


_set_cudnn_enabled = _private("_C._set_cudnn_enabled", None)
_set_onednn_enabled = _private("_C._set_mkldnn_enabled", None)
_flags_lock = threading.Lock()
_disabled: dict = {}  # for a disabled library: how many threads want that, and the flag before


@contextlib.contextmanager
def _without(library, set_enabled):
    """Disable a library inside the ``with`` block.

    An assignment to ``torch.backends.cudnn.enabled`` raises an error after
    ``torch.backends.disable_global_flags()``. ``torch.backends.cudnn.flags`` raises one if the
    program has set the precisions of convolutions and RNNs separately.
    """
    if set_enabled is None:
        with library.flags(enabled=False):
            yield
        return
    # The flag is that of the process. The first thread that enters saves it, and the last one that
    # leaves restores it.
    with _flags_lock:
        uses, before = _disabled.get(library, (0, library.enabled))
        _disabled[library] = (uses + 1, before)
        set_enabled(False)
    try:
        yield
    finally:
        with _flags_lock:
            uses, before = _disabled.pop(library)
            if uses > 1:
                _disabled[library] = (uses - 1, before)
            else:
                set_enabled(before)


def constant_in_dynamo(function):
    """Let Dynamo call ``function`` while it traces, and take the result for a constant.

    torch.compiler.assume_constant_result does this, too, but imports Dynamo, which takes seconds.
    """
    function._dynamo_marked_constant = True
    return function


# CUDA


def _cuda_stream(index):
    return torch.cuda.current_stream(index).cuda_stream


# cuda_stream(index) returns the address of the current stream of a device. The private name is not
# in HAS, because only builds of torch with CUDA have it.
cuda_stream = getattr(torch._C, "_cuda_getCurrentRawStream", _cuda_stream)


# oneDNN


def onednn_product(a, b):
    """Return a function that computes ``a @ b.T`` with oneDNN, or None if torch cannot do that.

    The private names are not in HAS, because only builds of torch with oneDNN have them.
    """
    operators = torch.ops.mkldnn
    reorder = getattr(operators, "_reorder_linear_weight", None)
    linear = getattr(operators, "_linear_pointwise", None)
    if reorder is None or linear is None or not torch.backends.mkldnn.is_available():
        return None
    packed = reorder(b)
    return lambda: linear(a, packed, None, "none", [], "")


# Modules and optimizers


def named_rnn_weights(module):
    """Return the names and the weights for a call of an ``nn.RNN``, in the order of its operators.

    An ``nn.GRU`` or ``nn.LSTM`` has them, too. These modules compute with the list
    ``_flat_weights``, which other code may replace. If an attribute is another tensor than in the
    call before, they make the list anew from the attributes.
    """
    attributes = module.__dict__  # each access to an attribute of a module would take 60 ns
    try:
        names, parameters = attributes["_flat_weights_names"], attributes["_parameters"]
        weights, references = attributes["_flat_weights"], attributes["_flat_weight_refs"]
        for name, reference in zip(names, references):  # noqa: B905 - strict would take 200 ns
            if parameters[name] is not reference():
                return _refresh_rnn_weights(module, names, weights, references)
    except KeyError:  # a weight is not a parameter
        if "_flat_weight_refs" not in attributes:  # torch has no such list
            names = _rnn_weight_names(module)
            return names, [getattr(module, name) for name in names]
        return _refresh_rnn_weights(module, names, weights, references)
    return names, weights


def _refresh_rnn_weights(module, names, listed, references):
    """Return the names and the weights of a module whose weights are not what they were."""
    named = [getattr(module, name, None) for name in names]
    if all(
        weight is None or reference is None or weight is reference()
        for weight, reference in zip(named, references, strict=True)
    ):
        return names, listed
    # What a compiler or a transform is tracing must not outlive the call, and parametrized weights
    # are new tensors in each call.
    if not (torch.compiler.is_compiling() or is_in_transform() or is_parametrized(module)):
        module._flat_weights = named
        module._flat_weight_refs = [w if w is None else weakref.ref(w) for w in named]
    return names, named


def _rnn_weight_names(module):
    kinds = ("weight_ih", "weight_hh") + (("bias_ih", "bias_hh") if module.bias else ())
    kinds += ("weight_hr",) if module.proj_size else ()
    return [
        f"{kind}_l{layer}{suffix}"
        for layer in range(module.num_layers)
        for suffix in ("", "_reverse")[: 1 + module.bidirectional]
        for kind in kinds
    ]


def _lerp_each(tensors, ends, weight):
    for tensor, end in zip(tensors, ends, strict=True):
        tensor.lerp_(end, weight)


# foreach_lerp_(tensors, ends, weight) moves each tensor in place towards its end by the weight.
foreach_lerp_ = _private("_foreach_lerp_", _lerp_each)


def has_readable_values(t):
    """Return whether Python may look at the values of ``t``. A tracer would record the look."""
    return (
        type(t) is torch.Tensor
        and t.numel() > 0
        and not t.is_meta
        and not is_dispatcher_observed()
        and not is_in_transform()
        and not (t.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def skips_updates_where(optimizer, flag):
    """Let ``optimizer.step()`` change nothing where ``flag``, a float32 tensor (), is 1.

    The fused optimizers can do that, without reading the flag on the host; torch.amp.GradScaler
    asks them in this way. Return whether this one can.
    """
    optimizer.found_inf = flag
    return getattr(optimizer, "_step_supports_amp_scaling", False)
