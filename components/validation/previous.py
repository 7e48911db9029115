"""Which statistics a run is compared with: those of all earlier runs; the gate takes the newest earlier span's."""

from __future__ import annotations

import ml_metadata as mlmd
from tfx import types
from tfx.dsl.components.common import resolver


class PreviousStatisticsStrategy(resolver.ResolverStrategy):
    """One statistics artifact a span, the newest of each, so that re-runs of a span do not pile up."""

    def resolve_artifacts(
        self, store: mlmd.MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """Args: input_dict: `statistics`. Returns: the same key, filtered, ordered by span."""
        by_span: dict[int, types.Artifact] = {}
        for artifact in sorted(input_dict["statistics"], key=lambda a: a.id):
            by_span[artifact.span] = artifact
        return {"statistics": [by_span[span] for span in sorted(by_span)]}
