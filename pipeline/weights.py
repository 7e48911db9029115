"""`biobert-cnn weights`: what `encoder.weights` names, and its conversion to one folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from components.encoder.config import geometry_in_use
from components.encoder.conversion import convert
from components.errors import ConfigError
from pipeline.config import Config


def print_weights(config: Config, output: Path | None, as_json: bool) -> None:
    """Reads the weights, writes them to `output` where one is given, and prints the record.

    Raises:
      ConfigError: the configuration names no weights.
      CheckpointError: they do not fit the encoder or the vocabulary.
    """
    name = config.encoder.weights
    if name is None:
        raise ConfigError("encoder.weights: the configuration names none; the encoder starts from random weights")
    geometry = geometry_in_use(config.encoder_config_file, config.encoder, config.vocab_file)
    record = convert(name, geometry, config.vocab_file, config.tokenizer.lower_case, output)
    if as_json:
        print(json.dumps(asdict(record) | {"output": str(output) if output else None}))
        return
    sizes = (
        f"{geometry.num_hidden_layers} layers of {geometry.hidden_size}, {geometry.num_attention_heads} heads, "
        f"vocabulary {geometry.vocab_size}"
    )
    print(f"{record.source}: {record.format}, {sizes}")
    print(f"  tensors      {record.tensors}, {record.parameters:,} parameters, all accounted for")
    print(f"  left behind  {', '.join(record.unused) or 'none'}")
    print(f"  sha256       {record.source_sha256} of the source's files")
    print(f"               {record.sha256} of the converted tensors")
    if output is not None:
        print(f"  written to   {output}")
