"""The contestants: rnnfast, torch.nn.RNN and the RNNs of other libraries.

A contestant is a subclass of `Peer` with one method, `call`, which builds the call that is timed.
`contest.py` starts this file as a program, once for each contestant, and asks it for results and
samples.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import signal
import sys
import timeit
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case, Data, data, one_hot_vectors

COMPILED_STEPS = 35  # torch.compile unrolls the steps, which takes minutes for a few hundred
UNROLLED_STEPS = 8  # steps that XLA's scan unrolls, if that is faster


class NotRunError(Exception):
    """A contestant cannot run a case. The message says why in a few words."""

    def __init__(self, reason: str, contestant: str | None = None):
        super().__init__(reason)
        self.contestant = contestant


class Peer:
    """A contestant. Its constructor raises NotRunError if its library is not installed."""

    version = ""

    def call(self, case: Case, data: Data, mode: str) -> Callable[[], Sequence[Any]]:
        """Return the function that is timed.

        The function returns the arrays that `cases.result_names` lists, of any array type, and only
        after they are computed. `call` raises NotRunError for a case that it cannot run.
        """
        raise NotImplementedError

    def arrays(self, results: Sequence[Any]) -> list[np.ndarray]:
        """Return the results of a call as float32 arrays, with zeros for padding."""
        return [np.asarray(result).astype(np.float32) for result in results]

    def prepare(self, case: Case, mode: str) -> list[np.ndarray]:
        """Prepare the call that is timed next, and return its results to check them."""
        self._call = None  # frees the memory of the call before
        self._call = self.call(case, data(case), mode)
        return self.arrays(self._call())

    def sample(self, number: int) -> float:
        """Return the seconds of one call, averaged over `number` calls."""
        # The first call is not timed: after a process was stopped, its threads are asleep and its
        # data is out of the cache.
        self._call()
        return timeit.timeit(self._call, number=number) / number


def installed(module: str, how: str | None = None) -> None:
    """Raise NotRunError, which says what to install, if `module` cannot be imported."""
    if importlib.util.find_spec(module) is None:
        raise NotRunError(f"not installed: pip install {how or module}")


class NNRNN(Peer):
    """`torch.nn.RNN` as it is."""

    tokens = False  # whether one-hot input may be given as tokens

    def __init__(self):
        import torch

        self.torch = torch
        self.version = torch.__version__
        torch.set_num_threads(_threads())

    def module(self, case: Case):
        options = {"num_layers": case.layers, "bidirectional": case.directions == 2}
        return self.torch.nn.RNN(case.I, case.H, **options)

    def call(self, case, data, mode):
        torch = self.torch
        module, x, dy = self._set_up(case, data)
        if mode == "forward":

            def forward():
                with torch.no_grad():
                    return module(x)

            return forward

        leaf = x.data if case.lengths else x
        wanted = [] if case.one_hot else [leaf.requires_grad_()]
        wanted += module.parameters()

        def training():
            output = module(x)[0]
            output = output.data if case.lengths else output
            gradients = torch.autograd.grad(output, wanted, dy)
            if case.lengths:
                return x._replace(data=gradients[0]), *gradients[1:]
            return gradients

        return training

    def _set_up(self, case, data):
        """Return the module with its weights, its input, and the gradient of its output."""
        torch = self.torch
        dtype = getattr(torch, case.dtype)
        module = self.module(case)
        with torch.no_grad():
            for parameter, weight in zip(module.parameters(), data.weights, strict=True):
                parameter.copy_(torch.from_numpy(weight))
        module = module.to(dtype)
        x = torch.from_numpy(data.x if self.tokens else one_hot_vectors(case, data.x))
        dy = torch.from_numpy(data.dy).to(dtype)
        if x.is_floating_point():
            x = x.to(dtype)
        if case.lengths:
            x, dy = self._pack(x, case.lengths), self._pack(dy, case.lengths).data
        return module, x, dy

    def _pack(self, tensor, lengths):
        return self.torch.nn.utils.rnn.pack_padded_sequence(tensor, list(lengths))

    def arrays(self, results):
        rnn = self.torch.nn.utils.rnn
        padded = (
            rnn.pad_packed_sequence(r)[0] if isinstance(r, rnn.PackedSequence) else r
            for r in results
        )
        return [tensor.detach().float().numpy() for tensor in padded]


class FastRNN(NNRNN):
    """`rnnfast.FastRNN`."""

    tokens = True

    def __init__(self):
        super().__init__()
        import rnnfast

        self.rnnfast = rnnfast
        self.version = rnnfast.__version__

    def module(self, case):
        if getattr(self.torch, case.dtype) not in self.rnnfast._ops.cpu.DTYPES:
            raise NotRunError(f"no {case.dtype} kernel")
        options = {"num_layers": case.layers, "bidirectional": case.directions == 2}
        return self.rnnfast.FastRNN(case.I, case.H, **options)


class Kernels(FastRNN):
    """The native call under `rnnfast.FastRNN`, without autograd.

    Its outputs and gradients are allocated once, as for oneDNN and ONNX Runtime, so that kernels
    are compared with kernels.
    """

    def call(self, case, data, mode):
        ops, threads = self.rnnfast._ops.cpu, self.torch.get_num_threads()
        module, x, dy = self._set_up(case, data)
        rows, batch_sizes = (x.data, x.batch_sizes) if case.lengths else (x, None)
        descriptor = self.rnnfast._ops.RNNDescriptor(
            case.layers, case.directions, batch_first=False, nonlinearity="tanh", bias=True
        )
        options = (*descriptor.options, threads)
        weights = [parameter.detach() for parameter in module.parameters()]
        outs, h_n = ops.new_outputs(rows, weights, batch_sizes, descriptor)
        rows, _, packed, batch_sizes = ops.prepare(rows, None, weights, batch_sizes, descriptor)
        output = x._replace(data=outs[-1]) if case.lengths else outs[-1]

        def forward():
            ops._C.forward(rows, None, packed, batch_sizes, *options, outs, h_n, None)
            return output, h_n

        if mode == "forward":
            return forward

        empty_like = self.torch.empty_like
        dx = None if case.one_hot else empty_like(rows)
        dw = [empty_like(w) for w in packed]
        between = [empty_like(outs[0]) for _ in outs[1:3]] if case.directions == 2 else []
        gradients = [] if dx is None else [x._replace(data=dx) if case.lengths else dx]
        for n, dw_n in enumerate(dw):
            table = case.one_hot and n % 4 == 0 and n < 4 * case.directions
            gradients.append(dw_n.t() if table else dw_n)

        def training():
            forward()
            inputs = (dy, None, outs, rows, None, packed, batch_sizes)
            ops._C.backward(*inputs, *options, dx, None, dw, between, None)
            return gradients

        return training


class CompiledRNN(NNRNN):
    """`torch.compile` of `torch.nn.RNN`, with the setting that makes it compile RNNs."""

    def module(self, case):
        if case.T > COMPILED_STEPS:
            raise NotRunError(f"T > {COMPILED_STEPS}")
        self.torch._dynamo.config.allow_rnn = True
        self.torch._dynamo.reset()
        self.torch._dynamo.utils.counters.clear()
        return self.torch.compile(super().module(case))

    def prepare(self, case, mode):
        results = super().prepare(case, mode)
        if not self.torch._dynamo.utils.counters["frames"]["ok"]:
            raise NotRunError("not compiled")  # torch.compile falls back without a message
        return results


class JAX(Peer):
    """`jax.lax.scan` over the steps, after one product for all inputs, with `jit` and `vjp`."""

    def __init__(self):
        installed("jax")
        import jax

        self.jax = jax
        self.version = jax.__version__

    def call(self, case, data, mode):
        jax = self.jax
        jax.clear_caches()
        dtype = getattr(jax.numpy, case.dtype)
        x = jax.numpy.asarray(data.x) if case.one_hot else jax.numpy.asarray(data.x, dtype)
        weights = [jax.numpy.asarray(w, dtype) for w in data.weights]
        dy = jax.numpy.asarray(data.dy, dtype)

        def build(unroll):
            def rnn(x, weights):
                return self._rnn(case, data.mask, x, weights, unroll)

            def training(x, weights, dy):
                if case.one_hot:
                    return jax.vjp(lambda weights: rnn(x, weights)[0], weights)[1](dy)[0]
                dx, dweights = jax.vjp(lambda x, weights: rnn(x, weights)[0], x, weights)[1](dy)
                return [dx, *dweights]

            if mode == "forward":
                compiled = jax.jit(rnn).lower(x, weights).compile()
                return lambda: jax.block_until_ready(compiled(x, weights))
            compiled = jax.jit(training).lower(x, weights, dy).compile()
            return lambda: jax.block_until_ready(compiled(x, weights, dy))

        unrolls = [1]
        # With one row the unrolled backward pass takes seconds.
        if case.T >= UNROLLED_STEPS and not (mode == "training" and case.B == 1):
            unrolls.append(UNROLLED_STEPS)
        calls = [build(unroll) for unroll in unrolls]
        return min(calls, key=lambda call: min(timeit.repeat(call, repeat=4, number=1)))

    def _rnn(self, case, mask, x, weights, unroll):
        jnp, lax = self.jax.numpy, self.jax.lax
        h_n = []
        for layer in range(case.layers):
            outputs = []
            for direction in range(case.directions):
                w_ih, w_hh, b_ih, b_hh = weights[4 * (layer * case.directions + direction) :][:4]
                pre = (w_ih.T[x] if x.ndim == 2 else x @ w_ih.T) + (b_ih + b_hh)

                def step(h, inputs, w_hh=w_hh):
                    pre, real = inputs
                    new = jnp.tanh(pre + h @ w_hh.T)
                    if real is None:
                        return new, new
                    return jnp.where(real, new, h), jnp.where(real, new, 0)

                state = jnp.zeros((case.B, case.H), pre.dtype)
                steps = (pre, mask)
                last, y = lax.scan(step, state, steps, unroll=unroll, reverse=direction == 1)
                h_n.append(last)
                outputs.append(y)
            x = jnp.concatenate(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
        return x, jnp.stack(h_n)


class ONNXRuntime(Peer):
    """The operator `RNN` of ONNX, which ONNX Runtime runs: inference in float32."""

    def __init__(self):
        installed("onnx")
        installed("onnxruntime")
        import onnxruntime

        self.ort = onnxruntime
        self.version = onnxruntime.__version__

    def call(self, case, data, mode):
        if mode == "training":
            raise NotRunError("inference only")
        if case.dtype != "float32":
            raise NotRunError(f"no {case.dtype}")
        self._steps_and_rows = case.T, case.B
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = _threads()
        session = self.ort.InferenceSession(
            _onnx_model(case, data.weights), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()  # the memory of the outputs is then allocated once
        inputs = {"x": one_hot_vectors(case, data.x)}
        if case.lengths:
            inputs["lengths"] = np.array(case.lengths, np.int32)
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for output in session.get_outputs():
            value = self.ort.OrtValue.ortvalue_from_shape_and_type(output.shape, np.float32)
            binding.bind_ortvalue_output(output.name, value)

        def forward():
            session.run_with_iobinding(binding)
            return binding.get_outputs()

        return forward

    def arrays(self, results):
        y, h_n = (value.numpy() for value in results)
        T, B = self._steps_and_rows
        return [y.reshape(T, B, -1), h_n]


def _onnx_model(case: Case, weights: list[np.ndarray]) -> bytes:
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes, initializers = [], []
    D = case.directions
    below = "x"

    def constant(name, array):
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    for layer in range(case.layers):
        parts = [weights[4 * (layer * D + d) :][:4] for d in range(D)]
        names = [f"{kind}{layer}" for kind in ("w_ih", "w_hh", "b")]
        constant(names[0], np.stack([p[0] for p in parts]))
        constant(names[1], np.stack([p[1] for p in parts]))
        constant(names[2], np.stack([np.concatenate(p[2:]) for p in parts]))
        nodes.append(
            helper.make_node(
                "RNN",
                [below, *names, *(["lengths"] if case.lengths else [])],
                [f"y{layer}", f"h_n{layer}"],  # [T, D, B, H], [D, B, H]
                hidden_size=case.H,
                direction="bidirectional" if D == 2 else "forward",
            )
        )
        # With one direction D is 1, and its place does not matter.
        last = f"y{layer}"
        if D == 2:
            nodes.append(helper.make_node("Transpose", [last], [f"t{layer}"], perm=[0, 2, 1, 3]))
            last = f"t{layer}"
        if layer < case.layers - 1:
            shape = constant(f"shape{layer}", np.array([case.T, case.B, D * case.H]))
            below = f"x{layer + 1}"
            nodes.append(helper.make_node("Reshape", [last, shape], [below]))
    if case.layers > 1:
        states = [f"h_n{layer}" for layer in range(case.layers)]
        nodes.append(helper.make_node("Concat", states, ["h_n"], axis=0))

    def tensor(name, shape, kind=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, kind, shape)

    inputs = [tensor("x", [case.T, case.B, case.I])]
    if case.lengths:
        inputs.append(tensor("lengths", [case.B], TensorProto.INT32))
    outputs = [
        tensor(last, [case.T, case.B, D, case.H] if D == 2 else [case.T, 1, case.B, case.H]),
        tensor("h_n" if case.layers > 1 else "h_n0", [case.layers * D, case.B, case.H]),
    ]
    graph = helper.make_graph(nodes, "rnn", inputs, outputs, initializers)
    # These versions are old enough for every onnxruntime that runs beside a current onnx.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()


class OneDNN(Peer):
    """`vanilla_rnn` of one installation of oneDNN, through onednn.cpp."""

    def __init__(self, root: str):
        import native

        headers, library = Path(root, "include"), _onednn_library(root)
        if library is None:
            raise NotRunError("not installed: pip install 'rnnfast[peers]'")
        self.version = onednn_version(root)
        self.lib = lib = native.load(
            "onednn.cpp",
            f"-I{headers}",
            str(library),
            f"-Wl,-rpath,{library.parent}",
            key=self.version,
        )
        lib.rnn_error.restype = ctypes.c_char_p
        lib.rnn_new.restype = ctypes.c_void_p
        lib.rnn_new.argtypes = [ctypes.c_int] * 7 + [ctypes.c_void_p] * 5
        lib.rnn_run.argtypes = lib.rnn_delete.argtypes = [ctypes.c_void_p]
        lib.rnn_read.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

    def call(self, case, data, mode):
        if case.lengths:
            raise NotRunError("no lengths")
        return _OneDNNCall(self.lib, case, data, mode)

    def arrays(self, results):
        return results.read()


class _OneDNNCall:
    def __init__(self, lib, case, data, mode):
        self.lib, self.case, self.mode = lib, case, mode
        L, D = case.layers, case.directions
        if L > 1 and case.I != D * case.H:
            raise NotRunError("layers of different sizes")
        w_ih, w_hh, b_ih, b_hh = (np.stack(data.weights[k::4]) for k in range(4))
        given = [one_hot_vectors(case, data.x), w_ih.swapaxes(1, 2), w_hh.swapaxes(1, 2)]
        given += [b_ih + b_hh, data.dy]
        given = [np.ascontiguousarray(array) for array in given]
        addresses = [array.ctypes.data for array in given]
        if mode == "forward":
            addresses[-1] = None
        self.handle = lib.rnn_new(
            case.T, case.B, case.I, case.H, L, D, case.dtype == "bfloat16", *addresses
        )
        if not self.handle:
            raise NotRunError(lib.rnn_error().decode())

    def __call__(self):
        if self.lib.rnn_run(self.handle):
            raise RuntimeError(self.lib.rnn_error().decode())
        return self

    def read(self):
        case = self.case
        T, B, I, H, L, D = case.T, case.B, case.I, case.H, case.layers, case.directions  # noqa: E741

        def get(name, *shape):
            array = np.empty(shape, np.float32)
            if self.lib.rnn_read(self.handle, name.encode(), array.ctypes.data):
                raise RuntimeError(self.lib.rnn_error().decode())
            return array

        if self.mode == "forward":
            return [get("y", T, B, D * H), get("h_n", L * D, B, H)]
        dw_ih, dw_hh = get("dw_layer", L * D, I, H), get("dw_iter", L * D, H, H)
        db = get("dbias", L * D, H)
        results = [] if case.one_hot else [get("dx", T, B, I)]
        for k in range(L * D):
            results += [dw_ih[k].T, dw_hh[k].T, db[k], db[k]]
        return results

    def __del__(self):
        if getattr(self, "handle", None):
            self.lib.rnn_delete(self.handle)


def onednn_roots() -> list[str]:
    """Return the installations of oneDNN: folders with include/oneapi/dnnl/ and a libdnnl.so.

    The environment variable ONEDNN_ROOTS lists folders, separated by colons. Without it the folders
    are those where pip and the packages of the system install oneDNN.
    """
    named = os.environ.get("ONEDNN_ROOTS")
    roots = named.split(os.pathsep) if named else [sys.prefix, "/usr"]
    return [root for root in dict.fromkeys(roots) if _onednn_library(root)]


def _onednn_library(root: str) -> Path | None:
    if not Path(root, "include", "oneapi", "dnnl", "dnnl.hpp").exists():
        return None
    return next(iter(sorted(Path(root).glob("lib*/**/libdnnl.so"))), None)


def onednn_version(root: str) -> str:
    header = Path(root, "include", "oneapi", "dnnl", "dnnl_version.h").read_text()
    numbers = (re.search(rf"DNNL_VERSION_{n}\s+(\d+)", header) for n in ("MAJOR", "MINOR", "PATCH"))
    return ".".join(number[1] for number in numbers)


def onednn_environment(root: str) -> dict[str, str]:
    """Return the environment in which oneDNN finds the libraries that it needs itself."""
    folder = _onednn_library(root).parent
    environment = {"LD_LIBRARY_PATH": str(folder)}
    if (driver := folder / "libintelocl.so").exists():
        environment["OCL_ICD_FILENAMES"] = str(driver)
    return environment


class NumPy(Peer):
    """The forward pass of `rnnfast.reference`, a loop over the steps."""

    def __init__(self):
        from rnnfast import reference

        self.reference = reference
        self.version = np.__version__

    def call(self, case, data, mode):
        if mode == "training":
            raise NotRunError("inference only")
        if case.lengths:
            raise NotRunError("no lengths")
        if case.dtype != "float32":
            raise NotRunError(f"no {case.dtype}")
        x = one_hot_vectors(case, data.x)
        options = {"num_layers": case.layers, "bidirectional": case.directions == 2}

        def forward():
            outputs, h_n = self.reference.rnn(x, None, data.weights, **options)
            return outputs[-1], h_n

        return forward


def _threads() -> int:
    """Return the number of CPUs of this process, which `main` has set to that of the threads."""
    return len(os.sched_getaffinity(0))


def main() -> None:
    """Serve requests on a socket until it closes: `python peers.py FD CPUS CLASS [ARGUMENT]`."""
    fd, cpus, name, *arguments = sys.argv[1:]
    # Every library takes its number of threads from the number of CPUs. XLA and TBB have no other
    # setting.
    os.sched_setaffinity(0, map(int, cpus.split(",")))
    # A stopped process would outlive a parent that was killed.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    connection = Connection(int(fd))
    peer: Peer | None = None

    def hello() -> str:
        nonlocal peer
        peer = globals()[name](*arguments)
        return peer.version

    while True:
        try:
            method, *values = connection.recv()
        except EOFError:
            return
        try:
            answer = hello() if method == "hello" else getattr(peer, method)(*values)
            reason = None
        except NotRunError as error:
            answer, reason = None, str(error)
        except Exception as error:
            answer, reason = None, f"{type(error).__name__}: {error}".splitlines()[0]
        connection.send((reason, answer))


if __name__ == "__main__":
    main()
