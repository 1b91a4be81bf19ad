"""`rnnfast classify` and `rnnfast tag`: the estimators on files."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import fields

import numpy as np
from rich.markup import escape

from .._common.errors import UserError
from .._common.runtime import set_up
from .base import SequenceEstimator
from .classifier import SequenceClassifier
from .data import read_columns, read_labelled, read_tagged, read_texts
from .network import POOLINGS
from .storage import new_folder
from .tagger import SequenceTagger


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands; `command(name, run, about)` makes the parser of one."""
    sub = command("classify", classify, "Train or use a classifier of texts (an RNN encoder).")
    labelled = "lines of label<TAB>text, or one file a class with a text a line"
    unlabelled = "a text a line, to classify; empty lines are left out"
    text = _data_arguments(sub, labelled, unlabelled, "+")
    text.add_argument("--folds", type=int, metavar="N", help="cross-validate on --train instead")
    group = _setting_arguments(sub, SequenceClassifier)
    group.add_argument("--pooling", choices=POOLINGS, help=_default(SequenceClassifier, "pooling"))

    sub = command("tag", tag, "Train or use a tagger of words (an RNN encoder).")
    columns = "CoNLL columns: a token a line, the last column its tag, an empty line between"
    _data_arguments(sub, columns, "the same without tags, to tag", None)
    _setting_arguments(sub, SequenceTagger)


def classify(args: argparse.Namespace, output) -> int:
    if args.folds is None:
        return _run(args, output, SequenceClassifier, read_labelled, read_texts)
    if not args.train or args.out or args.test or args.valid or args.predict or args.model:
        raise UserError("--folds cross-validates on --train alone: leave the other files out")
    X, y = read_labelled(args.train)
    if not 2 <= args.folds <= len(X):
        raise UserError(f"--folds must be in [2, {len(X)}], the texts there are")
    estimator = _estimator(args, SequenceClassifier)
    fold = _folds(y, args.folds, estimator.seed)
    accuracies = []
    began = time.monotonic()
    for k in range(args.folds):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        estimator.fit([X[i] for i in train], [y[i] for i in train], progress=_progress(output))
        accuracies.append(estimator.score([X[i] for i in test], [y[i] for i in test]))
        output.text.print(f"fold {k + 1}: accuracy {accuracies[-1]:.4f}")
    report = {
        "sequences": len(X),
        "classes": estimator.classes_.tolist(),
        "accuracies": accuracies,
        "mean_accuracy": float(np.mean(accuracies)),
        "seconds": time.monotonic() - began,
        "params": estimator.get_params(),
    }
    output.text.print("mean accuracy {mean_accuracy:.4f} in {seconds:.1f} s".format(**report))
    output.json(report)
    return 0


def tag(args: argparse.Namespace, output) -> int:
    return _run(args, output, SequenceTagger, read_tagged, read_columns)


def _run(args, output, cls: type[SequenceEstimator], read, read_unlabelled) -> int:
    if bool(args.train) == bool(args.model):
        raise UserError("give --train FILE for a new model, or --model DIR for one that there is")
    if args.model and (args.out or args.valid):
        raise UserError("--out and --valid are for --train FILE")
    given = [field.name for field in fields(cls) if field.name != "device"]
    given = [name for name in given if getattr(args, name, None) is not None]
    if args.model and given:
        raise UserError(f"--{given[0].replace('_', '-')} is for --train FILE")
    if not (args.out or args.test or args.predict):
        raise UserError("give --out DIR to keep the model, or --test or --predict FILE to use it")
    report: dict = {}
    # All files are read before an hour of training.
    test = read(args.test) if args.test else None
    unlabelled = read_unlabelled(args.predict) if args.predict else None
    if args.train:
        estimator = _estimator(args, cls)
        valid = read(args.valid) if args.valid else None
        X, y = read(args.train)
        if cls is SequenceTagger:
            others = [(args.valid, valid and valid[0]), (args.test, test and test[0])]
            for path, sentences in [*others, (args.predict, unlabelled)]:
                if sentences and len(sentences[0][0]) != len(X[0][0]):
                    raise UserError(
                        f"{path} has {len(sentences[0][0])} columns without tags, not "
                        f"{len(X[0][0])} as {args.train}"
                    )
        folder = new_folder(args.out, args.overwrite) if args.out else None
        began = time.monotonic()
        try:
            estimator.fit(X, y, valid, _progress(output))
        except BaseException:
            if folder is not None:
                folder.discard()
            raise
        seconds = time.monotonic() - began
        report |= {"sequences": len(X), "seconds": seconds, "history": estimator.history_}
        output.text.print(f"{len(X):,} sequences, {seconds:.1f} s of training")
        if folder is not None:
            estimator.save(folder)
            output.text.print(escape(f"saved in {args.out}"))
    else:
        set_up(args.device or "cpu", args.threads)
        estimator = cls.load(args.model, args.device or "cpu")
    report |= {"classes": estimator.classes_.tolist(), "params": estimator.get_params()}
    if test:
        metric = estimator.metric
        report |= {"metric": metric, "test_score": estimator.score(*test)}
        output.text.print(f"test: {metric} {report['test_score']:.4f} ({len(test[0]):,} sequences)")
    if unlabelled is not None:
        if cls is SequenceTagger:
            predictions = estimator.predict(unlabelled)
            report["predictions"] = [tags.tolist() for tags in predictions]
            for sentence, tags in zip(unlabelled, predictions, strict=True):
                lines = (" ".join([*token, t]) for token, t in zip(sentence, tags, strict=True))
                output.stream.write("\n".join(lines) + "\n\n")
        else:
            probabilities = estimator.predict_proba(unlabelled)
            predictions = estimator.classes_[probabilities.argmax(1)]
            report["predictions"] = predictions.tolist()
            report["probabilities"] = probabilities.tolist()
            for text, label in zip(unlabelled, predictions, strict=True):
                output.stream.write(f"{label}\t{text}\n")
    output.json(report)
    return 0


def _folds(y: list[str], folds: int, seed: int) -> np.ndarray:
    """The fold of each text, in random order, the classes spread evenly."""
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(np.array(y)[order], kind="stable")]
    fold = np.empty(len(y), int)
    fold[order] = np.arange(len(y)) % folds
    return fold


def _estimator(args: argparse.Namespace, cls: type[SequenceEstimator]) -> SequenceEstimator:
    set_up(args.device or "cpu", args.threads)
    given = {field.name: getattr(args, field.name, None) for field in fields(cls)}
    estimator = cls(**{name: value for name, value in given.items() if value is not None})
    if estimator.patience == 0:
        estimator.patience = None
    return estimator


def _progress(output) -> Callable[[dict], None]:
    def show(record: dict) -> None:
        score = record["valid_score"]
        output.progress.print(
            f"network {record['network'] + 1}  epoch {record['epoch']}  "
            f"{record['seconds']:.1f} s  train {record['train_loss']:.4f}"
            + ("" if score is None else f"  valid {score:.4f}")
        )

    return show


# ---- arguments

_SETTINGS = {
    "min_count": (int, "values of a feature that are rarer count as unknown"),
    "embedding_size": (int, "of a token, the sum of its features' embeddings"),
    "hidden_size": (int, "hidden units of a layer and direction"),
    "num_layers": (int, "layers"),
    "dropout": (float, "on embeddings, between layers, before the output"),
    "word_dropout": (float, "probability to take a feature for unknown in training"),
    "epochs": (int, "passes over the training data, at most"),
    "batch_size": (int, "sequences an update"),
    "lr": (float, "learning rate of AdamW"),
    "weight_decay": (float, "of AdamW"),
    "clip": (float, "largest norm of the gradient"),
    "patience": (int, "epochs without a better validation before it stops; 0: no validation"),
    "validation_fraction": (float, "of the training data, without --valid"),
    "ensemble": (int, "networks whose probabilities are averaged"),
    "seed": (int, "of weights, dropout, order and splits"),
}


def _default(cls: type[SequenceEstimator], name: str) -> str:
    value = getattr(cls, name)
    if isinstance(value, tuple):
        value = ",".join(value)
    return "" if value is None else f"({value})"


def _data_arguments(sub, about: str, unlabelled: str, nargs: str | None):
    text = sub.add_argument_group(f"data (UTF-8; {about})")
    for name, what in (("train", "to train on"), ("valid", "to validate on"), ("test", "to test")):
        text.add_argument(f"--{name}", nargs=nargs, metavar="FILE", help=what)
    text.add_argument("--predict", metavar="FILE", help=unlabelled)
    text.add_argument("--model", metavar="DIR", help="use this one in place of --train")
    text.add_argument("--out", metavar="DIR", help="folder to save the model in")
    text.add_argument("--overwrite", action="store_true", help="replace the model --out holds")
    return text


def _setting_arguments(sub, cls: type[SequenceEstimator]):
    group = sub.add_argument_group("model and training")
    group.add_argument(
        "--features",
        type=lambda names: tuple(names.split(",")),
        metavar="A,B",
        help="of a word: word, form, bigram, shape, prefixN, suffixN " + _default(cls, "features"),
    )
    for name, (kind, about) in _SETTINGS.items():
        group.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            metavar="N" if kind is int else "X",
            help=f"{about} {_default(cls, name)}".rstrip(),
        )
    group.add_argument(
        "--embeddings",
        metavar="FILE",
        help="vectors for those of words to begin with (rnnfast embed)",
    )
    group.add_argument(
        "--nonlinearity", choices=("tanh", "relu"), help=_default(cls, "nonlinearity")
    )
    group.add_argument(
        "--bidirectional",
        action=argparse.BooleanOptionalAction,
        help="an RNN in each direction " + _default(cls, "bidirectional"),
    )
    group.add_argument(
        "--class-weight",
        choices=("balanced",),
        help="weight classes against their frequency in the loss (all alike)",
    )
    return group
