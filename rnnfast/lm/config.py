"""The settings of a run, their defaults for each level, and the check that they make sense."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from .._common.errors import UserError
from .data.vocabulary import BPE, BYTE, CHAR, LEVELS, WORD

RNN = "rnn"
WINDOW = "window"
ELMAN = ("tanh", "relu")
GATED = ("lstm", "gru")
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "plateau", "constant")

# What differs between the levels; everything else has one default, below.
# char: on the built-in text, 3 epochs at batch 24 and lr 4e-3 reached 1.287 nats; at lr 2e-3 1.357;
# at batch 50 1.401 (lr 8e-3: 1.409); at batch 12 1.280, with less for the kernels to share.
# word: 200 units and bptt 35 are those of pytorch/examples; min_count 2 keeps Brown's vocabulary
# under 33k words. eps: with 1e-8 Adam moves the vectors of a word that is seen three times as far
# as others, and they fit those three places (115,898 words of Brown, 6 epochs, validation loss: lr
# 4e-3 and eps 1e-8 4.716 nats, 1e-4 4.671; lr 0.01 and eps 1e-3 4.657, 3e-3 4.695; lr 0.02 4.728).
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
# SGD: a rate as large as the clipped gradient allows, and what Merity et al. (2018) decay by.
_OPTIMIZER_DEFAULTS = {"adamw": {}, "sgd": {"lr": 10.0, "weight_decay": 1.2e-6}}
_LEVEL_DEFAULTS = {
    CHAR: _LETTERS,
    BYTE: _LETTERS,
    WORD: {**_WORDS, "min_count": 2},
    BPE: {**_WORDS, "max_vocab": 4096},
}


@dataclass(frozen=True)
class Config:
    """Settings of a language model and its training. `Config.defaults(level)` fills them in.

    `epochs` and `max_seconds` are the budget: training ends at whichever comes first, and at
    least one must be given.

    `model` is "rnn" or "window", a feed-forward model of the `order` - 1 tokens before each, if
    `direct` with connections from their embeddings to the output. `cell` is the nonlinearity of the
    hidden units, "tanh" or "relu", or of an RNN "lstm" or "gru". `adaptive` is an adaptive softmax.
    `locked_dropout` keeps the masks of `dropout` for all steps of a chunk, `weight_dropout` is that
    of recurrent weights, `embedding_dropout` that of whole tokens.

    `bptt` is the length of the chunks of truncated back-propagation in tokens, `clip` the largest
    norm of the gradient (0: no clipping), `optimizer` "adamw" or "sgd", `eps` what AdamW adds to
    its estimate of a gradient's size (the larger, the less do rarely seen words move, as with SGD),
    `lr_schedule` "cosine" (over the budget), "plateau" (halve when validation does not improve) or
    "constant". With `average` the mean of the weights is validated and saved, from the first
    validation on that is worse than the best before the last `average` (Merity et al. 2018). An
    update is made from `accumulate` parts of the batch, one after the other; `bf16` is autocast,
    `compile` torch.compile. `log_interval` is in steps, `checkpoint_interval` in seconds. Raises
    UserError for a value out of range.
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
    average: int | None = None
    clip: float = 0.5
    accumulate: int = 1
    bf16: bool = False
    compile: bool = False
    epochs: int | None = None
    max_seconds: float | None = None
    seed: int = 1
    threads: int | None = None
    device: str = "cpu"
    log_interval: int = 50
    checkpoint_interval: float = 60.0
    tensorboard: bool = False

    @classmethod
    def defaults(cls, level: str = CHAR, **changes) -> Config:
        """The default settings of a level, one of LEVELS, with `changes` on top."""
        if level not in _LEVEL_DEFAULTS:
            raise UserError(f"level must be {' or '.join(LEVELS)}, not {level!r}")
        optimizer = _OPTIMIZER_DEFAULTS.get(changes.get("optimizer"), {})
        untied = {"tied": False} if changes.get("adaptive") else {}
        defaults = {"level": level, **_LEVEL_DEFAULTS[level], **optimizer, **untied}
        return cls(**{**defaults, **changes})

    def __post_init__(self):
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), field.type)
        choices = {
            "level": LEVELS,
            "model": (RNN, WINDOW),
            "cell": ELMAN if self.model == WINDOW else ELMAN + GATED,
            "optimizer": OPTIMIZERS,
            "lr_schedule": SCHEDULES,
        }
        for name, allowed in choices.items():
            where = f" for the model {self.model}" if name == "cell" else ""
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"{name} must be {' or '.join(allowed)}{where}, not {getattr(self, name)}"
                )
        for name in ("emsize", "nhid", "nlayers", "batch_size", "bptt", "min_count", "epochs"):
            self._require(name, lambda value: value >= 1, "at least 1")
        for name in ("threads", "log_interval", "accumulate"):
            self._require(name, lambda value: value >= 1, "at least 1")
        self._require("order", lambda value: value >= 2, "at least 2")
        self._require("max_vocab", lambda value: value >= 3, "at least 3")
        for name in ("lr", "eps", "max_seconds", "checkpoint_interval"):
            self._require(name, lambda value: 0 < value < float("inf"), "a positive number")
        for name in ("clip", "weight_decay", "average"):
            self._require(name, lambda value: 0 <= value < float("inf"), "zero or more")
        for name in ("dropout", "weight_dropout", "embedding_dropout"):
            self._require(name, lambda value: 0 <= value < 1, "in [0, 1)")
        self._require("seed", lambda value: 0 <= value < 2**63, "in [0, 2**63)")
        if self.direct and (self.model != WINDOW or self.tied):
            raise UserError("direct needs the model window, and its output weights not tied")
        if self.adaptive and (self.tied or self.level != WORD):
            raise UserError("adaptive needs words, and output weights that are not tied")
        if self.model == WINDOW and self.weight_dropout:
            raise UserError("weight_dropout needs the model rnn: a window has no recurrent weights")
        if self.model == WINDOW and self.nlayers != 1:
            raise UserError(f"nlayers must be 1 for the model window, not {self.nlayers}")
        if self.tied and self.emsize != self.nhid:
            raise UserError(
                f"tied needs emsize equal to nhid, not emsize {self.emsize} and nhid {self.nhid}: "
                "give both, or not tied"
            )

    def _require(self, name, holds, what):
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise UserError(f"{name} must be {what}, not {value}")

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, settings: dict) -> Config:
        """What `to_json` gave, here or in 0.1, where `cell` was `nonlinearity`."""
        settings = {**settings}
        if "nonlinearity" in settings:
            settings["cell"] = settings.pop("nonlinearity")
        return cls(**settings)


def _check_type(name: str, value, annotation: str) -> None:
    """Settings also come from files: a string where a number belongs must not get further."""
    if value is None:
        if "None" not in annotation:
            raise UserError(f"{name} must be given")
        return
    wanted = {"int": int, "float": (int, float), "str": str, "bool": bool}[annotation.split()[0]]
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise UserError(f"{name} must be of type {annotation}, not {value!r}")
