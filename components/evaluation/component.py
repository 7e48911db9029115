"""The TFX component of step 6: TFX's Evaluator, for texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfx import types
from tfx.components.evaluator.component import Evaluator
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import component_spec, standard_artifacts
from tfx.types import standard_component_specs as specs

from components.config import EvaluationConfig, ExportConfig, Task
from components.evaluation.executor import CUSTOM_CONFIG, Executor
from components.push import base_path


class TextEvaluatorSpec(component_spec.ComponentSpec):
    """Inputs, outputs and parameters of `TextEvaluator`; the names are those of TFX's Evaluator."""

    PARAMETERS = {CUSTOM_CONFIG: component_spec.ExecutionParameter(type=str)}
    INPUTS = {
        specs.EXAMPLES_KEY: component_spec.ChannelParameter(type=standard_artifacts.Examples),
        specs.MODEL_KEY: component_spec.ChannelParameter(type=standard_artifacts.Model),
        specs.BASELINE_MODEL_KEY: component_spec.ChannelParameter(type=standard_artifacts.Model, optional=True),
    }
    OUTPUTS = {
        specs.EVALUATION_KEY: component_spec.ChannelParameter(type=standard_artifacts.ModelEvaluation),
        specs.BLESSING_KEY: component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing),
    }


class TextEvaluator(Evaluator):
    """Scores an exported text classifier with TFMA and blesses it if every gate holds.

    Outputs, as of TFX's Evaluator: `evaluation` (TFMA's results, `metrics.json`, `gates.json`,
    `predictions-*.parquet`) and `blessing`, which Pusher and LatestBlessedModelStrategy read.
    """

    SPEC_CLASS = TextEvaluatorSpec  # type: ignore[assignment]  # TFX takes any ComponentSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        model: types.BaseChannel,
        task: Task,
        labels: Sequence[str],
        evaluation: EvaluationConfig,
        baseline_model: types.BaseChannel | None = None,
        serving_dir: str | None = None,
        slices: Sequence[str] = (),
        pairs: bool = False,
        neighbours: bool = False,
        export: ExportConfig | None = None,
        guard: bool = False,
        code: str = "",
    ):
        """Makes the node.

        Args:
          examples: raw tf.Examples, from the ingest.
          model: the exported candidate.
          task: binary, multiclass or multilabel.
          labels: in the order of the probabilities.
          evaluation: split, gates, slices by length, samples of the bootstrap.
          baseline_model: the latest blessed model, from a Resolver; the channel may hold none.
          serving_dir: the base path of the model server: where the channel holds none, the model is compared with the
            version that is live there, as another pipeline root may have pushed it.
          slices: columns of the examples to report metrics by.
          pairs: whether the examples hold `text_pair`.
          neighbours: whether that is of the sentences before and after.
          export: where its precision is not float32, the model is also held against itself in float32.
          guard: whether the gates must hold on the old spans of a window, too.
          code: a fingerprint of this step's code, so that new code is not answered from the cache.
        """
        custom_config: dict[str, Any] = {
            "task": task,
            "labels": list(labels),
            "evaluation": evaluation.model_dump(mode="json"),
            "slices": list(slices),
            "pairs": pairs,
            "neighbours": neighbours,
            "code": code,
        }
        if serving_dir is not None:
            # The live version is an input too: a result from the cache would be wrong once another is there.
            custom_config |= {"serving_dir": serving_dir, "live": base_path.live_number(Path(serving_dir))}
        if guard:
            custom_config["guard"] = True
        if export is not None and export.precision != "float32":
            custom_config["export"] = export.model_dump(mode="json")
        spec = TextEvaluatorSpec(
            examples=examples,
            model=model,
            baseline_model=baseline_model,
            custom_config=json.dumps(custom_config, sort_keys=True),
            evaluation=types.Channel(type=standard_artifacts.ModelEvaluation),
            blessing=types.Channel(type=standard_artifacts.ModelBlessing),
        )
        # Past Evaluator's own constructor: its specification has no place for what the gates need.
        base_beam_component.BaseBeamComponent.__init__(self, spec=spec)
