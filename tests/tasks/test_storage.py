"""Estimators on disk: what is saved is loaded, and damage is reported."""

import json
import shutil

import numpy as np
import pytest
import torch

from rnnfast import lm, tasks
from rnnfast.lm import UserError
from rnnfast.tasks import SequenceClassifier, SequenceRegressor, SequenceTagger

from .helpers import FROZEN, QUICK, TEXTS

pytestmark = pytest.mark.usefixtures("one_thread")


def estimators(classifier):
    numbers = [np.array([[0.0, 1.0]]), np.array([[2.0, 1.0], [1.0, 0.0]])]
    quick = {**QUICK, "epochs": 1}
    tags = [["B-A", "O"], ["O", "O", "B-A"]]
    words = [[("a", "X"), ("b", "Y")], [("c", "X"), ("a", "Y"), ("d", "X")]]
    return [
        (classifier, TEXTS),
        (SequenceTagger(**quick, class_weight={"O": 0.5}, ensemble=2).fit(words, tags), words),
        (SequenceRegressor(**quick).fit(numbers, [1.0, 4.0]), numbers),
        (
            SequenceClassifier(**quick, num_layers=2, cell="lstm").fit(numbers, [False, True]),
            numbers,
        ),
    ]


def test_save_and_load(classifier, tmp_path):
    for k, (model, X) in enumerate(estimators(classifier)):
        model.save(tmp_path / str(k))
        torch.manual_seed(0)
        before = torch.get_rng_state()
        loaded = tasks.load(tmp_path / str(k))
        assert torch.equal(torch.get_rng_state(), before)
        assert type(loaded) is type(model) and loaded.get_params() == model.get_params()
        assert loaded.history_ == model.history_
        for ours, theirs in zip(loaded.predict(X), model.predict(X), strict=True):
            assert np.array_equal(ours, theirs) and np.asarray(ours).dtype == theirs.dtype
        assert loaded.fit(X[:40], loaded.predict(X[:40])) is loaded
        other = SequenceTagger if type(model) is not SequenceTagger else SequenceRegressor
        with pytest.raises(UserError, match=f"holds a {type(model).__name__}, not a"):
            other.load(tmp_path / str(k))


def test_a_model_of_version_0_1_is_loaded(classifier, tmp_path):
    classifier.save(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["params"]["nonlinearity"] = config["params"].pop("cell")
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    assert tasks.load(tmp_path / "m").get_params() == classifier.get_params()


def test_a_subclass_of_the_same_name_does_not_take_the_place_of_its_base(classifier, tmp_path):
    ours = type("SequenceClassifier", (SequenceClassifier,), {})
    classifier.save(tmp_path / "m")
    assert type(tasks.load(tmp_path / "m")) is SequenceClassifier
    assert type(SequenceClassifier.load(tmp_path / "m")) is SequenceClassifier
    assert type(ours.load(tmp_path / "m")) is ours


def test_the_scale_of_a_regressor_is_loaded_exactly(tmp_path):
    model = SequenceRegressor(**FROZEN).fit([np.ones(2), np.zeros(3)], [0.1, 1 / 3])
    model.save(tmp_path / "m")
    loaded = tasks.load(tmp_path / "m")
    assert torch.equal(loaded._mean, model._mean) and torch.equal(loaded._std, model._std)


def test_save_does_not_overwrite_unasked(classifier, tmp_path):
    classifier.save(tmp_path / "m")
    with pytest.raises(UserError, match="holds a model"):
        classifier.save(tmp_path / "m")
    classifier.save(tmp_path / "m", overwrite=True)


def test_save_replaces_the_run_of_a_language_model(classifier, tmp_path):
    config = lm.Config.defaults("char", nhid=4, emsize=4, batch_size=2, bptt=5, epochs=1)
    lm.train(config, lm.corpus.split("abcd\n" * 20), tmp_path / "m")
    assert (tmp_path / "m" / "checkpoint.safetensors").exists()
    classifier.save(tmp_path / "m", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "config.json",
        "model.safetensors",
        "vocab.json",
    ]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"letter\.txt"):
        classifier.save(tmp_path / "other", overwrite=True)
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["letter.txt"]


def test_what_is_wrong_with_a_folder(classifier, tmp_path):
    good = tmp_path / "good"
    classifier.save(good)

    def broken(name, change):
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        change(folder / name)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            tasks.load(folder)

    def edit(*path_and_value):
        *path, last, value = path_and_value

        def change(file):
            data = json.loads(file.read_text())
            inner = data
            for key in path:
                inner = inner[key]
            inner[last] = value
            file.write_text(json.dumps(data))

        return change

    for name in ("config.json", "vocab.json", "model.safetensors"):
        broken(name, lambda file: file.unlink())
        broken(name, lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]))
    broken("config.json", edit("format", 99))
    broken("config.json", edit("estimator", "Forest"))
    broken("config.json", edit("params", "hidden_size", -1))
    broken("config.json", edit("params", "hidden_size", 9))
    broken("config.json", edit("params", "shoe_size", 9))
    broken("config.json", edit("targets", {}))
    broken("vocab.json", edit("tables", [["", "a"]]))
    broken("vocab.json", edit("tables", [[1]]))
    with pytest.raises(UserError, match="holds a SequenceClassifier, not a language model"):
        lm.load(good)
    with pytest.raises(UserError, match="there is no model folder"):
        tasks.load(tmp_path / "none")
    with pytest.raises(UserError, match="device 'gpu' is not available"):
        tasks.load(good, "gpu")
    (good / "config.json").write_text('{"format": 1, "config": {}}')
    with pytest.raises(UserError, match="holds no classifier"):
        tasks.load(good)


def test_settings_of_numpy_and_torch_are_saved(tmp_path):
    settings = {**FROZEN, "hidden_size": np.int64(3), "device": torch.device("cpu")}
    model = SequenceClassifier(**settings, class_weight={np.int64(1): np.float32(2)})
    model.fit(["a", "b"], np.array([0, 1])).save(tmp_path / "m")
    assert tasks.load(tmp_path / "m").class_weight == {1: 2.0}
