"""ONNX Runtime."""

import numpy as np
from cases import Case, one_hot_vectors

from .base import NotRunError, Peer, installed, threads

# The places of ONNX's gates among those of torch.
GATES = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}


class ONNXRuntime(Peer):
    """The operators `RNN`, `GRU` and `LSTM` of ONNX: inference in float32."""

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
        options.intra_op_num_threads = threads()
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
        y, *states = (value.numpy() for value in results)
        T, B = self._steps_and_rows
        return [y.reshape(T, B, -1), *states]


def _reordered(case: Case, weights: np.ndarray) -> np.ndarray:
    """Return weights [G * H, ...] with the gates in the order of ONNX."""
    gates = np.split(weights, case.gates)
    return np.concatenate([gates[k] for k in GATES[case.cell]])


def _onnx_model(case: Case, weights: list[np.ndarray]) -> bytes:
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes, initializers = [], []
    D = case.directions
    below = "x"

    def constant(name, array):
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    for layer in range(case.layers):
        parts = [
            [_reordered(case, w) for w in weights[4 * (layer * D + d) :][:4]] for d in range(D)
        ]
        names = [f"{kind}{layer}" for kind in ("w_ih", "w_hh", "b")]
        constant(names[0], np.stack([p[0] for p in parts]))
        constant(names[1], np.stack([p[1] for p in parts]))
        constant(names[2], np.stack([np.concatenate(p[2:]) for p in parts]))
        nodes.append(
            helper.make_node(
                case.cell.upper(),
                [below, *names, *(["lengths"] if case.lengths else [])],
                [f"{name}{layer}" for name in ("y", *case.states)],  # [T, D, B, H], [D, B, H]
                hidden_size=case.H,
                direction="bidirectional" if D == 2 else "forward",
                # The reset gate of torch's GRU multiplies W_hn h + b_hn.
                **({"linear_before_reset": 1} if case.cell == "gru" else {}),
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
        for name in case.states:
            states = [f"{name}{layer}" for layer in range(case.layers)]
            nodes.append(helper.make_node("Concat", states, [name], axis=0))

    def tensor(name, shape, kind=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, kind, shape)

    inputs = [tensor("x", [case.T, case.B, case.I])]
    if case.lengths:
        inputs.append(tensor("lengths", [case.B], TensorProto.INT32))
    outputs = [
        tensor(last, [case.T, case.B, D, case.H] if D == 2 else [case.T, 1, case.B, case.H]),
    ]
    for name in case.states:
        final = name if case.layers > 1 else f"{name}0"
        outputs.append(tensor(final, [case.layers * D, case.B, case.H]))
    graph = helper.make_graph(nodes, "rnn", inputs, outputs, initializers)
    # These versions are old enough for every onnxruntime that runs beside a current onnx.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()
