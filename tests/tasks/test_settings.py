"""Settings work as scikit-learn expects, and each one is checked."""

import numpy as np
import pytest

from rnnfast.tasks import SequenceClassifier, SequenceRegressor, SequenceTagger

from .helpers import FILMS, ORDER, QUICK, SIDES, TEXTS

pytestmark = pytest.mark.usefixtures("one_thread")


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
