"""The one way in which a vocabulary is read: `vocab.txt`, or the `tokenizer.json` that newer folders have instead."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from components.errors import CheckpointError, ConfigError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_REMEDY = "Give the vocab.txt that belongs to the encoder."
# Of a tokenizer.json's model: what WordPiece is here, too.
_WORDPIECE = {
    "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
}  # fmt: skip


def read_tokens(path: str | PathLike[str]) -> list[str]:
    """The tokens of a vocabulary file; a token's place is its id.

    Args:
      path: one token a line, UTF-8. Only line feeds (and carriage returns before or in place of them) end a line: other
        separators, such as U+2028, are part of a token. With the suffix `.json`: Hugging Face's `tokenizer.json` of a
        BERT tokeniser.

    Raises:
      ConfigError: the file cannot be read or is not UTF-8.
      CheckpointError: a `tokenizer.json` is of another tokeniser.
    """
    if Path(path).suffix == ".json":
        return _ordered(path, read_json(path).get("model"))
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.rstrip("\n") for line in file]
    except OSError as error:
        raise ConfigError(f"vocabulary file {path}: cannot be read ({error.strerror}). {_REMEDY}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"vocabulary file {path}: not UTF-8 (byte {error.start}). {_REMEDY}") from error


def check_tokens(tokens: Sequence[str], place: str) -> None:
    """Holds a vocabulary against what a BERT tokeniser needs.

    Args:
      place: what a message names.

    Raises:
      CheckpointError: a special token is missing or a token stands there twice.
    """
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise CheckpointError(
            f"{place}: {len(tokens)} tokens, without {', '.join(missing)}. "
            "A BERT vocabulary has one token a line, the special ones included; use the encoder's own vocab.txt."
        )
    twice = [token for token, count in Counter(tokens).items() if count > 1]
    if twice:
        lines = [number for number, token in enumerate(tokens, start=1) if token == twice[0]]
        raise CheckpointError(
            f"{place}: tokens that occur more than once: {len(twice)}, the first on lines "
            f"{', '.join(map(str, lines[:5]))}. An id must belong to one token; use the encoder's own vocab.txt."
        )


def read_json(path: str | PathLike[str]) -> dict[str, Any]:
    """One of Hugging Face's files beside weights.

    Raises:
      ConfigError: it cannot be read, or is no JSON object.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must hold one JSON object")
    return found


def _ordered(path: str | PathLike[str], model: Any) -> list[str]:
    model = model if isinstance(model, dict) else {}
    for key, wanted in _WORDPIECE.items():
        if model.get(key, wanted if key != "type" else None) != wanted:
            raise CheckpointError(f"{path}: model.{key} is {model.get(key)!r}; only BERT's {wanted!r} is supported")
    vocabulary = model.get("vocab")
    places = vocabulary if isinstance(vocabulary, dict) else {}
    if not places or sorted(map(str, places.values())) != sorted(map(str, range(len(places)))):
        raise CheckpointError(f"{path}: model.vocab has not each id from 0 on once; fetch it anew")
    return sorted(places, key=lambda token: int(places[token]))
