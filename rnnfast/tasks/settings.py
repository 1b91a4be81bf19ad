"""Settings of an estimator: each one's annotation says which values it may have.

A setting is a field of a dataclass, and its type is one of the names below:

    class Estimator(Settings):
        hidden_size: PositiveInteger = 64
        dropout: Probability = 0.3

`check_settings` then raises an error for `Estimator(hidden_size=0)`. The constructor does not, as
scikit-learn requires: a setting is checked when it is used. `features` and `device` have no
constraint here, because the code that interprets their values also checks them.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import numpy as np

from .._common.errors import UserError
from .network import NONLINEARITIES, POOLINGS


@dataclass(frozen=True)
class Constraint:
    """The values that a setting may have.

    Args:
        types: The types of the values. A bool is an integer only for Python, not here.
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
            raise UserError(f"{name} must be {self.what}, not {value!r}")


def _one_of(names: tuple[str, ...]) -> Constraint:
    return Constraint((str,), f"one of {', '.join(names)}", lambda value: value in names)


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
Seed = Annotated[int, Constraint((numbers.Integral,), "in [0, 2**63)", lambda v: 0 <= v < 2**63)]
Probability = Annotated[float, Constraint((numbers.Real,), "in [0, 1)", lambda v: 0 <= v < 1)]
Fraction = Annotated[float, Constraint((numbers.Real,), "in (0, 1)", lambda v: 0 < v < 1)]
PositiveNumber = Annotated[float, Constraint((numbers.Real,), "positive", lambda v: 0 < v < np.inf)]
PositiveOrInfinite = Annotated[float, Constraint((numbers.Real,), "positive", lambda v: v > 0)]
NonNegativeNumber = Annotated[
    float, Constraint((numbers.Real,), "zero or more", lambda v: 0 <= v < np.inf)
]
Flag = Annotated[bool, Constraint((bool, np.bool_), "True or False")]
FileName = Annotated[str | Path | None, Constraint((str, Path, type(None)), "the name of a file")]
Nonlinearity = Annotated[str, _one_of(NONLINEARITIES)]
Pooling = Annotated[str, _one_of(POOLINGS)]
ClassWeight = Annotated[
    dict | str | None,
    Constraint(
        (dict, str, type(None)),
        "None, 'balanced' or a dict",
        lambda v: not isinstance(v, str) or v == "balanced",
    ),
]


class Settings:
    """The settings of a dataclass in scikit-learn's manner: they can be read, changed, checked."""

    def get_params(self, deep: bool = True) -> dict:
        """Return the settings by name. `deep` is there for scikit-learn and changes nothing."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def set_params(self, **params) -> Settings:
        """Change settings, which the next `fit` uses, and return the estimator.

        Raises UserError for a name that is no setting.
        """
        names = self.get_params()
        for name, value in params.items():
            if name not in names:
                raise UserError(f"{type(self).__name__} has no setting {name!r}")
            setattr(self, name, value)
        return self

    def check_settings(self) -> None:
        """Raise UserError, which names the setting, for a value that its annotation forbids."""
        hints = get_type_hints(type(self), include_extras=True)
        for name, value in self.get_params().items():
            for constraint in getattr(hints[name], "__metadata__", ()):
                constraint.check(name, value)
