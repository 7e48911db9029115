"""Step 2b: the schema; inferred on the first run and kept from then on, or curated by a person."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tensorflow_metadata.proto.v0 import schema_pb2
from tfx import types
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import io_utils

from components.schema.curated import read_schema
from components.schema.infer import example_schema, infer_schema
from components.statistics.derive import DERIVED_FEATURES, PAIR_FEATURES

SCHEMA_FILE = "schema.pbtxt"
_MADE_FOR = "made_for"  # custom property: the features and labels that a schema speaks of
_SUBJECT = ("task", "labels", "has_pairs", "has_id", "slices")


class Executor(base_executor.BaseExecutor):
    """Writes both schemas; see components/schema/infer.py."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        config = json.loads(exec_properties["custom_config"])
        label_feature = "labels" if config["task"] == "multilabel" else "label"
        measures = sorted(DERIVED_FEATURES + (PAIR_FEATURES if config["has_pairs"] else ()))
        made_for = json.dumps([*(config[key] for key in _SUBJECT), measures])
        kept = [
            a for a in input_dict.get("previous_schema") or [] if a.get_string_custom_property(_MADE_FOR) == made_for
        ]
        if config["curated"]:
            schema = read_schema(config["curated"], config["labels"], label_feature)
        elif kept:
            schema = io_utils.parse_pbtxt_file(os.path.join(kept[-1].uri, SCHEMA_FILE), schema_pb2.Schema())
        else:
            artifact = artifact_utils.get_single_instance(input_dict["statistics"])
            splits = artifact_utils.decode_split_names(artifact.split_names)
            statistics = [stats_artifact_utils.load_statistics(artifact, split).proto() for split in splits]
            schema = infer_schema(statistics, config["labels"], label_feature, config["task"] == "multilabel")
        parsing = example_schema(
            label_feature,
            config["task"] == "multilabel",
            config["has_pairs"],
            config["has_id"],
            config["slices"],
        )
        for key, value in (("schema", schema), ("example_schema", parsing)):
            io_utils.write_pbtxt_file(os.path.join(artifact_utils.get_single_uri(output_dict[key]), SCHEMA_FILE), value)
        artifact_utils.get_single_instance(output_dict["schema"]).set_string_custom_property(_MADE_FOR, made_for)


class TextSchemaSpec(ComponentSpec):
    """Statistics in; the schema to validate against and the schema to parse by out."""

    PARAMETERS = {"custom_config": ExecutionParameter(type=str)}
    INPUTS = {
        "statistics": ChannelParameter(type=standard_artifacts.ExampleStatistics),
        "previous_schema": ChannelParameter(type=standard_artifacts.Schema, optional=True),
    }
    OUTPUTS = {
        "schema": ChannelParameter(type=standard_artifacts.Schema),
        "example_schema": ChannelParameter(type=standard_artifacts.Schema),
    }


class TextSchemaGen(base_component.BaseComponent):
    """The curated schema where there is one; else that of earlier approved data; else one inferred from this data."""

    SPEC_CLASS = TextSchemaSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        statistics: types.BaseChannel,
        previous_schema: types.BaseChannel | None = None,
        *,
        task: str,
        labels: list[str],
        has_pairs: bool,
        has_id: bool,
        slices: list[str],
        curated: Path | None = None,
        curated_hash: str = "",
        code: str = "",
    ) -> None:
        """Args:
        statistics: of raw examples, texts measured.
        previous_schema: by which earlier data was approved; not used where it speaks of other features or labels.
        task, labels, has_pairs, has_id, slices: from the configuration.
        curated: a schema in text form that a person has reviewed.
        curated_hash: sha256 of that file, so that an edited schema is not answered from the cache.
        code: a fingerprint of this step's code, likewise.
        """
        config = {
            "task": task,
            "labels": list(labels),
            "has_pairs": has_pairs,
            "has_id": has_id,
            "slices": list(slices),
            "curated": str(curated) if curated else None,
            "curated_hash": curated_hash,
            "code": code,
        }
        super().__init__(
            TextSchemaSpec(
                statistics=statistics,
                previous_schema=previous_schema,
                schema=types.Channel(type=standard_artifacts.Schema),
                example_schema=types.Channel(type=standard_artifacts.Schema),
                custom_config=json.dumps(config, sort_keys=True),
            )
        )
