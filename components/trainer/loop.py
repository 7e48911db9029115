"""The training loop: epochs of packed batches, early stopping, checkpoints, reports."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from components.classifier.model import TextClassifier, probabilities
from components.config import Task, TrainingConfig
from components.errors import PipelineError
from components.progress import report
from components.trainer import state
from components.trainer.batches import Examples, plan_epoch, plan_prediction
from components.trainer.losses import example_losses
from components.trainer.metrics import scores, tune_thresholds
from components.trainer.optimizer import AdamW, learning_rate

_REPORT_SECONDS = 0.5
_LOG_STEPS = 20


@dataclass
class Progress:
    """Where a run stands; stored with every checkpoint.

    Attributes:
      epoch: the epoch under way, from 0.
      step: batches done in it.
      loss_sum: sum of its batches' losses.
      seconds: trained so far, over all tries.
      best, best_epoch: the early-stopping metric's best value so far, and its epoch; -1 before any.
      history: one entry an epoch: loss, metrics of the evaluation split, texts per second, seconds.
    """

    epoch: int = 0
    step: int = 0
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
      checkpoint_dir: of this run alone; a checkpoint there is gone on from.
      log_dir: TensorBoard's.
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
        self.strategy = strategy
        self.checkpoint_dir = checkpoint_dir
        self.log_dir = log_dir
        with strategy.scope():
            self.optimizer = AdamW(model.trainable_variables, training.weight_decay, training.clip_norm)
        # Only attention works on padded blocks; without it, texts of all lengths mix freely.
        self.buckets = training.buckets if model.encoder.blocks else None
        self.steps = len(self._plan(0))
        self.progress = Progress()
        self.best_weights: list[np.ndarray] = []
        self._train_step = self._make_train_step(weights)
        self._predict_step = make_predict_step(model, task)

    def run(self) -> Progress:
        """Trains to the last epoch, or until `patience` epochs brought no better metric.

        Raises:
          PipelineError: the loss is no longer a finite number.
          CheckpointError: the checkpoint that is there cannot be read.
        """
        self._restore()
        writer = tf.summary.create_file_writer(self.log_dir)
        with writer.as_default():
            while self.progress.epoch < self.training.epochs and not self._is_exhausted():
                self._train_epoch()
                self._end_epoch()
                writer.flush()
        self._assign(self.model.variables, self.best_weights)
        return self.progress

    def predict(self, examples: Examples) -> np.ndarray:
        """Probabilities float32 [examples, labels] by the model's current weights."""
        return predict(self._predict_step, examples)

    # === One epoch ===

    def _train_epoch(self) -> None:
        now = self.progress
        batches = self._plan(now.epoch)
        total = self.steps * self.training.epochs
        started = reported = time.monotonic()
        base, base_step = now.epoch_seconds, now.step
        losses: list[tf.Tensor] = []
        for rows in batches[now.step :]:
            rate = learning_rate(now.epoch * self.steps + now.step, total, self.training)
            losses.append(self._distributed_step(rows, rate))
            now.step += 1
            clock = time.monotonic()
            due = now.step % self.training.checkpoint_steps == 0 and now.step < len(batches)
            if now.step % _LOG_STEPS == 0 or due or now.step == len(batches):
                self._collect(losses, rate, total)
            if clock - reported >= _REPORT_SECONDS or now.step == len(batches):
                reported = clock
                self._report(total, (now.step - base_step) / max(clock - started, 1e-9))
            if due:
                now.epoch_seconds = base + clock - started
                self._save()
        now.epoch_seconds = base + time.monotonic() - started

    def _collect(self, losses: list[tf.Tensor], rate: float, total: int) -> None:
        values = [float(loss) for loss in losses]
        losses.clear()
        if not np.all(np.isfinite(values)):
            raise PipelineError(
                f"Trainer: the loss is not finite in epoch {self.progress.epoch + 1} by step "
                f"{self.progress.step}; lower training.learning_rate or training.clip_norm"
            )
        for value in values:  # one after the other: the sum must not depend on where a run was cut
            self.progress.loss_sum += value
        step = self.progress.epoch * self.steps + self.progress.step
        _scalar("train/loss", float(np.mean(values)), step)
        _scalar("train/learning_rate", rate, step)

    def _report(self, total: int, steps_per_s: float) -> None:
        """How the epoch stands; the metric is that of the last epoch that was evaluated."""
        now = self.progress
        done = now.epoch * self.steps + now.step
        metric = {"metric": now.history[-1][self.training.metric]} if now.history else {}
        report(
            "train",
            epoch=now.epoch + 1,
            epochs=self.training.epochs,
            step=done,
            steps=total,
            loss=now.loss_sum / max(now.step, 1),
            **metric,
            texts_per_s=steps_per_s * self.training.batch_size,
            seconds_left=(total - done) / max(steps_per_s, 1e-9),
        )

    def _end_epoch(self) -> None:
        now, name = self.progress, self.training.metric
        started = time.monotonic()
        predicted = self.predict(self.evaluation)
        thresholds = tune_thresholds(predicted, self.evaluation.labels) if self.task == "multilabel" else None
        found = scores(predicted, self.evaluation.labels, self.task, thresholds)
        now.seconds += now.epoch_seconds + time.monotonic() - started
        entry = {"epoch": now.epoch + 1, "loss": now.loss_sum / self.steps, **found}
        entry |= {"texts_per_s": len(self.train) / max(now.epoch_seconds, 1e-9), "seconds": now.epoch_seconds}
        now.history.append(entry)
        for key, value in {"loss": entry["loss"], **found}.items():
            _scalar(f"epoch/{key}", value, now.epoch + 1)
        if found[name] > now.best:
            now.best, now.best_epoch = found[name], now.epoch
            self.best_weights = _arrays(self.model.variables)
        speed = entry["texts_per_s"] / self.training.batch_size
        self._report(self.steps * self.training.epochs, speed)
        now.epoch, now.step, now.loss_sum, now.epoch_seconds = now.epoch + 1, 0, 0.0, 0.0
        self._save()

    def _is_exhausted(self) -> bool:
        return self.progress.epoch - 1 - self.progress.best_epoch >= self.training.patience

    # === Steps ===

    def _plan(self, epoch: int) -> list[np.ndarray]:
        training = self.training
        return plan_epoch(self.train.lengths, training.batch_size, training.seed, epoch, self.buckets)

    def _distributed_step(self, rows: np.ndarray, rate: float) -> tf.Tensor:
        replicas = self.strategy.num_replicas_in_sync
        share = np.float32(1 / len(rows))
        if replicas == 1:
            return self._train_step(self._inputs(rows), share, np.float32(rate))
        # A batch smaller than the number of replicas gives some the first text again, with weight 0.
        parts = np.array_split(rows, replicas)
        inputs = [self._inputs(part if len(part) else rows[:1]) for part in parts]
        shares = [share if len(part) else np.float32(0) for part in parts]
        per_replica = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.nest.map_structure(
                tf.convert_to_tensor,
                (inputs[context.replica_id_in_sync_group], shares[context.replica_id_in_sync_group]),
            )
        )
        return self._train_step(*per_replica, np.float32(rate))

    def _inputs(self, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return self.train.batch(rows), self.train.labels[rows]

    def _make_train_step(self, weights: np.ndarray | None) -> Callable[..., tf.Tensor]:
        model, task, smoothing = self.model, self.task, self.training.label_smoothing
        variables = [variable.value for variable in model.trainable_variables]
        replicas = self.strategy.num_replicas_in_sync

        def replica_step(inputs: Any, share: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
            batch, truth = inputs
            with tf.GradientTape() as tape:
                logits = model(batch, training=True)
                loss = tf.reduce_sum(example_losses(logits, truth, task, smoothing, weights)) * share
                # gradients are summed over replicas, so each adds its part of the penalty
                total = loss + tf.add_n(model.losses) / replicas if model.losses else loss
            self.optimizer.apply(tape.gradient(total, variables), rate)
            return loss

        # Over replicas the shapes come as PerReplica values, which have no signature to write down.
        signature = {"input_signature": self._signature()} if replicas == 1 else {"reduce_retracing": True}

        @tf.function(**signature, autograph=False)
        def train_step(inputs: Any, share: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
            if replicas == 1:
                return replica_step(inputs, share, rate)
            losses = self.strategy.run(replica_step, args=(inputs, share, rate))
            return self.strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

        return train_step

    def _signature(self) -> list[Any]:
        batch = batch_spec(self.train.segments is not None)
        labels = self.train.labels
        truth = tf.TensorSpec([None, *labels.shape[1:]], labels.dtype)
        scalar = tf.TensorSpec([], tf.float32)
        return [(batch, truth), scalar, scalar]

    # === Checkpoints ===

    def _save(self) -> None:
        groups = {
            "model": _arrays(self.model.variables),
            "optimizer": _arrays(self.optimizer.state),
            "best": self.best_weights,
        }
        state.save(self.checkpoint_dir, groups, asdict(self.progress))

    def _restore(self) -> None:
        found = state.load(self.checkpoint_dir)
        if found is None:
            return
        groups, progress = found
        self.progress = Progress(**progress)
        self._assign(self.model.variables, groups["model"])
        self._assign(self.optimizer.state, groups["optimizer"])
        self.best_weights = groups.get("best", [])

    @staticmethod
    def _assign(variables: list[Any], arrays: list[np.ndarray]) -> None:
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)


def batch_spec(pairs: bool) -> dict[str, tf.TensorSpec]:
    """The TensorSpecs of a packed batch."""
    names = ("ids", "row_lengths", *(("segments",) if pairs else ()))
    return {name: tf.TensorSpec([None], tf.int32, name) for name in names}


def make_predict_step(model: TextClassifier, task: Task) -> Callable[..., tf.Tensor]:
    """A compiled function from a packed batch to probabilities."""

    @tf.function(reduce_retracing=True, autograph=False)
    def predict_step(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        return probabilities(model(batch, training=False), task)

    return predict_step


def predict(predict_step: Callable[..., tf.Tensor], examples: Examples) -> np.ndarray:
    """Probabilities float32 [examples, labels], in the order of the examples."""
    plan = plan_prediction(examples.lengths)
    found = np.concatenate([np.asarray(predict_step(examples.batch(rows))) for rows in plan])
    ordered = np.empty_like(found)
    ordered[np.concatenate(plan)] = found
    return ordered


def _arrays(variables: list[Any]) -> list[np.ndarray]:
    return [np.asarray(variable.numpy()) for variable in variables]


# What tf.summary.scalar writes; that function itself needs the package tensorboard, which training does not.
_SCALAR = tf.compat.v1.SummaryMetadata(
    data_class="DATA_CLASS_SCALAR", plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
)


def _scalar(tag: str, value: float, step: int) -> None:
    tf.summary.write(tag, tf.constant(value, tf.float32), step, metadata=_SCALAR)
