"""TFX's Trainer and Tuner with one more typed input: the encoder's pretrained weights."""

from __future__ import annotations

from typing import Any

from tfx import types
from tfx.components.trainer import executor
from tfx.components.tuner import executor as tuner_executor
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact_utils, standard_artifacts, standard_component_specs
from tfx.types.component_spec import ChannelParameter
from tfx.utils import json_utils

from components.encoder.component import EncoderWeights


class _TellsOfWeights(base_executor.BaseExecutor):
    """Tells another executor's function where the weights are: `custom_config["encoder_weights"]`, a folder."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        key = standard_component_specs.CUSTOM_CONFIG_KEY
        config = json_utils.loads(exec_properties[key])
        config["encoder_weights"] = artifact_utils.get_single_uri(input_dict["encoder_weights"])
        inputs = {name: artifacts for name, artifacts in input_dict.items() if name != "encoder_weights"}
        told = {**exec_properties, key: json_utils.dumps(config)}
        super().Do(inputs, output_dict, told)  # type: ignore[safe-super]  # the other executor comes after this one


class Executor(_TellsOfWeights, executor.GenericExecutor):
    """TFX's, for a `run_fn`."""


class TunerExecutor(_TellsOfWeights, tuner_executor.Executor):
    """TFX's, for a `tuner_fn`."""


class PretrainedTrainerSpec(standard_component_specs.TrainerSpec):
    """As TFX's Trainer, and the encoder's weights."""

    INPUTS = {
        **standard_component_specs.TrainerSpec.INPUTS,
        "encoder_weights": ChannelParameter(type=EncoderWeights),
    }


class PretrainedTunerSpec(standard_component_specs.TunerSpec):
    """As TFX's Tuner, and the encoder's weights."""

    INPUTS = {
        **standard_component_specs.TunerSpec.INPUTS,
        "encoder_weights": ChannelParameter(type=EncoderWeights),
    }


class PretrainedTrainer(base_component.BaseComponent):
    """TFX's Trainer for an encoder that starts from pretrained weights; outputs `model` and `model_run`."""

    SPEC_CLASS = PretrainedTrainerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        *,
        encoder_weights: types.BaseChannel,
        examples: types.BaseChannel,
        transform_graph: types.BaseChannel,
        base_model: types.BaseChannel | None,
        run_fn: str,
        train_args: Any,
        eval_args: Any,
        custom_config: dict[str, Any],
        hyperparameters: types.BaseChannel | None = None,
    ) -> None:
        """Args: of TFX's Trainer, and `encoder_weights`, the output of `PretrainedWeights`."""
        super().__init__(
            PretrainedTrainerSpec(
                encoder_weights=encoder_weights,
                examples=examples,
                transform_graph=transform_graph,
                base_model=base_model,
                hyperparameters=hyperparameters,
                run_fn=run_fn,
                train_args=train_args,
                eval_args=eval_args,
                custom_config=json_utils.dumps(custom_config),
                model=types.Channel(type=standard_artifacts.Model),
                model_run=types.Channel(type=standard_artifacts.ModelRun),
            )
        )


class PretrainedTuner(base_component.BaseComponent):
    """TFX's Tuner for an encoder that starts from pretrained weights; outputs `best_hyperparameters` and
    `tuner_results`."""

    SPEC_CLASS = PretrainedTunerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(TunerExecutor)

    def __init__(
        self,
        *,
        encoder_weights: types.BaseChannel,
        examples: types.BaseChannel,
        transform_graph: types.BaseChannel,
        tuner_fn: str,
        train_args: Any,
        eval_args: Any,
        custom_config: dict[str, Any],
    ) -> None:
        """Args: of TFX's Tuner, and `encoder_weights`, the output of `PretrainedWeights`."""
        super().__init__(
            PretrainedTunerSpec(
                encoder_weights=encoder_weights,
                examples=examples,
                transform_graph=transform_graph,
                tuner_fn=tuner_fn,
                train_args=train_args,
                eval_args=eval_args,
                custom_config=json_utils.dumps(custom_config),
                best_hyperparameters=types.Channel(type=standard_artifacts.HyperParameters),
                tuner_results=types.Channel(type=standard_artifacts.TunerResults),
            )
        )
