"""Train a FastRNN on a GPU if there is one, and on the CPU otherwise.

The task: remember the first number of a sequence while noise follows, and return it at the end.

    python examples/train_on_gpu.py
"""

import torch
from torch import nn

import rnnfast

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if device.type == "cuda" and rnnfast.build_info()["cuda"]:
    # Turn on rnnfast's CUDA kernels, which are off by default: those that were measured, of commit
    # c54f8eb (2026-11-22), have been rewritten, and the new ones have not run on a GPU. Without
    # this call, cuDNN runs, as for nn.RNN. RNNFAST_CUDA_KERNEL=auto has the same effect.
    rnnfast.set_cuda_kernel("auto")
print(f"device: {device}")


class Memory(nn.Module):
    """A recurrent network whose last state is read out as one number."""

    def __init__(self, hidden_size=64):
        super().__init__()
        self.rnn = rnnfast.FastRNN(1, hidden_size)
        # An orthogonal matrix keeps the gradient alive over many steps: see docs/diagnostics.md.
        nn.init.orthogonal_(self.rnn.weight_hh_l0)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x):
        _, h_n = self.rnn(x)
        return self.head(h_n[-1]).squeeze(-1)


torch.manual_seed(0)
model = Memory().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(1, 401):
    x = 0.1 * torch.randn(20, 64, 1, device=device)  # 20 time steps, 64 sequences
    x[0] = torch.rand(64, 1, device=device)
    loss = nn.functional.mse_loss(model(x), x[0, :, 0])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: error {loss.item() ** 0.5:.3f}")
print("always answering 0.5 would have an error of 0.289")
