"""Settings carry over to wider models: maximal update parametrisation (Yang et al. 2022).

The references are the definitions. With w times the units, an update moves hidden matrices by 1 / w
of what it would, the logits do not grow at the start, and an update changes the logits of a wide
model as much as those of a narrow one.
"""

import json

import pytest
import torch
from lm_helpers import CORPUS, same_weights, small_config, zipf

from rnnfast import lm
from rnnfast.lm import storage
from rnnfast.lm.config import TUNED_WIDTH
from rnnfast.lm.training.runs import prepare, resume

TEXT = lm.corpus.split(zipf(4000))


@pytest.fixture
def narrow(monkeypatch):
    """Let the defaults be those of 16 units, so that the wide models of the tests are small."""
    for level in TUNED_WIDTH:
        monkeypatch.setitem(TUNED_WIDTH, level, 16)


KINDS = [
    {"level": "word"},
    {"level": "word", "nlayers": 2, "cell": "lstm"},
    {"level": "word", "model": "window"},
    {"level": "word", "tied": False, "model": "window", "direct": True},
    {"level": "word", "adaptive": True, "tied": False},
    {"level": "char", "nlayers": 3},
    {"level": "char", "cell": "gru"},
]


def wide(level, nhid, **changes):
    """Return settings without dropout and clipping."""
    tied = level == "word" and changes.get("tied", True)
    sizes = {"nhid": nhid, "emsize": nhid if tied else 8}
    return small_config(level, **{"dropout": 0.0, "clip": 0.0, **sizes, **changes})


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_first_update_is_adams_with_the_rate_of_each_matrix(kind, narrow):
    """Kingma & Ba (2015), algorithm 1: the first step is rate * g / (|g| + eps)."""
    kind = {**kind, "weight_decay": 0.0}
    corpus = CORPUS if kind["level"] == "char" else TEXT
    trainer = prepare(wide(nhid=64, **kind), corpus)
    trainer.model.double()
    before = storage.weights(trainer.model)
    rate = trainer.train_step().lr
    slow = set()
    for name, p in trainer.model.named_parameters():
        full = rate * p.grad / (p.grad.abs() + trainer.config.eps)
        moved = before[name] - p.detach()
        part = float((moved * full).sum() / full.square().sum())
        torch.testing.assert_close(moved, part * full, rtol=1e-3, atol=1e-9)
        assert part == pytest.approx(1, rel=1e-3) or part == pytest.approx(1 / 4, rel=1e-3)
        if part < 0.5:
            slow.add(name)
    names = {name for name, p in trainer.model.named_parameters() if p.dim() > 1}
    inputs = {"rnn.weight_ih_l0", "hidden.weight"}
    assert slow == names - inputs - ({"encoder.weight"} if not trainer.config.tied else set())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_models_that_are_not_wider_are_as_without_it(kind):
    corpus = CORPUS if kind["level"] == "char" else TEXT
    models = []
    for mup in (True, False):
        trainer = prepare(wide(nhid=32, mup=mup, **kind), corpus)
        for _ in range(3):
            trainer.train_step()
        models.append(trainer.model)
    assert same_weights(*models)


@pytest.mark.parametrize("kind", [{"level": "word"}, {"level": "char"}], ids=str)
def test_an_update_changes_the_logits_alike_at_all_widths(kind, narrow):
    corpus = TEXT if kind["level"] == "word" else CORPUS
    changes, starts = {True: [], False: []}, []
    for mup in (True, False):
        for nhid in (64, 256, 1024):
            config = wide(nhid=nhid, mup=mup, lr=0.02, eps=1e-8, **kind)
            trainer = prepare(config, corpus)
            inputs, _ = trainer.batches[0]
            with torch.no_grad():
                before, _ = trainer.model.eval()(inputs)
            for _ in range(3):
                trainer.train_step()
            with torch.no_grad():
                after, _ = trainer.model.eval()(inputs)
            changes[mup].append(float((after - before).std()))
            if mup:
                starts.append(float(before.std()))
    assert starts[0] > 1.5 * starts[1] > 1.5**2 * starts[2]
    assert max(changes[True]) < 2 * min(changes[True])
    assert changes[False][-1] > 3 * changes[False][0]


def test_a_tied_model_gives_its_hidden_units_what_a_narrow_one_gives(narrow):
    """The input of a hidden unit has the same standard deviation, with embeddings a quarter."""
    inputs, sizes = [], []
    for nhid in (16, 64):
        model = prepare(wide("word", nhid), TEXT).model
        inputs.append(float((model.encoder.weight @ model.rnn.weight_ih_l0.t()).detach().std()))
        sizes.append(float(model.encoder.weight.std()))
    assert inputs[1] == pytest.approx(inputs[0], rel=0.1)
    assert sizes[1] == pytest.approx(sizes[0] / 4, rel=0.1)


def test_clip_grows_with_the_norm_of_the_output_weights(narrow):
    trainer = prepare(wide("word", 64, clip=1e-3), TEXT)
    trainer.train_step()
    norm = torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters()])
    assert float(norm) == pytest.approx(2e-3, rel=1e-3)  # 64 units are 4 times 16


def test_sgd_is_as_before(narrow):
    trainer = prepare(wide("word", 64, optimizer="sgd", weight_decay=0.0), TEXT)
    assert trainer.config.relative_width == 1
    before = storage.weights(trainer.model)
    rate = trainer.train_step().lr
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - rate * p.grad, rtol=1e-4, atol=1e-6)


def test_runs_of_earlier_versions_go_on_as_they_began(tmp_path, narrow):
    """Their settings do not have `mup`."""
    config = wide("word", 64, mup=False)
    whole = prepare(config, TEXT)
    whole.run()
    trainer = prepare(config, TEXT, storage.RunFolder(tmp_path / "model"))
    for _ in range(30):
        trainer.train_step()
    trainer.save()
    trainer.folder.close()
    path = tmp_path / "model" / "config.json"
    settings = json.loads(path.read_text())
    del settings["config"]["mup"]
    path.write_text(json.dumps(settings))
    resumed = resume(tmp_path / "model", {}, TEXT)
    assert not resumed.config.mup and resumed.config.relative_width == 1
    resumed.run()
    assert same_weights(whole.model, resumed.model)
    assert lm.load(tmp_path / "model").vocab.level == "word"


def test_default_rate_of_narrow_models():
    def rates(level, **changes):
        sizes = (16, 50, 100, 200, 400, 512, 800)
        configs = [lm.Config.defaults(level, nhid=n, tied=False, **changes) for n in sizes]
        return [config.lr for config in configs]

    expected = [0.016, 0.016, 0.016, 0.01024, 0.00512, 0.004, 0.004]
    assert rates("char") == rates("byte") == pytest.approx(expected)
    assert rates("word") == rates("bpe") == pytest.approx([0.04, 0.04, 0.02, *[0.01] * 4])
    assert rates("word", lr=0.3) == [0.3] * 7
    assert rates("char", optimizer="sgd") == [10.0] * 7
