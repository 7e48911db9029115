"""Step 7: the exported model, served by a real server process, answers real texts as the trainer did."""

from __future__ import annotations

import json

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.config import ServingConfig
from components.serving_check.executor import Executor


class ServingCheckSpec(ComponentSpec):
    """The model, what its trainer said of it, and raw examples in; TFX's InfraBlessing out."""

    PARAMETERS = {"custom_config": ExecutionParameter(type=str)}
    INPUTS = {
        "model": ChannelParameter(type=standard_artifacts.Model),
        "model_run": ChannelParameter(type=standard_artifacts.ModelRun),
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "model_blessing": ChannelParameter(type=standard_artifacts.ModelBlessing, optional=True),
    }
    OUTPUTS = {"blessing": ChannelParameter(type=standard_artifacts.InfraBlessing)}


class ServingCheck(base_component.BaseComponent):
    """TFX's InfraValidator without Docker.

    Starts the project's model server on the exported model, and blesses the model if the server loads it, gives the
    trainer's own probabilities for raw texts over gRPC, answers hostile texts, and is fast enough. The output
    `blessing` holds `report.json`, `server.log`, INFRA_BLESSED or INFRA_NOT_BLESSED, and, when blessed, the model
    with `assets.extra/tf_serving_warmup_requests` under `stamped_model/`, where TFX's Pusher and Push look for it.
    """

    SPEC_CLASS = ServingCheckSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        model_run: types.BaseChannel,
        examples: types.BaseChannel,
        model_blessing: types.BaseChannel | None = None,
        *,
        serving: ServingConfig,
        attempt: int = 0,
        code: str = "",
    ) -> None:
        """Args:
        model: the trainer's export.
        model_run: holds `check.json`, the trainer's own probabilities by key.
        examples: raw, to find the texts of those keys.
        model_blessing: the evaluator's; where it is given and refused, nothing is served.
        serving: bounds and name; how many versions are kept is no concern of this step.
        attempt: another number is not answered from the cache: a refusal may have been the machine's, not the model's.
        code: a fingerprint of this step's and the server's code, so that a new one is not answered from the cache.
        """
        bounds = serving.model_dump(mode="json", exclude={"keep_versions"})
        config = {"serving": bounds, "attempt": attempt, "code": code}
        super().__init__(
            ServingCheckSpec(
                model=model,
                model_run=model_run,
                examples=examples,
                model_blessing=model_blessing,
                blessing=types.Channel(type=standard_artifacts.InfraBlessing),
                custom_config=json.dumps(config, sort_keys=True),
            )
        )
