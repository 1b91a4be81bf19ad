"""`rnnfast classify` and `rnnfast tag`: the estimators of `rnnfast.tasks` on files."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from typing import Any, TypeVar

import numpy as np
from rich.markup import escape

from .._common.errors import UserError
from .._common.runtime import set_up
from .._common.text import counted
from ..tasks import SequenceClassifier, SequenceTagger
from ..tasks.base import SequenceEstimator
from ..tasks.data import read_columns, read_labelled, read_tagged, read_texts
from ..tasks.labels import LabelEstimator
from ..tasks.network import CELLS, POOLINGS
from ..tasks.storage import new_folder
from .options import Commands, Group, add_command, add_option, add_out_options
from .output import Output

_Estimator = TypeVar("_Estimator", bound=SequenceEstimator)


def classify(args: argparse.Namespace, output: Output) -> int:
    """Train, cross-validate, evaluate or apply a classifier of texts."""
    if args.folds is None:
        return _run(args, output, SequenceClassifier, read_labelled, read_texts)
    if not args.train or args.out or args.test or args.valid or args.predict or args.model:
        raise UserError("--folds cross-validates on --train alone: leave out the other files")
    X, y = read_labelled(args.train)
    if not 2 <= args.folds <= len(X):
        raise UserError(f"--folds must be in [2, {len(X)}], where {len(X)} is the number of texts")
    estimator = _estimator(args, SequenceClassifier)
    fold = assign_folds(y, args.folds, estimator.seed)
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
    report |= _coverage(estimator, output)
    output.text.print("mean accuracy {mean_accuracy:.4f} in {seconds:.1f} s".format(**report))
    output.json(report)
    return 0


def tag(args: argparse.Namespace, output: Output) -> int:
    """Train, evaluate or apply a tagger of words."""
    return _run(args, output, SequenceTagger, read_tagged, read_columns)


def _run(
    args: argparse.Namespace,
    output: Output,
    cls: type[LabelEstimator],
    read: Callable[..., tuple[list, list]],
    read_unlabelled: Callable[..., list],
) -> int:
    """Train or load an estimator, save it, evaluate it, and apply it.

    `read` reads a file with targets, and `read_unlabelled` one without.
    """
    _check_options(args, cls)
    report: dict = {}
    # All files are read now, so that a wrong one is found before an hour of training.
    if args.train:
        estimator = _estimator(args, cls)
        X, y = read(args.train)
    else:
        set_up(args.device or "cpu", args.threads)
        estimator = cls.load(args.model, args.device or "cpu")
    if cls is SequenceTagger:
        columns = len(X[0][0]) if args.train else estimator.columns_
        read = partial(read, columns=columns)
        read_unlabelled = partial(read_unlabelled, columns=columns)
    valid = read(args.valid) if args.valid else None
    test = read(args.test) if args.test else None
    unlabelled = read_unlabelled(args.predict) if args.predict else None
    if args.train:
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
        report |= _coverage(estimator, output)
        output.text.print(f"{counted(len(X), 'sequence')}, {seconds:.1f} s of training")
        if folder is not None:
            estimator.save(folder)
            output.text.print(escape(f"saved in {args.out}"))
    report |= {"classes": estimator.classes_.tolist(), "params": estimator.get_params()}
    if test:
        metric = estimator.metric
        scores = estimator.scores(*test)
        report |= {"metric": metric, "test_score": scores[metric], "test_scores": scores}
        others = "".join(f", {name} {scores[name]:.4f}" for name in scores if name != metric)
        text = f"test: {metric} {scores[metric]:.4f} ({counted(len(test[0]), 'sequence')}){others}"
        output.text.print(text)
    if unlabelled is not None:
        if isinstance(estimator, SequenceTagger):
            report |= _predict_tags(estimator, unlabelled, output)
        elif isinstance(estimator, SequenceClassifier):
            report |= _predict_classes(estimator, unlabelled, output)
    output.json(report)
    return 0


def _coverage(estimator: SequenceEstimator, output: Output) -> dict:
    """Print and return how many words of the last training data have a vector in --embeddings."""
    if estimator.coverage_ is None:
        return {}
    output.text.print(f"embeddings: {estimator.coverage_}")
    return {"coverage": asdict(estimator.coverage_)}


def _check_options(args: argparse.Namespace, cls: type[SequenceEstimator]) -> None:
    """Raise UserError for options that contradict one another."""
    if bool(args.train) == bool(args.model):
        raise UserError("give --train FILE for a new model, or --model DIR for an existing one")
    if args.model and (args.out or args.valid):
        raise UserError("--out and --valid are for --train FILE")
    given = [field.name for field in fields(cls) if field.name != "device"]
    given = [name for name in given if getattr(args, name, None) is not None]
    if args.model and given:
        raise UserError(f"--{given[0].replace('_', '-')} is for --train FILE")
    if not (args.out or args.test or args.predict):
        raise UserError("give --out DIR to keep the model, or --test or --predict FILE to use it")


def _predict_tags(tagger: SequenceTagger, sentences: list, output: Output) -> dict:
    predictions = tagger.predict(sentences)
    cells = {cell for sentence in sentences for token in sentence for cell in token}
    # The columns are separated as the reader of such files needs it.
    between = "\t" if any(not cell or " " in cell for cell in cells) else " "
    for sentence, tags in zip(sentences, predictions, strict=True):
        lines = (between.join([*token, t]) for token, t in zip(sentence, tags, strict=True))
        output.stream.write("\n".join(lines) + "\n\n")
    return {"predictions": [tags.tolist() for tags in predictions]}


def _predict_classes(classifier: SequenceClassifier, texts: list, output: Output) -> dict:
    probabilities = classifier.predict_proba(texts)
    predictions = classifier.classes_[probabilities.argmax(1)]
    for text, label in zip(texts, predictions, strict=True):
        output.stream.write(f"{label}\t{text}\n")
    return {"predictions": predictions.tolist(), "probabilities": probabilities.tolist()}


def assign_folds(y: list[str], folds: int, seed: int) -> np.ndarray:
    """Return the fold of each text, int (len(y),): random, with the classes spread evenly."""
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(np.array(y)[order], kind="stable")]
    fold = np.empty(len(y), int)
    fold[order] = np.arange(len(y)) % folds
    return fold


def _estimator(args: argparse.Namespace, cls: type[_Estimator]) -> _Estimator:
    set_up(args.device or "cpu", args.threads)
    given = {field.name: getattr(args, field.name, None) for field in fields(cls)}
    estimator = cls(**{name: value for name, value in given.items() if value is not None})
    if estimator.patience == 0:
        estimator.patience = None
    return estimator


def _progress(output: Output) -> Callable[[dict], None]:
    """Return what prints a line after each epoch."""

    def show(record: dict) -> None:
        score = record["valid_score"]
        output.progress.print(
            f"network {record['network'] + 1}  epoch {record['epoch']}  "
            f"{record['seconds']:.1f} s  train {record['train_loss']:.4f}"
            + ("" if score is None else f"  valid {score:.4f}")
        )

    return show


def register(commands: Commands) -> None:
    """Add the commands to `commands`, what `ArgumentParser.add_subparsers` returned."""
    about = "Train or use a classifier of texts (an RNN encoder)."
    sub = add_command(commands, "classify", classify, about)
    labelled = "lines of label<TAB>text, or one file for each class with one text a line"
    unlabelled = "Classify the texts in this file, one a line; empty lines are skipped"
    data = _add_data(sub, labelled, unlabelled, "+")
    about = "Cross-validate on --train with this number of folds, and keep no model"
    add_option(data, "folds", int, about)
    group = _add_settings(sub, SequenceClassifier)
    about = "What the classifier sees of a text: the last state, or the mean or maximum of all"
    _add_setting(group, SequenceClassifier, "pooling", None, about, choices=POOLINGS)

    sub = add_command(commands, "tag", tag, "Train or use a tagger of words (an RNN encoder).")
    tagged = "CoNLL columns: one token a line, its tag in the last column, an empty line between"
    unlabelled = "Tag the sentences in this file, which has the same columns without tags"
    _add_data(sub, f"{tagged} sentences", unlabelled, None)
    _add_settings(sub, SequenceTagger)


def _add_data(
    sub: argparse.ArgumentParser, about: str, unlabelled: str, nargs: str | None
) -> Group:
    group = sub.add_argument_group(f"data (UTF-8; {about})")
    add_option(group, "train", str, "Train on this data", "FILE", nargs=nargs)
    add_option(group, "valid", str, "Validate on this data, in training", "FILE", nargs=nargs)
    add_option(group, "test", str, "Evaluate the model on this data", "FILE", nargs=nargs)
    add_option(group, "predict", str, unlabelled, "FILE")
    add_option(group, "model", str, "Use the model in this folder, instead of --train", "DIR")
    add_out_options(group, "Folder to save the model in")
    return group


def _add_settings(sub: argparse.ArgumentParser, cls: type[SequenceEstimator]) -> Group:
    """Add an option for each setting of the estimator `cls`, and return their group."""
    group = sub.add_argument_group("model and training")

    def add(
        name: str, type_: Callable | None, about: str, metavar: str | None = None, **options: Any
    ) -> None:
        _add_setting(group, cls, name, type_, about, metavar, **options)

    about = "Features of a word, separated by commas: word, form, bigram, shape, prefixN, suffixN"
    add("features", _names, about, "A,B")
    add("min_count", int, "Treat values of a feature that are rarer than this as unknown")
    add("embedding_size", int, "Size of a token's embedding, the sum of those of its features")
    add("hidden_size", int, "Hidden units of a layer and direction")
    add("num_layers", int, "Number of layers")
    add("dropout", float, "Probability of dropping a unit of embeddings, layers and output")
    add("word_dropout", float, "Probability of treating a feature as unknown in training")
    add("epochs", int, "Largest number of passes over the training data")
    add("batch_size", int, "Sequences in a batch")
    add("lr", float, "Learning rate of AdamW")
    add("weight_decay", float, "Weight decay of AdamW")
    add("clip", float, "Clip the gradient to this norm")
    about = (
        "Stop after this number of epochs without a better validation; with 0 there is no "
        "validation and all epochs are trained"
    )
    add("patience", int, about)
    about = "Part of the training data to validate on if --valid is not given"
    add("validation_fraction", float, about)
    add("ensemble", int, "Train this number of networks and average their probabilities")
    about = "Seed of initial weights, dropout, order and splits of the data"
    add("seed", int, about)
    about = "Initialise the embeddings of words with the vectors of this file (see rnnfast embed)"
    add("embeddings", str, about, "FILE")
    about = "Recurrent layers: tanh or relu for an Elman RNN, or gru or lstm"
    add("cell", None, about, choices=CELLS)
    about = "Use an RNN in each direction"
    add("bidirectional", None, about, action=argparse.BooleanOptionalAction)
    about = "Weight classes in the loss by the inverse of their frequency"
    add("class_weight", None, about, choices=("balanced",), shown="all alike")
    return group


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _add_setting(
    group: Group,
    cls: type[SequenceEstimator],
    name: str,
    type_: Callable | None,
    about: str,
    metavar: str | None = None,
    **options: Any,
) -> None:
    """Add an option for a setting of `cls`. Its value is None if the option is not given."""
    default = getattr(cls, name)
    options.setdefault("shown", ",".join(default) if isinstance(default, tuple) else default)
    add_option(group, name, type_, about, metavar, **options)
