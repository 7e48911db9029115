"""A schema that a person has reviewed. Imports no TensorFlow, so that a configuration is checked in no time."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from components.errors import ConfigError


def read_schema(path: str | Path, labels: list[str], label_feature: str) -> schema_pb2.Schema:
    """Reads a curated schema and checks that it speaks of this task's labels.

    Raises:
      ConfigError: naming the file, the place and the remedy.
    """
    schema = schema_pb2.Schema()
    try:
        text_format.Parse(Path(path).read_text(encoding="utf-8"), schema)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"validation.schema_file: {path} cannot be read ({reason})") from None
    except text_format.ParseError as error:
        raise ConfigError(f"validation.schema_file: {path} is not a schema in text form: {error}") from None
    domains = {domain.name: list(domain.value) for domain in schema.string_domain}
    for feature in schema.feature:
        if feature.name == label_feature:
            values = list(feature.string_domain.value) or domains.get(feature.domain, [])
            if values != list(labels):
                raise ConfigError(
                    f"validation.schema_file: {path} gives {label_feature} the values {values}, the configuration has "
                    f"labels = {list(labels)}; make them equal"
                )
            return schema
    raise ConfigError(f"validation.schema_file: {path} has no feature {label_feature!r}")
