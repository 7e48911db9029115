"""Which model a new one must be compared with: the live version's, which after a rollback is not the newest."""

from __future__ import annotations

from pathlib import Path

import ml_metadata as mlmd
from tfx import types
from tfx.dsl.components.common import resolver
from tfx.dsl.io import fileio

from components.push import base_path


class LiveModelStrategy(resolver.ResolverStrategy):
    """Keeps the Model that the live version was published from; none where nothing is live or its artifact is gone."""

    def __init__(self, serving_dir: str) -> None:
        """Args: serving_dir: the base path of the model server."""
        self._serving_dir = Path(serving_dir)

    def resolve_artifacts(
        self, store: mlmd.MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """Args: input_dict: `model`, all; `pushed_model`, all. Returns: the same keys, one artifact each or none."""
        live, lineage = base_path.live_lineage(self._serving_dir)
        wanted = lineage.get("artifacts", {}).get("model", {})
        # Id and URI: a metadata store that was made anew counts its ids from 1 again.
        models = [
            model
            for model in input_dict.get("model", [])
            if model.id == wanted.get("id") and model.uri == wanted.get("uri") and fileio.exists(model.uri)
        ]
        pushed = [
            artifact
            for artifact in input_dict.get("pushed_model", [])
            if live is not None and artifact.get_string_custom_property("pushed_version") == str(live)
        ]
        return {"model": models[-1:], "pushed_model": pushed[-1:] if models else []}
