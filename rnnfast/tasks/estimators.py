"""Estimators of sequences, in scikit-learn's manner: classifier, regressor and tagger."""

from __future__ import annotations

import contextlib
import numbers
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .._common.errors import UserError
from .._common.files import corrupted, read_json, to_json, write_atomic
from .._common.parameters import parameter_groups
from .._common.runtime import check_device
from .._common.storage import CONFIG, VOCAB, WEIGHTS, Folder, read_tensors
from .._version import __version__
from ..embeddings import Vectors
from .inputs import WORDS, Numbers, Tokens, as_list, is_numeric, steps
from .metrics import chunk_f1, is_iob
from .network import POOLINGS, Embedding, SequenceNetwork

FORMAT = 1
POOL = 32  # batches whose sequences are sorted by length together, so that little is padding
PREDICT_STEPS = 1 << 14  # time steps of a batch in prediction


@dataclass(kw_only=True, eq=False)
class SequenceEstimator:
    """What the three estimators share: settings, training, prediction, and the model on disk.

    X is a list of sequences, all of one kind: texts (cut at whitespace), lists of words, lists of
    tuples of strings (a word and other columns), or arrays of numbers, (T, I), T differing.

    Args:
        features: of a word, each embedded, for sequences of tokens: "word", "form", "bigram",
            "shape", "prefixN", "suffixN" (`rnnfast.tasks.inputs.extractor`). Other columns are
            features by themselves.
        min_count: values of a feature that are rarer in the training data count as unknown.
        embedding_size: of a token; its features' embeddings are added up.
        embeddings: file of vectors, of that size, which the embeddings of words begin with
            (`rnnfast.embeddings.Vectors.load`), those of the feature "word" or "form", the first
            if both are there. A word that has a vector and is rarer than `min_count` keeps it, and
            so does one that only the file has, for the texts to come, once training is over. A
            saved model does without the file.
        hidden_size, num_layers, nonlinearity, bidirectional: of the FastRNN.
        dropout: on embeddings, between layers and before the head.
        word_dropout: probability that a feature's value is taken for unknown in training.
        epochs: passes over the training data, at most.
        batch_size: sequences an update.
        lr, weight_decay: of AdamW; the rate goes down to 0 by a cosine over the epochs.
        clip: largest norm of the gradient.
        patience: training stops after so many epochs with no better validation score, and the
            weights of the best are kept; None trains all epochs on all data.
        validation_fraction: of the training data that is held out to validate, if there is
            `patience` and `fit` gets no validation data. Another part for each network.
        ensemble: networks that are trained, from seeds of their own; predictions are their mean.
        seed: of weights, dropout, order and split. The same seed gives the same model.
        device: of torch.

    After `fit`: `history_` has one dict an epoch: network, epoch, train_loss, valid_score (None
    without validation), seconds.
    """

    features: Sequence[str] = ("word",)
    min_count: int = 1
    embedding_size: int = 64
    embeddings: str | Path | None = None
    hidden_size: int = 64
    num_layers: int = 1
    nonlinearity: str = "tanh"
    bidirectional: bool = True
    dropout: float = 0.3
    word_dropout: float = 0.1
    epochs: int = 10
    batch_size: int = 32
    lr: float = 3e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    patience: int | None = 3
    validation_fraction: float = 0.1
    ensemble: int = 1
    seed: int = 0
    device: str = "cpu"

    # Without annotations, which would make settings of them.
    _estimator_type = None  # scikit-learn's word for what this is
    _networks = None

    # ---- scikit-learn

    def get_params(self, deep: bool = True) -> dict:
        """The settings by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def set_params(self, **params) -> SequenceEstimator:
        """Change settings; they act at the next `fit`. Raises UserError for an unknown name."""
        names = self.get_params()
        for name, value in params.items():
            if name not in names:
                raise UserError(f"{type(self).__name__} has no setting {name!r}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self):
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        kind = self._estimator_type
        return Tags(
            estimator_type=kind,
            target_tags=TargetTags(required=True),
            input_tags=InputTags(two_d_array=False, string=True),
            classifier_tags=ClassifierTags() if kind == "classifier" else None,
            regressor_tags=RegressorTags() if kind == "regressor" else None,
        )

    # ---- what a subclass says

    @property
    def _every_step(self) -> bool:
        raise NotImplementedError

    @property
    def metric(self) -> str:
        """What `score` is."""
        raise NotImplementedError

    @property
    def _outputs(self) -> int:
        """Of the network, for a sequence or a step."""
        raise NotImplementedError

    def _fit_targets(self, y: list) -> None:
        raise NotImplementedError

    def _encode_target(self, y, where: str) -> torch.Tensor:
        """Of a sequence, (), or of its steps, (T,); regression: () -> (K,)."""
        raise NotImplementedError

    def _losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple:
        """outputs (N, O) -> losses (N,) and their weights (N,)."""
        raise NotImplementedError

    def _activate(self, outputs: torch.Tensor) -> torch.Tensor:
        """What is averaged over an ensemble: probabilities, or values."""
        raise NotImplementedError

    def _decode(self, activated: np.ndarray):
        raise NotImplementedError

    def _check_targets(self, y: list, name: str) -> None:
        """Raises UserError for targets that no prediction can be compared with."""
        raise NotImplementedError

    def _score(self, y: Sequence, predicted: Sequence) -> float:
        raise NotImplementedError

    # ---- training

    def fit(
        self,
        X: Sequence,
        y: Sequence,
        valid: tuple[Sequence, Sequence] | None = None,
        progress: Callable[[dict], None] | None = None,
    ) -> SequenceEstimator:
        """Train anew on sequences X with targets y.

        `valid` is a pair (X, y) to validate on; `progress` is called with each entry of `history_`.
        Raises UserError (a ValueError) that names the argument for what cannot be used.
        """
        self._check()
        check_device(self.device)
        self._networks = None  # what is left of a training that fails fits no other
        X, y = self._pairs(X, y, "X", "y")
        vectors = None if self.embeddings is None else self._vectors(X)
        if is_numeric(X):
            self._inputs = Numbers.fit(X)
        else:
            known = () if vectors is None else vectors.index
            self._inputs = Tokens.fit(X, self.features, self.min_count, known)
        self._fit_targets(y)
        if valid is not None:
            if not isinstance(valid, (tuple, list)) or len(valid) != 2:
                raise UserError("valid must be a pair, of sequences and their targets")
            valid_X, valid_y = self._pairs(*valid, "valid[0]", "valid[1]")
            # Now, not after the first epoch, comes out whether they are like those of X.
            self._check_targets(valid_y, "valid[1]")
            valid = self._inputs.encode(valid_X, "valid[0]"), valid_y
        elif self.patience is not None and len(X) < 2:
            raise UserError(
                "X must have at least 2 sequences, one of them to validate on: give more, or valid,"
                " or patience None"
            )
        data = list(zip(self._inputs.encode(X), self._encode_targets(y), strict=True))
        networks, scales, self.history_ = [], [], []
        began = time.monotonic()
        gpu = torch.device(self.device)
        with torch.random.fork_rng(devices=[gpu] if gpu.type == "cuda" else []):
            for k in range(self.ensemble):
                torch.manual_seed(int(self.seed) + k)
                train, held = list(range(len(X))), valid
                if self.patience is not None and valid is None:
                    order = torch.randperm(len(X)).tolist()
                    cut = min(max(1, round(self.validation_fraction * len(X))), len(X) - 1)
                    held = [data[i][0] for i in order[:cut]], [y[i] for i in order[:cut]]
                    train = order[cut:]

                def report(record, network=k):
                    record = {"network": network, **record, "seconds": time.monotonic() - began}
                    self.history_.append(record)
                    if progress:
                        progress(record)

                network = self._network()
                if vectors is not None:
                    tokens = self._inputs
                    weight = network.embedding.weight.detach()[tokens.word_rows]
                    scales.append(vectors.initialise(weight, tokens.tables[tokens.word]))
                network.to(self.device)
                networks.append(self._train(network, [data[i] for i in train], held, report))
        if vectors is not None:
            self._add_words(vectors, networks, scales)
        self._networks = networks
        return self

    def _add_words(self, vectors: Vectors, networks: list, scales: list[float]) -> None:
        """Give the words that only the vectors have their rows. In training these would cost
        every update the time of all the vectors there are, and change by weight decay alone."""
        tokens = self._inputs
        table = set(tokens.tables[tokens.word])
        new = [i for i, token in enumerate(vectors.tokens) if token not in table]
        self._inputs = tokens.with_words(vectors.tokens[i] for i in new)
        end = tokens.word_rows.stop
        for network, scale in zip(networks, scales, strict=True):
            embedding, weight = network.embedding, network.embedding.weight.detach()
            rows = scale * torch.from_numpy(vectors.matrix[new]).to(weight)
            embedding.weight = nn.Parameter(torch.cat([weight[:end], rows, weight[end:]]))
            embedding.unknown = self._inputs.unknown.to(weight.device)

    def _check(self) -> None:
        counts = ["min_count", "embedding_size", "hidden_size", "num_layers", "epochs"]
        counts += ["batch_size", "ensemble"] + ["patience"] * (self.patience is not None)
        ranges = {
            **dict.fromkeys(
                counts, (numbers.Integral, lambda v: v >= 1, "a whole number, at least 1")
            ),
            **dict.fromkeys(
                ("dropout", "word_dropout"), (numbers.Real, lambda v: 0 <= v < 1, "in [0, 1)")
            ),
            "lr": (numbers.Real, lambda v: 0 < v < np.inf, "positive"),
            "clip": (numbers.Real, lambda v: v > 0, "positive"),
            "weight_decay": (numbers.Real, lambda v: 0 <= v < np.inf, "zero or more"),
            "validation_fraction": (numbers.Real, lambda v: 0 < v < 1, "in (0, 1)"),
            "seed": (numbers.Integral, lambda v: 0 <= v < 2**63, "in [0, 2**63)"),
            "embeddings": ((str, Path, type(None)), lambda v: True, "the name of a file"),
            "nonlinearity": (str, lambda v: v in ("tanh", "relu"), "tanh or relu"),
            "pooling": (str, lambda v: v in POOLINGS, "last, mean or max"),
            "bidirectional": ((bool, np.bool_), lambda v: True, "True or False"),
        }
        for name, value in self.get_params().items():
            if name in ranges:
                kind, holds, what = ranges[name]
                wrong = isinstance(value, bool) and name != "bidirectional"
                if wrong or not isinstance(value, kind) or not holds(value):
                    raise UserError(f"{name} must be {what}, not {value!r}")

    def _pairs(self, X: Sequence, y: Sequence, name_x: str, name_y: str) -> tuple[list, list]:
        X, y = as_list(X, name_x), as_list(y, name_y)
        if not X:
            raise UserError(f"{name_x} must be sequences, at least one")
        if len(X) != len(y):
            raise UserError(
                f"{name_x} and {name_y} must be of one length, not {len(X)} and {len(y)}"
            )
        if not self._every_step:
            return X, y
        for i, (sequence, targets) in enumerate(zip(X, y, strict=True)):
            if np.ndim(targets) == 0 or len(targets) != steps(sequence):
                raise UserError(
                    f"{name_y}[{i}] must have one target for each of the {steps(sequence)} steps of"
                    f" {name_x}[{i}], not {targets!r}"
                )
        # A sequence of no steps has nothing to learn from.
        kept = [i for i in range(len(X)) if len(y[i])]
        if not kept:
            raise UserError(f"{name_x} must have a sequence that is not empty")
        return [X[i] for i in kept], [y[i] for i in kept]

    def _vectors(self, X: list) -> Vectors:
        """What the embeddings are to begin with."""
        if is_numeric(X):
            raise UserError("embeddings are of words: leave them out where X has numbers")
        if not set(WORDS) & set(self.features):
            raise UserError(
                f"embeddings are of the feature word or form: features must have one, not "
                f"{', '.join(self.features)}"
            )
        return Vectors.load_of_size(self.embeddings, self.embedding_size, "embedding_size")

    def _encode_targets(self, y: list) -> list[torch.Tensor]:
        return [self._encode_target(target, f"y[{i}]") for i, target in enumerate(y)]

    def _network(self) -> SequenceNetwork:
        embedding, size = None, self._inputs_size
        if isinstance(self._inputs, Tokens):
            inputs = self._inputs
            embedding = Embedding(inputs.rows, inputs.unknown, size, self.word_dropout)
        return SequenceNetwork(
            embedding,
            size,
            int(self.hidden_size),  # not an int64 of NumPy's, such as a grid search gives
            int(self.num_layers),
            bool(self.bidirectional),
            self.nonlinearity,
            self.dropout,
            None if self._every_step else self.pooling,
            self._outputs,
        )

    @property
    def _inputs_size(self) -> int:
        numeric = isinstance(self._inputs, Numbers)
        return self._inputs.size if numeric else self.embedding_size

    def _train(self, network, data, valid, report) -> SequenceNetwork:
        groups = parameter_groups(network, self.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, fused=True)
        updates = self.epochs * -(-len(data) // self.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
        lengths = torch.tensor([len(x) for x, _ in data])
        best, since, kept = -np.inf, 0, None
        for epoch in range(1, self.epochs + 1):
            network.train()
            total = weight = 0.0
            for batch in _batches(lengths, self.batch_size):
                x, y = zip(*(data[i] for i in batch), strict=True)
                outputs = self._run(network, x)
                y = torch.cat(y) if self._every_step else torch.stack(y)
                losses, weights = self._losses(outputs, y.to(self.device))
                loss = (losses * weights).sum() / weights.sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), self.clip)
                optimizer.step()
                schedule.step()
                share = float(weights.sum())
                total, weight = total + share * float(loss.detach()), weight + share
            if not np.isfinite(total):
                raise UserError(f"the loss is not finite in epoch {epoch}: lower lr or clip")
            network.eval()
            score = None
            if valid is not None:
                activated = self._predict_activated(valid[0], [network])
                score = self._score(valid[1], [self._decode(a) for a in activated])
            report({"epoch": epoch, "train_loss": total / weight, "valid_score": score})
            if self.patience is None:
                continue
            since += 1
            if score > best:
                best, since = score, 0
                kept = {name: value.clone() for name, value in network.state_dict().items()}
            if since == self.patience:
                break
        if kept is not None:
            network.load_state_dict(kept)
        return network

    def _run(self, network: SequenceNetwork, x: Sequence[torch.Tensor]) -> torch.Tensor:
        """Outputs for sequences, (B, O), or for all their steps one after the other, (N, O)."""
        lengths = torch.tensor([len(one) for one in x])
        outputs = network(pad_sequence(x).to(self.device), lengths)
        if not self._every_step:
            return outputs
        mask = torch.arange(len(outputs)) < lengths[:, None]
        return outputs.transpose(0, 1)[mask.to(outputs.device)]

    # ---- prediction

    def predict(self, X: Sequence):
        """The prediction for each sequence: (N,), or where every step has one a list of (T,)."""
        predicted = [self._decode(activated) for activated in self._activated(X)]
        return predicted if self._every_step else np.array(predicted)

    def score(self, X: Sequence, y: Sequence) -> float:
        """How good the predictions are; see the class."""
        X, y = self._pairs(X, y, "X", "y")
        predicted = list(self.predict(X))
        self._check_targets(y, "y")
        return self._score(y, predicted)

    def _activated(self, X: Sequence) -> list[np.ndarray]:
        if self._networks is None:
            raise UserError(f"this {type(self).__name__} is not fitted: call fit first")
        X = as_list(X)
        if not X:
            return []
        if is_numeric(X) != isinstance(self._inputs, Numbers):
            raise UserError("X must be tokens or numbers as what the estimator was fitted to")
        activated = self._predict_activated(self._inputs.encode(X), self._networks)
        if not self._every_step:
            return activated
        # An empty sequence was read as one unknown token.
        return [part[: steps(x)] for part, x in zip(activated, X, strict=True)]

    @torch.inference_mode()
    def _predict_activated(self, encoded: list[torch.Tensor], networks: list) -> list[np.ndarray]:
        """The mean of the networks' activated outputs: (O,) a sequence, or (T, O)."""
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        results: list = [None] * len(encoded)
        while order:
            rows = max(1, PREDICT_STEPS // len(encoded[order[-1]]))
            batch, order = order[-rows:], order[:-rows]
            x = [encoded[i] for i in batch]
            mean = sum(self._activate(self._run(n, x)).double() for n in networks) / len(networks)
            parts = mean.split([len(one) for one in x]) if self._every_step else mean
            for i, part in zip(batch, parts, strict=True):
                results[i] = part.cpu().numpy()
        return results

    # ---- on disk

    def save(self, path: str | Path | Folder, overwrite: bool = False) -> None:
        """Write a folder that `load` reads: safetensors and JSON, each file replaced at once.

        Raises UserError if the folder holds a model and not `overwrite`, or anything else.
        """
        if self._networks is None:
            raise UserError(f"this {type(self).__name__} is not fitted: call fit first")
        folder = path if isinstance(path, Folder) else new_folder(path, overwrite)
        params = {name: _plain(value) for name, value in self.get_params().items()}
        if isinstance(params.get("class_weight"), dict):
            items = params["class_weight"].items()
            params["class_weight"] = [[_plain(label), _plain(w)] for label, w in items]
        tokens = isinstance(self._inputs, Tokens)
        settings = {
            "format": FORMAT,
            "rnnfast": __version__,
            "torch": torch.__version__,
            "estimator": type(self).__name__,
            "params": params,
            "input_size": None if tokens else self._inputs.size,
            "targets": self._targets_to_json(),
            "history": self.history_,
        }
        vocab = {"tables": self._inputs.tables if tokens else []}
        with contextlib.closing(folder):
            write_atomic(folder.path / VOCAB, to_json(vocab))
            write_atomic(folder.path / CONFIG, to_json(settings))
            folder.write_weights(
                {
                    f"{k}.{name}": value.detach().cpu().contiguous()
                    for k, network in enumerate(self._networks)
                    for name, value in network.state_dict().items()
                }
            )

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> SequenceEstimator:
        """The estimator of a folder that `save` made.

        Raises UserError, with the file's name, for what is missing, corrupted, does not match the
        other files, or is another class than this one.
        """
        path = Path(path)
        check_device(device)
        if not path.is_dir():
            raise UserError(f"there is no model folder {path}: give one that save made")
        settings = read_json(path / CONFIG)
        if not isinstance(settings, dict) or "estimator" not in settings:
            raise UserError(f"{path} holds no classifier, regressor or tagger: give one's folder")
        try:
            found = _CLASSES[settings["estimator"]]
            if settings["format"] != FORMAT:
                raise UserError(f"format {settings['format']} is not {FORMAT}, which this reads")
            params = settings["params"]
            params["features"] = tuple(params["features"])
            if isinstance(params.get("class_weight"), list):
                params["class_weight"] = dict(params["class_weight"])
            estimator = found(**{**params, "device": device})
            estimator._check()
            estimator.history_ = settings["history"]
            estimator._targets_from_json(settings["targets"])
            size = settings["input_size"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(corrupted(path / CONFIG, error)) from error
        if not issubclass(found, cls):
            raise UserError(f"{path} holds a {found.__name__}, not a {cls.__name__}")
        if size is None:
            try:
                tables = read_json(path / VOCAB)["tables"]
                if not all(isinstance(v, str) for table in tables for v in [table[0], *table]):
                    raise UserError("tables must be lists of strings")
                estimator._inputs = Tokens(estimator.features, tables)
            except (KeyError, TypeError, IndexError, UserError) as error:
                raise UserError(corrupted(path / VOCAB, error)) from error
        else:
            estimator._inputs = Numbers(size)
        try:
            # The shapes come first, and cost nothing: a wrong config could ask for any memory.
            with torch.device("meta"):
                shapes = estimator._network().state_dict()
            wanted = {
                f"{k}.{name}": value.shape
                for k in range(estimator.ensemble)
                for name, value in shapes.items()
            }
            tensors, _ = read_tensors(path / WEIGHTS, wanted)
        except RuntimeError as error:
            raise UserError(f"{path / CONFIG}: no model can have these sizes") from error
        networks = []
        for k in range(estimator.ensemble):
            # Not the caller's random numbers: loading a model must not change what comes after.
            with torch.random.fork_rng(devices=[]):
                network = estimator._network()
            network.load_state_dict({name: tensors[f"{k}.{name}"] for name in shapes})
            networks.append(network.to(device).eval())
        estimator._networks = networks
        return estimator

    def _targets_to_json(self) -> dict:
        raise NotImplementedError

    def _targets_from_json(self, data: dict) -> None:
        raise NotImplementedError


def new_folder(path: str | Path, overwrite: bool) -> Folder:
    """Where `save` is to write. Raises UserError as it does."""
    if (Path(path) / WEIGHTS).exists() and not overwrite:
        raise UserError(f"{path} holds a model: give another folder, or overwrite it")
    return Folder(path, overwrite)


def _batches(lengths: torch.Tensor, batch_size: int) -> list[list[int]]:
    """All indices once in random order, those of a batch of about one length."""
    order = torch.randperm(len(lengths))
    batches = []
    for pool in order.split(POOL * batch_size):
        batches += pool[lengths[pool].argsort(stable=True)].split(batch_size)
    return [batches[i].tolist() for i in torch.randperm(len(batches)).tolist()]


@dataclass(kw_only=True, eq=False)
class _Labels(SequenceEstimator):
    """Classes: one logit and the binary cross-entropy for two, softmax for more."""

    class_weight: dict | str | None = None

    @property
    def _outputs(self) -> int:
        return 1 if len(self.classes_) == 2 else len(self.classes_)

    def _fit_labels(self, labels: list) -> None:
        self.classes_ = _classes(labels)
        self._number = {label: i for i, label in enumerate(self.classes_.tolist())}
        if len(self.classes_) < 2:
            raise UserError(f"y must have at least 2 classes, not {self.classes_.tolist()}")
        self._weights = torch.ones(len(self.classes_))
        given = self.class_weight
        if isinstance(given, str) and given == "balanced":
            counts = np.bincount([self._number[label] for label in labels])
            self._weights = torch.tensor(len(labels) / (len(counts) * counts)).float()
        elif isinstance(given, dict):
            for label, weight in given.items():
                if label not in self._number or not 0 < weight < np.inf:
                    raise UserError(
                        f"class_weight must have positive weights of classes in y, not "
                        f"{weight!r} of {label!r}"
                    )
                self._weights[self._number[label]] = float(weight)
        elif given is not None:
            raise UserError(f"class_weight must be None, 'balanced' or a dict, not {given!r}")

    def _encode_label(self, label, where: str) -> int:
        try:
            return self._number[label.item() if isinstance(label, np.generic) else label]
        except (KeyError, TypeError):
            raise UserError(
                f"{where} must be a class of the training data, not {label!r}"
            ) from None

    def _check_labels(self, labels: list, name: str) -> None:
        """A label that training has not seen is one that predictions miss; another kind of label
        is a mistake."""
        kind = type(self.classes_.tolist()[0])
        for label in map(_plain, labels):
            if type(label) is not kind:
                raise UserError(
                    f"{name} must have labels of the kind of the training data's, "
                    f"{kind.__name__}, not {label!r}"
                )

    def _losses(self, outputs, targets):
        weights = self._weights.to(targets.device)[targets]
        if outputs.shape[1] == 1:
            losses = F.binary_cross_entropy_with_logits(
                outputs[:, 0], targets.to(outputs), reduction="none"
            )
        else:
            losses = F.cross_entropy(outputs, targets, reduction="none")
        return losses, weights

    def _activate(self, outputs):
        if outputs.shape[1] == 1:
            p = outputs.double().sigmoid()
            return torch.cat([1 - p, p], 1)
        return outputs.double().softmax(1)

    def _targets_to_json(self):
        return {"classes": self.classes_.tolist()}

    def _targets_from_json(self, data):
        self.classes_ = np.array(data["classes"])
        self._number = {label: i for i, label in enumerate(self.classes_.tolist())}


@dataclass(kw_only=True, eq=False)
class SequenceClassifier(_Labels):
    """One label a sequence (many to one), from pooled states; `score` is the accuracy.

    Args:
        pooling: "last" (the last state of each direction), "mean" or "max" over the steps.
        class_weight: weights of the classes in the loss, a dict (others: 1), or "balanced" for
            N / (classes x count), or None. Of every labelled estimator.

    After `fit`, `classes_` has the labels in order; they may be strings, integers or booleans.
    """

    pooling: str = "max"

    _estimator_type = "classifier"
    _every_step = False
    metric = "accuracy"

    def _fit_targets(self, y):
        self._fit_labels([_plain(label) for label in y])

    def _encode_target(self, y, where):
        return torch.tensor(self._encode_label(y, where))

    def predict_proba(self, X: Sequence) -> np.ndarray:
        """Probabilities of `classes_`, float64 (N, C)."""
        return np.array(self._activated(X)).reshape(-1, len(self.classes_))

    def _decode(self, activated):
        return self.classes_[activated.argmax()]

    def _check_targets(self, y, name):
        self._check_labels(y, name)

    def _score(self, y, predicted):
        return float(np.mean([a == b for a, b in zip(y, predicted, strict=True)]))


@dataclass(kw_only=True, eq=False)
class SequenceTagger(_Labels):
    """One label a step (many to many).

    `score` is the F1 of chunks if the labels are IOB tags ("B-NP", "I-NP", "O"), as conlleval and
    seqeval count it, else the accuracy over all steps. `class_weight` as in SequenceClassifier.
    """

    features: Sequence[str] = ("word", "prefix3", "suffix2", "suffix3", "shape")
    hidden_size: int = 100

    _every_step = True

    @property
    def metric(self):
        return "chunk F1" if is_iob(self.classes_.tolist()) else "accuracy"

    def _fit_targets(self, y):
        self._fit_labels([_plain(label) for labels in y for label in labels])

    def _encode_target(self, y, where):
        return torch.tensor([self._encode_label(label, where) for label in y])

    def predict_proba(self, X: Sequence) -> list[np.ndarray]:
        """Probabilities of `classes_`, float64 (T, C) a sequence."""
        return self._activated(X)

    def _decode(self, activated):
        return self.classes_[activated.argmax(1)]

    def _check_targets(self, y, name):
        self._check_labels([label for labels in y for label in labels], name)

    def _score(self, y, predicted):
        if self.metric == "chunk F1":
            return chunk_f1(y, predicted)
        pairs = zip(y, predicted, strict=True)
        return float(np.mean([a == b for one in pairs for a, b in zip(*one, strict=True)]))


@dataclass(kw_only=True, eq=False)
class SequenceRegressor(SequenceEstimator):
    """A number, or K of them, a sequence, or a number a step; mean squared error.

    Args:
        pooling: as in SequenceClassifier.
        every_step: whether y has a number for every step, (T,) a sequence.

    `score` is R², the mean of it over the K. Targets are scaled to mean 0 and variance 1 inside.
    """

    pooling: str = "mean"
    every_step: bool = False

    _estimator_type = "regressor"
    metric = "R²"

    @property
    def _every_step(self):
        return self.every_step

    @property
    def _outputs(self):
        return len(self._mean)

    def _fit_targets(self, y):
        self._mean = self._std = None
        rows = [self._encode_target(one, f"y[{i}]") for i, one in enumerate(y)]
        if not self.every_step and len({len(row) for row in rows}) != 1:
            raise UserError("y must have as many numbers for every sequence")
        rows = torch.cat(rows)[:, None] if self.every_step else torch.stack(rows)
        self._single = not self.every_step and np.ndim(y[0]) == 0
        self._mean = rows.mean(0)
        self._std = rows.std(0, correction=0).clamp_min(torch.finfo(rows.dtype).tiny)

    def _encode_target(self, y, where):
        target = self._numbers(y, where)
        return target if self._mean is None else (target - self._mean) / self._std

    def _numbers(self, y, where: str) -> torch.Tensor:
        try:
            target = torch.as_tensor(y, dtype=torch.float64).reshape(-1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{where} must be a number, or some, not {y!r}") from error
        if not target.isfinite().all():
            raise UserError(f"{where} must be finite, not {y!r}")
        return target

    def _losses(self, outputs, targets):
        targets = targets.reshape(outputs.shape).to(outputs)
        return (outputs - targets).square().mean(1), outputs.new_ones(len(outputs))

    def _activate(self, outputs):
        return outputs.double() * self._std.to(outputs.device) + self._mean.to(outputs.device)

    def _decode(self, activated):
        if self.every_step:
            return activated[:, 0]
        return activated[0] if self._single else activated

    def _check_targets(self, y, name):
        for i, one in enumerate(y):
            found = len(self._numbers(one, f"{name}[{i}]"))
            if not self.every_step and found != self._outputs:
                raise UserError(
                    f"{name}[{i}] must have {self._outputs} numbers, as in training, not {found}"
                )

    def _score(self, y, predicted):
        y, predicted = (
            np.concatenate([np.asarray(one, float) for one in values])[:, None]
            if self.every_step
            else np.asarray(values, float).reshape(len(values), -1)
            for values in (y, predicted)
        )
        residual, total = ((y - predicted) ** 2).sum(0), ((y - y.mean(0)) ** 2).sum(0)
        # As scikit-learn has it where y does not vary.
        r2 = np.where(total > 0, 1 - residual / np.where(total > 0, total, 1), residual == 0)
        return float(r2.mean())

    def _targets_to_json(self):
        return {
            "mean": self._mean.tolist(),
            "std": self._std.tolist(),
            "single": self._single,
        }

    def _targets_from_json(self, data):
        self._mean, self._std = (torch.tensor(data[k]).double() for k in ("mean", "std"))
        self._single = data["single"]


def _classes(labels: list) -> np.ndarray:
    if len({type(label) for label in labels}) > 1 or not isinstance(labels[0], (str, int)):
        raise UserError("y must have labels of one kind: strings, integers or booleans")
    return np.array(sorted(set(labels)))


def _plain(value):
    """For JSON."""
    if isinstance(value, (Path, torch.device)):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


_CLASSES = {cls.__name__: cls for cls in (SequenceClassifier, SequenceRegressor, SequenceTagger)}
