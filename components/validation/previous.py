"""Which statistics a run is compared with: those of the newest span before its own."""

from __future__ import annotations

import ml_metadata as mlmd
from tfx import types
from tfx.dsl.components.common import resolver


class PreviousStatisticsStrategy(resolver.ResolverStrategy):
    """Keeps the newest statistics of the newest span before that of `current`; none on the first span."""

    def resolve_artifacts(
        self, store: mlmd.MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """Args: input_dict: `current`, one; `statistics`, all. Returns: the same keys."""
        span = max((artifact.span for artifact in input_dict["current"]), default=0)
        earlier = [artifact for artifact in input_dict["statistics"] if artifact.span < span]
        newest = sorted(earlier, key=lambda artifact: (artifact.span, artifact.id))[-1:]
        return {"current": input_dict["current"], "statistics": newest}
