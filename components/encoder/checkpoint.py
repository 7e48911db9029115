"""Pretrained weights into the encoder, every tensor accounted for.

Names of Google's TensorFlow 1 release and of Hugging Face are brought to one form, the latter's without `bert.`;
kernels to `[in, out]`. What a checkpoint holds beside the encoder (pooler, pretraining heads, optimiser) is known
by name; anything else is an error, as is whatever the encoder misses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.encoder.bert import BertEncoder
from components.encoder.config import BertGeometry, read_geometry
from components.encoder.sources import Source, find_source
from components.errors import CheckpointError

# Beside the encoder in published checkpoints: pooler, pretraining and task heads, buffers, optimiser.
_BESIDE = re.compile(
    r"^(pooler\.|cls\.|classifier\.|qa_outputs\.|output_(weights|bias)$|embeddings\.(position|token_type)_ids$"
    r"|global_step$|.*\.adam_[mv]$)"
)
_SHOWN = 5


@dataclass(frozen=True)
class Loaded:
    """What was loaded: the format, a digest of the files, and the tensors that stayed behind."""

    format: str
    sha256: str
    unused: tuple[str, ...]


def load_weights(encoder: BertEncoder, name: str, vocab_file: str | Path) -> Loaded:
    """Assigns pretrained weights to a built encoder.

    An encoder of fewer layers than the checkpoint gets the lower ones.

    Args:
      name: see `components.encoder.sources.find_source`.
      vocab_file: the vocabulary in use; it must be the one beside the weights, where there is one.

    Raises:
      CheckpointError: naming tensors that are missing, unexpected or of another shape, or the setting in which the
        weights' own configuration or vocabulary differs.
    """
    source = find_source(name)
    _check_companions(source, encoder.geometry, Path(vocab_file))
    tensors = {canonical_name(key): value for key, value in source.tensors().items()}
    if source.format == "tf1":
        tensors = {key: value.T if _is_kernel(key) else value for key, value in tensors.items()}
    wanted = _targets(encoder)
    needed = {part: shape for _, parts, shape in wanted for part in parts}
    missing = sorted(needed.keys() - tensors.keys())
    left = tensors.keys() - needed.keys()
    unexpected = sorted(key for key in left if not (_BESIDE.match(key) or _layer_of(key) >= len(encoder.blocks)))
    misshapen = [
        f"{key} {list(tensors[key].shape)} instead of {list(shape)}"
        for key, shape in sorted(needed.items())
        if key in tensors and tensors[key].shape != shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(f"encoder.weights: {name} does not fit the encoder; tensors {'; '.join(problems)}")
    for variable, parts, _ in wanted:
        arrays = [tensors[part].T if _is_kernel(part) else tensors[part] for part in parts]
        variable.assign(np.concatenate(arrays, axis=-1).astype(np.float32))
    return Loaded(source.format, source.sha256(), tuple(sorted(left)))


def canonical_name(name: str) -> str:
    """The name of a tensor in Hugging Face's form, without `bert.`, from either release's name."""
    name = name.replace("/", ".")
    name = re.sub(r"^(bert|model)\.", "", name)
    name = re.sub(r"^encoder\.layer_(\d+)\.", r"encoder.layer.\1.", name)
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    name = re.sub(r"\.kernel$", ".weight", name)
    return re.sub(r"(word|position|token_type)_embeddings$", r"\1_embeddings.weight", name)


def _is_kernel(name: str) -> bool:
    return name.startswith("encoder.layer.") and name.endswith(".weight") and "LayerNorm" not in name


def _layer_of(name: str) -> int:
    match = re.match(r"encoder\.layer\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _targets(encoder: BertEncoder) -> list[tuple[Any, tuple[str, ...], tuple[int, ...]]]:
    """Each variable with the tensors that make it, side by side, and the shape of each of them."""
    g = encoder.geometry
    hidden, inner = g.hidden_size, g.intermediate_size
    found: list[tuple[Any, tuple[str, ...], tuple[int, ...]]] = []

    def norm(layer: Any, prefix: str) -> None:
        found.append((layer.gamma, (f"{prefix}.LayerNorm.weight",), (hidden,)))
        found.append((layer.beta, (f"{prefix}.LayerNorm.bias",), (hidden,)))

    def dense(layer: Any, names: tuple[str, ...], shape: tuple[int, int]) -> None:
        found.append((layer.kernel, tuple(f"{n}.weight" for n in names), shape))
        found.append((layer.bias, tuple(f"{n}.bias" for n in names), shape[:1]))

    e = encoder.embeddings
    for variable, name, rows in (
        (e.word, "word", g.vocab_size),
        (e.position, "position", g.max_position_embeddings),
        (e.segment, "token_type", g.type_vocab_size),
    ):
        found.append((variable, (f"embeddings.{name}_embeddings.weight",), (rows, hidden)))
    norm(e.norm, "embeddings")
    for n, block in enumerate(encoder.blocks):
        layer = f"encoder.layer.{n}"
        projections = tuple(f"{layer}.attention.self.{name}" for name in ("query", "key", "value"))
        dense(block.attention.qkv, projections, (hidden, hidden))
        dense(block.attention.output_dense, (f"{layer}.attention.output.dense",), (hidden, hidden))
        norm(block.attention_norm, f"{layer}.attention.output")
        dense(block.intermediate, (f"{layer}.intermediate.dense",), (inner, hidden))
        dense(block.output_dense, (f"{layer}.output.dense",), (hidden, inner))
        norm(block.output_norm, f"{layer}.output")
    return found


def _check_companions(source: Source, geometry: BertGeometry, vocab_file: Path) -> None:
    """The configuration and vocabulary beside the weights must be those in use: no shape shows the heads' number."""
    if source.config is not None:
        own = read_geometry(source.config)
        # Not the number of layers: fewer may be wanted. Dropout and initialisation do not change an answer.
        for key in ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "layer_norm_eps"):
            if geometry.num_hidden_layers == 0 and key in ("num_attention_heads", "intermediate_size"):
                continue
            if getattr(own, key) != getattr(geometry, key):
                raise CheckpointError(
                    f"encoder.weights: {source.config} has {key} {getattr(own, key)}, but the encoder is configured "
                    f"with {getattr(geometry, key)}; point encoder.config at that file and remove the override"
                )
    if source.vocab is not None:
        own_tokens, tokens = (path.read_text(encoding="utf-8").split() for path in (source.vocab, vocab_file))
        if own_tokens != tokens:
            raise CheckpointError(
                f"encoder.weights: {vocab_file} is not the vocabulary of the weights; "
                f"point tokenizer.vocab at {source.vocab}"
            )
