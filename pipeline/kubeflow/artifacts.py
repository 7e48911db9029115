"""Artifacts on their way between the platform and a TFX executor: types by title, and folders for addresses.

The platform knows an artifact by an address in its store. An executor works on folders, which are
- Vertex AI: where the bucket is mounted, `gs://bucket/x` → `/gcs/bucket/x`, by the platform's own convention
  (https://cloud.google.com/vertex-ai/docs/training/cloud-storage-file-system);
- Kubeflow: on the volume that all steps share, since Beam's workers must see them too and the launcher's copies are
  in one container alone. The address in the store stays empty then, and the artifact's metadata says where it is. Where
  the volume is a bucket, mounted at `/gcs/bucket`, workers on Dataflow see the same by its address.
"""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

import yaml
from kfp.pipeline_spec import pipeline_spec_pb2
from tfx import types
from tfx.orchestration.kubeflow.v2 import compiler_utils
from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_entrypoint_utils as tfx_utils
from tfx.utils import name_utils

from components.encoder.component import EncoderWeights
from components.validation.component import DataApproval

pb: Any = pipeline_spec_pb2  # generated code: mypy sees no messages in it
FOLDER, ABSENT = "folder", "absent"  # metadata: where it really is; it stands for nothing
_PREFIXES = {"gs://": "/gcs/", "minio://": "/minio/", "s3://": "/s3/"}  # as the launchers of both platforms mount
_OWN = {f"biobert_cnn.{kind.__name__}": kind for kind in (EncoderWeights, DataApproval)}
# TFX finds the class of an artifact by its title here.
compiler_utils.TITLE_TO_CLASS_PATH.update({title: name_utils.get_full_name(kind) for title, kind in _OWN.items()})


def schema_of(kind: type[types.Artifact]) -> str:
    """The schema by which the platform knows a type of artifact, as YAML."""
    for title, own in _OWN.items():
        if kind is own:
            return yaml.safe_dump({"title": title, "type": "object"}, sort_keys=False)
    schema = compiler_utils.get_artifact_schema(kind)
    return schema.decode() if isinstance(schema, bytes) else schema


def local(uri: str) -> str:
    """The folder of an address in a store."""
    for remote, mounted in _PREFIXES.items():
        if uri.startswith(remote):
            return mounted + uri.removeprefix(remote)
    return uri


def address(folder: str) -> str:
    """The address of a folder where a store is mounted; any other is its own."""
    for remote, mounted in _PREFIXES.items():
        if folder.startswith(mounted):
            return remote + folder.removeprefix(mounted)
    return folder


def place(uri: str, remote: bool) -> str:
    """Where an executor finds an artifact: at its address where its Beam workers see no mounted folder."""
    return address(uri) if remote else local(uri)


def read_input(found: Any, names: dict[int, str], remote: bool) -> types.Artifact:
    """The TFX artifact of a `RuntimeArtifact` that a step is given; `remote`: by its address."""
    artifact = tfx_utils._parse_raw_artifact(found, names)
    artifact.uri = place(artifact.get_string_custom_property(FOLDER) or artifact.uri, remote)
    return artifact


def read_output(found: Any, names: dict[int, str], remote: bool, folder: str | None) -> types.Artifact:
    """The TFX artifact that a step is to fill; under `folder` on a shared volume, else where the platform says."""
    artifact = tfx_utils._parse_raw_artifact(found, names)
    if folder is not None:
        artifact.uri = os.path.join(folder, uuid.uuid4().hex)
        artifact.set_string_custom_property(FOLDER, artifact.uri)
    artifact.uri = place(artifact.uri, remote)
    return artifact


def write_output(artifact: types.Artifact, uri: str) -> Any:
    """The `RuntimeArtifact` of an output: its metadata, at the address that the platform gave it."""
    return pb.RuntimeArtifact(uri=uri, metadata=tfx_utils.to_runtime_artifact(artifact, _AnyName()).metadata)


def to_json(artifact: types.Artifact) -> dict[str, Any]:
    """An artifact for the ledger: type, folder, metadata."""
    kind = artifact.type
    titles = {path: title for title, path in compiler_utils.TITLE_TO_CLASS_PATH.items()}
    return {
        "type": titles[name_utils.get_full_name(kind)],
        "uri": local(artifact.uri),
        "metadata": tfx_utils._get_json_metadata_mapping(artifact),
    }


def from_json(text: str, remote: bool = False) -> list[types.Artifact]:
    """The artifact that `resolve` found, or none for the empty text; `remote` as in `read_input`."""
    if not text:
        return []
    values = json.loads(text)
    found = pb.RuntimeArtifact(uri=values["uri"])
    found.type.schema_title = values["type"]
    found.metadata.update(values["metadata"])
    return [read_input(found, {}, remote)]


class _AnyName(dict):
    """Stands for the names of outputs, which have none yet; without it TFX logs a warning for each."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: int) -> str:
        return ""
