"""Settings of the estimators: the type of each one says which values it may have.

A setting is a field of a dataclass. Its type, such as `PositiveInteger`, carries a `Constraint`,
which `check_settings` applies when `fit` begins. The constructor checks nothing, as scikit-learn
requires. `features` and `device` have no constraint here, because the code that interprets their
values also checks them.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import numpy as np

from .._common.errors import ArgumentError, UserError
from .network import CELLS, POOLINGS


@dataclass(frozen=True)
class Constraint:
    """The values that a setting may have.

    Args:
        types: The types of the values. A bool is not accepted as a number.
        what: A phrase for the error message. It completes the sentence "NAME must be ...".
        holds: A test for a value that has one of these types.
    """

    types: tuple[type, ...]
    what: str
    holds: Callable[[Any], bool] = lambda value: True

    def check(self, name: str, value: object) -> None:
        """Raise UserError if the setting called `name` may not have this value."""
        of_type = isinstance(value, self.types)
        if isinstance(value, bool):
            of_type = bool in self.types
        if not of_type or not self.holds(value):
            raise ArgumentError(f"{name} must be {self.what}, not {value!r}")


def _one_of(names: tuple[str, ...]) -> Constraint:
    return Constraint((str,), f"one of {', '.join(names)}", lambda value: value in names)


# The types of settings. Each adds its constraint to the type that a type checker sees.
PositiveInteger = Annotated[
    int, Constraint((numbers.Integral,), "a whole number, at least 1", lambda v: v >= 1)
]
Patience = Annotated[
    int | None,
    Constraint(
        (numbers.Integral, type(None)),
        "a whole number, at least 1, or None",
        lambda v: v is None or v >= 1,
    ),
]
Seed = Annotated[
    int, Constraint((numbers.Integral,), "a whole number in [0, 2**63)", lambda v: 0 <= v < 2**63)
]
NonNegativeInteger = Annotated[
    int, Constraint((numbers.Integral,), "a whole number, at least 0", lambda v: v >= 0)
]
Probability = Annotated[float, Constraint((numbers.Real,), "in [0, 1)", lambda v: 0 <= v < 1)]
Fraction = Annotated[float, Constraint((numbers.Real,), "in (0, 1)", lambda v: 0 < v < 1)]
Leak = Annotated[float, Constraint((numbers.Real,), "in (0, 1]", lambda v: 0 < v <= 1)]
PositiveNumber = Annotated[float, Constraint((numbers.Real,), "positive", lambda v: 0 < v < np.inf)]
PositiveOrInfinite = Annotated[float, Constraint((numbers.Real,), "positive", lambda v: v > 0)]
NonNegativeNumber = Annotated[
    float, Constraint((numbers.Real,), "zero or more", lambda v: 0 <= v < np.inf)
]
Flag = Annotated[bool, Constraint((bool, np.bool_), "True or False")]
FileName = Annotated[str | Path | None, Constraint((str, Path, type(None)), "the name of a file")]
Cell = Annotated[str, _one_of(CELLS)]
ReservoirNonlinearity = Annotated[str, _one_of(("tanh", "relu", "sigmoid", "softplus", "linear"))]
FloatType = Annotated[str, _one_of(("float32", "float64"))]
Pooling = Annotated[str, _one_of(POOLINGS)]
ClassWeight = Annotated[
    dict | str | None,
    Constraint(
        (dict, str, type(None)),
        "None, 'balanced' or a dict",
        lambda v: not isinstance(v, str) or v == "balanced",
    ),
]

_Parameters = TypeVar("_Parameters", bound="Parameters")


@dataclass(kw_only=True, eq=False)
class Parameters:
    """The base of all estimators: scikit-learn's methods to read and change the settings."""

    def get_params(self, deep: bool = True) -> dict:
        """Return the settings by name. scikit-learn passes `deep`, which changes nothing here."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def set_params(self: _Parameters, **params: Any) -> _Parameters:
        """Change settings, and return the estimator. The next `fit` uses the new values.

        Raises:
            UserError: There is no setting of this name.
        """
        names = self.get_params()
        for name, value in params.items():
            if name not in names:
                raise UserError(f"{type(self).__name__} has no setting {name!r}")
            setattr(self, name, value)
        return self

    def check_settings(self) -> None:
        """Raise UserError, which names the setting, if a value does not meet its constraint."""
        # The types of the settings that a user's subclass adds may exist for type checkers only.
        ours = next(c for c in type(self).__mro__ if c.__module__.startswith(f"{__package__}."))
        hints = get_type_hints(ours, include_extras=True)
        for name, value in self.get_params().items():
            for constraint in getattr(hints.get(name), "__metadata__", ()):
                constraint.check(name, value)


@dataclass(kw_only=True, eq=False)
class Settings(Parameters):
    """The settings of the estimators over a trained network.

    Args:
        features: The features of a word, for sequences of tokens. The network reads the sum of
            their embeddings. `rnnfast.tasks.inputs.extractor` lists the names: "word", "form",
            "bigram", "shape", "prefixN" and "suffixN". Further columns of a token are features
            without being named here.
        min_count: The number of times that a value of a feature must occur in the training data.
            The network treats rarer values as unknown.
        embedding_size: The size of the embedding of a token.
        embeddings: A file of word vectors of this size (see `rnnfast.embeddings.Vectors.load`), or
            None. The embeddings of the feature "word" or "form", of the first one if both are
            named, start from these vectors. Words that have a vector are known even if they are
            rarer than `min_count` or occur only in the file. A saved model does not need the file.
        hidden_size: The number of hidden units of each layer and direction.
        num_layers: The number of recurrent layers.
        cell: The recurrent layers: "tanh" or "relu" for an Elman RNN, "gru" or "lstm".
        bidirectional: Whether a second RNN reads the sequence backwards.
        dropout: The probability of dropout on embeddings, between layers and before the output.
        word_dropout: The probability that training replaces the value of a feature by "unknown".
        epochs: The largest number of passes over the training data.
        batch_size: The number of sequences in one update.
        lr: The learning rate of AdamW. It falls to 0 along a cosine over the epochs.
        weight_decay: The weight decay of AdamW.
        clip: The largest norm of the gradient.
        patience: The number of epochs without a better validation score after which training
            stops. The weights of the best epoch are kept. None trains for all epochs on all data.
        validation_fraction: The part of the training data that is held out for validation, if
            `patience` is set and `fit` gets no validation data. Each network of an ensemble holds
            out a different part.
        ensemble: The number of networks, which differ in their seeds. Predictions are averaged.
        seed: The seed of weights, dropout, batches and held-out data. The same seed and data give
            the same model.
        device: The torch device of training and prediction.
    """

    features: Sequence[str] = ("word",)
    min_count: PositiveInteger = 1
    embedding_size: PositiveInteger = 64
    embeddings: FileName = None
    hidden_size: PositiveInteger = 64
    num_layers: PositiveInteger = 1
    cell: Cell = "tanh"
    bidirectional: Flag = True
    dropout: Probability = 0.3
    word_dropout: Probability = 0.1
    epochs: PositiveInteger = 10
    batch_size: PositiveInteger = 32
    lr: PositiveNumber = 3e-3
    weight_decay: NonNegativeNumber = 0.01
    clip: PositiveOrInfinite = 1.0
    patience: Patience = 3
    validation_fraction: Fraction = 0.1
    ensemble: PositiveInteger = 1
    seed: Seed = 0
    device: str = "cpu"
