"""Batches of few shapes, for XLA compiles a step anew for each shape that it meets.

A batch of texts within one bucket gets as many rows as such a batch may have texts, and as many tokens as if each were
as long as the bucket allows. What is missing is filled by further texts of padding, which count nothing in the loss,
and by empty ones. They come first: so every text begins at a token that there is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from components.config import TrainingConfig


class StaticShapes(NamedTuple):
    """Which shapes batches are brought to.

    Attributes:
      bounds: greatest lengths, growing; the last one is that of the longest text.
      texts: greatest number of texts of a batch.
      tokens: the budget of tokens that stands in its place, or None.
      replicas: among which a batch is divided.
    """

    bounds: tuple[int, ...]
    texts: int
    tokens: int | None
    replicas: int = 1

    @classmethod
    def of(cls, training: TrainingConfig, lengths: np.ndarray, replicas: int) -> StaticShapes:
        """Those for texts of these lengths, int [texts]."""
        longest = int(lengths.max())
        bounds = (*(bound for bound in training.buckets if bound < longest), longest)
        return cls(bounds, training.batch_size, training.batch_tokens, replicas)

    def bound(self, lengths: np.ndarray) -> np.ndarray:
        """The bound of each length."""
        return np.asarray(self.bounds)[np.searchsorted(self.bounds, lengths)]

    def padded(
        self, batch: dict[str, np.ndarray], labels: np.ndarray, share: np.float32
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """A replica's packed batch with padding texts before its own.

        Args:
          batch, labels: of `Examples`.
          share: what a text's loss counts.

        Returns:
          The batch, with `steps` int32 [bound] (see `components.encoder.packing`); labels; and shares, float32 [rows],
          0 for padding.
        """
        real = batch["row_lengths"]
        bound = int(self.bound(real.max()))
        texts = self.texts if self.tokens is None else self.tokens // bound
        rows = max(1, -(-texts // self.replicas))
        missing = rows * bound - int(real.sum())
        padding = np.clip(missing - bound * np.arange(rows), 0, bound)[::-1]
        before = 2 * rows - len(real)

        def behind(count: int, values: np.ndarray) -> np.ndarray:
            return np.concatenate([np.zeros((count, *values.shape[1:]), values.dtype), values])

        found = {name: behind(missing, values) for name, values in batch.items()}
        found["row_lengths"] = np.concatenate([np.zeros(rows - len(real), np.int32), padding.astype(np.int32), real])
        found["steps"] = np.arange(bound, dtype=np.int32)
        return found, behind(before, labels), behind(before, np.full(len(real), share, np.float32))
