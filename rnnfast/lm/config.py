"""The settings of a run, their defaults for each level, and the check that they make sense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .._common.errors import ArgumentError, UserError
from .data.vocabulary import BPE, BYTE, CHAR, WORD, check_level
from .presets import PRESETS, SETTINGS

RNN = "rnn"
WINDOW = "window"
ELMAN = ("tanh", "relu")
GATED = ("lstm", "gru")
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "plateau", "constant")

# Only what differs between the levels is here. Everything else has one default, in `Config`.
#
# Characters and bytes. Validation loss on the built-in text after 3 epochs with 512 units, in nats:
#   batch 24, lr 4e-3  1.287
#   batch 24, lr 2e-3  1.357
#   batch 50, lr 4e-3  1.401
#   batch 50, lr 8e-3  1.409
#   batch 12, lr 4e-3  1.280, but a batch of 12 leaves less for the kernels to share
#
# Words. 200 units and a bptt of 35 are the defaults of pytorch/examples. A min_count of 2 keeps the
# vocabulary of the Brown corpus below 33,000 words. With an eps of 1e-8, Adam moves the embedding
# of a word that is seen three times as far as those of other words, and the embedding then fits
# only those three places. Validation loss on 115,898 words of Brown after 6 epochs, in nats:
#   lr 0.004, eps 1e-8  4.716
#   lr 0.004, eps 1e-4  4.671
#   lr 0.01,  eps 1e-3  4.657
#   lr 0.01,  eps 3e-3  4.695
#   lr 0.02             4.728
#
# The rate is right for TUNED_WIDTH units. `neural.width` is about wider models. The default rate of
# narrower ones is higher, in inverse proportion, up to NARROW_RATE times. Validation loss on the
# first 300 KB of tinyshakespeare after 5 epochs, in nats:
#   100 units  lr 4e-3 1.775, 8e-3 1.703, 16e-3 1.659, 32e-3 1.664
#   200 units  lr 4e-3 1.618, 8e-3 1.561, 16e-3 1.548, 32e-3 1.581
TUNED_WIDTH = {CHAR: 512, BYTE: 512, WORD: 200, BPE: 200}
NARROW_RATE = 4.0
_LETTERS = {"emsize": 128, "nhid": 512, "batch_size": 24, "bptt": 100, "dropout": 0.1}
_WORDS = {
    "emsize": 200,
    "nhid": 200,
    "batch_size": 20,
    "bptt": 35,
    "dropout": 0.3,
    "tied": True,
    "lr": 0.01,
    "eps": 1e-3,
}
# For SGD, the rate is as large as the clipped gradient allows, and the weight decay is that of
# Merity et al. (2018).
_OPTIMIZER_DEFAULTS = {"adamw": {}, "sgd": {"lr": 10.0, "weight_decay": 1.2e-6}}
_LEVEL_DEFAULTS = {
    CHAR: _LETTERS,
    BYTE: _LETTERS,
    WORD: {**_WORDS, "min_count": 2},
    BPE: {**_WORDS, "max_vocab": 4096},
}


@dataclass(frozen=True)
class Config:
    """The settings of a language model and of its training.

    `Config.defaults(level)` fills in the defaults of a level. `epochs` and `max_seconds` are the
    budget: training ends when the first of them is used up, and at least one must be given.

    Attributes:
        level: What a token is: "char", "byte", "word" or "bpe".
        emsize: The size of the embeddings.
        nhid: The number of hidden units of a layer.
        batch_size: The number of sequences that the training text is cut into.
        bptt: The length of the chunks of truncated back-propagation, in tokens.
        dropout: The probability of dropout on the output, between layers and on the embeddings of
            words.
        model: "rnn", or "window" for a feed-forward model of the last tokens.
        order: For a window, the number of tokens it spans, the predicted token included.
        direct: For a window, connect the embeddings to the output as well.
        nlayers: The number of layers.
        cell: "tanh" or "relu", or for an RNN also "lstm" or "gru".
        tied: Share the weights of the embeddings and the output. Needs `emsize` equal to `nhid`.
        adaptive: Use an adaptive softmax, for large vocabularies of words.
        sampled_softmax: If not None, train with a softmax over this many words: the most frequent
            ones, the targets, and others that are drawn for each batch (Jean et al. 2015). This is
            faster with large vocabularies. The training loss is then an approximation.
        locked_dropout: Keep the masks of `dropout` for all time steps of a chunk.
        weight_dropout: The probability of dropout on the recurrent weights.
        embedding_dropout: The probability that the embedding of a token is zero in a whole chunk.
        min_count: At word level, words seen less often become `<unk>`.
        max_vocab: The largest number of tokens at word and BPE level; None for any number.
        optimizer: "adamw" or "sgd".
        lr: The learning rate.
        eps: What AdamW adds to its estimate of the size of a gradient. The larger it is, the less
            far rarely seen words move.
        lr_schedule: "cosine" (over the budget), "plateau" (when the validation loss does not
            improve, go back to the best weights and halve the rate) or "constant".
        weight_decay: The weight decay, except of biases and embeddings.
        mup: Scale the initial weights, the rates of AdamW and `clip` with the width of the model,
            if it is wider than the one that the defaults were found for, so that they are right for
            it as well (maximal update parametrisation, Yang et al. 2022). Runs of earlier versions
            have False.
        average: If not None, validate and save the mean of the weights since the first validation
            that was worse than one more than `average` validations before it (Merity et al. 2018).
        clip: The largest norm of the gradient; 0 does not clip. With `mup`, the norm may be larger
            in wide models.
        accumulate: The number of parts of a batch that run one after the other, to save memory.
        bf16: Use autocast to bfloat16.
        compile: Use `torch.compile` for the training step.
        cuda_graph: On a CUDA device, capture the training step once as a CUDA graph and replay it.
            An adaptive softmax and several processes run without one.
        epochs: The number of passes over the training text.
        max_seconds: The time for training and validation, in seconds.
        seed: The seed of the weights, of dropout and of the sample.
        threads: The number of CPU threads; None leaves torch's number.
        device: The device, such as "cpu" or "cuda".
        log_interval: The number of steps between two lines of the log.
        checkpoint_interval: The number of seconds between two checkpoints.
        tensorboard: Write the log for TensorBoard as well.
        preset: The preset that `defaults` has taken settings from, "small", "medium" or "large", or
            None. It has no effect of its own.

    Raises:
        UserError: A value has the wrong type or is out of range, or two values do not fit.

    Example:
        >>> from rnnfast import lm
        >>> config = lm.Config.defaults("word", nhid=100, emsize=100, epochs=5)
        >>> config.optimizer, config.nhid, config.min_count
        ('adamw', 100, 2)
    """

    level: str
    emsize: int
    nhid: int
    batch_size: int
    bptt: int
    dropout: float
    model: str = RNN
    order: int = 5
    direct: bool = False
    nlayers: int = 1
    cell: str = "tanh"
    tied: bool = False
    adaptive: bool = False
    sampled_softmax: int | None = None
    locked_dropout: bool = False
    weight_dropout: float = 0.0
    embedding_dropout: float = 0.0
    min_count: int = 1
    max_vocab: int | None = None
    optimizer: str = "adamw"
    lr: float = 4e-3
    eps: float = 1e-8
    lr_schedule: str = "cosine"
    weight_decay: float = 0.01
    mup: bool = True
    average: int | None = None
    clip: float = 0.5
    accumulate: int = 1
    bf16: bool = False
    compile: bool = False
    cuda_graph: bool = True
    epochs: int | None = None
    max_seconds: float | None = None
    seed: int = 1
    threads: int | None = None
    device: str = "cpu"
    log_interval: int = 50
    checkpoint_interval: float = 60.0
    tensorboard: bool = False
    preset: str | None = None

    @classmethod
    def defaults(cls, level: str = CHAR, **changes: Any) -> Config:
        """Return the default settings of a level, with `changes` to them.

        The default learning rate of AdamW depends on `nhid`. If `changes` has a `preset`, its
        settings come before the defaults, and its epochs count unless `changes` has a budget.

        Raises UserError for an unknown level, and for what `Config` refuses.
        """
        check_level(level)
        optimizer = _chosen(_OPTIMIZER_DEFAULTS, "optimizer", changes)
        untied = {"tied": False} if changes.get("adaptive") else {}
        preset = _preset(level, changes)
        defaults = {"level": level, **_LEVEL_DEFAULTS[level], **preset, **optimizer, **untied}
        config = cls(**{**defaults, **changes})
        if "lr" in changes or config.optimizer != "adamw":
            return config
        narrow = TUNED_WIDTH[level] / config.nhid
        return replace(config, lr=config.lr * min(max(narrow, 1.0), NARROW_RATE))

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), str(field.type))
        check_level(self.level)
        choices = {
            "model": (RNN, WINDOW),
            "cell": ELMAN if self.model == WINDOW else ELMAN + GATED,
            "optimizer": OPTIMIZERS,
            "lr_schedule": SCHEDULES,
        }
        for name, allowed in choices.items():
            where = f" for the model {self.model}" if name == "cell" else ""
            if getattr(self, name) not in allowed:
                raise ArgumentError(
                    f"{name} must be {' or '.join(allowed)}{where}, not {getattr(self, name)}"
                )
        for name in ("emsize", "nhid", "nlayers", "batch_size", "bptt", "min_count", "epochs"):
            self._require(name, lambda value: value >= 1, "at least 1")
        for name in ("threads", "log_interval", "accumulate"):
            self._require(name, lambda value: value >= 1, "at least 1")
        self._require("order", lambda value: value >= 2, "at least 2")
        self._require("sampled_softmax", lambda value: value >= 2, "at least 2")
        self._require("max_vocab", lambda value: value >= 3, "at least 3")
        for name in ("lr", "eps", "max_seconds", "checkpoint_interval"):
            self._require(name, lambda value: 0 < value < float("inf"), "a positive number")
        for name in ("clip", "weight_decay", "average"):
            self._require(name, lambda value: 0 <= value < float("inf"), "zero or more")
        for name in ("dropout", "weight_dropout", "embedding_dropout"):
            self._require(name, lambda value: 0 <= value < 1, "in [0, 1)")
        self._require("preset", PRESETS.__contains__, " or ".join(PRESETS))
        self._require("seed", lambda value: 0 <= value < 2**63, "in [0, 2**63)")
        if self.direct and (self.model != WINDOW or self.tied):
            raise ArgumentError(
                "direct needs the model window, and output weights that are not tied"
            )
        if self.adaptive and (self.tied or self.level != WORD):
            raise ArgumentError(
                "adaptive needs words as tokens, and output weights that are not tied"
            )
        if self.sampled_softmax and (self.adaptive or self.level != WORD):
            raise ArgumentError(
                "sampled_softmax needs words as tokens, and a softmax that is not adaptive"
            )
        if self.model == WINDOW and self.weight_dropout:
            raise ArgumentError(
                "weight_dropout needs the model rnn: a window has no recurrent weights"
            )
        if self.model == WINDOW and self.nlayers != 1:
            raise ArgumentError(f"nlayers must be 1 for the model window, not {self.nlayers}")
        if self.tied and self.emsize != self.nhid:
            raise ArgumentError(
                f"tied needs emsize equal to nhid, not emsize {self.emsize} and nhid {self.nhid}: "
                "make them equal, or turn tied off",
                "tied",
                "emsize",
                "nhid",
            )

    @property
    def relative_width(self) -> float:
        """How many times as wide the model is as the one that the rates were found for, at least 1.

        It is 1 if the settings do not depend on the width.
        """
        if not self.mup or self.optimizer != "adamw":
            return 1.0
        return max(1.0, self.nhid / TUNED_WIDTH[self.level])

    def _require(self, name: str, holds: Callable[[Any], bool], what: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise ArgumentError(f"{name} must be {what}, not {value}")

    def to_json(self) -> dict:
        """Return the settings as a dict that `json` can write."""
        return asdict(self)

    @classmethod
    def from_json(cls, settings: dict) -> Config:
        """Return the settings that `to_json` gave, in this version or in an earlier one.

        Version 0.1 called `cell` `nonlinearity`. Before `mup` was a setting, no run used it.
        """
        settings = {"mup": False, **settings}
        if "nonlinearity" in settings:
            settings["cell"] = settings.pop("nonlinearity")
        return cls(**settings)


def _chosen(table: dict[str, dict[str, Any]], name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return what `table` has for a setting in `changes`. `Config` checks the value itself."""
    value = changes.get(name)
    return table.get(value, {}) if isinstance(value, str) else {}


def _preset(level: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the preset in `changes`, except those that `changes` rules out."""
    settings = _chosen(SETTINGS[level], "preset", changes)
    ruled_out = set()
    if changes.get("model") == WINDOW:
        ruled_out |= {"weight_dropout", "nlayers"}
    if changes.get("adaptive"):
        ruled_out.add("sampled_softmax")
    if "max_seconds" in changes:
        ruled_out.add("epochs")
    return {name: value for name, value in settings.items() if name not in ruled_out}


def _check_type(name: str, value: object, annotation: str) -> None:
    """Raise UserError if `value` does not have the type of the annotation.

    Settings also come from files, where a number may be a string.
    """
    if value is None:
        if "None" not in annotation:
            raise UserError(f"{name} must be given")
        return
    types: dict[str, type | tuple[type, ...]]
    types = {"int": int, "float": (int, float), "str": str, "bool": bool}
    wanted = types[annotation.split()[0]]
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise UserError(f"{name} must be of type {annotation}, not {value!r}")
