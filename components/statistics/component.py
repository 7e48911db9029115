"""Step 2a: statistics of every split, computed by TFDV on Beam, without a text in them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import pyarrow as pa
import tensorflow_data_validation as tfdv
from tfx import types
from tfx.components.statistics_gen.stats_artifact_utils import BINARY_PB_BASENAME
from tfx.components.util import tfxio_utils
from tfx.dsl.components.base import base_beam_component, base_beam_executor, executor_spec
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.statistics.derive import DERIVED_FEATURES, TextMeasurer, replace_texts


class MeasureTexts(beam.DoFn):
    """Replaces the texts of a `pa.RecordBatch` by their measures; the tokeniser is built once a worker."""

    def __init__(self, vocab_file: str, lower_case: bool, pairs: bool) -> None:
        self._vocab_file, self._lower_case, self._pairs = vocab_file, lower_case, pairs
        self._measurer: TextMeasurer | None = None

    def setup(self) -> None:
        self._measurer = TextMeasurer(self._vocab_file, self._lower_case)

    def process(self, batch: pa.RecordBatch) -> Iterable[pa.RecordBatch]:
        assert self._measurer is not None
        yield replace_texts(batch, self._measurer, self._pairs)


class Executor(base_beam_executor.BaseBeamExecutor):
    """TFX StatisticsGen's work on measured texts; the same artifact, file names and span."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        config = json.loads(exec_properties["custom_config"])
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        statistics = artifact_utils.get_single_instance(output_dict["statistics"])
        statistics.split_names = examples.split_names
        statistics.span = examples.span
        measuring = (config["vocab_file"], config["lower_case"], config["pairs"])
        with self._make_beam_pipeline() as pipeline:
            for split in artifact_utils.decode_split_names(examples.split_names):
                source = tfxio_utils.get_split_tfxio([examples], split, telemetry_descriptors=["StatisticsGen"])
                path = os.path.join(artifact_utils.get_split_uri([statistics], split), BINARY_PB_BASENAME)
                # Every label must be counted; there are fewer than this.
                options = tfdv.StatsOptions(num_top_values=200, num_rank_histogram_buckets=10_000)
                _ = (
                    pipeline
                    | f"Read[{split}]" >> source.BeamSource()
                    | f"Measure[{split}]" >> beam.ParDo(MeasureTexts(*measuring))
                    | f"Statistics[{split}]" >> tfdv.GenerateStatistics(options)
                    | f"Write[{split}]" >> tfdv.WriteStatisticsToBinaryFile(path)
                )


class TextStatisticsSpec(ComponentSpec):
    """Examples in, TFX's ExampleStatistics out."""

    PARAMETERS = {"custom_config": ExecutionParameter(type=str)}
    INPUTS = {"examples": ChannelParameter(type=standard_artifacts.Examples)}
    OUTPUTS = {"statistics": ChannelParameter(type=standard_artifacts.ExampleStatistics)}


class TextStatisticsGen(base_beam_component.BaseBeamComponent):
    """StatisticsGen for texts: labels and columns as they are, texts as `DERIVED_FEATURES`."""

    SPEC_CLASS = TextStatisticsSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self, examples: types.BaseChannel, *, vocab_file: str, lower_case: bool, pairs: bool = False, code: str = ""
    ) -> None:
        """Args:
        examples: raw examples.
        vocab_file: the WordPiece vocabulary.
        lower_case: whether the vocabulary is uncased.
        pairs: whether `text_pair` is measured, too; not of neighbouring sentences, each of which is a `text`.
        code: a fingerprint of this step's code, so that a new one is not answered from the cache.
        """
        config = {
            "vocab_file": vocab_file,
            "lower_case": lower_case,
            "derived": DERIVED_FEATURES,
            "pairs": pairs,
            "code": code,
        }
        super().__init__(
            TextStatisticsSpec(
                examples=examples,
                statistics=types.Channel(type=standard_artifacts.ExampleStatistics),
                custom_config=json.dumps(config, sort_keys=True),
            )
        )
