"""Training by truncated back-propagation through time, which can be stopped and resumed."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch

from ..._common.errors import DataWarning, Interrupted, UserError
from ..config import Config
from ..data.batches import Batches
from ..language_model import evaluate
from ..neural.models import NeuralLM
from ..storage import RunFolder, weights
from .board import Board
from .diagnosis import baseline, diagnose, has_diverged
from .distributed import Ranks
from .graph import graphed
from .optimiser import PLATEAU_FACTOR, Average, has_stalled, learning_rate
from .signals import SIGNALS, StopSignals
from .state import State, TrainingStep
from .update import Update

SAVING_PART = 0.02  # checkpoints take at most this part of the time
VALIDATIONS = 10  # with a time budget, validate this often if epochs take longer
READING_SECONDS = 0.5  # a CUDA device works for so long until the program waits for its figures


class Trainer:
    """Trains a model on a stream of token numbers. `prepare` and `resume` make a trainer.

    On the CPU and without `max_seconds`, a run depends only on the settings, and a run that was
    stopped and resumed gives bit for bit the same model as a run that was not.

    With torch.distributed every process has a Trainer with the same arguments, except that only
    the one of rank 0 has a `folder`. Each process reads its own sequences. The clock, the
    validation and the decision to stop are shared.

    Args:
        model: The model to train. It is moved to the device of `config`.
        config: The settings.
        train: The stream to train on, integers (n,). It may be a memory map.
        valid: The stream to validate on, int64 (n,).
        test: The stream to test on, int64 (n,), or None.
        folder: Receives the best model, the log, and a checkpoint every `checkpoint_interval`
            seconds, at every validation and when a signal stops the run. None writes nothing.

    Attributes:
        state: The numbers of the run.
        best: The weights of the best validation by name, or None before the first.
        initial: The initial weights by name, while the schedule "plateau" may go back to them.

    Raises:
        UserError: The settings have no budget, or `train` has fewer tokens than one batch.
    """

    def __init__(
        self,
        model: NeuralLM,
        config: Config,
        train: np.ndarray,
        valid: np.ndarray,
        test: np.ndarray | None = None,
        folder: RunFolder | None = None,
    ):
        if config.epochs is None and config.max_seconds is None:
            raise UserError("give epochs or max_seconds: a run needs an end")
        self.config, self.vocab = config, model.vocab
        self.ranks = Ranks(config)
        self.device = self.ranks.device
        self.model = model.to(self.device)
        self.train, self.valid, self.test = train, valid, test
        self.batches = Batches(train, self.vocab.boundary, config.batch_size, config.bptt)
        self.folder = folder
        self.update = Update(model, config, self.ranks)
        self.optimizer = self.update.optimizer
        self._make_update = graphed(self.update)
        # On a CPU, and with processes that wait for one another anyway, waiting costs nothing.
        self._reads_always = self.device.type != "cuda" or self.ranks.size > 1
        self.average: Average | None = None
        if self.ranks.rank:  # each process draws other masks of dropout
            torch.manual_seed(config.seed + self.ranks.rank)
        self.state = State()
        self.hidden: torch.Tensor | None = None
        self.best: dict[str, torch.Tensor] | None = None
        self.initial: dict[str, torch.Tensor] | None = None
        self._began: float | None = None  # when the run would have begun if it had not stopped
        self._unigram: float | None = None  # the loss of a unigram model, once it is needed
        self.signals = StopSignals()
        self._saved_seconds = self._saving_cost = 0.0
        self._read_step = self._next_reading = 0  # the steps of the last reading and of the next
        self._read_seconds = 0.0  # when the last reading or validation ended
        self._shown = (math.nan, math.nan, math.nan)  # loss, norm and speed of the last reading
        self.resumed_seconds, self.resumed_step = 0.0, 0

    # ---- the run

    def run(
        self,
        on_step: Callable[[TrainingStep], None] | None = None,
        on_validation: Callable[[dict], None] | None = None,
    ) -> None:
        """Train to the end of the budget. The model then has the weights of the best validation.

        Args:
            on_step: A function that is called with a `TrainingStep` after every update.
            on_validation: A function that is called with the record of every validation, a dict.

        Raises:
            Interrupted: A signal stopped the run. The model and a checkpoint are saved.
            UserError: The loss or the gradient is not finite. The last good weights are kept.
        """
        self._began = self._beginning()
        if self.folder is not None:
            self.folder.lock()
        with self.signals.noted():
            try:
                while True:
                    if self._validation_due():
                        record = self.validate()
                        if on_validation:
                            on_validation(record)
                    elif self._save_due():
                        self.save()
                    if self.finished:
                        break
                    step = self.train_step()
                    if on_step:
                        on_step(step)
                    self._heed_signals()
            except Interrupted:
                self.save()
                raise
            finally:
                if self.folder is not None:
                    self.folder.close()
        assert self.best is not None  # a run ends with a validation
        self._restore(self.best)

    def train_step(self) -> TrainingStep:
        """Make one update: forward pass, backward pass through one chunk, clipping, optimizer."""
        config, state = self.config, self.state
        if self._began is None:
            self._began = self._beginning()
        if state.step == 0 and config.lr_schedule == "plateau":
            self.initial = weights(self.model)
        chunk = state.step % len(self.batches)
        if chunk == 0:
            self.hidden = None  # an epoch begins at the start of every sequence
        lr = self.lr
        self.update.set_rate(lr)
        inputs, targets = map(self.ranks.own_sequences, self.batches[chunk])
        self.hidden = self._make_update(inputs, targets, self.hidden)
        if self.average is not None:
            state.averaged = (state.averaged or 0) + 1
            self.average.update(state.averaged)
        state.step += 1
        state.loss_steps += 1
        is_logged = state.step % config.log_interval == 0
        if self._reads_always or is_logged or state.step >= self._next_reading:
            self._read()
        else:
            state.seconds = self._shared_time() - self._began
        loss, norm, speed = self._shown
        if is_logged:
            self._log(self._record(lr=lr, grad_norm=norm, train_loss=self._mean_train_loss()))
        return TrainingStep(
            state.step, self.epoch, state.seconds, loss, lr, norm, speed, self.progress
        )

    def _read(self) -> None:
        """Read the figures of the updates since the last reading. This waits for the device."""
        state = self.state
        steps = state.step - self._read_step
        if not steps:
            return
        figures = self.update.read()
        if figures.skipped:
            what = "gradient" if math.isfinite(figures.loss) else "loss"
            self._diverged(what, state.step - figures.skipped)
        state.loss_sum = figures.loss_sum
        assert self._began is not None  # an update came before
        state.seconds = self._shared_time() - self._began
        seconds = max(state.seconds - self._read_seconds, 1e-9)
        tokens = self.batches.tokens(state.step) - self.batches.tokens(self._read_step)
        self._shown = figures.loss, figures.grad_norm, tokens / seconds
        self._next_reading = state.step + max(1, int(READING_SECONDS / seconds * steps))
        self._read_step, self._read_seconds = state.step, state.seconds

    def validate(self) -> dict:
        """Evaluate on `valid`, keep the weights if they are the best so far, and save a checkpoint.

        The schedule "plateau" gives up other weights. Return the record of the log.
        """
        state = self.state
        if self._began is None:
            self._began = self._beginning()
        self._read()
        began = state.seconds
        with self.average.in_place() if self.average else contextlib.nullcontext():
            loss = self._validation_loss()
            if not math.isfinite(loss):
                self._diverged("validation loss", state.step)
            if self.initial and loss < self.unigram():
                self.initial = None
            if improved := state.best_loss is None or loss < state.best_loss:
                state.best_loss, state.best_step = loss, state.step
                self.best = weights(self.model)
            radii = self.model.spectral_radii()
        figures = {"train_loss": self._mean_train_loss(), "valid_loss": loss}
        failed = not improved or has_diverged(loss, len(self.vocab))
        if self.config.lr_schedule == "plateau" and failed:
            figures["restored_step"] = self._go_back()
        state.seconds = self._shared_time() - self._began
        self._read_seconds = state.seconds
        state.validated_step, state.validated_seconds = state.step, state.seconds
        state.validation_cost = state.seconds - began
        record = self._record(lr=self.lr, **figures, spectral_radius=radii)
        state.curve.append(record)
        self._warn(record)
        self._log(record)
        self._start_averaging()
        self.save()
        return record

    def _go_back(self) -> int:
        """Return to the best weights with a smaller rate. Return the step that they had.

        The optimizer and the average start anew. Until a validation is better than a unigram model,
        the initial weights are the best.
        """
        step, tensors = (0, self.initial) if self.initial else (self.state.best_step, self.best)
        assert tensors is not None  # a validation came before
        self._restore(tensors)
        self.update.restart()
        self.hidden = self.average = self.state.averaged = None
        self.state.lr_scale *= PLATEAU_FACTOR
        return step

    def _warn(self, record: dict) -> None:
        """Warn once, on rank 0, if the run does not learn. The record then has the warning."""
        state = self.state
        if state.warning or self.ranks.rank:
            return
        state.warning = diagnose(self.config, len(self.vocab), state.curve, self.unigram)
        if state.warning:
            record["warning"] = state.warning
            warnings.warn(state.warning, DataWarning, stacklevel=3)

    def unigram(self) -> float:
        """Return the loss of a unigram model on `valid`. A model that learns has a lower one."""
        if self._unigram is None:
            self._unigram = baseline(self.vocab, self.train, self.valid, 1)
        return self._unigram

    def _validation_loss(self) -> float:
        """Evaluate on rank 0, and give the loss to all processes, so that all decide alike."""
        loss = 0.0
        if self.ranks.rank == 0:
            with contextlib.suppress(Interrupted):
                loss = evaluate(self.model, self.valid, lambda _: self.signals.check()).loss
        self._heed_signals()
        return self.ranks.sum(loss)[0]

    def _start_averaging(self) -> None:
        patience, losses = self.config.average, [r["valid_loss"] for r in self.state.curve]
        if self.average is None and patience is not None and has_stalled(losses, patience):
            self.average, self.state.averaged = Average(self.model), 0

    def save(self) -> None:
        """Write a checkpoint, and the best weights if they are not yet written.

        Before the first validation the best weights are the present ones.
        """
        if self.folder is None and self.ranks.size == 1:
            return
        began = self._shared_time()
        checkpoint = self.checkpoint()
        if self.folder is not None:
            if self.best is None or self.state.best_step == self.state.step:
                self.folder.write_weights(self.best or weights(self.model))
            self.folder.write_checkpoint(*checkpoint)
        self._saved_seconds, self._saving_cost = self.state.seconds, self._shared_time() - began

    # ---- how far, how fast

    @property
    def epoch(self) -> float:
        """The number of passes over the training text so far."""
        return self.state.step / len(self.batches)

    @property
    def deadline(self) -> float:
        """The time at which training has to stop so that the last validation fits the budget."""
        seconds = self.config.max_seconds
        return math.inf if seconds is None else max(seconds - self.state.validation_cost, 1e-9)

    @property
    def finished(self) -> bool:
        """Whether the budget is used up."""
        return self.progress >= 1

    @property
    def progress(self) -> float:
        """The part of the budget that is used: of the epochs or of the time, the larger one."""
        epochs = self.epoch / self.config.epochs if self.config.epochs else 0.0
        return max(epochs, self.state.seconds / self.deadline)

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        state = self.state
        return learning_rate(self.config, state.step, self.progress, state.lr_scale)

    def _validation_due(self) -> bool:
        state = self.state
        if state.step == state.validated_step:
            return False
        if self.finished:
            return True
        epoch_ended = state.step % len(self.batches) == 0
        if self.config.max_seconds is None:
            return epoch_ended
        since = state.seconds - state.validated_seconds
        # Within a time budget, validation takes at most about a tenth of the time.
        return since >= 10 * state.validation_cost and (
            epoch_ended or since >= self.config.max_seconds / VALIDATIONS
        )

    def _save_due(self) -> bool:
        since = self.state.seconds - self._saved_seconds
        return since >= max(self.config.checkpoint_interval, self._saving_cost / SAVING_PART)

    def _mean_train_loss(self) -> float | None:
        state = self.state
        if state.loss_steps:
            state.train_loss = state.loss_sum / state.loss_steps
            state.loss_sum, state.loss_steps = 0.0, 0
            self.update.begin_sum()
        return state.train_loss

    def _record(self, **values: object) -> dict:
        now = {"step": self.state.step, "epoch": self.epoch, "seconds": self.state.seconds}
        return {**now, **values}

    def _log(self, record: dict) -> None:
        if self.folder is not None:
            self.folder.log(record, Board if self.config.tensorboard else None)

    # ---- what can go wrong

    def _diverged(self, what: str, step: int) -> None:
        # A loss that was finite is that of the present weights: a gradient has not changed them.
        good = weights(self.model) if what == "gradient" and self.best is None else None
        kept = "" if self.folder is None else f"; {self.folder.abandon(good)}"
        clip = "or --clip" if self.config.clip else "or set --clip"
        at = f"not finite at step {step}"
        raise UserError(f"the {what} is {at}: lower --lr {clip}{kept}")

    def _heed_signals(self) -> None:
        """Raise Interrupted in every process if one of them has received a signal."""
        seen = self.ranks.sum(*(float(self.signals.received == number) for number in SIGNALS))
        for number, count in zip(SIGNALS, seen, strict=True):
            if count:
                raise Interrupted(number)

    def _beginning(self) -> float:
        """Return when the run would have begun if it had not been stopped."""
        return self._shared_time() - self.state.seconds

    def _shared_time(self) -> float:
        """Return the seconds on the clock of rank 0."""
        return self.ranks.sum(0.0 if self.ranks.rank else time.monotonic())[0]

    # ---- checkpoints

    def checkpoint(self) -> tuple[dict[str, torch.Tensor], dict]:
        """Return the tensors and the numbers that `restore` needs.

        The tensors are the weights, the state of the optimizer, the hidden state, the states of
        the random generators and, as long as they are kept, the initial weights. The numbers are
        `State` as a dict. All processes must call this. Rank 0 gets the hidden states and the
        generators of all processes.
        """
        self._read()
        tensors = {f"model.{name}": tensor for name, tensor in weights(self.model).items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value.detach().cpu().clone()
        for name, mean in self.average.tensors.items() if self.average else ():
            tensors[f"average.{name}"] = mean.cpu()
        for name, tensor in (self.initial or {}).items():
            tensors[f"initial.{name}"] = tensor
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        hidden = None if self.hidden is None else self.hidden.cpu()
        parts = self.ranks.gather((hidden, generators))
        if hidden is not None:
            tensors["hidden"] = torch.cat([hidden for hidden, _ in parts], 1)
        for rank, (_, generators) in enumerate(parts):
            for name, tensor in generators.items():
                tensors[f"rng{rank or ''}.{name}"] = tensor
        return tensors, dict(vars(self.state))

    def restore(
        self, tensors: dict[str, torch.Tensor], state: dict, best: dict[str, torch.Tensor]
    ) -> None:
        """Go on from what `checkpoint` returned. `best` are the weights of the best validation."""
        self.state = State(**state)
        self.best = best if self.state.best_loss is not None else None
        groups: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            groups.setdefault(kind, {})[rest] = tensor
        self._restore(groups["model"])
        self.initial = groups.get("initial")
        parameters = dict(self.model.named_parameters())
        for name, tensor in groups.get("optimizer", {}).items():
            name, _, key = name.rpartition(".")
            # The fused AdamW needs even its number of steps on the device of the parameter.
            self.optimizer.state[parameters[name]][key] = tensor.to(self.device)
        if self.state.averaged is not None:
            self.average = Average(self.model)
            for name, mean in self.average.tensors.items():
                mean.copy_(groups["average"][name])
        hidden = groups.get("hidden", {}).get("")
        self.hidden = None if hidden is None else self.ranks.own_sequences(hidden).to(self.device)
        # A process that the old run did not have finds no generators.
        generators = groups.get(f"rng{self.ranks.rank or ''}", {})
        if "cpu" in generators:
            torch.set_rng_state(generators["cpu"])
        if self.device.type == "cuda" and "cuda" in generators:
            torch.cuda.set_rng_state(generators["cuda"], self.device)
        self.resumed_seconds, self.resumed_step = self.state.seconds, self.state.step
        self._saved_seconds = self._read_seconds = self.state.seconds
        self._read_step = self._next_reading = self.state.step
        self.update.begin_sum(self.state.loss_sum)
        self._make_update = graphed(self.update)  # a graph would update the tensors from before

    def _restore(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[name])
