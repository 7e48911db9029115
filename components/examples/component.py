"""The TFX part of ingest: `TextExampleGen`, a file-based ExampleGen with an executor of our own."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from apache_beam.io.filesystems import FileSystems
from google.protobuf import wrappers_pb2
from tfx.components.example_gen import component, write_split
from tfx.components.util import examples_utils
from tfx.dsl.components.base import base_beam_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils
from tfx.utils import proto_utils

from components import progress
from components.config import DataConfig
from components.errors import DataError
from components.examples import head, ingest, outcome
from components.examples.driver import ContentDriver
from components.examples.files import ITEM_BYTES, InputFile
from components.examples.spans import files_of
from components.examples.spec import executor_config, row_spec

pb: Any = example_gen_pb2  # generated code: mypy sees no messages in it
_LOG = logging.getLogger(__name__)


class TextExampleGenExecutor(base_beam_executor.BaseBeamExecutor):
    """Reads the files of each split and writes an Examples artifact with a report and the dead letters."""

    item_bytes = ITEM_BYTES

    def Do(self, input_dict, output_dict, exec_properties) -> None:
        """Runs the ingestion.

        Args:
          input_dict: nothing.
          output_dict: `examples`, one Examples artifact.
          exec_properties: those of FileBasedExampleGen, with `span` and `version` as the driver resolved them.

        Raises:
          DataError: a file cannot be used, too many rows are bad, or a split is empty. TFX then removes the
            artifact; the report and the dead letters are kept in `<component's folder>/rejected/<execution>`.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        input_config, output_config = pb.Input(), pb.Output()
        proto_utils.json_to_proto(exec_properties["input_config"], input_config)
        proto_utils.json_to_proto(exec_properties["output_config"], output_config)
        config = _unpack(exec_properties["custom_config"])
        names = [name for name, _ in config["hash_split"]] or [split.name for split in input_config.splits]

        artifact = artifact_utils.get_single_instance(output_dict["examples"])
        artifact.split_names = artifact_utils.encode_split_names(names)
        examples_utils.set_payload_format(artifact, exec_properties["output_data_format"])
        examples_utils.set_file_format(artifact, write_split.to_file_format_str(exec_properties["output_file_format"]))

        ingestion = ingest.Ingestion(
            spec=row_spec(config),
            output=artifact.uri,
            work=FileSystems.join(artifact.uri, ".work"),
            hash_split=tuple((split, share) for split, share in config["hash_split"]),
            item_bytes=self.item_bytes,
        )
        ingest.make_folder(ingestion.work)
        span, version = exec_properties.get("span") or 0, exec_properties.get("version")
        inputs = find_inputs(exec_properties["input_base"], input_config, span, version)
        before = [_state(file.path) for file in inputs]
        found = self._ingest(ingestion, inputs, names, config)
        if [_state(file.path) for file in inputs] != before:
            raise DataError("an input file was changed while it was read: run again when it is complete")

        # TFX's driver notes the span as a custom property, which `artifact.span` does not read.
        artifact.span = span
        report = outcome.build_report(found, span, version)
        rejected = _rejected_folder(artifact.uri)
        try:
            dead_letters = FileSystems.join(rejected, outcome.DEAD_LETTERS)
            outcome.check_bad_share(found, config["max_bad_share"], dead_letters)
            outcome.check_splits(found)
        except DataError:
            outcome.write_results(ingestion, found, report, rejected)
            raise
        outcome.write_results(ingestion, found, report, artifact.uri)
        outcome.keep_hashes(ingestion, found)
        fileio.rmtree(ingestion.work)
        progress.report("ingest", rows=found.rows, bad=report["bad"]["rows"], dropped=found.dropped.total())
        _LOG.info("Ingested %d rows of %d files; %d bad", found.rows, len(inputs), report["bad"]["rows"])

    def _ingest(
        self, ingestion: ingest.Ingestion, inputs: list[InputFile], names: list[str], config: dict[str, Any]
    ) -> outcome.Outcome:
        with self._make_beam_pipeline() as pipeline:
            ingest.ingest(pipeline, ingestion, inputs)
        found = outcome.collect(ingestion, inputs, names)
        shared = outcome.count_leaks(found)
        leaked = b"".join(hashes for pair, hashes in shared.items() if "train" in pair)
        if not (config["drop_leaked"] and leaked):
            return found
        # A second reading, of the files that gave rows to train. It is rare, and keeps the first one simple.
        path = ingestion.path("leaked")
        with ingest.writing(path, ingestion.work) as stream:
            stream.write(leaked)
        again = [item for item in found.items if item.file.split in ("train", "all")]
        # What is written anew must be gone first: an item whose rows are all dropped writes no shard.
        for split in names if config["hash_split"] else ["train"]:
            if found.splits[split]:
                fileio.rmtree(FileSystems.join(ingestion.output, f"Split-{split}"))
        with self._make_beam_pipeline() as pipeline:
            ingest.ingest_again(pipeline, dataclasses.replace(ingestion, dropped_hashes=path), again)
        cleaned = outcome.collect(ingestion, inputs, names)
        cleaned.leaks = found.leaks
        return cleaned


class TextExampleGen(component.FileBasedExampleGen):
    """Labelled text in files → Examples by split.

    Features, all bytes: `text`; `text_pair` where configured; `label`, or `labels` (none or more) when the task is
    multilabel; `id` where there is one; each column to slice by under its own name.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(TextExampleGenExecutor)
    DRIVER_CLASS = ContentDriver

    def __init__(
        self,
        input_base: str,
        data: DataConfig,
        task: str,
        labels: Sequence[str],
        label_column: str,
        range_config: Any = None,
    ):
        """Builds the component.

        Args:
          input_base: the folder that the globs of `data.splits` start from.
          data: the section `data` of the configuration.
          task: binary, multiclass or multilabel.
          labels: the labels that are known.
          label_column: the column of the label or labels.
          range_config: a RangeConfig that names the span; default: the newest.
        """
        patterns = {str(split): pattern for split, pattern in data.splits.items()}
        shares = {str(split): share for split, share in data.hash_split.items()}
        inputs = pb.Input()
        for name in ("train", "eval", "test", "all"):
            if name in patterns:
                inputs.splits.add(name=name, pattern=patterns[name])
        output = pb.Output()
        if "all" in patterns:
            for name in data.split_names:
                output.split_config.splits.add(name=name, hash_buckets=shares[name])
        config = json.dumps(executor_config(data, task, labels, label_column), sort_keys=True)
        custom = pb.CustomConfig()
        custom.custom_config.Pack(wrappers_pb2.StringValue(value=config))
        super().__init__(
            input_base=input_base,
            input_config=inputs,
            output_config=output,
            custom_config=custom,
            range_config=range_config,
        )


def find_inputs(input_base: str, input_config: Any, span: int, version: int | None) -> list[InputFile]:
    """The files of each split in a span and version, sorted by name.

    Raises:
      DataError: if a pattern matches no file, or a file belongs to two splits.
    """
    inputs: list[InputFile] = []
    owners: dict[str, str] = {}
    splits = {split.name: split.pattern for split in input_config.splits}
    for split, names in files_of(input_base, splits, span, version)[2].items():
        for name in names:
            head.claim(owners, name, split)
            inputs.append(InputFile(len(inputs), split, os.path.join(input_base, name), name))
    return inputs


def _unpack(text: str) -> dict[str, Any]:
    custom, value = pb.CustomConfig(), wrappers_pb2.StringValue()
    proto_utils.json_to_proto(text, custom)
    custom.custom_config.Unpack(value)
    return json.loads(value.value)


def _state(path: str) -> tuple[int, float]:
    metadata = FileSystems.get_filesystem(path).metadata(path)
    return metadata.size_in_bytes, metadata.last_updated_in_seconds


def _rejected_folder(uri: str) -> str:
    """`<component>/rejected/<execution>`, beside the artifact's `<component>/examples/<execution>`."""
    folder, execution = FileSystems.split(uri.rstrip("/"))
    return FileSystems.join(FileSystems.split(folder)[0], "rejected", execution)
