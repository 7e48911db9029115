"""Pretrained weights of any supported format as one folder, converted once: what the encoder needs and no more.

    model.safetensors   float32 tensors by Hugging Face's names, for the configured number of layers
    config.json         the geometry they are for
    vocab.txt           the vocabulary in use
    weights.json        where they come from: source, format, sha256 of the source's files and of model.safetensors

The folder is itself a source of weights: `encoder.weights` may name it, and so may Hugging Face's from_pretrained.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from components.encoder.checkpoint import read_weights
from components.encoder.config import BertGeometry
from components.errors import CheckpointError
from components.transform.vocab_file import read_tokens

TENSORS, CONFIG, VOCAB, RECORD = "model.safetensors", "config.json", "vocab.txt", "weights.json"


@dataclass(frozen=True)
class Record:
    """Where an encoder's weights come from.

    Attributes:
      source: as `encoder.weights` names it.
      format: `tf1`, `safetensors` or `torch`.
      source_sha256: over the names and contents of the source's files.
      sha256: of the converted `model.safetensors`; equal weights have equal ones, whatever they came from.
      tensors, parameters: how many were taken.
      unused: names of the tensors that stayed behind.
    """

    source: str
    format: str
    source_sha256: str
    sha256: str
    tensors: int
    parameters: int
    unused: tuple[str, ...]


def convert(
    name: str, geometry: BertGeometry, vocab_file: str | Path, lower_case: bool, folder: str | Path | None = None
) -> Record:
    """Reads weights, accounts for every tensor, and writes them to `folder`; without one, only looks at them.

    Args:
      name: see `components.encoder.sources.find_source`.
      geometry: of the encoder that they are for; fewer layers than the source's, where chosen, take the lower ones.
      vocab_file, lower_case: of the tokeniser in use.

    Raises:
      CheckpointError: they do not fit the encoder or the vocabulary, or `folder` holds something already.
    """
    from safetensors.numpy import save

    tensors, loaded = read_weights(name, geometry, vocab_file, lower_case)
    data = save(tensors)
    record = Record(
        source=name,
        format=loaded.format,
        source_sha256=loaded.sha256,
        sha256=hashlib.sha256(data).hexdigest(),
        tensors=len(tensors),
        parameters=sum(tensor.size for tensor in tensors.values()),
        unused=loaded.unused,
    )
    if folder is not None:
        target = Path(folder)
        if target.exists() and any(target.iterdir()):
            raise CheckpointError(f"{target}: is not empty; name a new folder for the converted weights")
        target.mkdir(parents=True, exist_ok=True)
        config = {"model_type": "bert", "architectures": ["BertModel"], "hidden_act": "gelu", **geometry.as_config()}
        (target / VOCAB).write_text("".join(f"{token}\n" for token in read_tokens(vocab_file)), encoding="utf-8")
        (target / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        (target / RECORD).write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
        (target / TENSORS).write_bytes(data)
    return record


def read_record(folder: str | Path) -> Record:
    """The record of a converted folder.

    Raises:
      CheckpointError: the tensors are not those of the record.
    """
    found = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
    record = Record(**{**found, "unused": tuple(found["unused"])})
    with (Path(folder) / TENSORS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != record.sha256:
        raise CheckpointError(
            f"{folder}/{TENSORS}: its sha256 is {digest[:12]}…, but {record.sha256[:12]}… was converted; delete the "
            "folder, so that the next run converts the weights anew"
        )
    return record
