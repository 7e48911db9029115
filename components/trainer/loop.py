"""The training loop: stages of epochs of packed batches, early stopping, checkpoints, reports."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from components.classifier.model import TextClassifier
from components.config import Task, TrainingConfig
from components.errors import DivergenceError
from components.progress import report
from components.trainer import state
from components.trainer.average import MovingAverage
from components.trainer.batches import Examples, ahead, plan_epoch
from components.trainer.hardware import check_alike, of_chief, worker_number
from components.trainer.hidden import remove_hidden, with_hidden
from components.trainer.metrics import scores, tune_thresholds
from components.trainer.optimizer import AdamW, learning_rate
from components.trainer.stages import frozen_blocks, learning_variables, rate_scales, stages_of
from components.trainer.static_shapes import StaticShapes
from components.trainer.statistics import estimated
from components.trainer.steps import TrainStep, make_predict_step, predict

_REPORT_SECONDS = 0.5
_LOG_STEPS = 20
_STATISTICS_BATCHES = 32  # that an average's batch normalisation is measured over


@dataclass
class Progress:
    """Where a run stands; stored with every checkpoint.

    Attributes:
      epoch: the epoch under way, from 0, over all stages.
      step: steps done in it.
      stage, stage_start: the stage under way, from 0, and its first epoch.
      loss_sum: sum of its steps' losses.
      seconds: trained so far, over all tries.
      best, best_epoch: the early-stopping metric's best value so far, and its epoch; -1 before any.
      history: one entry an epoch: loss, metrics of the evaluation split, texts per second, seconds.
    """

    epoch: int = 0
    step: int = 0
    stage: int = 0
    stage_start: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    best: float = -1.0
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)


class Loop:
    """Trains a classifier; `run` ends with the best epoch's weights in the model.

    Args:
      model: its variables are created in `strategy`'s scope.
      train, evaluation: the examples of the two splits.
      task, training: of the configuration.
      weights: of `losses.class_weights`.
      strategy: where replicas run; a batch is divided among them.
      checkpoint_dir: of this run alone, and of all its workers; a checkpoint there is gone on from.
      log_dir: where TensorBoard's events go at the end; until then they are in `logs` of `checkpoint_dir`, so that
        those of a killed try are not lost.
    """

    def __init__(
        self,
        model: TextClassifier,
        train: Examples,
        evaluation: Examples,
        task: Task,
        training: TrainingConfig,
        weights: np.ndarray | None,
        strategy: tf.distribute.Strategy,
        checkpoint_dir: str,
        log_dir: str,
    ) -> None:
        self.model = model
        self.train = train
        self.evaluation = evaluation
        self.task: Task = task
        self.training = training
        self.weights = weights
        self.strategy = strategy
        self.worker = worker_number(strategy)
        self.checkpoint_dir = checkpoint_dir
        self.log_dir = log_dir
        self.stages = stages_of(training)
        # Only attention works on padded blocks; without it, texts of all lengths mix freely.
        self.buckets = training.buckets if model.encoder.blocks else None
        replicas = strategy.num_replicas_in_sync
        self.shapes = StaticShapes.of(training, train.lengths, replicas) if training.xla else None
        self.writer = tf.summary.create_noop_writer()
        self.steps_of_epoch: dict[int, int] = {}
        self.progress = Progress()
        self.best_weights: list[np.ndarray] = []

    def run(self) -> Progress:
        """Trains each stage to its last epoch, or until `patience` epochs brought no better metric.

        Raises:
          DivergenceError: the loss, or an answer to the evaluation split, is no longer a finite number.
          PipelineError: the disk is full.
          CheckpointError: the checkpoint that is there cannot be read.
        """
        kept = self._restore()
        now = self.progress
        check_alike(
            self.strategy,
            self._done(),
            f"Trainer: its workers see different checkpoints; all must share {self.checkpoint_dir}",
        )
        events = f"{self.checkpoint_dir}/logs"
        if not self.worker:
            self.writer = tf.summary.create_file_writer(events)
        with self.writer.as_default():
            while now.stage < len(self.stages):
                self._begin_stage(kept)
                kept = {}
                while now.epoch < now.stage_start + self.stage.epochs and not self._is_exhausted():
                    self._train_epoch()
                    self._end_epoch()
                self._assign(self.model.variables, self.best_weights)
                now.stage, now.stage_start = now.stage + 1, now.epoch
                if now.stage < len(self.stages):
                    self._save(between_stages=True)
        if not self.worker:
            self.writer.close()
            state.copy(events, self.log_dir)
        return now

    # === One stage ===

    def _begin_stage(self, kept: dict[str, list[np.ndarray]]) -> None:
        """Sets up what learns; `kept` is its state where the stage goes on from a checkpoint."""
        training, now = self.training, self.progress
        self.stage = self.stages[now.stage]
        frozen = frozen_blocks(self.stage, len(self.model.encoder.blocks))
        variables = learning_variables(self.model, frozen)
        with self.strategy.scope():
            scales = rate_scales(self.model, variables, training.layer_decay)
            self.optimizer = AdamW(variables, training.weight_decay, training.clip_norm, scales)
            self.average = MovingAverage(variables, training.ema_decay) if training.ema_decay else None
        for name, values in kept.items():
            self._assign(self._state()[name], values)
        train, self._evaluation = (self._hidden(split, frozen) for split in ("train", "eval"))
        self._train_step = TrainStep(
            self.model, self.optimizer, train, self.task, training, self.weights, self.strategy, frozen, self.average,
            self.shapes,
        )  # fmt: skip
        self._predict_step = make_predict_step(self.model, self.task, frozen)
        self._forward = tf.function(
            lambda batch: self.model(batch, training=True, frozen=frozen), reduce_retracing=True, autograph=False
        )
        # What early stopping may still cut short is counted as if it did not.
        self.epochs = now.stage_start + sum(stage.epochs for stage in self.stages[now.stage :])
        self.total = self._steps(0, self.epochs)

    def _hidden(self, split: str, frozen: int | None) -> Examples:
        """The examples of a split, with what the frozen blocks give for them where that is kept."""
        examples = self.train if split == "train" else self.evaluation
        number, encoder = self.progress.stage, self.model.encoder
        own = f"-{self.worker}" if self.worker else ""  # not the chief's file, which may still be under way
        paths = [f"{self.checkpoint_dir}/hidden-{split}-{n}{own}.npy" for n in range(len(self.stages))]
        for path in paths[:number]:
            remove_hidden(path)
        if not frozen or not self.stage.cache:  # embeddings alone are as fast as the disk
            return examples
        lower = tf.function(lambda batch: encoder.lower(batch, frozen), reduce_retracing=True, autograph=False)
        return with_hidden(examples, paths[number], lower, encoder.geometry.hidden_size, encoder.compute_dtype)

    def _is_exhausted(self) -> bool:
        now = self.progress
        return now.epoch - 1 - max(now.best_epoch, now.stage_start - 1) >= self.training.patience

    # === One epoch ===

    def _train_epoch(self) -> None:
        now = self.progress
        steps = self._plan(now.epoch)
        before = self._steps(now.stage_start, now.epoch)
        of_stage = self._steps(now.stage_start, now.stage_start + self.stage.epochs)
        started = reported = time.monotonic()
        base, base_step = now.epoch_seconds, now.step
        losses: list[tf.Tensor] = []
        for inputs in ahead(self._train_step.inputs, steps[now.step :]):
            rate = learning_rate(before + now.step, of_stage, self.training, self.stage.learning_rate)
            losses.append(self._train_step(inputs, rate))
            now.step += 1
            clock = time.monotonic()
            due = now.step % self.training.checkpoint_steps == 0 and now.step < len(steps)
            if now.step % _LOG_STEPS == 0 or due or now.step == len(steps):
                self._collect(losses, rate)
            if clock - reported >= _REPORT_SECONDS or now.step == len(steps):
                reported = clock
                self._report((now.step - base_step) / max(clock - started, 1e-9))
            if due:
                now.epoch_seconds = base + clock - started
                self._save()
        now.epoch_seconds = base + time.monotonic() - started

    def _collect(self, losses: list[tf.Tensor], rate: float) -> None:
        values = [float(loss) for loss in losses]
        losses.clear()
        if not np.all(np.isfinite(values)):
            raise DivergenceError(
                f"Trainer: the loss is not finite in epoch {self.progress.epoch + 1} by step "
                f"{self.progress.step}; lower training.learning_rate or training.clip_norm"
            )
        for value in values:  # one after the other: the sum must not depend on where a run was cut
            self.progress.loss_sum += value
        step = self._done()
        _scalar("train/loss", float(np.mean(values)), step)
        _scalar("train/learning_rate", rate, step)

    def _done(self) -> int:
        """Steps done so far, over all epochs."""
        return self._steps(0, self.progress.epoch) + self.progress.step

    def _report(self, steps_per_s: float) -> None:
        """How the epoch stands; the metric is that of the last epoch that was evaluated."""
        now, done = self.progress, self._done()
        metric = {"metric": now.history[-1][self.training.metric]} if now.history else {}
        report(
            "train",
            epoch=now.epoch + 1,
            epochs=self.epochs,
            step=done,
            steps=self.total,
            loss=now.loss_sum / max(now.step, 1),
            **metric,
            texts_per_s=steps_per_s * len(self.train) / self._steps(now.epoch, now.epoch + 1),
            seconds_left=(self.total - done) / max(steps_per_s, 1e-9),
        )

    def _end_epoch(self) -> None:
        now, name = self.progress, self.training.metric
        started = time.monotonic()
        with self._averaged():
            predicted = predict(self._predict_step, self._evaluation)
            if not np.all(np.isfinite(predicted)):  # of the epoch's last step, whose loss was before it
                raise DivergenceError(
                    f"Trainer: answers to the evaluation split are not finite after epoch {now.epoch + 1}; lower "
                    "training.learning_rate or training.clip_norm"
                )
            thresholds = tune_thresholds(predicted, self.evaluation.labels) if self.task == "multilabel" else None
            # Workers may round otherwise, and must not part over which epoch is the best, or the last.
            found = of_chief(self.strategy, scores(predicted, self.evaluation.labels, self.task, thresholds))
            if found[name] > now.best:
                now.best, now.best_epoch = found[name], now.epoch
                self.best_weights = _arrays(self.model.variables)
        now.seconds += now.epoch_seconds + time.monotonic() - started
        entry = {"epoch": now.epoch + 1, "loss": now.loss_sum / now.step, **found}
        entry |= {"texts_per_s": len(self.train) / max(now.epoch_seconds, 1e-9), "seconds": now.epoch_seconds}
        if self.training.stages:
            entry["stage"] = now.stage + 1
        now.history.append(entry)
        for key, value in {"loss": entry["loss"], **found}.items():
            _scalar(f"epoch/{key}", value, now.epoch + 1)
        self._report(now.step / max(now.epoch_seconds, 1e-9))
        now.epoch, now.step, now.loss_sum, now.epoch_seconds = now.epoch + 1, 0, 0.0, 0.0
        self._save()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model that is to be measured and kept: where weights are averaged, of them and of statistics that fit."""
        if self.average is None:
            yield
            return
        norms = self.model.head.norms
        with self.average.applied():
            if not norms:
                yield
                return
            rows = [batch for step in self._plan(self.progress.epoch) for batch in step][:_STATISTICS_BATCHES]
            with estimated(norms, self._forward, map(self._train_step.examples.batch, rows)):
                yield

    def _plan(self, epoch: int) -> list[list[np.ndarray]]:
        """The steps of an epoch, each of one batch or several."""
        training = self.training
        lengths = self.train.lengths if self.shapes is None else self.shapes.bound(self.train.lengths)
        buckets = self.buckets if self.shapes is None else training.buckets
        batches = plan_epoch(lengths, training.batch_size, training.seed, epoch, buckets, training.batch_tokens)
        count = training.accumulate_steps
        return [batches[start : start + count] for start in range(0, len(batches), count)]

    def _steps(self, first: int, end: int) -> int:
        """How many steps the epochs from `first` up to `end` have."""
        alike = self.training.batch_tokens is None  # then all have as many as the first
        counted = [0 if alike else epoch for epoch in range(first, end)]
        for epoch in counted:
            if epoch not in self.steps_of_epoch:
                self.steps_of_epoch[epoch] = len(self._plan(epoch))
        return sum(self.steps_of_epoch[epoch] for epoch in counted)

    # === Checkpoints ===

    def _save(self, between_stages: bool = False) -> None:
        if self.worker:
            return
        groups = {"model": _arrays(self.model.variables), "best": self.best_weights}
        if not between_stages:  # the next stage's optimiser begins anew
            groups |= {name: _arrays(variables) for name, variables in self._state().items()}
        self.writer.flush()  # what is not gone on from is written again
        state.save(self.checkpoint_dir, groups, asdict(self.progress))

    def _state(self) -> dict[str, list[tf.Variable]]:
        """What a stage keeps beside the model, by name."""
        return {"optimizer": self.optimizer.state} | ({"average": self.average.state} if self.average else {})

    def _restore(self) -> dict[str, list[np.ndarray]]:
        """Takes up a checkpoint, and returns what belongs to the stage in it."""
        found = state.load(self.checkpoint_dir)
        if found is None:
            return {}
        groups, progress = found
        self.progress = Progress(**progress)
        self._assign(self.model.variables, groups.pop("model"))
        self.best_weights = groups.pop("best", [])
        return groups

    @staticmethod
    def _assign(variables: list[Any], arrays: list[np.ndarray]) -> None:
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)


def _arrays(variables: list[Any]) -> list[np.ndarray]:
    return [np.asarray(variable.numpy()) for variable in variables]


# What tf.summary.scalar writes; that function itself needs the package tensorboard, which training does not.
_SCALAR = tf.compat.v1.SummaryMetadata(
    data_class="DATA_CLASS_SCALAR", plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
)


def _scalar(tag: str, value: float, step: int) -> None:
    tf.summary.write(tag, tf.constant(value, tf.float32), step, metadata=_SCALAR)
