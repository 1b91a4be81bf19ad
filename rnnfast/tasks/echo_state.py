"""The echo state network: a fixed random reservoir and a linear readout that ridge regression fits.

H. Jaeger, "The 'echo state' approach to analysing and training recurrent neural networks", GMD
report 148, 2001.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import _ops
from .._common.errors import MissingPackage, UserError
from .._common.storage import CONFIG, WEIGHTS, Folder, read_tensors
from .settings import (
    FloatType,
    Leak,
    NonNegativeInteger,
    NonNegativeNumber,
    Parameters,
    PositiveInteger,
    ReservoirNonlinearity,
    Seed,
)
from .storage import new_folder, plain, read_settings, reading, write_estimator

_EchoState = TypeVar("_EchoState", bound="EchoState")

# Up to this number of units, all eigenvalues are as quickly computed as the largest.
DENSE_UNITS = 100


@dataclass(kw_only=True, eq=False)
class EchoState(Parameters):
    """Echo state network, which predicts numbers for each time step of a sequence.

    A reservoir of leaky units with random weights reads the sequence:

        r_t = (1 - leak) r_{t-1} + leak f(W_ih x_t + W_hh r_{t-1} + b)

    Only the readout W_out r_t + c is fitted, by scikit-learn's `Ridge`, so `fit` takes one pass
    over the data. The native kernel for sparse recurrent weights computes the states. A sequence is
    an array of shape (T, I), or (T,) if I is 1. A list of arrays is several sequences.

    Args:
        units: The number of units N of the reservoir.
        spectral_radius: The largest magnitude of the eigenvalues of W_hh. The smaller it is, the
            sooner the reservoir forgets.
        leak: The leak of the units, in (0, 1]. The smaller it is, the more slowly they change.
        input_scaling: W_ih is uniform between plus and minus this number.
        bias_scaling: The bias b is uniform between plus and minus this number.
        connections: The number of units that each unit reads, or all units if there are fewer.
        nonlinearity: f, one of "tanh", "relu", "sigmoid", "softplus" and "linear".
        ridge: The penalty on the squares of W_out.
        washout: The number of steps at the start of each sequence that `fit` and `score` leave out,
            because the states still depend on the state zero before the first step.
        dtype: "float64" or "float32", the type of the weights and the states of the reservoir.
        seed: The seed of the random weights.

    Attributes:
        state_: The state of the reservoir after the last sequence of `fit`, an array (N,).

    Example:
        >>> import numpy as np
        >>> from rnnfast.tasks import EchoState
        >>> wave = np.sin(np.arange(1001) / 5)
        >>> model = EchoState(units=100).fit(wave[:-1], wave[1:])  # predict the next value
        >>> model.score(wave[:-1], wave[1:]) > 0.999
        True
        >>> forecast = model.forecast(50, wave)  # each prediction is the next input
        >>> bool(np.abs(forecast - np.sin(np.arange(1001, 1051) / 5)).max() < 0.01)
        True
    """

    units: PositiveInteger = 500
    spectral_radius: NonNegativeNumber = 0.9
    leak: Leak = 1.0
    input_scaling: NonNegativeNumber = 1.0
    bias_scaling: NonNegativeNumber = 0.0
    connections: PositiveInteger = 10
    nonlinearity: ReservoirNonlinearity = "tanh"
    ridge: NonNegativeNumber = 1e-6
    washout: NonNegativeInteger = 100
    dtype: FloatType = "float64"
    seed: Seed = 0

    _estimator_type = "regressor"
    _weights = None  # type: dict[str, Tensor] | None
    _native = None  # type: Any

    def __sklearn_tags__(self) -> object:
        """Return scikit-learn's description of this estimator, which its tools ask for."""
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type=self._estimator_type,
            target_tags=TargetTags(required=True, multi_output=True),
            input_tags=InputTags(),
            regressor_tags=RegressorTags(),
        )

    # ---- training

    def fit(self: _EchoState, X: Any, y: Any) -> _EchoState:
        """Draw a new reservoir and fit the readout.

        Args:
            X: One sequence, or a list of sequences.
            y: The targets of each step: an array (T, O), or (T,) if O is 1, for each sequence.

        Returns:
            The estimator itself.

        Raises:
            UserError: A setting or an argument cannot be used. The message names it.
            MissingPackage: scikit-learn is not installed. It is a UserError.
        """
        self.check_settings()
        try:
            from sklearn.linear_model import Ridge
        except ImportError as error:
            raise _missing() from error
        inputs, targets = _sequences(X, "X"), _sequences(y, "y")
        _check_pairs(inputs, targets)
        self._weights = None
        self._keep_settings()
        reservoir = self._draw(inputs[0].shape[1])
        self._native = _make_native(reservoir, self.nonlinearity)
        states, last = self._run(inputs)
        kept = self._kept(inputs)
        if not kept.any():
            raise UserError(
                f"X must have a sequence of more than {self.washout} steps: give longer sequences, "
                f"or set washout to a smaller number"
            )
        if self.washout == 0:
            kept = slice(None)  # a view, where a mask would copy
        readout = Ridge(alpha=self.ridge, copy_X=False)
        readout.fit(states[kept].astype(np.float64), np.concatenate(targets)[kept])
        self._weights = {
            **reservoir,
            "readout": torch.tensor(readout.coef_.reshape(targets[0].shape[1], -1)),
            "intercept": torch.tensor(np.reshape(readout.intercept_, -1)),
            "state": last,
        }
        self._flat = np.ndim(y[0] if isinstance(y, (list, tuple)) else y) == 1
        return self

    def _keep_settings(self) -> None:
        """Keep what predictions need of the settings, which may change before the next `fit`."""
        self._fitted_nonlinearity = self.nonlinearity
        self._dtype = getattr(torch, self.dtype)

    def _draw(self, inputs: int) -> dict[str, Tensor]:
        """Return the random weights of a reservoir, for sequences of vectors of size `inputs`."""
        from scipy.sparse import csr_array  # scikit-learn needs SciPy

        rng = np.random.default_rng(int(self.seed))
        N, per_unit = int(self.units), min(int(self.connections), int(self.units))
        starts = np.arange(0, N * per_unit + 1, per_unit)
        columns = np.concatenate([np.sort(rng.choice(N, per_unit, False)) for _ in range(N)])
        values = rng.normal(size=N * per_unit)
        radius = spectral_radius(csr_array((values, columns, starts), shape=(N, N)))
        floats = {
            "weight_ih": rng.uniform(-1, 1, (N, inputs)) * self.input_scaling,
            "bias": rng.uniform(-1, 1, N) * self.bias_scaling,
            "alpha": np.full(N, float(self.leak)),
            "values": values * (self.spectral_radius / radius),
        }
        return {
            "crow_indices": torch.tensor(starts),
            "col_indices": torch.tensor(columns),
            **{name: torch.tensor(value, dtype=self._dtype) for name, value in floats.items()},
        }

    def _kept(self, sequences: list[np.ndarray]) -> Any:
        """Return which steps of all sequences together come after a washout, bool (T,)."""
        return np.concatenate([np.arange(len(one)) >= self.washout for one in sequences])

    def _run(self, sequences: list[np.ndarray]) -> tuple[np.ndarray, Tensor]:
        """Return the states of all steps of all sequences, (T, N), and the last one, (N,).

        The sequences run one after another, with a reset before each except the first.
        """
        x = torch.tensor(np.concatenate(sequences), dtype=self._dtype)[:, None]
        reset = torch.zeros(len(x), 1, dtype=torch.bool)
        reset[np.cumsum([len(one) for one in sequences[:-1]], dtype=int)] = True
        states, last = _ops.run_reservoir(self._native, x, reset=reset)
        return states[:, 0].numpy(), last[0]

    def __getstate__(self) -> dict:
        """Return what pickle and copy keep: all except the native reservoir."""
        return {name: value for name, value in vars(self).items() if name != "_native"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        if self._weights is not None:
            self._native = _make_native(self._weights, self._fitted_nonlinearity)

    # ---- prediction

    def _check_fitted(self) -> dict[str, Tensor]:
        if self._weights is None:
            raise UserError(f"this {type(self).__name__} is not fitted: call fit first")
        return self._weights

    @property
    def state_(self) -> np.ndarray:
        """The state of the reservoir after the last sequence of `fit`, an array (N,)."""
        return self._check_fitted()["state"].numpy()

    def predict(self, X: Any) -> Any:
        """Return the prediction for each step. The reservoir starts each sequence with zeros.

        Args:
            X: One sequence, or a list of sequences.

        Returns:
            An array (T, O), or (T,) if the targets of `fit` had that shape. A list of arrays for a
            list of sequences.

        Raises:
            UserError: The estimator is not fitted, or X does not fit the training data.
        """
        sequences = self._inputs(X)
        states, _ = self._run(sequences)
        ends = np.cumsum([len(one) for one in sequences])
        outputs = np.split(self._read_out(states), ends[:-1])
        return outputs if isinstance(X, (list, tuple)) else outputs[0]

    def score(self, X: Any, y: Any) -> float:
        """Return the coefficient of determination R² of the predictions after the washout.

        It is the mean over the O outputs.

        Args:
            X: One sequence, or a list of sequences.
            y: The targets, as for `fit`.

        Raises:
            UserError: The estimator is not fitted, or the arguments do not fit the training data.
            MissingPackage: scikit-learn is not installed. It is a UserError.
        """
        try:
            from sklearn.metrics import r2_score
        except ImportError as error:
            raise _missing() from error
        inputs, targets = self._inputs(X), _sequences(y, "y")
        _check_pairs(inputs, targets, len(self._check_fitted()["intercept"]))
        kept = self._kept(inputs)
        if not kept.any():
            raise UserError(f"X must have a sequence of more than {self.washout} steps")
        predicted = self._read_out(self._run(inputs)[0]).reshape(len(kept), -1)
        return float(r2_score(np.concatenate(targets)[kept], predicted[kept]))

    def forecast(self, steps: int, X: Any = None) -> np.ndarray:
        """Continue a sequence: each prediction is the input of the next step.

        This needs a network that was fitted to predict the next input.

        Args:
            steps: The number of predictions, at least 0.
            X: The sequence that the predictions continue. By default it is the last sequence of
                `fit`, without its last target.

        Returns:
            An array (steps, I), or (steps,) if the targets of `fit` had that shape.

        Raises:
            UserError: The estimator is not fitted, X does not fit the training data, or there are
                not as many outputs as inputs.
        """
        weights = self._check_fitted()
        inputs, outputs = weights["weight_ih"].shape[1], len(weights["intercept"])
        if inputs != outputs:
            raise UserError(
                f"forecast needs as many outputs as inputs, and there are {outputs} and {inputs}: "
                f"fit the network to predict the next input"
            )
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 0:
            raise UserError(f"steps must be a whole number, at least 0, not {steps!r}")
        state = weights["state"] if X is None else self._run(self._inputs(X)[-1:])[1]
        W, c = weights["readout"], weights["intercept"]
        found = torch.empty(int(steps), outputs, dtype=W.dtype)
        for t in range(int(steps)):
            found[t] = torch.addmv(c, W, state.to(W.dtype))
            _, last = _ops.run_reservoir(
                self._native, found[t].to(state.dtype)[None, None], state[None]
            )
            state = last[0]
        return found[:, 0].numpy() if self._flat else found.numpy()

    def _inputs(self, X: Any) -> list[np.ndarray]:
        """Return the sequences of X. Raise UserError if they do not fit the training data."""
        inputs = self._check_fitted()["weight_ih"].shape[1]
        sequences = _sequences(X, "X")
        for sequence in sequences:
            if sequence.shape[1] != inputs:
                raise UserError(
                    f"X must have {inputs} numbers for each step, as in training, not "
                    f"{sequence.shape[1]}"
                )
        return sequences

    def _read_out(self, states: np.ndarray) -> np.ndarray:
        weights = self._check_fitted()
        outputs = states @ weights["readout"].numpy().T + weights["intercept"].numpy()
        return outputs[:, 0] if self._flat else outputs

    # ---- on disk

    def save(self, path: str | Path | Folder, overwrite: bool = False) -> None:
        """Write a folder of safetensors and JSON files that `load` reads.

        Args:
            path: The name of the folder.
            overwrite: Whether a model that the folder holds is replaced.

        Raises:
            UserError: The estimator is not fitted, the folder holds a model and `overwrite` is
                false, or it holds files that are not a model's.
        """
        weights = self._check_fitted()
        folder = path if isinstance(path, Folder) else new_folder(path, overwrite)
        params = {name: plain(value) for name, value in self.get_params().items()}
        settings = {"estimator": "EchoState", "params": params, "flat": self._flat}
        write_estimator(folder, settings, [], weights)

    @classmethod
    def load(cls: type[_EchoState], path: str | Path) -> _EchoState:
        """Return the estimator that `save` wrote to a folder.

        Args:
            path: The name of the folder.

        Raises:
            UserError: A file is missing or corrupted, or the folder holds another estimator.
        """
        path = Path(path)
        settings = read_settings(path)
        if settings["estimator"] != "EchoState":
            raise UserError(f"{path} holds a {settings['estimator']}, not an EchoState")
        with reading(path / CONFIG):
            estimator = cls(**settings["params"])
            estimator.check_settings()
            estimator._flat = settings["flat"]
        estimator._keep_settings()
        weights, _ = read_tensors(path / WEIGHTS)
        with reading(path / WEIGHTS):
            try:
                estimator._native = _make_native(weights, estimator.nonlinearity)
                torch.addmm(
                    weights["intercept"], weights["state"][None].double(), weights["readout"].T
                )
            except RuntimeError as error:
                raise ValueError(str(error)) from error
        estimator._weights = weights
        return estimator


def spectral_radius(w: Any) -> float:
    """Return the largest magnitude of the eigenvalues of a sparse matrix of SciPy.

    Example:
        >>> from scipy.sparse import csr_array
        >>> round(spectral_radius(csr_array([[0.0, 2.0], [-2.0, 0.0]])), 6)
        2.0
    """
    from scipy.sparse.linalg import ArpackNoConvergence, eigs

    if w.shape[0] > DENSE_UNITS:
        try:
            start = np.ones(w.shape[0])  # by default it is random
            return float(abs(eigs(w, k=1, v0=start, return_eigenvectors=False)).max())
        except ArpackNoConvergence:
            pass
    return float(abs(np.linalg.eigvals(w.toarray())).max())


def _make_native(weights: dict[str, Tensor], nonlinearity: str) -> Any:
    """Return the native reservoir with these weights."""
    w_hh = tuple(weights[name] for name in ("crow_indices", "col_indices", "values"))
    w_ih, bias, alpha = (weights[name] for name in ("weight_ih", "bias", "alpha"))
    leak = _ops.LeakyDescriptor(False, False, nonlinearity)
    return _ops.reservoir(w_ih, w_hh, bias, alpha, leak)


def _sequences(data: Any, name: str) -> list[np.ndarray]:
    """Return one sequence, or those of a list, as float64 arrays (T, I) of the same I."""
    several = isinstance(data, (list, tuple))
    if several and len(data) == 0:
        raise UserError(f"{name} must have at least one sequence")
    found: list[np.ndarray] = []
    for i, sequence in enumerate(data if several else [data]):
        where = f"{name}[{i}]" if several else name
        try:
            array = np.asarray(sequence, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{where} must be an array of numbers, (T, I) or (T,)") from error
        if array.ndim == 1:
            array = array[:, None]
        if array.ndim != 2 or 0 in array.shape or not np.isfinite(array).all():
            raise UserError(
                f"{where} must be finite numbers of shape (T, I) or (T,) with T at least 1, not of "
                f"shape {np.shape(sequence)}. A list is read as several sequences"
            )
        if array.shape[1] != (found or [array])[0].shape[1]:
            raise UserError(f"{name} must have as many numbers for each step in all sequences")
        found.append(array)
    return found


def _check_pairs(X: Sequence, y: Sequence, outputs: int | None = None) -> None:
    """Raise UserError unless there is a target for each step of each sequence."""
    if [len(one) for one in X] != [len(one) for one in y]:
        raise UserError("y must have a target for each step of each sequence of X")
    if outputs is not None and y[0].shape[1] != outputs:
        raise UserError(f"y must have {outputs} numbers for each step, as in training")


def _missing() -> MissingPackage:
    return MissingPackage(
        "an echo state network needs scikit-learn: pip install 'rnnfast[echo-state]'"
    )
