"""Labelled rows as ExampleGen writes them, read without TFX."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf

_READ_BATCH = 1024  # tf.data is slow at handing over records one by one
_NAMES = ("text", "text_pair", "label", "labels")


class Row(NamedTuple):
    """One raw example."""

    key: int  # the same for the same text, text_pair and labels, whatever else the row holds; 63 bits
    text: str
    text_pair: str  # empty without pairs
    labels: tuple[str, ...]
    columns: tuple[tuple[bytes, ...], ...]  # the values of each column asked for


def parse_row(record: bytes, columns: Sequence[str] = ()) -> Row:
    """Reads a serialised tf.Example with `text`, perhaps `text_pair`, and `label` or `labels`, and further columns.

    Raises:
      google.protobuf.message.DecodeError: if the record is not a tf.Example (its message holds no content).
    """
    example = tf.train.Example.FromString(record)
    feature = example.features.feature
    values = {name: tuple(feature[name].bytes_list.value) for name in _NAMES if name in feature}
    text = values.get("text", (b"",))[0]
    pair = (values.get("text_pair") or (b"",))[0]
    labels = values.get("label", ()) + values.get("labels", ())
    digest = hashlib.sha256()
    for part in (text, pair, *sorted(labels)):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return Row(
        key=int.from_bytes(digest.digest()[:8], "big") >> 1,
        text=text.decode("utf-8", "replace"),
        text_pair=pair.decode("utf-8", "replace"),
        labels=tuple(label.decode("utf-8", "replace") for label in labels),
        columns=tuple(tuple(feature[name].bytes_list.value) if name in feature else () for name in columns),
    )


def read_records(files: Iterable[str]) -> Iterator[bytes]:
    """All records of TFRecord files (GZIP where the name ends in .gz), file by file in the order of the names."""
    for file in sorted(files):
        compression = "GZIP" if file.endswith(".gz") else ""
        data = tf.data.TFRecordDataset(file, compression_type=compression).batch(_READ_BATCH)
        for batch in data.as_numpy_iterator():
            yield from batch
