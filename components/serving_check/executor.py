"""What ServingCheck does: stamp the model with warm-up requests, serve it, question the server, write the verdict."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.core.protobuf import saved_model_pb2
from tfx import types
from tfx.components.util import model_utils
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import io_utils, path_utils

from components.config import ServingConfig
from components.errors import ServingError
from components.progress import report
from components.serving_check import checks, samples
from components.serving_check.server_process import ModelNotLoaded, ServerProcess

REPORT_FILE = "report.json"
SERVER_LOG = "server.log"


class Executor(base_executor.BaseExecutor):
    """The work of TFX's InfraValidator with a process instead of a container, and with answers compared."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Args: see `component.ServingCheckSpec`.

        Raises:
          ServingError: the server itself failed, so there is no verdict; the next run tries again.
        """
        config = json.loads(exec_properties["custom_config"])
        serving = ServingConfig.model_validate(config["serving"])
        inputs = {key: artifact_utils.get_single_instance(found) for key, found in input_dict.items() if found}
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        fileio.makedirs(blessing.uri)
        if "model_blessing" in inputs and not model_utils.is_model_blessed(inputs["model_blessing"]):
            _write_verdict(blessing, {"checked": False}, "the evaluator did not bless the model, so it was not served")
            return
        with tempfile.TemporaryDirectory(prefix="serving-check-") as folder:
            findings: dict[str, Any] = {"checked": True}
            reason = ""
            stamped = _stamped_folder(blessing, folder)
            try:
                _check(inputs, serving, stamped, Path(folder), findings)
            except (checks.NotBlessed, ModelNotLoaded) as verdict:
                reason = str(verdict)
            finally:
                log = Path(folder) / SERVER_LOG
                if log.exists():
                    io_utils.copy_file(str(log), os.path.join(blessing.uri, SERVER_LOG), overwrite=True)
            if reason:
                shutil.rmtree(stamped, ignore_errors=True)
            elif "://" in blessing.uri:
                io_utils.copy_dir(str(stamped), path_utils.stamped_model_path(blessing.uri))
            _write_verdict(blessing, findings, reason)


def _check(
    inputs: dict[str, types.Artifact], serving: ServingConfig, stamped: Path, folder: Path, findings: dict[str, Any]
) -> None:
    """Fills `findings`; raises NotBlessed or ModelNotLoaded with the verdict's reason."""
    check_file = os.path.join(inputs["model_run"].uri, "check.json")
    if not fileio.exists(check_file):
        raise ServingError(f"{check_file}: is missing; run the trainer again")
    with fileio.open(check_file, "r") as file:
        split = json.loads(file.read())["split"]
    sample, missing = samples.find_sample(
        check_file, artifact_utils.get_split_uri([inputs["examples"]], split), serving.check_examples
    )
    if missing or not sample.texts:
        raise checks.NotBlessed(
            f"of the texts that the trainer noted in check.json, {len(sample.texts)} are in the split {split!r} and "
            f"{missing} are not"
        )
    _copy_model(path_utils.serving_model_path(inputs["model"].uri), stamped)
    signatures = _signatures(stamped)
    warmup = path_utils.warmup_file_path(str(stamped))
    samples.write_warmup(warmup, serving.model_name, sample, serving.warmup_requests, signatures)
    # A server wants <base path>/<version>/.
    base_path = folder / "base" / serving.model_name
    base_path.mkdir(parents=True)
    (base_path / "1").symlink_to(stamped.absolute(), target_is_directory=True)
    with ServerProcess(base_path, serving.model_name, folder / SERVER_LOG, serving.load_timeout_s) as server:
        findings["load_s"] = round(server.load_s, 2)
        client = checks.Client(server.address, serving.model_name, serving.load_timeout_s)
        try:
            client.wait_until_available()
            tolerance = serving.tolerance if sample.tolerance is None else sample.tolerance
            findings.update(checks.check_answers(client, sample, tolerance, "serialized_examples" in signatures))
            # Multi-label probabilities are independent of each other: whether they sum to one shows in the trainer's.
            sums = np.allclose(sample.probabilities.sum(axis=1), 1.0, atol=1e-4)
            findings["hostile"] = checks.check_hostile(client, sample.pairs is not None, bool(sums))
            findings["latency_ms"] = checks.check_latency(client, sample, serving.max_latency_ms)
        except checks.NotBlessed:
            server.check_alive()  # killed from outside, say by the kernel for want of memory: no verdict
            raise
        finally:
            client.close()


def _stamped_folder(blessing: types.Artifact, folder: str) -> Path:
    """Where the model with its warm-up requests is made: where Push looks for it, if that is a local folder."""
    if "://" in blessing.uri:
        return Path(folder) / "stamped"
    return Path(path_utils.stamped_model_path(blessing.uri))


def _copy_model(source: str, target: Path) -> None:
    """Copies a SavedModel; on one file system by hard links, since an artifact never changes."""
    shutil.rmtree(target, ignore_errors=True)
    if "://" in source:
        io_utils.copy_dir(source, str(target))
        return
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


def _signatures(model: Path) -> set[str]:
    graph = saved_model_pb2.SavedModel.FromString((model / "saved_model.pb").read_bytes()).meta_graphs[0]
    return set(graph.signature_def)


def _write_verdict(blessing: types.Artifact, findings: dict[str, Any], reason: str) -> None:
    """The marks of TFX's InfraValidator, which its Pusher understands, and `report.json`."""
    blessed = not reason
    facts = {"blessed": blessed, "reason": reason, **findings}
    io_utils.write_string_file(os.path.join(blessing.uri, REPORT_FILE), json.dumps(facts, indent=2))
    io_utils.write_string_file(os.path.join(blessing.uri, "INFRA_BLESSED" if blessed else "INFRA_NOT_BLESSED"), "")
    blessing.set_int_custom_property("blessed", int(blessed))
    blessing.set_int_custom_property("has_model", int(blessed))
    blessing.set_string_custom_property("reason", reason)
    report("serving_check", blessed=int(blessed), reason=reason)
