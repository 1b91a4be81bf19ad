"""Export a model with a FastRNN to ONNX, and run it without PyTorch.

python -m pip install onnx onnxscript onnxruntime
python examples/export_onnx.py
"""

import onnxruntime
import torch
from torch import nn

from rnnfast import FastRNN
from rnnfast.onnx import custom_translation_table


class Model(nn.Module):
    """Predict three numbers from a sequence: the last state of an RNN and a linear layer."""

    def __init__(self):
        super().__init__()
        self.rnn = FastRNN(8, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        _, h_n = self.rnn(x)
        return self.head(h_n[-1])


torch.manual_seed(0)
model = Model().eval()

# The table tells the exporter to write a FastRNN as ONNX's own RNN operator. The dynamic shapes
# let the exported model take any number of time steps and rows.
torch.onnx.export(
    model,
    (torch.randn(5, 2, 8),),
    "model.onnx",
    dynamo=True,
    dynamic_shapes={"x": {0: "T", 1: "B"}},
    custom_translation_table=custom_translation_table,
)

session = onnxruntime.InferenceSession("model.onnx")
x = torch.randn(40, 7, 8)  # more steps and rows than the example had
(predicted,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
difference = (model(x).detach() - torch.from_numpy(predicted)).abs().max().item()
print(f"ONNX Runtime returns {predicted.shape}, largest difference to PyTorch {difference:.1e}")
