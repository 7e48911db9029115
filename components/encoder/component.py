"""The encoder's pretrained weights as a node of the pipeline: converted once, with their sha256 in the lineage."""

from __future__ import annotations

import json
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact, artifact_utils
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.config import EncoderConfig
from components.encoder.config import geometry_in_use
from components.encoder.conversion import convert


class EncoderWeights(artifact.Artifact):
    """A folder of `components.encoder.conversion`; custom properties `sha256`, `source_sha256` and `source`."""

    TYPE_NAME = "EncoderWeights"


class Executor(base_executor.BaseExecutor):
    """Converts the weights, or fails naming every tensor that does not fit."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        config = json.loads(exec_properties["custom_config"])
        encoder = EncoderConfig.model_validate(config["encoder"])
        geometry = geometry_in_use(config["encoder_config_file"], encoder, config["vocab_file"])
        weights = artifact_utils.get_single_instance(output_dict["weights"])
        record = convert(str(encoder.weights), geometry, config["vocab_file"], config["lower_case"], weights.uri)
        for name in ("sha256", "source_sha256", "source"):
            weights.set_string_custom_property(name, getattr(record, name))


class PretrainedWeightsSpec(ComponentSpec):
    """Nothing in; the encoder's weights out."""

    PARAMETERS = {"custom_config": ExecutionParameter(type=str)}
    INPUTS: dict[str, ChannelParameter] = {}
    OUTPUTS = {"weights": ChannelParameter(type=EncoderWeights)}


class PretrainedWeights(base_component.BaseComponent):
    """Brings `encoder.weights` (TensorFlow 1, safetensors or PyTorch; a hub name is fetched once) into one form."""

    SPEC_CLASS = PretrainedWeightsSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        *,
        encoder: EncoderConfig,
        encoder_config_file: str,
        vocab_file: str,
        lower_case: bool,
        file_hashes: list[str],
        code: str = "",
    ) -> None:
        """Args:
        encoder: names the weights, and what of the geometry is overridden.
        encoder_config_file, vocab_file, lower_case: of the configuration.
        file_hashes: of these files and of local weights, so that an edited one is not answered from the cache.
        code: a fingerprint of this step's code, likewise.
        """
        config = {
            # What leaves the tensors as they are does not convert them anew.
            "encoder": encoder.model_dump(
                mode="json", exclude={"hidden_dropout_prob", "attention_probs_dropout_prob", "trainable"}
            ),
            "encoder_config_file": encoder_config_file,
            "vocab_file": vocab_file,
            "lower_case": lower_case,
            "file_hashes": file_hashes,
            "code": code,
        }
        super().__init__(
            PretrainedWeightsSpec(
                weights=types.Channel(type=EncoderWeights), custom_config=json.dumps(config, sort_keys=True)
            )
        )
