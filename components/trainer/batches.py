"""Transformed examples in memory, and packed batches of them.

Token ids of a data set are small (1.6 million sentences: 240 MB), so they are parsed once and kept as flat arrays;
a batch is then a few slices, and the input is never what a step waits for.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from components.errors import DataError

_PARSE_BATCH = 1024
_AHEAD = 2

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Examples:
    """The transformed examples of one split, in an order that depends on their content alone.

    Attributes:
      ids: int32 [tokens], all texts end to end.
      segments: int32 [tokens], or None where texts are no pairs.
      lengths: int32 [examples].
      labels: int32 [examples], or float32 [examples, labels] for a multilabel task.
      keys: int64 [examples], hash of the text.
      truncated: how many of the texts lost tokens to the longest length.
      hidden: float [tokens, features], what the encoder's frozen layers give for `ids`, or None.
      ends: int64 [examples], where each text ends in `ids`.
    """

    ids: np.ndarray
    segments: np.ndarray | None
    lengths: np.ndarray
    labels: np.ndarray
    keys: np.ndarray
    truncated: int = 0
    hidden: np.ndarray | None = None
    ends: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", np.cumsum(self.lengths, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The packed batch (`components.encoder.packing`) of the given examples, int [rows]."""
        spans = self.spans(rows)
        packed = {"ids": np.concatenate([self.ids[s] for s in spans]), "row_lengths": self.lengths[rows]}
        if self.segments is not None:
            packed["segments"] = np.concatenate([self.segments[s] for s in spans])
        if self.hidden is not None:
            packed["hidden"] = np.concatenate([self.hidden[s] for s in spans])
        return packed

    def spans(self, rows: np.ndarray) -> list[slice]:
        """Where in `ids` the given examples stand."""
        return [slice(self.ends[row] - self.lengths[row], self.ends[row]) for row in rows]

    def digest(self) -> str:
        """sha256 of the content, in hexadecimal."""
        sha = hashlib.sha256()
        for array in (self.ids, self.segments, self.lengths, self.labels, self.keys):
            sha.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()


def read_examples(patterns: Sequence[str], feature_spec: Mapping[str, Any], multilabel: bool, pairs: bool) -> Examples:
    """Reads GZIP TFRecords of transformed examples.

    Args:
      patterns: globs of the split's files.
      feature_spec: of the transformed examples (`TFTransformOutput.transformed_feature_spec()`).
      multilabel: whether `labels` are read, else `label`.
      pairs: whether `segment_ids` are read.

    Raises:
      DataError: there is no example.
    """
    label = "labels" if multilabel else "label"
    ragged = ["input_ids", *(["segment_ids"] if pairs else [])]
    spec = {name: feature_spec[name] for name in (*ragged, "key", "truncated", label)}
    files = sorted(file for pattern in patterns for file in tf.io.gfile.glob(pattern))
    records = tf.data.TFRecordDataset(files, compression_type="GZIP").batch(_PARSE_BATCH)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (*spec, "lengths")}
    for batch in records.map(lambda serialized: tf.io.parse_example(serialized, spec)).prefetch(2):
        ids = tf.RaggedTensor.from_sparse(batch["input_ids"])
        columns["lengths"].append(ids.row_lengths().numpy())
        for name in ragged:
            columns[name].append(batch[name].values.numpy())
        for name in ("key", "truncated", label):
            columns[name].append(batch[name].numpy())
    if not columns["key"]:
        raise DataError(f"Trainer: no examples in {', '.join(patterns)}")
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    labels = whole[label].astype(np.float32 if multilabel else np.int32)
    examples = Examples(
        ids=whole["input_ids"].astype(np.int32),
        segments=whole["segment_ids"].astype(np.int32) if pairs else None,
        lengths=whole["lengths"].astype(np.int32),
        labels=labels if multilabel else labels.reshape(-1),
        keys=whole["key"].astype(np.int64).reshape(-1),
        truncated=int(whole["truncated"].sum()),
    )
    return _in_order_of_content(examples)


def _in_order_of_content(examples: Examples) -> Examples:
    """Sorted by key, then label: the order in which Beam wrote the files must not change a training run."""
    label_columns = examples.labels.reshape(len(examples), -1).T
    order = np.lexsort((*label_columns, examples.lengths, examples.keys))
    packed = examples.batch(order)
    return Examples(
        packed["ids"],
        packed.get("segments"),
        packed["row_lengths"],
        examples.labels[order],
        examples.keys[order],
        examples.truncated,
    )


def plan_epoch(
    lengths: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    buckets: Sequence[int] | None = None,
    tokens: int | None = None,
) -> list[np.ndarray]:
    """The batches of one epoch, in order: every example once, the same for the same arguments.

    Args:
      lengths: int [examples], tokens.
      batch_size: examples a batch; a last one may be smaller.
      seed, epoch: settle the order.
      buckets: upper bounds of length. With them, a batch holds texts of one bucket, so that attention, which
        alone works on padded blocks, pads little.
      tokens: instead of `batch_size`, the most tokens of a batch; with buckets, those of its block, padded to its
        longest text. A text of more stands alone. The number of batches then differs from epoch to epoch.

    Returns:
      One int64 array of example numbers a batch.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))

    def cut(rows: np.ndarray) -> list[np.ndarray]:
        if tokens is not None:
            return _cut_by_tokens(rows, lengths, tokens, padded=bool(buckets))
        return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]

    if not buckets:
        return cut(order)
    bucket = np.searchsorted(np.asarray(buckets), lengths[order])
    batches: list[np.ndarray] = []
    left_over: list[np.ndarray] = []
    for number in np.unique(bucket):
        *full, last = cut(order[bucket == number])
        if tokens is None and len(last) == batch_size:
            full, last = [*full, last], last[:0]
        batches += full
        left_over.append(last)
    # What is left of each bucket makes batches with its neighbours: no batch of one or two texts.
    if any(len(last) for last in left_over):
        batches += cut(np.concatenate(left_over))
    return [batches[n] for n in rng.permutation(len(batches))]


def _cut_by_tokens(rows: np.ndarray, lengths: np.ndarray, tokens: int, padded: bool) -> list[np.ndarray]:
    """The rows, in their order, in pieces of at most so many tokens, real ones or those of the padded block."""
    starts, count, total, longest = [0], 0, 0, 0
    for n, length in enumerate(lengths[rows].tolist()):
        area = (count + 1) * max(longest, length) if padded else total + length
        if area > tokens and count:
            starts.append(n)
            count = total = longest = 0
        count, total, longest = count + 1, total + length, max(longest, length)
    return np.split(rows, starts[1:])


def plan_prediction(lengths: np.ndarray, tokens: int = 8192) -> list[np.ndarray]:
    """All examples by length, in batches whose block, padded to its longest, stays within `tokens`."""
    order = np.argsort(lengths, kind="stable")[::-1]  # the longest first: memory peaks at once
    batches = []
    start = 0
    while start < len(order):
        count = max(1, tokens // int(lengths[order[start]]))
        batches.append(order[start : start + count])
        start += count
    return batches


def ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """`make` of each item, in order, made by a thread two items before it is asked for: the step that runs does not
    wait for the next one's input."""
    with ThreadPoolExecutor(1, "input") as thread:
        under_way: deque[Future[Made]] = deque()
        for item in items:
            under_way.append(thread.submit(make, item))
            if len(under_way) > _AHEAD:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
