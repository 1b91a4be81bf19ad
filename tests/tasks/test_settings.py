"""Settings work as scikit-learn expects, and each one is checked."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rnnfast.lm import UserError
from rnnfast.tasks import SequenceClassifier, SequenceRegressor, SequenceTagger

from .helpers import FILMS, ORDER, QUICK, SIDES, TEXTS

pytestmark = pytest.mark.usefixtures("one_thread")


WRONG = {
    "min_count": [0, 1.5, True, "1", None],
    "embedding_size": [0, 1.5, True, "1", None],
    "embeddings": [5, True, b"v.bin"],
    "hidden_size": [0, 1.5, True, "1", None],
    "num_layers": [0, 1.5, True, "1", None],
    "cell": ["elu", 1, None],
    "bidirectional": [1, "yes", None],
    "dropout": [-0.1, 1.0, np.nan, True, "0", None],
    "word_dropout": [-0.1, 1.0, np.nan, True, "0", None],
    "epochs": [0, 1.5, True, "1", None],
    "batch_size": [0, 1.5, True, "1", None],
    "lr": [0.0, -1.0, np.inf, np.nan, True, "1", None],
    "weight_decay": [-0.1, np.inf, np.nan, True, "1", None],
    "clip": [0.0, -1.0, np.nan, True, "1", None],
    "patience": [0, 1.5, True, "1"],
    "validation_fraction": [0.0, 1.0, np.nan, True, "0.5", None],
    "ensemble": [0, 1.5, True, "1", None],
    "seed": [-1, 2**63, 1.5, True, "1", None],
    "class_weight": ["even", 2.0, ["a"], True],
    "pooling": ["sum", 1, None],
    "every_step": [1, "yes", None],
}
RIGHT = {
    "embeddings": ["v.bin", Path("v.bin"), None],
    "bidirectional": [False, np.True_],
    "hidden_size": [1, np.int64(3)],
    "dropout": [0, 0.5, np.float32(0.25)],
    "clip": [1, np.inf],
    "patience": [1, None],
    "seed": [0, 2**63 - 1],
    "class_weight": [None, "balanced", {"a": 2.0}],
    "every_step": [True, np.False_],
}


@pytest.mark.parametrize("cls", [SequenceClassifier, SequenceRegressor, SequenceTagger])
def test_every_setting_is_checked(cls):
    """`features` and `device` are checked by the code that interprets them."""
    cls().check_settings()
    names = cls().get_params().keys() - {"features", "device"}
    assert names <= WRONG.keys()
    for name in sorted(names):
        for value in WRONG[name]:
            with pytest.raises(UserError, match=f"{name} must be .*, not "):
                cls(**{name: value}).check_settings()
        for value in RIGHT.get(name, []):
            cls(**{name: value}).check_settings()


def test_scikit_learn(vectors):
    model_selection = pytest.importorskip("sklearn.model_selection")
    from sklearn.base import clone, is_classifier, is_regressor

    model = SequenceClassifier(**{**QUICK, "epochs": 20})
    assert is_classifier(model) and is_regressor(SequenceRegressor())
    assert clone(model).get_params() == model.get_params()
    scores = model_selection.cross_val_score(model, TEXTS, ORDER, cv=3)
    assert scores.shape == (3,) and scores.mean() > 0.9
    search = model_selection.GridSearchCV(model, {"hidden_size": np.array([1, 8])}, cv=2)
    search.fit(TEXTS, ORDER)
    assert set(search.cv_results_["param_hidden_size"]) == {1, 8}
    begun = SequenceClassifier(**QUICK, embeddings=vectors)
    assert clone(begun).get_params() == begun.get_params() and clone(begun).embeddings == vectors
    quick = {"epochs": [1], "embeddings": [None, str(vectors)]}
    search = model_selection.GridSearchCV(begun, quick, cv=2)
    assert len(search.fit(FILMS, SIDES).cv_results_["params"]) == 2
    proba = model_selection.cross_val_predict(model, TEXTS, ORDER, cv=2, method="predict_proba")
    assert proba.shape == (120, 2)
    X = [["a", "b"], ["b"], ["a", "a", "b"]] * 8
    y = [["B-A" if word == "a" else "O" for word in words] for words in X]
    tagger = SequenceTagger(**QUICK)
    assert model_selection.cross_val_score(tagger, X, y, cv=2).tolist() == [1.0, 1.0]


def test_a_subclass_may_have_settings_of_types_that_exist_for_type_checkers_only():
    @dataclass(kw_only=True, eq=False)
    class Numbered(SequenceClassifier):
        number: "Unknown" = 5  # noqa: F821 - as if imported under TYPE_CHECKING

    assert Numbered(number=7).get_params()["number"] == 7
    Numbered().check_settings()
    with pytest.raises(UserError, match="epochs must be"):
        Numbered(epochs=0).check_settings()
