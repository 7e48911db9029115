"""Step 3: the gate that stops a run. ExampleValidator records anomalies; this component refuses them."""

from __future__ import annotations

import json
import os
from typing import Any

import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2
from tfx import types
from tfx.components.example_validator.executor import DEFAULT_FILE_NAME as ANOMALIES_FILE
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.dsl.components.base import base_beam_component, base_beam_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.types import artifact, artifact_utils, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import io_utils

from components.config import ValidationConfig
from components.errors import DataError
from components.schema.component import SCHEMA_FILE
from components.validation import checks, serving_logs

REPORT_FILE = "validation.json"


class DataApproval(artifact.Artifact):
    """Stands for data that may be learned from; holds `validation.json`."""

    TYPE_NAME = "DataApproval"


class Executor(base_beam_executor.BaseBeamExecutor):
    """Collects every problem, so that one run names all of them, and fails when there is one."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        config = json.loads(exec_properties["custom_config"])
        bounds = ValidationConfig.model_validate(config["validation"])
        label_feature = "labels" if config["task"] == "multilabel" else "label"
        statistics = artifact_utils.get_single_instance(input_dict["statistics"])
        anomalies = artifact_utils.get_single_instance(input_dict["anomalies"])
        schema = io_utils.parse_pbtxt_file(
            os.path.join(artifact_utils.get_single_uri(input_dict["schema"]), SCHEMA_FILE),
            schema_pb2.Schema(),
        )
        schema = checks.with_comparators(schema, bounds, label_feature)

        problems: list[checks.Problem] = []
        by_split = {
            split: stats_artifact_utils.load_statistics(statistics, split).proto()
            for split in artifact_utils.decode_split_names(statistics.split_names)
        }
        for split, values in by_split.items():
            found = anomalies_pb2.Anomalies.FromString(
                io_utils.read_bytes_file(os.path.join(artifact_utils.get_split_uri([anomalies], split), ANOMALIES_FILE))
            )
            problems += checks.schema_problems(split, found)
            problems += checks.content_problems(split, values, bounds, label_feature, config["labels"])

        previous = self._previous(input_dict.get("previous_statistics") or [], statistics)
        serving = self._serving(config, self._get_tmp_dir()) if config["serving_logs"] else None
        problems += checks.comparison_problems(by_split["train"], schema, previous, serving)
        if problems:
            listed = "\n".join(f"  - {problem}" for problem in problems)
            raise DataError(f"the data was refused, and nothing was trained:\n{listed}")
        report = {
            "splits": {split: values.datasets[0].num_examples for split, values in by_split.items()},
            "compared_with_previous_span": previous is not None,
            "compared_with_serving_logs": serving is not None,
        }
        path = os.path.join(artifact_utils.get_single_uri(output_dict["approval"]), REPORT_FILE)
        io_utils.write_string_file(path, json.dumps(report, indent=2))

    @staticmethod
    def _previous(candidates: list[types.Artifact], current: types.Artifact) -> Any:
        """The training statistics of the span before, if there is one that is still on disk."""
        earlier = [artifact for artifact in candidates if artifact.span < current.span and fileio.exists(artifact.uri)]
        if not earlier:
            return None
        return stats_artifact_utils.load_statistics(earlier[-1], "train").proto()

    def _serving(self, config: dict[str, Any], folder: str) -> Any:
        if not fileio.glob(config["serving_logs"]):
            raise DataError(
                f"validation.serving_logs: no file matches {config['serving_logs']}; log requests on the model server, "
                "or take the key out of the configuration"
            )
        fileio.makedirs(folder)
        path = os.path.join(folder, "serving_statistics.pb")
        with self._make_beam_pipeline() as pipeline:
            serving_logs.write_statistics(
                pipeline, config["serving_logs"], config["vocab_file"], config["lower_case"], path
            )
        found = tfdv.load_stats_binary(path)
        if not found.datasets[0].num_examples:
            raise DataError(
                f"validation.serving_logs: {config['serving_logs']} holds no text (the input or feature `text`); log "
                "such requests on the model server, or take the key out of the configuration"
            )
        return found


class DataGateSpec(ComponentSpec):
    """Statistics, schema and anomalies in; the approval out."""

    PARAMETERS = {"custom_config": ExecutionParameter(type=str)}
    INPUTS = {
        "statistics": ChannelParameter(type=standard_artifacts.ExampleStatistics),
        "schema": ChannelParameter(type=standard_artifacts.Schema),
        "anomalies": ChannelParameter(type=standard_artifacts.ExampleAnomalies),
        "previous_statistics": ChannelParameter(type=standard_artifacts.ExampleStatistics, optional=True),
    }
    OUTPUTS = {"approval": ChannelParameter(type=DataApproval)}


class DataGate(base_beam_component.BaseBeamComponent):
    """Stops the run on anomalies, drift, skew and data too poor to learn from."""

    SPEC_CLASS = DataGateSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        statistics: types.BaseChannel,
        schema: types.BaseChannel,
        anomalies: types.BaseChannel,
        previous_statistics: types.BaseChannel | None,
        *,
        validation: ValidationConfig,
        task: str,
        labels: list[str],
        vocab_file: str,
        lower_case: bool,
        logs_fingerprint: str = "",
        code: str = "",
    ) -> None:
        """Args:
        statistics, schema, anomalies: of this run.
        previous_statistics: of the span before, or none.
        validation: the bounds.
        task, labels: from the configuration.
        vocab_file, lower_case: WordPiece, to measure logged texts by.
        logs_fingerprint: of the serving logs, so that new ones are not answered from the cache.
        code: a fingerprint of this step's code, likewise.
        """
        # A curated schema may hold a skew_comparator of its own.
        compares = validation.length_skew is not None or validation.schema_file is not None
        config = {
            "validation": validation.model_dump(mode="json", exclude={"schema_file", "serving_logs"}),
            "serving_logs": validation.serving_logs if compares else None,
            "logs_fingerprint": logs_fingerprint,
            "task": task,
            "labels": list(labels),
            "vocab_file": vocab_file,
            "lower_case": lower_case,
            "code": code,
        }
        super().__init__(
            DataGateSpec(
                statistics=statistics,
                schema=schema,
                anomalies=anomalies,
                previous_statistics=previous_statistics,
                approval=types.Channel(type=DataApproval),
                custom_config=json.dumps(config, sort_keys=True),
            )
        )
