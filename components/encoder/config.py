"""The geometry of a BERT encoder, from its `config.json` and the configuration's overrides."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from components.config import EncoderConfig
from components.errors import CheckpointError, ConfigError
from components.transform.vocab_file import read_json, read_tokens

_OVERRIDES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)
_FEW = 0.01  # share of a vocabulary's tokens: some may have been added by hand (@GENE$)
# What the encoder does, by key of config.json; any other value there would change its answers.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("bert",),
    "hidden_act": ("gelu", "gelu_python"),  # the same function by two names
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
    "quantization_config": (),
}


@dataclass(frozen=True)
class BertGeometry:
    """Sizes and rates of a BERT encoder, by the names of `config.json` (Devlin et al., 2019).

    `layers_chosen`, which is no name of `config.json`: whether `encoder.num_hidden_layers` gives the number of layers,
    which may then be less than that of pretrained weights.
    """

    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    layers_chosen: bool = field(default=False, compare=False)

    def as_config(self) -> dict[str, Any]:
        """The values by the names of `config.json`."""
        return {key: value for key, value in asdict(self).items() if key in _KEYS}


_KEYS = tuple(key for key in BertGeometry.__dataclass_fields__ if key != "layers_chosen")


def read_geometry(
    config_file: str | Path, overrides: EncoderConfig | None = None, vocab_size: int | None = None
) -> BertGeometry:
    """Reads a BERT `config.json` and applies the configuration's overrides.

    Args:
      config_file: JSON by the names that Hugging Face and Google's release share.
      overrides: values other than None replace the file's.
      vocab_size: entries of the vocabulary in use. Random weights take it as it is; pretrained weights
        (`overrides.weights`) must have a row for each, and whether they may have more is seen when they are read.

    Raises:
      CheckpointError: the file asks for something this encoder does not do, or vocabulary and file disagree.
      ConfigError: the sizes do not fit together, or the file is not readable JSON.
    """
    try:
        raw = read_json(config_file)
    except ConfigError as error:
        raise ConfigError(f"encoder.config: {error}") from None
    _refuse_unsupported(config_file, raw)
    geometry = BertGeometry(**{"vocab_size": vocab_size or 0, **{k: raw[k] for k in _KEYS if k in raw}})
    _check_types(config_file, geometry)
    if overrides is not None:
        given = {key: value for key in _OVERRIDES if (value := getattr(overrides, key)) is not None}
        geometry = replace(geometry, **given, layers_chosen="num_hidden_layers" in given)
    if vocab_size is not None and vocab_size != geometry.vocab_size:
        if overrides is not None and overrides.weights and vocab_size > geometry.vocab_size:
            raise CheckpointError(
                f"{config_file}: vocab_size is {geometry.vocab_size}, but the vocabulary has {vocab_size} "
                "entries; use the vocabulary that the weights were trained with (tokenizer.vocab)"
            )
        geometry = replace(geometry, vocab_size=vocab_size)
    if geometry.vocab_size < 1:
        raise ConfigError(f"{config_file}: vocab_size is missing")
    for key in ("num_attention_heads", "intermediate_size"):
        if geometry.num_hidden_layers and not getattr(geometry, key):
            raise ConfigError(f"{config_file}: {key} is 0; a layer has at least 1")
    if geometry.num_hidden_layers and geometry.hidden_size % geometry.num_attention_heads:
        raise ConfigError(
            f"encoder: hidden_size {geometry.hidden_size} cannot be divided among "
            f"{geometry.num_attention_heads} attention heads (num_attention_heads)"
        )
    return geometry


def geometry_in_use(config_file: str | Path, encoder: EncoderConfig, vocab_file: str | Path) -> BertGeometry:
    """`read_geometry` for the vocabulary in use, a file of one token a line.

    Raises:
      CheckpointError, ConfigError: see `read_geometry`.
    """
    return read_geometry(config_file, encoder, len(read_tokens(vocab_file)))


def is_cased(tokens: Sequence[str]) -> bool | None:
    """Whether a vocabulary is of cased text: it has words with capital letters; None where it has too few to tell."""
    capitals = _capitals(tokens)
    return True if capitals > _FEW * len(tokens) else None if capitals else False


def _capitals(tokens: Sequence[str]) -> int:
    return sum(re.search("[A-Z]", token) is not None for token in tokens if not token.startswith("["))


def check_case(tokens: Sequence[str], lower_case: bool) -> None:
    """Holds `tokenizer.lower_case` against the vocabulary of pretrained weights, which shows how they were trained: one
    of cased text has words with capital letters, one of lower-cased text hardly any.

    Raises:
      ConfigError: words would be looked up in another case than they were trained in, and most not be found.
    """
    cased = is_cased(tokens)
    if lower_case and cased is True:
        raise ConfigError(
            "tokenizer.lower_case: is true, but encoder.weights are of cased text: their vocabulary has capitals in "
            f"{_capitals(tokens)} of its tokens; set it to false"
        )
    if not lower_case and cased is False:
        raise ConfigError(
            "tokenizer.lower_case: is false, but encoder.weights are of lower-cased text: no token of their vocabulary "
            "has a capital letter, and every word with one would be unknown; set it to true"
        )


def _refuse_unsupported(config_file: str | Path, raw: dict[str, Any]) -> None:
    for key, allowed in _SUPPORTED.items():
        value = raw.get(key)
        if value is not None and value not in allowed:
            wanted = f"only {' or '.join(map(repr, allowed))} is" if allowed else "it is not"
            raise CheckpointError(f"{config_file}: {key} is {value!r}; {wanted} supported")
    made = raw.get("architectures")
    if raw.get("model_type") is None and isinstance(made, list) and made and not str(made[0]).startswith("Bert"):
        raise CheckpointError(f"{config_file}: architectures is {made!r}; only BERT's are supported")
    embedding_size = raw.get("embedding_size")
    if embedding_size is not None and embedding_size != raw.get("hidden_size", 768):
        raise CheckpointError(
            f"{config_file}: embedding_size {embedding_size} differs from hidden_size; "
            "factorised embeddings are not supported"
        )


def _check_types(config_file: str | Path, geometry: BertGeometry) -> None:
    for key in _KEYS:
        value, kind = getattr(geometry, key), BertGeometry.__dataclass_fields__[key].type
        number = isinstance(value, int if kind == "int" else (int, float)) and not isinstance(value, bool)
        least = int(key in ("hidden_size", "max_position_embeddings", "type_vocab_size"))
        if not number or not math.isfinite(value) or value < least:
            raise ConfigError(f"{config_file}: {key} is {value!r}; a number of at least {least} is needed")
        if key.endswith("_prob") and value > 1:
            raise ConfigError(f"{config_file}: {key} is {value!r}; a share from 0 to 1 is needed")
