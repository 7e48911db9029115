"""Pretrained weights into the encoder, every tensor accounted for.

Names of Google's TensorFlow 1 release and of Hugging Face are brought to one form, the latter's without `bert.`;
kernels to `[in, out]`. What a checkpoint holds beside the encoder (pooler, pretraining heads, optimiser) is known
by name; anything else is an error, as is whatever the encoder misses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from components.encoder.companions import check_companions
from components.encoder.config import BertGeometry
from components.encoder.sources import find_source
from components.errors import CheckpointError

if TYPE_CHECKING:  # reading and converting weights needs neither Keras nor TensorFlow
    from components.encoder.bert import BertEncoder

# Beside the encoder in published checkpoints: pooler, pretraining and task heads, buffers, optimiser.
_BESIDE = re.compile(
    r"^(pooler\.|cls\.|classifier\.|qa_outputs\.|output_(weights|bias)$|embeddings\.(position|token_type)_ids$"
    r"|global_step$|beta[12]_power$|.*\.(adam_[mv]|Adam(_1)?)$)"
)
_WORDS = "embeddings.word_embeddings.weight"
_SHOWN = 5


@dataclass(frozen=True)
class Loaded:
    """What was loaded: the format, a digest of the files, and the tensors that stayed behind."""

    format: str
    sha256: str
    unused: tuple[str, ...]


def load_weights(encoder: BertEncoder, name: str, vocab_file: str | Path, lower_case: bool) -> Loaded:
    """Assigns pretrained weights to a built encoder.

    An encoder of fewer layers than the checkpoint gets the lower ones, where their number was chosen.

    Args:
      name: see `components.encoder.sources.find_source`.
      vocab_file: the vocabulary in use; it must be the one beside the weights, where there is one.
      lower_case: of the tokeniser in use, likewise.

    Raises:
      CheckpointError: see `read_weights`.
    """
    tensors, loaded = read_weights(name, encoder.geometry, vocab_file, lower_case)
    for place in _places(encoder.geometry):
        arrays = [tensors[part].T if _is_kernel(part) else tensors[part] for part in place.parts]
        place.variable(encoder).assign(np.concatenate(arrays, axis=-1).astype(np.float32))
    return loaded


def read_weights(
    name: str, geometry: BertGeometry, vocab_file: str | Path, lower_case: bool
) -> tuple[dict[str, np.ndarray], Loaded]:
    """The tensors that an encoder of this geometry needs, by Hugging Face's names and in its layout.

    A table of words that has rows beyond the vocabulary beside the weights, to reach a round number, gives its first.

    Raises:
      CheckpointError: naming tensors that are missing, unexpected, of another shape, there twice or not finite, or the
        setting in which the weights' own configuration, number of layers, vocabulary or tokeniser differs.
    """
    source = find_source(name)
    check_companions(source, geometry, vocab_file, lower_case)
    needed = {part: place.shape for place in _places(geometry) for part in place.parts}
    named = _by_canonical_name(name, source.tensors(lambda key: canonical_name(key) in needed), needed)
    tensors = {key: value for key, value in named.items() if value is not None}
    if whole := sorted(key for key in needed.keys() & tensors.keys() if tensors[key].dtype.kind in "biu"):
        raise CheckpointError(f"encoder.weights: {name} has whole numbers for weights in {_some(whole)}")
    if source.format == "tf1":
        tensors = {key: value.T if _is_kernel(key) else value for key, value in tensors.items()}
    spare = _cut_spare_rows(tensors, geometry.vocab_size) if source.vocab is not None else []
    missing = sorted(needed.keys() - tensors.keys())
    left = named.keys() - needed.keys()
    layers = geometry.num_hidden_layers
    unexpected = sorted(key for key in left if not (_BESIDE.match(key) or _layer_of(key) >= layers))
    misshapen = [
        f"{key} {list(tensors[key].shape)} instead of {list(shape)}"
        for key, shape in sorted(needed.items())
        if key in tensors and tensors[key].shape != shape
    ]
    problems = [
        f"{len(names)} {kind}: {_some(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(f"encoder.weights: {name} does not fit the encoder; tensors {'; '.join(problems)}")
    own_layers = 1 + max(map(_layer_of, named))
    if own_layers > layers and not geometry.layers_chosen:
        raise CheckpointError(
            f"encoder.weights: {name} has {own_layers} layers, but the configuration of the encoder says {layers}; set "
            f"encoder.num_hidden_layers to {layers} to take the lower ones, or point encoder.config at the weights' own"
        )
    with np.errstate(over="ignore"):  # of float64; it is told below
        found = {part: np.ascontiguousarray(tensors[part], np.float32) for part in sorted(needed)}
    if bad := [part for part, value in found.items() if not np.isfinite(value).all()]:
        raise CheckpointError(
            f"encoder.weights: {name} has values that are no finite numbers in {len(bad)} tensors: {_some(bad)}; fetch "
            "or convert it anew"
        )
    return found, Loaded(source.format, source.sha256(), tuple(sorted([*left, *spare])))


def _cut_spare_rows(tensors: dict[str, np.ndarray], words: int) -> list[str]:
    """Leaves the table of words with `words` rows, if it has more; what was cut off, for the account."""
    table = tensors.get(_WORDS)
    if table is None or table.ndim != 2 or len(table) <= words:
        return []
    tensors[_WORDS] = table[:words]
    return [f"{_WORDS}[{words}:{len(table)}]"]


def canonical_name(name: str) -> str:
    """The name of a tensor in Hugging Face's form, without `bert.`, from either release's name."""
    name = name.replace("/", ".")
    name = re.sub(r"^(bert|model)\.", "", name)
    name = re.sub(r"^encoder\.layer_(\d+)\.", r"encoder.layer.\1.", name)
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    name = re.sub(r"\.kernel$", ".weight", name)
    return re.sub(r"(word|position|token_type)_embeddings$", r"\1_embeddings.weight", name)


def _by_canonical_name(
    name: str, tensors: dict[str, np.ndarray | None], needed: Container[str]
) -> dict[str, np.ndarray | None]:
    names: dict[str, str] = {}
    for key in tensors:
        canonical = canonical_name(key)
        first = names.setdefault(canonical, key)
        if first != key and canonical in needed:
            raise CheckpointError(
                f"encoder.weights: {name} has one tensor by two names, {first} and {key}; remove the one that is not "
                "the encoder's"
            )
    return {canonical: tensors[key] for canonical, key in names.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _is_kernel(name: str) -> bool:
    return name.startswith("encoder.layer.") and name.endswith(".weight") and "LayerNorm" not in name


def _layer_of(name: str) -> int:
    match = re.match(r"encoder\.layer\.(\d+)\.", name)
    return int(match[1]) if match else -1


class _Place(NamedTuple):
    """A variable of the encoder, the tensors that make it, side by side, and the shape of each of them."""

    variable: Callable[[BertEncoder], Any]
    parts: tuple[str, ...]
    shape: tuple[int, ...]


def _places(g: BertGeometry) -> list[_Place]:
    hidden, inner = g.hidden_size, g.intermediate_size
    found: list[_Place] = []

    def norm(layer: Callable[[BertEncoder], Any], prefix: str) -> None:
        found.append(_Place(lambda e: layer(e).gamma, (f"{prefix}.LayerNorm.weight",), (hidden,)))
        found.append(_Place(lambda e: layer(e).beta, (f"{prefix}.LayerNorm.bias",), (hidden,)))

    def dense(layer: Callable[[BertEncoder], Any], names: tuple[str, ...], shape: tuple[int, int]) -> None:
        found.append(_Place(lambda e: layer(e).kernel, tuple(f"{n}.weight" for n in names), shape))
        found.append(_Place(lambda e: layer(e).bias, tuple(f"{n}.bias" for n in names), shape[:1]))

    def table(name: str, rows: int, variable: Callable[[BertEncoder], Any]) -> None:
        found.append(_Place(variable, (f"embeddings.{name}_embeddings.weight",), (rows, hidden)))

    table("word", g.vocab_size, lambda e: e.embeddings.word)
    table("position", g.max_position_embeddings, lambda e: e.embeddings.position)
    table("token_type", g.type_vocab_size, lambda e: e.embeddings.segment)
    norm(lambda e: e.embeddings.norm, "embeddings")
    for n in range(g.num_hidden_layers):
        layer = f"encoder.layer.{n}"
        projections = tuple(f"{layer}.attention.self.{name}" for name in ("query", "key", "value"))
        dense(_of_block(n, "attention.qkv"), projections, (hidden, hidden))
        dense(_of_block(n, "attention.output_dense"), (f"{layer}.attention.output.dense",), (hidden, hidden))
        norm(_of_block(n, "attention_norm"), f"{layer}.attention.output")
        dense(_of_block(n, "intermediate"), (f"{layer}.intermediate.dense",), (inner, hidden))
        dense(_of_block(n, "output_dense"), (f"{layer}.output.dense",), (hidden, inner))
        norm(_of_block(n, "output_norm"), f"{layer}.output")
    return found


def _of_block(number: int, path: str) -> Callable[[BertEncoder], Any]:
    get = attrgetter(path)
    return lambda encoder: get(encoder.blocks[number])
