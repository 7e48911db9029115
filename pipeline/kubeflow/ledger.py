"""Which data was approved: one JSON file an approval under `<root>/approvals`, which ML Metadata tells a local run.

    {"span": 3, "data": "…", "statistics": artifact, "schema": artifact}

`data` is the fingerprint of the spans that were read. An artifact is `{"type": title, "uri": …, "metadata": {…}}`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.push import base_path
from pipeline.records import write_json


@dataclass(frozen=True)
class Approval:
    """Data that may be learned from, with the statistics and the schema by which it was approved."""

    span: int
    data: str
    statistics: dict[str, Any]
    schema: dict[str, Any]


def record(root: Path, approval: Approval) -> None:
    """Writes an approval, whole or not at all."""
    folder = root / "approvals"
    number = max([time.time_ns(), *(int(path.stem) + 1 for path in folder.glob("*.json"))])  # a clock may be set back
    write_json(folder / f"{number}.json", approval.__dict__)


def approvals(root: Path) -> list[Approval]:
    """All approvals whose artifacts are still there, oldest first."""
    files = sorted((root / "approvals").glob("*.json"), key=lambda path: int(path.stem))
    found = [Approval(**json.loads(path.read_text(encoding="utf-8"))) for path in files]
    return [item for item in found if all(Path(a["uri"]).exists() for a in (item.statistics, item.schema))]


def previous_statistics(known: list[Approval], span: int) -> dict[str, Any] | None:
    """The newest approved statistics of the newest span before `span`; as `PreviousStatisticsStrategy`."""
    earlier = [(item.span, number) for number, item in enumerate(known) if item.span < span]
    return known[max(earlier)[1]].statistics if earlier else None


def previous_schema(known: list[Approval], data: str) -> dict[str, Any] | None:
    """The schema by which other data than `data` was approved last; as `PreviousSchemaStrategy`."""
    others = [item for item in known if item.data != data]
    return others[-1].schema if others else None


def live_model(serving_dir: Path) -> dict[str, Any] | None:
    """The Model that the live version was published from; None where nothing is live or its artifact is gone."""
    _, lineage = base_path.live_lineage(serving_dir)
    uri = lineage.get("artifacts", {}).get("model", {}).get("uri")
    if uri is None or not Path(uri).exists():
        return None
    return {"type": "tfx.Model", "uri": uri, "metadata": {}}
