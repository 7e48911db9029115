"""Why a classifier answers as it does: the n-grams that give most to each label's logit."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops

from components.config import Task
from components.encoder.packing import Batch, Tensor


class Explanation(NamedTuple):
    """The n-grams of each text that give most to each label, the greatest first; where there are fewer, zeros.

    Attributes:
      parts: float32 [texts, labels, n], what an n-gram adds to the label's logit. For a binary task, whose one logit is
        for the second label, the first label's are its negatives.
      starts, ends: int32 [texts, labels, n], the n-gram's tokens (`components.classifier.heads.Head.ngrams`).
    """

    parts: Tensor
    starts: Tensor
    ends: Tensor


def explain(model: Any, hidden: Tensor, batch: Batch, task: Task, count: int) -> Explanation:
    """What the features of a head give to the logits, by n-gram.

    A feature gives its value times its weight; through a hidden layer, its weights by the units that are above 0. What
    different filters find in the same n-gram is added up.

    Args:
      model: has a `head`, a `hidden` layer or None, and an `output_dense`.
      hidden: float [tokens, hidden], what the encoder gives for the batch.
      batch: as the head is given it.
      count: greatest n.
    """
    features = ops.cast(model.head(hidden, batch, training=False), "float32")  # (B, F)
    ngrams = model.head.ngrams(hidden, batch)  # (B, F, 2)
    weights = ops.cast(model.output_dense.kernel, "float32")[None]  # (1, F, L)
    if model.hidden is not None:
        active = ops.cast(model.hidden(features) > 0, "float32")  # (B, units)
        weights = ops.matmul(ops.cast(model.hidden.kernel, "float32"), active[:, :, None] * weights)  # (B, F, L)
    parts = features[:, :, None] * weights  # (B, F, L)
    if task == "binary":
        parts = ops.concatenate([-parts, parts], axis=-1)

    starts, sizes = ngrams[:, :, 0], ngrams[:, :, 1] - ngrams[:, :, 0]
    # Every n-gram that there can be has a number, by which the parts are added up; a batch may be of empty texts.
    longest = ops.max(batch.get("text_lengths", batch["row_lengths"]), initial=0) + count
    greatest_size = max(before + after + 1 for before, after in model.head.reach) + 1
    ngrams_of_text = longest * greatest_size
    texts, labels = ops.shape(features)[0], parts.shape[-1]
    numbers = ops.arange(texts, dtype="int32")[:, None] * ngrams_of_text + starts * greatest_size + sizes
    numbers = ops.reshape(numbers, (-1,))
    added = ops.segment_sum(ops.reshape(parts, (-1, labels)), numbers, num_segments=texts * ngrams_of_text)
    found = ops.segment_sum(ops.cast(ops.reshape(sizes, (-1, 1)) > 0, "float32"), numbers, texts * ngrams_of_text)
    ranked = ops.reshape(ops.where(found > 0, added, -float("inf")), (texts, ngrams_of_text, labels))
    greatest, places = ops.top_k(ops.transpose(ranked, (0, 2, 1)), count)  # (B, L, n)
    there = ops.isfinite(greatest)
    places = ops.where(there, ops.cast(places, "int32"), 0)
    starts = places // greatest_size
    return Explanation(ops.where(there, greatest, 0.0), starts, starts + places % greatest_size)
