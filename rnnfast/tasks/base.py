"""The base class of the estimators, in scikit-learn's manner."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from .._common.errors import UserError
from .._common.runtime import check_device
from .._common.storage import CONFIG, VOCAB, Folder
from .inputs import Numbers, Tokens, as_list, check_pairs, is_numeric, load_vectors, steps
from .network import Embedding, SequenceNetwork, add_words, start_from_vectors
from .settings import Settings
from .storage import (
    new_folder,
    params_from_json,
    params_to_json,
    read_networks,
    read_settings,
    read_tables,
    reading,
    write_estimator,
)
from .training import train_network

_Estimator = TypeVar("_Estimator", bound="SequenceEstimator")

PREDICT_STEPS = 1 << 14  # the largest number of time steps in a batch of predictions


@dataclass(kw_only=True, eq=False)
class SequenceEstimator(Settings, ABC):
    """Base class of the estimators: training, prediction and the model on disk.

    Shapes are given for N sequences of T time steps, where T differs from sequence to sequence.

    Attributes:
        history_: One dict for each epoch, with the keys `network`, `epoch`, `train_loss`,
            `valid_score` (None without validation data) and `seconds` since `fit` began.
        coverage_: How many words of the training data have a vector, an
            `rnnfast.embeddings.vectors.Coverage`. None without `embeddings` and after `load`.
    """

    _subclasses: ClassVar[dict[str, type[SequenceEstimator]]] = {}  # by name, for `load`
    # A dataclass makes a setting of each name with an annotation, so these have none.
    _estimator_type = None  # type: str | None # what scikit-learn calls this kind of estimator
    _networks = None
    coverage_ = None
    pooling = None  # type: str | None # a setting of the estimators with one target for a sequence

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A user's class may have the name of the class that it extends, which keeps its place.
        SequenceEstimator._subclasses.setdefault(cls.__name__, cls)

    def __sklearn_tags__(self) -> object:
        """Return scikit-learn's description of this estimator, which its tools ask for."""
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        kind = self._estimator_type
        return Tags(
            estimator_type=kind,
            target_tags=TargetTags(required=True),
            input_tags=InputTags(two_d_array=False, string=True),
            classifier_tags=ClassifierTags() if kind == "classifier" else None,
            regressor_tags=RegressorTags() if kind == "regressor" else None,
        )

    # ---- what a subclass defines

    @property
    @abstractmethod
    def _every_step(self) -> bool:
        """Whether there is one target for each time step, not one for the sequence."""

    @property
    @abstractmethod
    def metric(self) -> str:
        """The name of the metric that `score` returns."""

    @property
    @abstractmethod
    def _outputs(self) -> int:
        """The number of outputs O of the network, for a sequence or a time step."""

    @abstractmethod
    def _fit_targets(self, y: list) -> None:
        """Learn from the training data what the targets are, for example their classes."""

    @abstractmethod
    def _encode_target(self, y: Any, where: str) -> torch.Tensor:
        """Return the target of one sequence as a tensor for `_losses`.

        Its shape is (T,) if there is a target for each time step. Otherwise it is () for a class
        and (K,) for numbers. `where` names the target in error messages.
        """

    @abstractmethod
    def _losses(
        self, outputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses (N,) for outputs (N, O), and the weights (N,) of these losses."""

    @abstractmethod
    def _activate(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return what an ensemble averages, float64 (N, K): probabilities or numbers."""

    @abstractmethod
    def _decode(self, activated: np.ndarray) -> Any:
        """Return the prediction for one sequence from its activated outputs, (K,) or (T, K)."""

    @abstractmethod
    def _check_targets(self, y: list, name: str) -> None:
        """Raise UserError for targets that cannot be compared with predictions."""

    @abstractmethod
    def _scores(self, y: Sequence, predicted: Sequence) -> dict[str, float]:
        """Return each metric for targets and predictions of the same sequences."""

    @abstractmethod
    def _targets_to_json(self) -> dict:
        """Return what `_fit_targets` has learned, for JSON."""

    @abstractmethod
    def _targets_from_json(self, data: dict) -> None:
        """Restore what `_targets_to_json` returned."""

    # ---- training

    def fit(
        self: _Estimator,
        X: Sequence,
        y: Sequence,
        valid: tuple[Sequence, Sequence] | None = None,
        progress: Callable[[dict], None] | None = None,
    ) -> _Estimator:
        """Train new networks on sequences and their targets.

        Args:
            X: N sequences, all of one kind: texts, which are split at ASCII blanks, lists of words,
                lists of tuples of strings (a word and further columns), or arrays or lists of
                numbers of shape (T, I) or (T,).
            y: N targets. The class of the estimator says of which kind.
            valid: Sequences and targets for validation, as a pair.
            progress: A function that is called with each new entry of `history_`.

        Returns:
            The estimator itself.

        Raises:
            UserError: A setting or an argument cannot be used. The message names it. UserError is
                a ValueError.
        """
        self.check_settings()
        check_device(self.device)
        self._networks = None  # if this training fails, the old networks do not fit the new inputs
        X, y = check_pairs(X, y, self._every_step)
        vectors = tokens = None
        if self.embeddings is not None:
            vectors = load_vectors(self.embeddings, self.embedding_size, self.features, X)
        if is_numeric(X):
            self._inputs: Numbers | Tokens = Numbers.fit(X)
        else:
            known = () if vectors is None else vectors.index
            self._inputs = tokens = Tokens.fit(X, self.features, self.min_count, known)
        self.coverage_ = None
        if vectors is not None and tokens is not None:
            _, *words = tokens.words
            self.coverage_ = vectors.coverage(words)
        self._fit_targets(y)
        if valid is not None:
            valid = self._encode_valid(valid)
        elif self.patience is not None and len(X) < 2:
            raise UserError(
                "X must have at least 2 sequences, because one is held out for validation: give "
                "more, give valid, or set patience to None"
            )
        targets = [self._encode_target(target, f"y[{i}]") for i, target in enumerate(y)]
        data = list(zip(self._inputs.encode(X), targets, strict=True))
        networks: list[SequenceNetwork] = []
        scales: list[float] = []
        self.history_: list[dict] = []
        began = time.monotonic()
        device = torch.device(self.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for k in range(self.ensemble):
                torch.manual_seed(int(self.seed) + k)
                train, held_out = data, valid
                if self.patience is not None and valid is None:
                    train, held_out = self._hold_out(data, y)

                def report(record: dict, network: int = k) -> None:
                    record = {"network": network, **record, "seconds": time.monotonic() - began}
                    self.history_.append(record)
                    if progress:
                        progress(record)

                network = self._network()
                if vectors is not None and tokens is not None:
                    scales.append(start_from_vectors(network, tokens, vectors))
                network.to(self.device)
                self._train(network, train, held_out, report)
                networks.append(network)
        if vectors is not None and tokens is not None:
            self._inputs = add_words(vectors, tokens, networks, scales)
        self._networks = networks
        return self

    def _encode_valid(self, valid: tuple[Sequence, Sequence]) -> tuple[list[torch.Tensor], list]:
        """Return encoded sequences and targets. Raise UserError if they do not fit X and y."""
        if not isinstance(valid, (tuple, list)) or len(valid) != 2:
            raise UserError("valid must be a pair of sequences and targets")
        X, y = check_pairs(valid[0], valid[1], self._every_step, "valid[0]", "valid[1]")
        self._check_targets(y, "valid[1]")
        return self._inputs.encode(X, "valid[0]"), y

    def _hold_out(self, data: list, y: list) -> tuple[list, tuple[list, list]]:
        """Split the training data at random: return what is left, and encoded validation data."""
        order = torch.randperm(len(data)).tolist()
        cut = min(max(1, round(self.validation_fraction * len(data))), len(data) - 1)
        held_out = [data[i][0] for i in order[:cut]], [y[i] for i in order[:cut]]
        return [data[i] for i in order[cut:]], held_out

    def _network(self) -> SequenceNetwork:
        """Return a network for these settings and inputs, with new random weights."""
        inputs = self._inputs
        if isinstance(inputs, Tokens):
            input_size = self.embedding_size
            embedding = Embedding(inputs.rows, inputs.unknown, input_size, self.word_dropout)
        else:
            input_size, embedding = inputs.size, None
        return SequenceNetwork(
            embedding,
            input_size,
            int(self.hidden_size),  # a grid search over a NumPy array gives an int64 of NumPy
            int(self.num_layers),
            bool(self.bidirectional),
            self.cell,
            self.dropout,
            None if self._every_step else self.pooling,
            self._outputs,
        )

    def _train(
        self,
        network: SequenceNetwork,
        data: list[tuple[torch.Tensor, torch.Tensor]],
        valid: tuple[list[torch.Tensor], list] | None,
        report: Callable[[dict], None],
    ) -> None:
        train_network(
            network,
            data,
            losses=self._losses,
            validate=None if valid is None else partial(self._score_of, network, *valid),
            report=report,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            clip=self.clip,
            patience=self.patience,
        )

    def _score_of(self, network: SequenceNetwork, encoded: list[torch.Tensor], y: list) -> float:
        """Return the score of one network on encoded sequences and their targets."""
        activated = self._predict_activated(encoded, [network])
        return self._scores(y, [self._decode(one) for one in activated])[self.metric]

    # ---- prediction

    @property
    def columns_(self) -> int | None:
        """The number of columns of a token, one of which is the word, or None for numbers."""
        self._check_fitted()
        return None if isinstance(self._inputs, Numbers) else self._inputs.columns

    def predict(self, X: Sequence) -> np.ndarray | list[np.ndarray]:
        """Return the prediction for each sequence.

        Args:
            X: N sequences of the same kind as those of `fit`.

        Returns:
            An array (N,), or (N, K) for K numbers. If there is a target for each time step, a list
            of N arrays (T,).

        Raises:
            UserError: The estimator is not fitted, or the sequences are of another kind.
        """
        predicted = [self._decode(activated) for activated in self._activated(X)]
        return predicted if self._every_step else np.array(predicted)

    def score(self, X: Sequence, y: Sequence) -> float:
        """Return how good the predictions are: the value of `metric`. Larger is better.

        Args:
            X: N sequences of the same kind as those of `fit`.
            y: N targets of the same kind as those of `fit`.

        Raises:
            UserError: The estimator is not fitted, or the arguments do not fit the training data.
        """
        return self.scores(X, y)[self.metric]

    def scores(self, X: Sequence, y: Sequence) -> dict[str, float]:
        """Return how good the predictions are by each metric, `metric` among them.

        Args:
            X: N sequences of the same kind as those of `fit`.
            y: N targets of the same kind as those of `fit`.

        Raises:
            UserError: The estimator is not fitted, or the arguments do not fit the training data.
        """
        X, y = check_pairs(X, y, self._every_step)
        predicted = list(self.predict(X))
        self._check_targets(y, "y")
        return self._scores(y, predicted)

    def _activated(self, X: Sequence) -> list[np.ndarray]:
        """Return the activated outputs for each sequence, float64 (K,) or (T, K)."""
        networks = self._check_fitted()
        X = as_list(X)
        if not X:
            return []
        if is_numeric(X) != isinstance(self._inputs, Numbers):
            raise UserError("X must be sequences of the kind that fit got, tokens or numbers")
        activated = self._predict_activated(self._inputs.encode(X), networks)
        if not self._every_step:
            return activated
        # A sequence without tokens is encoded as one unknown token, which has an output.
        return [part[: steps(x)] for part, x in zip(activated, X, strict=True)]

    @torch.inference_mode()
    def _predict_activated(self, encoded: list[torch.Tensor], networks: list) -> list[np.ndarray]:
        """Return the mean of the networks' activated outputs for each encoded sequence."""
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        results: list = [None] * len(encoded)
        while order:
            rows = max(1, PREDICT_STEPS // max(1, len(encoded[order[-1]])))
            batch, order = order[-rows:], order[:-rows]
            x = [encoded[i] for i in batch]
            outputs = [self._activate(network.run(x)).double() for network in networks]
            mean = sum(outputs[1:], outputs[0]) / len(networks)
            parts = mean.split([len(one) for one in x]) if self._every_step else mean
            for i, part in zip(batch, parts, strict=True):
                results[i] = part.cpu().numpy()
        return results

    def _check_fitted(self) -> list[SequenceNetwork]:
        """Return the networks. Raise UserError if there are none."""
        if self._networks is None:
            raise UserError(f"this {type(self).__name__} is not fitted: call fit first")
        return self._networks

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
        networks, inputs = self._check_fitted(), self._inputs
        folder = path if isinstance(path, Folder) else new_folder(path, overwrite)
        settings = {
            "estimator": type(self).__name__,
            "params": params_to_json(self.get_params()),
            "input_size": inputs.size if isinstance(inputs, Numbers) else None,
            "targets": self._targets_to_json(),
            "history": self.history_,
        }
        tables = inputs.tables if isinstance(inputs, Tokens) else []
        tensors = {
            f"{k}.{name}": value
            for k, network in enumerate(networks)
            for name, value in network.state_dict().items()
        }
        write_estimator(folder, settings, tables, tensors)

    @classmethod
    def load(cls: type[_Estimator], path: str | Path, device: str = "cpu") -> _Estimator:
        """Return the estimator that `save` wrote to a folder.

        Args:
            path: The name of the folder.
            device: The torch device of the estimator.

        Raises:
            UserError: The device is not available, a file is missing or corrupted or does not
                match the other files, or the folder holds an estimator of another class.
        """
        path = Path(path)
        check_device(device)
        settings = read_settings(path)
        classes: dict[str, type[SequenceEstimator]]
        classes, name = {**cls._subclasses, cls.__name__: cls}, str(settings["estimator"])
        if name not in classes:
            raise UserError(
                f"{path / CONFIG} is of the class {name}, not of {cls.__name__}: use "
                f"rnnfast.tasks.load, which loads all classes that this version has"
            )
        with reading(path / CONFIG):
            found = classes[name]
            estimator = found(**{**params_from_json(settings["params"]), "device": device})
            estimator.check_settings()
            estimator.history_ = settings["history"]
            estimator._targets_from_json(settings["targets"])
            size = settings["input_size"]
        if not isinstance(estimator, cls):
            raise UserError(f"{path} holds a {found.__name__}, not a {cls.__name__}")
        if size is None:
            tables = read_tables(path)
            with reading(path / VOCAB):
                estimator._inputs = Tokens(estimator.features, tables)
        else:
            estimator._inputs = Numbers(size)
        estimator._networks = read_networks(path, estimator._network, estimator.ensemble, device)
        return estimator
