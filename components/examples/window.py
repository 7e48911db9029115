"""Several spans' Examples → one, without copying where the file system can link.

Each span is ingested by a node of its own, so that TFX's cache answers for those that are known; everything after this
component sees one Examples artifact, whatever the window.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.errors import DataError
from components.examples.merge import Roles, merge, place
from components.examples.outcome import REPORT


class Executor(base_executor.BaseExecutor):
    """Links the files of each split and puts the ingest reports together."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        config = json.loads(exec_properties["custom_config"])
        spans = sorted(input_dict["spans"], key=lambda artifact: artifact.span)
        window = artifact_utils.get_single_instance(output_dict["examples"])
        roles = Roles(**config["roles"])
        if roles.evaluate_newest and len(spans) < 2:
            raise DataError(
                "window.evaluate_newest: the window holds one span, so there is none to learn from; wait for the next, "
                "or set it to false"
            )
        newest = spans[-1]
        window.split_names = newest.split_names
        window.span = newest.span
        for name in ("payload_format", "file_format"):  # custom properties: how the records are to be read
            window.set_string_custom_property(name, newest.get_string_custom_property(name))
        reports = []
        for number, artifact in enumerate(spans):
            with fileio.open(os.path.join(artifact.uri, REPORT), "r") as file:
                reports.append(json.loads(file.read()))
            for split in artifact_utils.decode_split_names(artifact.split_names):
                target = place(split, len(spans) - 1 - number, roles)
                if target is None:
                    continue
                _link(
                    artifact_utils.get_split_uri([artifact], split),
                    os.path.join(window.uri, f"Split-{target}"),
                    f"span-{artifact.span}-{split}-",
                )
        with fileio.open(os.path.join(window.uri, REPORT), "w") as file:
            file.write(json.dumps(merge(reports, roles), indent=1))


def _link(source: str, target: str, prefix: str) -> None:
    """Every file of a folder under a name of its own in another: a hard link where that can be, a copy elsewhere."""
    fileio.makedirs(target)
    for name in sorted(str(found) for found in fileio.listdir(source)):
        before, after = os.path.join(source, name), os.path.join(target, f"{prefix}{name}")
        if "://" not in source and "://" not in target:
            try:
                os.link(before, after)
                continue
            except OSError:  # another file system, or one without links
                pass
        fileio.copy(before, after)


class SpanWindowSpec(ComponentSpec):
    """One Examples artifact a span in; one of the window out."""

    PARAMETERS = {"custom_config": ExecutionParameter(type=str)}
    INPUTS = {"spans": ChannelParameter(type=standard_artifacts.Examples)}
    OUTPUTS = {"examples": ChannelParameter(type=standard_artifacts.Examples)}


class SpanWindow(base_component.BaseComponent):
    """Puts the spans of a window together."""

    SPEC_CLASS = SpanWindowSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, spans: types.BaseChannel, *, roles: Roles, code: str = "") -> None:
        """Args:
        spans: the Examples of every span.
        roles: what each of them is for.
        code: a fingerprint of this step's code, so that a changed one is not answered from the cache.
        """
        super().__init__(
            SpanWindowSpec(
                spans=spans,
                examples=types.Channel(type=standard_artifacts.Examples),
                custom_config=json.dumps({"roles": asdict(roles), "code": code}, sort_keys=True),
            )
        )
