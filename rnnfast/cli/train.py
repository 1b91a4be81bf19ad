"""`rnnfast train`: train a language model, or continue a run."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import build_info, lm
from .._common import progress
from .._common.runtime import rank
from .._common.text import counted
from ..embeddings import Vectors
from ..embeddings.vectors import Coverage
from ..lm.compare import SAMPLE_LENGTH, SAMPLE_TEMPERATURE
from ..lm.config import ELMAN, GATED, OPTIMIZERS, SCHEDULES
from ..lm.language_model import bits, perplexity
from ..lm.storage import RunFolder
from ..lm.training.distributed import joined
from ..lm.training.state import TrainingStep
from .doctor import bf16_advice
from .options import (
    TEXTS,
    Commands,
    Group,
    add_command,
    add_option,
    add_out_options,
    add_preset_option,
    add_setting,
    add_text_options,
    warn_without_effect,
)
from .output import Output

DEFAULT_SECONDS = 60.0  # time budget of a run on the built-in text
DEFAULT_EPOCHS = 10  # budget of a run on the user's own text
UNITS = {"char": "character", "byte": "byte", "word": "word", "bpe": "token"}
SETTINGS = [field.name for field in fields(lm.Config) if field.name != "mup"]  # the options


def train(args: argparse.Namespace, output: Output) -> int:
    """Train a model, in one process or in the several that `torchrun` has started."""
    with joined(args.device or "cpu"):
        if rank() == 0:
            return _train(args, output)
        try:
            _trainer(args)[0].run()
        except lm.Interrupted as interrupted:
            return 128 + interrupted.signum
        return 0


def _train(args: argparse.Namespace, output: Output) -> int:
    """Train in the process that prints, and that writes the files."""
    trainer, coverage = _trainer(args)
    config, folder = trainer.config, trainer.folder
    assert folder is not None  # this is the process of rank 0
    unit = UNITS[config.level]
    about = (
        f"{counted(len(trainer.train), unit)} to train on, {len(trainer.valid):,} to validate; "
        f"{counted(len(trainer.vocab), 'symbol')}\n"
        f"{_kind(config)}, {config.nlayers} x {config.nhid} units, "
        f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters"
    )
    output.text.print(escape(about))
    if not args.resume and (advice := _bf16_advice(config)):
        output.text.print(escape(advice))
    if coverage is not None:
        output.text.print(f"embeddings: {coverage}")
    try:
        with TrainingProgress(output.progress, config) as shown:
            trainer.run(shown.step, shown.validation)
    except lm.Interrupted as interrupted:
        output.text.print(
            escape(
                f"stopped at step {trainer.state.step} and saved in {folder.final}; continue with "
                f"rnnfast train --resume {folder.final}"
            )
        )
        return 128 + interrupted.signum
    report = lm.report(trainer)
    if coverage is not None:
        report["coverage"] = asdict(coverage)
    output.text.print(_results(report, model_name(config)))
    sample = trainer.model.generate(
        length=SAMPLE_LENGTH[config.level], temperature=SAMPLE_TEMPERATURE, seed=config.seed
    )
    output.text.print(f"\n[bold]A sample[/] (temperature {SAMPLE_TEMPERATURE}):")
    output.text.print(escape(sample.strip("\n")))
    output.text.print(
        escape(
            f"\n{report['tokens']:,} tokens in {report['seconds']:.1f} s, "
            f"{report['tokens_per_second']:,.0f} tokens/s. Saved in {folder.final}; "
            f"for more text: rnnfast generate {folder.final}"
        )
    )
    output.json(report)
    return 0


def _trainer(args: argparse.Namespace) -> tuple[lm.Trainer, Coverage | None]:
    """Return the trainer of a new run, or of one to resume.

    The second value says how many words of the vocabulary have a vector in --embeddings.
    """
    changes = {name: getattr(args, name) for name in SETTINGS}
    paths = (args.data, args.train, args.valid, args.test, args.vocab)
    given = any(paths[:4])
    if args.resume:
        if args.out or args.overwrite:
            raise lm.UserError(
                "--resume continues a run in its own folder: leave out --out and --overwrite"
            )
        for option, what in (("embeddings", "embeddings"), ("vocab", "vocabulary")):
            if getattr(args, option):
                raise lm.UserError(
                    f"--resume continues with the {what} of the run: leave out --{option}"
                )
        corpus = lm.corpus.read(*paths) if given else None
        return lm.resume(args.resume, changes, corpus), None
    changes = {name: value for name, value in changes.items() if value is not None}
    if not changes.keys() & {"epochs", "max_seconds", "preset"}:
        budget = {"epochs": DEFAULT_EPOCHS} if given else {"max_seconds": DEFAULT_SECONDS}
        changes.update(budget)
    config = lm.Config.defaults(changes.pop("level", "char"), **changes)
    if args.embeddings:
        vectors = Vectors.load_of_size(args.embeddings, config.emsize, "emsize")
    corpus = lm.corpus.read(*paths)
    folder = None
    if rank() == 0:
        warn_without_effect(args, config.level)
        folder = RunFolder(args.out, args.overwrite) if args.out else RunFolder.fresh()
    trainer = lm.prepare(config, corpus, folder)
    if not args.embeddings:
        return trainer, None
    vocab = trainer.vocab
    try:
        vectors.initialise(trainer.model.encoder.weight, vocab.tokens)
    except lm.UserError:
        if folder is not None:
            folder.discard()
        raise
    special = {vocab.boundary, vocab.unk}
    words = (token for i, token in enumerate(vocab.tokens) if i not in special)
    return trainer, vectors.coverage(words)


class TrainingProgress:
    """Show a training run: a bar on a terminal, elsewhere one line every log interval."""

    def __init__(self, console: Console, config: lm.Config):
        self.console, self.config = console, config
        self.bar = progress.bar(console, "{task.fields[about]}")

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        self.task = self.bar.add_task("train", total=1.0, about="")
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def step(self, step: TrainingStep) -> None:
        """Show an update. `Trainer.run` calls this after each one."""
        about = f"loss {step.loss:.3f}  lr {step.lr:.1e}  {step.tokens_per_second:,.0f} tokens/s"
        self.bar.update(self.task, completed=min(step.progress, 1.0), about=about)
        if not self.console.is_terminal and step.step % self.config.log_interval == 0:
            self.console.print(
                f"step {step.step}  epoch {step.epoch:.2f}  {step.seconds:.1f} s  {about}"
            )

    def validation(self, record: dict) -> None:
        """Print a validation. `Trainer.run` calls this after each one."""
        loss = record["valid_loss"]
        self.console.print(
            f"step {record['step']}  epoch {record['epoch']:.2f}  {record['seconds']:.1f} s  "
            f"train {record['train_loss']:.4f}  valid {loss:.4f} nats, {bits(loss):.4f} bits, "
            f"perplexity {perplexity(loss):.3f}"
        )
        if "restored_step" in record:
            self.console.print(
                f"back to the weights of step {record['restored_step']}, lr {record['lr']:.1e}"
            )


def model_name(config: lm.Config) -> str:
    """Return what to call a model: "RNN", "LSTM", "GRU" or "window of N tokens"."""
    if config.model == "window":
        return f"window of {config.order} tokens"
    return config.cell.upper() if config.cell in GATED else "RNN"


def _bf16_advice(config: lm.Config) -> str | None:
    """Return advice to use bfloat16 on a GPU that is good at it, or a warning where it is slow."""
    if not config.bf16 and not config.device.startswith("cuda"):
        return None
    advice = bf16_advice(config.device, build_info())
    if not config.bf16:
        return advice
    slow = "warning: the device has no instructions for bfloat16, so --bf16 makes training slower"
    return None if advice else slow


def _kind(config: lm.Config) -> str:
    name = model_name(config)
    return name if config.cell in GATED else f"{config.cell} {name}"


def _results(report: dict, name: str) -> Table:
    baselines = report["baselines"].items()
    rows = [(f"{baseline}, valid", figures["valid_loss"]) for baseline, figures in baselines]
    rows.append((f"{name}, valid", report["valid_loss"]))
    if report["test_loss"] is not None:
        rows.append((f"{name}, test", report["test_loss"]))
    table = Table("model")
    for heading in ("nats", f"bits per {UNITS[report['level']]}", "perplexity"):
        table.add_column(heading, justify="right")
    for row, loss in rows:
        table.add_row(row, f"{loss:.4f}", f"{bits(loss):.4f}", f"{perplexity(loss):.3f}")
    return table


def register(commands: Commands) -> None:
    """Add the command to `commands`, what `ArgumentParser.add_subparsers` returned."""
    about = "Train a model. Without arguments, train for a minute on a built-in text."
    sub = add_command(commands, "train", train, about, epilog=TEXTS)
    _add_texts(sub.add_argument_group("text (without any: Python's language reference)"))
    _add_model(sub.add_argument_group("model"))
    _add_training(sub.add_argument_group("training"))
    _add_run(sub.add_argument_group("run"))


def _add_texts(group: Group) -> None:
    about = "Train on the first 90%% of this text and validate on the rest"
    add_option(group, "data", str, about, "TEXT")
    add_option(group, "train", str, "Train on this text, instead of --data", "TEXT")
    add_option(group, "valid", str, "Validate on this text, together with --train", "TEXT")
    add_option(group, "test", str, "Evaluate the model on this text once, at the end", "TEXT")
    add_text_options(group)


def _add_model(group: Group) -> None:
    flag: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
    add_preset_option(group)
    about = "Kind of model: recurrent, or a feed-forward window of fixed length"
    add_setting(group, "model", None, about, choices=("rnn", "window"))
    about = "Tokens that the window spans, including the predicted one"
    add_setting(group, "order", int, about)
    about = "Connect the embeddings of a window to the output as well"
    add_setting(group, "direct", None, about, **flag)
    add_setting(group, "emsize", int, "Size of an embedding")
    add_setting(group, "nhid", int, "Hidden units of a layer")
    add_setting(group, "nlayers", int, "Number of layers")
    about = "Cell of the hidden layers; a window has tanh or relu"
    add_setting(group, "cell", None, about, choices=ELMAN + GATED)
    about = "Probability of dropping a unit of a word's embedding, between layers and of the output"
    add_setting(group, "dropout", float, about)
    about = "Drop the same units at all time steps of a chunk (variational dropout)"
    add_setting(group, "locked_dropout", None, about, **flag)
    about = "Probability of dropping a recurrent weight of an RNN (DropConnect)"
    add_setting(group, "weight_dropout", float, about)
    about = "Probability of dropping the whole embedding of a token"
    add_setting(group, "embedding_dropout", float, about)
    about = "Use an adaptive softmax, for large vocabularies of words; needs --no-tied"
    add_setting(group, "adaptive", None, about, **flag)
    about = "Train with a softmax over N words, some of them drawn for each batch, for speed"
    add_setting(group, "sampled_softmax", int, about, shown="all words")
    about = "Use the embeddings as output weights; needs --emsize equal to --nhid"
    add_setting(group, "tied", None, about, **flag)
    about = "Initialise the embeddings with the vectors of this file (see rnnfast embed)"
    add_option(group, "embeddings", str, about, "FILE")


def _add_training(group: Group) -> None:
    flag: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
    add_setting(
        group, "batch_size", int, "Sequences that the text is cut into, to be read side by side"
    )
    add_setting(group, "bptt", int, "Tokens of a chunk of truncated back-propagation")
    add_setting(group, "optimizer", None, "Optimizer", choices=OPTIMIZERS)
    sgd = lm.Config.defaults(optimizer="sgd")
    note = f"more for fewer units than the default; {sgd.lr:g} with --optimizer sgd"
    add_setting(group, "lr", float, "Learning rate", note=note)
    about = "AdamW's epsilon: the larger it is, the less the embeddings of rare words move"
    add_setting(group, "eps", float, about)
    about = (
        "Schedule of the learning rate: a cosine over the budget; plateau, which goes back to the "
        "best weights and halves the rate when the validation loss does not improve; or constant"
    )
    add_setting(group, "lr_schedule", None, about, choices=SCHEDULES)
    about = "Weight decay, which embeddings and biases do not have"
    note = f"{sgd.weight_decay:g} with --optimizer sgd"
    add_setting(group, "weight_decay", float, about, note=note)
    about = (
        "Start to validate and save averaged weights when the validation loss has not improved for "
        "N validations"
    )
    add_setting(group, "average", int, about, shown="never")
    about = "Clip the gradient to this norm; 0 disables clipping"
    add_setting(group, "clip", float, about)
    about = "Parts that the batch of an update is cut into, to save memory"
    add_setting(group, "accumulate", int, about)
    add_setting(group, "bf16", None, "Train with autocast to bfloat16", **flag)
    add_setting(group, "compile", None, "Compile the training step with torch.compile", **flag)
    about = "Capture the training step on a CUDA device once as a CUDA graph, and replay it"
    add_setting(group, "cuda_graph", None, about, **flag)
    shown = f"{DEFAULT_EPOCHS} with a text of yours and no --preset"
    add_setting(
        group,
        "epochs",
        int,
        "Passes over the text; fewer if --max-seconds ends the run",
        shown=shown,
    )
    shown = f"{DEFAULT_SECONDS:g} on the built-in text"
    add_setting(group, "max_seconds", float, "Time budget in seconds", shown=shown)
    about = "Seed of the initial weights, of dropout and of the sample"
    add_setting(group, "seed", int, about)


def _add_run(group: Group) -> None:
    about = "Folder to save the model in"
    add_out_options(
        group, about, shown="the first of rnnfast-model, rnnfast-model-2, ... that is free"
    )
    about = "Continue the run in this folder, with its settings and its text"
    add_option(group, "resume", str, about, "DIR")
    add_setting(group, "log_interval", int, "Steps from one line of the log to the next")
    about = "Also write the log for TensorBoard, to DIR/tensorboard"
    add_setting(group, "tensorboard", None, about, action=argparse.BooleanOptionalAction)
    about = "Seconds from one checkpoint to the next"
    add_setting(group, "checkpoint_interval", float, about)
