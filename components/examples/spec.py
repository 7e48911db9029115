"""What ingest is told, as JSON values and as a `RowSpec`; nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from components.config import DataConfig
from components.examples.rows import RowSpec

# Stands in the cache key: raise it when the same input would give other examples.
_REVISION = 3


def executor_config(data: DataConfig, task: str, labels: Sequence[str], label_column: str) -> dict[str, Any]:
    """What the executor is told, as JSON values: only what changes the examples, for it is part of the cache key."""
    rct = data.format == "pubmed_rct"  # its columns are given by the format
    shares = {str(split): share for split, share in data.hash_split.items()}
    return {
        "revision": _REVISION,
        "format": data.format,
        "text": "text" if rct else data.columns.text,
        "text_pair": data.columns.text_pair,
        "label": "label" if rct else label_column,
        "id": "id" if rct else data.columns.id,
        "slices": list(data.columns.slices),
        "multilabel": task == "multilabel",
        "labels": sorted(labels),  # the order of the probabilities is no matter of ingest
        "label_separator": data.label_separator,
        "neighbours": data.neighbours,
        "hash_split": [[split, shares[split]] for split in data.split_names] if "all" in data.splits else [],
        "drop_leaked": data.drop_leaked,
        "max_characters": data.max_characters,
        "max_bad_share": data.max_bad_share,
    }


def row_spec(config: dict[str, Any]) -> RowSpec:
    """The `RowSpec` in an `executor_config`."""
    return RowSpec(
        format=config["format"],
        text=config["text"],
        label=config["label"],
        labels=frozenset(label.encode() for label in config["labels"]),
        multilabel=config["multilabel"],
        label_separator=config["label_separator"].encode(),
        text_pair=config["text_pair"],
        id=config["id"],
        slices=tuple(config["slices"]),
        neighbours=config["neighbours"],
        max_characters=config["max_characters"],
    )
