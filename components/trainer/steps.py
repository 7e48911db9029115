"""The compiled steps of training and prediction, on packed batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from components.classifier.model import TextClassifier, probabilities
from components.config import Task, TrainingConfig
from components.trainer.batches import Examples, plan_prediction
from components.trainer.losses import example_losses
from components.trainer.optimizer import AdamW


class TrainStep:
    """One step of the optimiser on a batch, divided among the strategy's replicas.

    Args:
      model, optimizer: made in the strategy's scope; the optimiser's variables are those that learn.
      examples: those of the batches.
      task, training: of the configuration.
      weights: of `losses.class_weights`.
      strategy: where replicas run.
      frozen: see `components.encoder.bert.BertEncoder`.
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
    ) -> None:
        self.examples = examples
        self.strategy = strategy
        self.replicas = replicas = strategy.num_replicas_in_sync

        def replica_step(inputs: Any, share: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
            batch, truth = inputs
            with tf.GradientTape() as tape:
                logits = model(batch, training=True, frozen=frozen)
                loss = tf.reduce_sum(example_losses(logits, truth, task, training.label_smoothing, weights)) * share
                # gradients are summed over replicas, so each adds its part of the penalty
                total = loss + tf.add_n(model.losses) / replicas if model.losses else loss
            optimizer.apply(tape.gradient(total, optimizer.targets), rate)
            return loss

        # Over replicas the shapes come as PerReplica values, which have no signature to write down.
        signature = {"input_signature": self._signature()} if replicas == 1 else {"reduce_retracing": True}

        @tf.function(**signature, autograph=False)
        def compiled(inputs: Any, share: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
            if replicas == 1:
                return replica_step(inputs, share, rate)
            losses = strategy.run(replica_step, args=(inputs, share, rate))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

        self.compiled = compiled

    def __call__(self, rows: np.ndarray, rate: float) -> tf.Tensor:
        """The loss, float32 scalar, of the examples int [rows] before the step.

        Args:
          rate: learning rate.
        """
        share = np.float32(1 / len(rows))
        if self.replicas == 1:
            return self.compiled(self._inputs(rows), share, np.float32(rate))
        # A batch smaller than the number of replicas gives some the first text again, with weight 0.
        parts = np.array_split(rows, self.replicas)
        inputs = [self._inputs(part if len(part) else rows[:1]) for part in parts]
        shares = [share if len(part) else np.float32(0) for part in parts]
        per_replica = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.nest.map_structure(
                tf.convert_to_tensor,
                (inputs[context.replica_id_in_sync_group], shares[context.replica_id_in_sync_group]),
            )
        )
        return self.compiled(*per_replica, np.float32(rate))

    def _inputs(self, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return self.examples.batch(rows), self.examples.labels[rows]

    def _signature(self) -> list[Any]:
        batch = batch_spec(self.examples.segments is not None)
        hidden, labels = self.examples.hidden, self.examples.labels
        if hidden is not None:
            batch["hidden"] = tf.TensorSpec([None, hidden.shape[1]], tf.as_dtype(hidden.dtype), "hidden")
        truth = tf.TensorSpec([None, *labels.shape[1:]], labels.dtype)
        scalar = tf.TensorSpec([], tf.float32)
        return [(batch, truth), scalar, scalar]


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


def predict(predict_step: Callable[..., tf.Tensor], examples: Examples) -> np.ndarray:
    """Probabilities float32 [examples, labels], in the order of the examples."""
    plan = plan_prediction(examples.lengths)
    found = np.concatenate([np.asarray(predict_step(examples.batch(rows))) for rows in plan])
    ordered = np.empty_like(found)
    ordered[np.concatenate(plan)] = found
    return ordered
