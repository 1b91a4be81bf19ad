"""What the tests of the language models share: small texts and small, quick settings."""

import torch

from rnnfast import lm

PERIODIC = "a1b1a2b2\n" * 400  # the last character alone does not tell the next
WORDS = "the cat sat on the mat\nthe dog sat on the cat\n\na cat and a dog\n" * 40

SMALL = {"emsize": 8, "nhid": 16, "batch_size": 4, "bptt": 10, "threads": 1, "lr": 0.01}


def small_config(level="char", **changes):
    tied = {"emsize": 16} if level == "word" else {}
    return lm.Config.defaults(level, **{**SMALL, **tied, "epochs": 2, **changes})


def small_model(level="char", text=None, seed=0, **changes):
    """An untrained model with weights large enough that its probabilities are far from even."""
    vocab = lm.Vocabulary.build(level, [text or (PERIODIC if level == "char" else WORDS)])
    torch.manual_seed(seed)
    model = lm.RNNLM.from_config(small_config(level, **changes), vocab).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.1 * torch.randn_like(parameter))
    return model


def same_weights(a, b):
    a, b = dict(a.named_parameters()), dict(b.named_parameters())
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
