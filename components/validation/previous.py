"""What a run is compared with: statistics and schema of earlier data that was approved, never of refused data."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import ml_metadata as mlmd
from ml_metadata.proto import metadata_store_pb2 as pb
from tfx import types
from tfx.dsl.components.common import resolver
from tfx.dsl.io import fileio

_Event: Any = pb.Event  # type: ignore[attr-defined]  # generated code
_INPUT, _OUTPUT = (_Event.INPUT, _Event.DECLARED_INPUT), (_Event.OUTPUT, _Event.DECLARED_OUTPUT)


class PreviousStatisticsStrategy(resolver.ResolverStrategy):
    """Keeps the newest approved statistics of the newest span before that of `current`; none on the first span."""

    def resolve_artifacts(
        self, store: mlmd.MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """Args: input_dict: `current`, one; `statistics`, all. Returns: the same keys."""
        span = max((artifact.span for artifact in input_dict["current"]), default=0)
        approved = {statistics for statistics, _ in approvals(store)}
        earlier = [item for item in input_dict["statistics"] if item.span < span and item.id in approved]
        there = [item for item in earlier if fileio.exists(item.uri)]
        newest = sorted(there, key=lambda artifact: (artifact.span, artifact.id))[-1:]
        return {"current": input_dict["current"], "statistics": newest}


class PreviousSchemaStrategy(resolver.ResolverStrategy):
    """Keeps the schema by which data older than `current` was approved last; none on the first run.

    Of the same data's own schema nothing is taken: a second run on it then finds what the first one found, and TFX's
    cache answers.
    """

    def resolve_artifacts(
        self, store: mlmd.MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """Args: input_dict: `current`, the run's statistics; `schema`, all. Returns: the same keys."""
        current = max((artifact.id for artifact in input_dict["current"]), default=0)
        older = {schema: statistics for statistics, schema in approvals(store) if statistics < current}
        there = [item for item in input_dict["schema"] if item.id in older and fileio.exists(item.uri)]
        newest = sorted(there, key=lambda artifact: (older[artifact.id], artifact.id))[-1:]
        return {"current": input_dict["current"], "schema": newest}


def approvals(store: mlmd.MetadataStore) -> list[tuple[int, int]]:
    """The ids of statistics and schema of every data that was approved, oldest approval first."""
    found = [artifact.id for artifact in store.get_artifacts_by_type("DataApproval")]
    gates = sorted({e.execution_id for e in store.get_events_by_artifact_ids(found) if e.type in _OUTPUT})
    inputs: dict[int, dict[str, int]] = defaultdict(dict)
    for event in store.get_events_by_execution_ids(gates) if gates else ():
        if event.type in _INPUT:
            inputs[event.execution_id][event.path.steps[0].key] = event.artifact_id
    # Of what a run with `--from` takes over, TFX records an execution that has outputs alone.
    return [(of["statistics"], of["schema"]) for of in map(inputs.get, gates) if of]
