"""`rnnfast.lm.join`: one RNN in place of several, against the mean of their logits."""

import json

import numpy as np
import pytest
import torch
from lm_helpers import PERIODIC, WORDS, small_config, small_model, zipf

from rnnfast import lm
from rnnfast.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


def models(level="char", **changes):
    """Of other sizes and weights each."""
    sizes = ({}, {"nhid": 7, "emsize": 5}, {"nhid": 33})
    return [
        small_model(level, seed=seed, **{"tied": False, **changes, **size})
        for seed, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("level", ["char", "word"])
@pytest.mark.parametrize("changes", [{}, {"nlayers": 3, "cell": "relu"}, {"dropout": 0.5}], ids=str)
def test_logits_are_the_mean(level, changes):
    parts = [model.double() for model in models(level, **changes)]
    joined = lm.join(parts)
    assert joined.rnn.hidden_size == 16 + 7 + 33 and not joined.training
    assert joined.encoder.embedding_dim == sum(part.encoder.embedding_dim for part in parts)
    ids = torch.from_numpy(joined.vocab.encode(PERIODIC if level == "char" else WORDS)[:60])
    for shape in ((60, 1), (12, 5)):
        expected = torch.stack([part(ids.view(shape))[0] for part in parts]).mean(0)
        torch.testing.assert_close(joined(ids.view(shape))[0], expected, rtol=1e-10, atol=1e-12)
    losses = [-part.logprobs(ids.numpy()).mean() for part in parts]
    assert -joined.logprobs(ids.numpy()).mean() < np.mean(losses)


def test_tied_weights_and_the_models_themselves():
    first, second = (small_model("word", tied=True, emsize=16) for _ in range(2))
    before = [p.detach().clone() for p in (*first.parameters(), *second.parameters())]
    joined = lm.join([first, second])
    assert joined.encoder.weight.shape == (len(first.vocab), 32)
    torch.testing.assert_close(joined.decoder.weight[:, :16] * 2, first.decoder.weight)
    after = (*first.parameters(), *second.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_command(tmp_path, capsys):
    parts = [model for model in models() if model.rnn.hidden_size != 7]
    folders = [str(tmp_path / str(i)) for i in range(2)]
    for folder, model in zip(folders, parts, strict=True):
        lm.save(model, small_config(nhid=model.rnn.hidden_size), folder)
    out = str(tmp_path / "joined[b] [")
    assert main(["join", *folders, "--out", out, "--json", "-"]) == 0
    printed, said = capsys.readouterr()
    assert json.loads(printed)["nhid"] == 49 and f"Saved in {out}\n" in said
    loaded, expected = lm.load(out), lm.join(parts)
    assert np.array_equal(
        loaded.logprobs(loaded.vocab.encode("a1b2\n")),
        expected.logprobs(expected.vocab.encode("a1b2\n")),
    )
    assert loaded.generate(length=30, seed=1) == expected.generate(length=30, seed=1)
    assert main(["join", *folders, "--out", out]) == 2
    error = capsys.readouterr().err
    assert "--overwrite" in error and "--resume" not in error  # there is no run to go on with
    assert main(["join", *folders, "--out", out, "--overwrite"]) == 0


def test_what_cannot_be_joined():
    model = small_model()
    for others, named in (
        ([], "two or more, not 1"),
        ([small_model(nlayers=2)], "one kind, not 1 layers of tanh and 2 layers of tanh"),
        ([small_model(cell="relu")], "one kind"),
        ([small_model(cell="lstm")], "tanh or relu RNNs"),
        ([small_model(model="window")], "tanh or relu RNNs"),
        ([small_model("word", zipf(500), adaptive=True, tied=False)], "adaptive"),
        ([lm.RNNLM(lm.Vocabulary.build("char", ["xyz"]), 8, 16)], "same vocabulary"),
    ):
        with pytest.raises(lm.UserError, match=named):
            lm.join([model, *others])
