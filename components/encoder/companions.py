"""What stands beside pretrained weights must be what is in use: configuration, vocabulary, the tokeniser's settings.

No shape of a tensor shows the number of heads, which token an id is, or how texts were cut in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.encoder.config import BertGeometry, is_cased, read_geometry
from components.encoder.sources import Source
from components.errors import CheckpointError
from components.transform.vocab_file import SPECIAL_TOKENS, read_json, read_tokens

# By names of tokenizer_config.json and of tokenizer.json's normalizer: what tokenising here always does.
_ALWAYS = ("do_basic_tokenize", "tokenize_chinese_chars", "handle_chinese_chars", "clean_text")
# What tokenizer.json calls BERT's.
_KINDS = {"normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}
_SPECIAL = (*SPECIAL_TOKENS, "[MASK]")


def check_companions(source: Source, geometry: BertGeometry, vocab_file: str | Path, lower_case: bool) -> None:
    """Holds what stands beside weights against what is in use.

    Args:
      source: of the weights.
      geometry: of the encoder; of a vocabulary smaller than the weights' table where its further rows have no tokens.
      vocab_file: in use.
      lower_case: of the tokeniser in use.

    Raises:
      CheckpointError: naming the setting that differs, or one that tokenising here cannot follow.
      ConfigError: a file beside the weights cannot be read.
    """
    if source.config is not None:
        _check_config(source, read_geometry(source.config), geometry)
    tokens = read_tokens(vocab_file)
    if source.vocab is not None and read_tokens(source.vocab) != tokens:
        raise CheckpointError(
            f"encoder.weights: {vocab_file} is not the vocabulary of the weights; point tokenizer.vocab at "
            f"{source.vocab}"
        )
    if source.tokenizer:
        _check_tokenizer(source, tokens, lower_case)


def _check_config(source: Source, own: BertGeometry, geometry: BertGeometry) -> None:
    # Dropout and initialisation do not change an answer.
    keys = ["hidden_size", "layer_norm_eps"]
    keys += ["num_attention_heads", "intermediate_size"] if geometry.num_hidden_layers else []
    keys += [] if geometry.layers_chosen else ["num_hidden_layers"]
    spare = own.vocab_size > geometry.vocab_size
    keys += [] if spare else ["vocab_size"]
    for key in keys:
        if getattr(own, key) != getattr(geometry, key):
            raise CheckpointError(
                f"encoder.weights: {source.config} has {key} {getattr(own, key)}, but the encoder is configured "
                f"with {getattr(geometry, key)}; point encoder.config at that file and remove the override"
            )
    # Rows that were added to reach a round number have no tokens: the vocabulary beside the weights shows that.
    if spare and source.vocab is None:
        raise CheckpointError(
            f"encoder.weights: {source.config} has vocab_size {own.vocab_size}, but the vocabulary has "
            f"{geometry.vocab_size} entries, and none stands beside the weights; use the one that they were "
            "trained with (tokenizer.vocab), or put a copy of it beside them if their further rows have no tokens"
        )


def _check_tokenizer(source: Source, tokens: Sequence[str], lower_case: bool) -> None:
    files = {file.name: read_json(file) for file in source.tokenizer}
    config, whole = files.get("tokenizer_config.json", {}), files.get("tokenizer.json", {})
    normalizer = whole.get("normalizer")
    normalizer = normalizer if isinstance(normalizer, dict) else {}
    # Where both say something, transformers goes by tokenizer_config.json.
    settings = {"do_lower_case": normalizer.get("lowercase"), **normalizer, **config}
    folder = source.tokenizer[0].parent

    def refuse(what: str, remedy: str) -> CheckpointError:
        return CheckpointError(f"encoder.weights: the tokeniser in {folder} {what}; {remedy}")

    for key, wanted in _KINDS.items() if whole else ():
        found = whole.get(key)
        kind = found.get("type") if isinstance(found, dict) else None
        if kind != wanted:
            raise refuse(f"has the {key} {kind}", f"only {wanted} is supported")
    for key in _ALWAYS:
        if settings.get(key) is False:
            raise refuse(f"has {key} false", "texts would be cut otherwise than in its training; this is not supported")
    accents = settings.get("strip_accents")
    if accents is not None and bool(accents) != lower_case:
        raise refuse(
            f"has strip_accents {str(bool(accents)).lower()}, but accents go here exactly where "
            f"tokenizer.lower_case is true, and it is {str(lower_case).lower()}",
            "such a tokeniser is not supported",
        )
    # Published cased models often lack the file or have it wrong: the vocabulary tells, where it can.
    folds = settings.get("do_lower_case")
    if folds is not None and bool(folds) != lower_case and is_cased(tokens) is None:
        raise refuse(
            f"has do_lower_case {str(bool(folds)).lower()}, but tokenizer.lower_case is {str(lower_case).lower()}",
            "set it likewise",
        )
    if added := _added(files, config, whole):
        raise refuse(
            f"adds {len(added)} tokens to WordPiece's, the first {added[0]!r}",
            "they would be cut into pieces here; this is not supported",
        )


def _added(files: dict[str, dict[str, Any]], config: dict[str, Any], whole: dict[str, Any]) -> Sequence[str]:
    """Tokens that are looked for in a text before it is cut into words."""
    decoder, listed = config.get("added_tokens_decoder"), whole.get("added_tokens")
    entries = [*(decoder.values() if isinstance(decoder, dict) else ()), *(listed if isinstance(listed, list) else ())]
    names = [entry.get("content") for entry in entries if isinstance(entry, dict)]
    names += list(files.get("added_tokens.json", {}))
    return [name for name in names if isinstance(name, str) and name not in _SPECIAL]
