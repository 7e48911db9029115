"""Step 8: a blessed model becomes a version in the base path of the model server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts, system_executions
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.push import base_path
from components.push.executor import Executor


class PushSpec(ComponentSpec):
    """The model, its blessings and what its lineage is read from; TFX's PushedModel out."""

    PARAMETERS = {"custom_config": ExecutionParameter(type=str)}
    INPUTS = {
        "model": ChannelParameter(type=standard_artifacts.Model, optional=True),
        "model_blessing": ChannelParameter(type=standard_artifacts.ModelBlessing, optional=True),
        "infra_blessing": ChannelParameter(type=standard_artifacts.InfraBlessing, optional=True),
        "model_run": ChannelParameter(type=standard_artifacts.ModelRun, optional=True),
        "evaluation": ChannelParameter(type=standard_artifacts.ModelEvaluation, optional=True),
        "examples": ChannelParameter(type=standard_artifacts.Examples, optional=True),
    }
    OUTPUTS = {"pushed_model": ChannelParameter(type=standard_artifacts.PushedModel)}
    TYPE_ANNOTATION = system_executions.Deploy


class Push(base_component.BaseComponent):
    """TFX's Pusher, with versions that are complete or absent and that can be rolled back.

    The output `pushed_model` has the custom properties of TFX's Pusher (`pushed`, `pushed_destination`,
    `pushed_version`) and beside them `new_version` (0 when the very model is live already), `reason` (why nothing new
    was pushed), `model_sha256`, `run_fingerprint`, `code_revision`, `data_span`, `metric_*` and `lineage` (JSON). Its
    folder holds `push.json`, not another copy of the model.
    """

    SPEC_CLASS = PushSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        model: types.BaseChannel | None = None,
        model_blessing: types.BaseChannel | None = None,
        infra_blessing: types.BaseChannel | None = None,
        model_run: types.BaseChannel | None = None,
        evaluation: types.BaseChannel | None = None,
        examples: types.BaseChannel | None = None,
        *,
        serving_dir: str,
        keep_versions: int = 5,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """Args:
        model: the trainer's; published when `infra_blessing` holds no model of its own.
        model_blessing, infra_blessing: no version without them, where given.
        model_run, evaluation, examples: what the lineage says of training, metrics, gates and data.
        serving_dir: the base path of the model server.
        keep_versions: how many versions stay there.
        facts: of the run, for the lineage: name, fingerprint, code (revision), configuration.
        """
        if model is None and infra_blessing is None:
            raise ValueError("Push: give model, or infra_blessing of a serving check")
        folder = Path(serving_dir)
        config = {
            "serving_dir": serving_dir,
            "keep_versions": keep_versions,
            "facts": facts or {},
            # What stands in the base path is an input too: a result from the cache would be wrong once versions
            # have come or gone.
            "state": {
                "live": base_path.live_number(folder) or 0,
                "rolled_back": list(base_path.rolled_back(folder)),
            },
        }
        super().__init__(
            PushSpec(
                model=model,
                model_blessing=model_blessing,
                infra_blessing=infra_blessing,
                model_run=model_run,
                evaluation=evaluation,
                examples=examples,
                custom_config=json.dumps(config, sort_keys=True),
                pushed_model=types.Channel(type=standard_artifacts.PushedModel),
            )
        )
