"""What Push does: publish what was blessed, and record what it was made of."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tfx import types
from tfx.components.util import model_utils
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import io_utils, path_utils

from components.errors import PushError
from components.progress import report
from components.push import base_path, lineage
from components.push.graph import graph_digest
from components.push.publish import Published, publish


class Executor(base_executor.BaseExecutor):
    """TFX Pusher's work on a local or mounted file system, made safe against whatever kills it."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Args: see `component.PushSpec`.

        Raises:
          PushError: blessed, but it could not be published; nothing new is there.
        """
        config = json.loads(exec_properties["custom_config"])
        inputs = {key: artifact_utils.get_single_instance(found) for key, found in input_dict.items() if found}
        pushed = artifact_utils.get_single_instance(output_dict["pushed_model"])
        refusal = _refusal(inputs)
        if refusal:
            _mark(pushed, Published(None, None, False, refusal), {})
            return
        facts = lineage.collect(inputs, config["facts"])
        source = _model_path(inputs)
        with tempfile.TemporaryDirectory() as folder:
            result = publish(
                _local(source, folder),
                Path(config["serving_dir"]),
                config["keep_versions"],
                lineage=lambda number: facts,
                fingerprint=config["facts"].get("fingerprint", ""),
                graph_digest=graph_digest,
            )
        known = base_path.read_lineage(result.path) if result.path is not None else None
        _mark(pushed, result, known or {})


def _refusal(inputs: dict[str, types.Artifact]) -> str:
    """Why the model must not be pushed, or "". As TFX's Pusher: no blessing given means no objection."""
    if "model_blessing" in inputs and not model_utils.is_model_blessed(inputs["model_blessing"]):
        return "the evaluator did not bless the model"
    if "infra_blessing" in inputs and not model_utils.is_infra_validated(inputs["infra_blessing"]):
        return "the serving check did not bless the model"
    return ""


def _model_path(inputs: dict[str, types.Artifact]) -> str:
    """The SavedModel to publish: that of the serving check, which has warm-up requests, else the trainer's."""
    blessing = inputs.get("infra_blessing")
    if blessing is not None and blessing.get_int_custom_property("has_model"):
        return path_utils.stamped_model_path(blessing.uri)
    if "model" not in inputs:
        raise PushError("there is no model to push: give Push the trainer's, or a serving check's that has one")
    return path_utils.serving_model_path(inputs["model"].uri)


def _local(path: str, folder: str) -> Path:
    """The model as a local folder; fetched first where artifacts live in object storage."""
    if "://" not in path:
        return Path(path)
    target = os.path.join(folder, "model")
    io_utils.copy_dir(path, target)
    return Path(target)


def _mark(pushed: types.Artifact, result: Published, facts: dict[str, Any]) -> None:
    """Sets the properties that TFX's Pusher sets, and ours beside them."""
    pushed.set_int_custom_property("pushed", int(result.version is not None))
    pushed.set_string_custom_property("reason", result.reason)
    if result.version is not None:
        pushed.set_string_custom_property("pushed_destination", str(result.path))
        pushed.set_string_custom_property("pushed_version", str(result.version))
        pushed.set_int_custom_property("new_version", int(result.new))
    for name, value in lineage.properties(facts).items() if facts else ():
        if isinstance(value, str):
            pushed.set_string_custom_property(name, value)
        elif isinstance(value, int):
            pushed.set_int_custom_property(name, value)
        else:
            pushed.set_float_custom_property(name, value)
    fileio.makedirs(pushed.uri)
    summary = {"version": result.version, "path": str(result.path or ""), "new": result.new, "reason": result.reason}
    io_utils.write_string_file(os.path.join(pushed.uri, "push.json"), json.dumps({**summary, "lineage": facts}))
    report("push", version=result.version or 0, new=int(result.new), reason=result.reason)
