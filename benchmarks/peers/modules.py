"""The modules of torch and of rnnfast, the kernels under these, and the NumPy reference."""

import numpy as np
from cases import Case, one_hot_vectors

from .base import NotRunError, Peer, threads

COMPILED_STEPS = 35  # torch.compile unrolls the steps, which takes minutes for a few hundred


class NNRNN(Peer):
    """`torch.nn.RNN`, `torch.nn.GRU` or `torch.nn.LSTM` as it is."""

    tokens = False  # whether one-hot input may be given as tokens

    def __init__(self):
        import torch

        self.torch = torch
        self.version = torch.__version__
        torch.set_num_threads(threads())

    def module(self, case: Case):
        options = {"num_layers": case.layers, "bidirectional": case.directions == 2}
        return getattr(self.torch.nn, case.cell.upper())(case.I, case.H, **options)

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
        tensors = []
        for result in results:
            if isinstance(result, rnn.PackedSequence):
                tensors.append(rnn.pad_packed_sequence(result)[0])
            else:  # the states of an LSTM are a pair
                tensors += result if isinstance(result, tuple) else [result]
        return [tensor.detach().float().numpy() for tensor in tensors]


class FastRNN(NNRNN):
    """`rnnfast.FastRNN`, `rnnfast.FastGRU` or `rnnfast.FastLSTM`."""

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
        return getattr(self.rnnfast, "Fast" + case.cell.upper())(case.I, case.H, **options)


class Kernels(FastRNN):
    """The native call under the modules of rnnfast, without autograd.

    Its outputs and gradients are allocated once, as for oneDNN and ONNX Runtime, so that kernels
    are compared with kernels.
    """

    def call(self, case, data, mode):
        ops, threads = self.rnnfast._ops.cpu, self.torch.get_num_threads()
        module, x, dy = self._set_up(case, data)
        rows, batch_sizes = (x.data, x.batch_sizes) if case.lengths else (x, None)
        layers = {"num_layers": case.layers, "directions": case.directions}
        layers |= {"batch_first": False, "bias": True}
        if case.cell == "rnn":
            descriptor = self.rnnfast._ops.RNNDescriptor(nonlinearity="tanh", **layers)
            run, run_backward = ops._C.forward, ops._C.backward
        else:
            descriptor = self.rnnfast._ops.GatedDescriptor(cell=case.cell, **layers)
            run, run_backward = ops._C.gated_forward, ops._C.gated_backward
        options = (*descriptor.options, threads)
        weights = [parameter.detach() for parameter in module.parameters()]
        outs, h_n = ops.new_outputs(rows, weights, batch_sizes, descriptor)
        rows, _, packed, batch_sizes = ops.prepare(rows, None, weights, batch_sizes, descriptor)
        output = x._replace(data=outs[-1]) if case.lengths else outs[-1]
        empty_like = self.torch.empty_like
        states = [h_n]
        no_states = [None]  # the initial states, and the gradients of the states
        saved = []  # the argument that only gated cells have
        if case.cell != "rnn":
            states.append(empty_like(h_n) if case.cell == "lstm" else None)
            no_states.append(None)
            width = descriptor.saved_per_row * case.H
            kept = outs if mode == "training" else []
            saved.append([out.new_empty((*out.shape[:-1], width)) for out in kept])
        results = [output, *states[: len(case.states)]]

        def forward():
            inputs = (rows, *no_states, packed, batch_sizes)
            run(*inputs, *options, outs, *states, *saved, None)
            return results

        if mode == "forward":
            return forward

        dx = None if case.one_hot else empty_like(rows)
        dw = [empty_like(w) for w in packed]
        between = [empty_like(outs[0]) for _ in outs[1:3]] if case.directions == 2 else []
        gradients = [] if dx is None else [x._replace(data=dx) if case.lengths else dx]
        for n, dw_n in enumerate(dw):
            table = case.one_hot and n % 4 == 0 and n < 4 * case.directions
            gradients.append(dw_n.t() if table else dw_n)

        def training():
            forward()
            inputs = (rows, *no_states, packed, batch_sizes)
            given = (dy, *no_states, outs, *saved, *inputs)
            run_backward(*given, *options, dx, *no_states, dw, between, None)
            return gradients

        return training


class CompiledRNN(NNRNN):
    """`torch.compile` of torch's module, with the setting that makes it compile RNNs."""

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
