"""The compiled steps of training and prediction, on packed batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from components.classifier.model import TextClassifier, probabilities
from components.config import Task, TrainingConfig
from components.trainer.average import MovingAverage
from components.trainer.batches import Examples, plan_prediction
from components.trainer.hardware import local_replicas, worker_number
from components.trainer.losses import example_losses
from components.trainer.optimizer import AdamW
from components.trainer.static_shapes import StaticShapes

Inputs = list[list[Any]]  # of each replica of this process, a part of each batch: packed batch, labels, shares


class TrainStep:
    """One step of the optimiser on one batch or several, each divided among the strategy's replicas.

    Several batches give the gradient that one of all their texts would give (but for statistics of the batch), in the
    memory that one of them needs. Keras's `gradient_accumulation_steps` would keep it in variables, dense.

    Args:
      model, optimizer: made in the strategy's scope; the optimiser's variables are those that learn.
      examples: those of the batches.
      task, training: of the configuration.
      weights: of `losses.class_weights`.
      strategy: where replicas run.
      frozen: see `components.encoder.bert.BertEncoder`.
      average: of the weights, brought up to date after the step.
      shapes: to which batches are padded, for a step compiled by XLA: all of it where one
        device computes one batch, else losses and gradients. None: neither.
    """

    def __init__(
        self,
        model: TextClassifier,
        optimizer: AdamW,
        examples: Examples,
        task: Task,
        training: TrainingConfig,
        weights: np.ndarray | None,
        strategy: tf.distribute.Strategy,
        frozen: int | None = None,
        average: MovingAverage | None = None,
        shapes: StaticShapes | None = None,
    ) -> None:
        self.examples = examples
        self.shapes = shapes
        self.replicas = replicas = strategy.num_replicas_in_sync
        self.count = count = training.accumulate_steps

        def gradients_of(inputs: Any, share: tf.Tensor) -> tuple[tf.Tensor, list[Any]]:
            batch, truth = inputs
            with tf.GradientTape() as tape:
                logits = model(batch, training=True, frozen=frozen)
                losses = example_losses(logits, truth, task, training.label_smoothing, weights, training.focal_gamma)
                loss = tf.reduce_sum(losses) * share if shapes is None else tf.reduce_sum(losses * share)
                # gradients are summed over replicas and batches, so each adds its part of the penalty
                total = loss + tf.add_n(model.losses) / (replicas * count) if model.losses else loss
            return loss, tape.gradient(total, optimizer.targets)

        # Keras moves each replica's statistics by that replica's texts alone; the model has one.
        norms = model.head.norms if replicas > 1 else []
        statistics = [variable for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]
        # Where one device computes one batch, XLA has the whole step, else its gradients.
        whole = shapes is not None and replicas == count == 1
        if shapes is not None and not whole:
            gradients_of = tf.function(gradients_of, jit_compile=True, autograph=False)

        def replica_step(parts: list[Any], rate: tf.Tensor) -> tf.Tensor:
            loss, gradients = gradients_of(*parts[0]) if count == 1 else _accumulated(gradients_of, parts)
            optimizer.apply(gradients, rate, static=whole)
            if statistics:
                context = tf.distribute.get_replica_context()
                means = context.all_reduce(tf.distribute.ReduceOp.MEAN, [variable.value for variable in statistics])
                for variable, mean in zip(statistics, means, strict=True):
                    variable.assign(mean)
            if average is not None:
                average.update(optimizer.step)
            return loss

        if whole:
            replica_step = tf.function(replica_step, jit_compile=True, autograph=False)
        local = local_replicas(strategy)
        self.own = own = slice(worker_number(strategy) * local, (worker_number(strategy) + 1) * local)

        # With a signature, so that all workers trace it once and alike: their collective operations meet by number.
        @tf.function(input_signature=self._signature(local), autograph=False)
        def compiled(parts: list[Any], rate: tf.Tensor) -> tf.Tensor:
            if replicas == 1:
                return replica_step(parts[0], rate)
            per_replica = strategy.experimental_distribute_values_from_function(
                lambda context: parts[context.replica_id_in_sync_group - own.start]
            )
            losses = strategy.run(replica_step, args=(per_replica, rate))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

        self.compiled = compiled

    def __call__(self, inputs: Inputs, rate: float) -> tf.Tensor:
        """The mean loss, float32 scalar, of the examples of `inputs` before the step; `rate` is the learning rate."""
        return self.compiled(inputs, np.float32(rate))

    def inputs(self, batches: Sequence[np.ndarray]) -> Inputs:
        """What a step takes for `batches`, each int [rows] of examples, at most `training.accumulate_steps`."""
        share = np.float32(1 / sum(len(rows) for rows in batches))
        batches = halved(batches, self.count)
        # Where there are fewer texts than parts, some have the first text again, with weight 0.
        split = [np.array_split(rows, self.replicas) for rows in batches]
        return [
            [
                self._part(rows if len(rows) else batches[0][:1], share if len(rows) else np.float32(0))
                for rows in of_replica
            ]
            for of_replica in list(zip(*split, strict=True))[self.own]
        ]

    def _part(self, rows: np.ndarray, share: np.float32) -> tuple[tuple[dict[str, np.ndarray], np.ndarray], Any]:
        batch, labels = self.examples.batch(rows), self.examples.labels[rows]
        if self.shapes is None:
            return (batch, labels), share
        batch, labels, shares = self.shapes.padded(batch, labels, share)
        return (batch, labels), shares

    def _signature(self, local: int) -> list[Any]:
        batch = batch_spec(self.examples.segments is not None)
        hidden, labels = self.examples.hidden, self.examples.labels
        if hidden is not None:
            batch["hidden"] = tf.TensorSpec([None, hidden.shape[1]], tf.as_dtype(hidden.dtype), "hidden")
        truth = tf.TensorSpec([None, *labels.shape[1:]], labels.dtype)
        scalar = share = tf.TensorSpec([], tf.float32)
        if self.shapes is not None:
            batch["steps"], share = tf.TensorSpec([None], tf.int32, "steps"), tf.TensorSpec([None], tf.float32)
        return [[[((batch, truth), share)] * self.count] * local, scalar]


def halved(batches: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """So many batches, the largest halved where there are fewer, as in the last step of an epoch: no part is of more
    tokens than the batch that it is of. Where there are fewer texts than parts, some are empty, never the first."""
    found = list(batches)
    while len(found) < count:
        largest = max(range(len(found)), key=lambda n: len(found[n]))
        found[largest : largest + 1] = np.array_split(found[largest], 2)
    return found


def _accumulated(gradients_of: Callable[..., Any], parts: Sequence[Any]) -> tuple[tf.Tensor, list[Any]]:
    """Losses and gradients summed over batches, one batch after the other."""
    compiled = tf.function(gradients_of, reduce_retracing=True, autograph=False)
    losses: list[tf.Tensor] = []
    sums: list[Any] = []
    for part in parts:
        with tf.control_dependencies(tf.nest.flatten(sums, expand_composites=True)):
            loss, gradients = compiled(*part)
        losses.append(loss)
        sums = [_add(a, b) for a, b in zip(sums, gradients, strict=True)] if sums else gradients
    return tf.add_n(losses), sums


def _add(first: Any, second: Any) -> Any:
    """The sum of two gradients of one variable; rows of an embedding stay rows."""
    if not isinstance(first, tf.IndexedSlices):
        return first + second
    values = tf.concat([first.values, second.values], 0)
    indices = tf.concat([first.indices, second.indices], 0)
    return tf.IndexedSlices(values, indices, first.dense_shape)


def batch_spec(pairs: bool) -> dict[str, tf.TensorSpec]:
    """The TensorSpecs of a packed batch."""
    names = ("ids", "row_lengths", *(("segments",) if pairs else ()))
    return {name: tf.TensorSpec([None], tf.int32, name) for name in names}


def make_predict_step(model: TextClassifier, task: Task, frozen: int | None = None) -> Callable[..., tf.Tensor]:
    """A compiled function from a packed batch to probabilities; `frozen` as in the encoder."""

    @tf.function(reduce_retracing=True, autograph=False)
    def predict_step(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        return probabilities(model(batch, training=False, frozen=frozen), task)

    return predict_step


def make_logits_step(model: TextClassifier) -> Callable[..., tf.Tensor]:
    """A compiled function from a packed batch to logits."""
    return tf.function(lambda batch: model(batch, training=False), reduce_retracing=True, autograph=False)


def predict(predict_step: Callable[..., tf.Tensor], examples: Examples) -> np.ndarray:
    """What a step gives for each example, probabilities or logits, float32 [examples, ...] in their order."""
    plan = plan_prediction(examples.lengths)
    found = np.concatenate([np.asarray(predict_step(examples.batch(rows))) for rows in plan])
    ordered = np.empty_like(found)
    ordered[np.concatenate(plan)] = found
    return ordered
