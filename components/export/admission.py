"""What the trainer does for an export of low precision: make it, try it, and note what it answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from components.classifier.model import TextClassifier, probabilities
from components.config import ExportConfig, Task
from components.encoder.packing import Batch
from components.errors import ExportError
from components.export.classifier import served
from components.export.portable import check_answers, made_up_texts

if TYPE_CHECKING:
    from components.trainer.batches import Examples

_BATCH_TEXTS = 32

log = logging.getLogger(__name__)


class LowPrecision:
    """A trained classifier in a low precision.

    Args:
      model: trained, computing in float32.
      config: its precision is not float32.
      train: what int8 takes its ranges from.
    """

    def __init__(self, model: TextClassifier, config: ExportConfig, train: Examples) -> None:
        self._config = config
        self.classifier, self._exact = served(model, config.precision, _calibration(train, config.calibration_texts))

    def check_elsewhere(self, path: str, vocab_file: str, pairs: bool) -> None:
        """Asks the export in processes that may die of it, as CPUs with fewer instructions would be asked.

        Raises:
          ExportError: see `components.export.portable.check_answers`.
        """
        check_answers(path, made_up_texts(vocab_file), pairs, self._config.tolerance)

    def check(self, evaluation: Examples, keys: Sequence[int], task: Task) -> dict[str, Any]:
        """What the serving check is to find.

        Args:
          evaluation: holds the examples.
          keys: whose answers are noted.

        Returns:
          `probabilities` by the keys, and the `tolerance` of a comparison with them.

        Raises:
          ExportError: this machine's int8 products are not the exact ones.
        """
        _, rows = np.unique(evaluation.keys, return_index=True)
        place = {int(evaluation.keys[row]): row for row in rows}
        batches = [evaluation.batch(np.array([place[key]])) for key in keys]
        found = _answers(self.classifier, batches, task)
        if self._exact is not None:
            difference = float(np.abs(found - _answers(self._exact, batches, task)).max())
            log.info("%s: %.3g from exact products", self._config.precision, difference)
            if not difference <= self._config.tolerance:
                raise ExportError(
                    f"this machine's int8 products are wrong: a probability is {difference:.3g} off, and "
                    f"export.tolerance is {self._config.tolerance:g}; choose another export.precision"
                )
        return {"probabilities": found.tolist(), "tolerance": self._config.tolerance}


def _calibration(train: Examples, texts: int) -> Iterator[Batch]:
    """Packed batches of so many training texts, evenly spaced: the examples are in the order of a hash."""
    rows = np.unique(np.linspace(0, len(train) - 1, min(texts, len(train))).astype(np.int64))
    for start in range(0, len(rows), _BATCH_TEXTS):
        yield train.batch(rows[start : start + _BATCH_TEXTS])


def _answers(classifier: Any, batches: Sequence[Batch], task: Task) -> np.ndarray:
    spec = {name: tf.TensorSpec([None], tf.int32) for name in batches[0]}

    @tf.function(input_signature=[spec], autograph=False)
    def answer(batch: Batch) -> tf.Tensor:
        return probabilities(classifier(batch, training=False), task)

    return np.concatenate([np.asarray(answer(batch)) for batch in batches])
