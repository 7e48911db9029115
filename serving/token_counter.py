"""How many tokens the rows of a request have, asked of the model itself.

This project's models have a `tokens` signature that takes the texts that `serving_default` and `explain` take, and
returns the number of tokens of each. `classify` and `serialized_examples` take the same texts in tf.Examples. Other
models have no such signature, and their batches are judged by rows alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow.core.example import example_pb2
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.errors import StatusError
from serving.loader import NO_CALL, Feeds, Runner

_log = logging.getLogger(__name__)
_INTEGERS = (types_pb2.DT_INT32, types_pb2.DT_INT64)
_EXAMPLES = ("inputs", "examples")  # what an input of serialised tf.Examples is called


def token_counter(
    runner: Runner, signatures: Mapping[str, meta_graph_pb2.SignatureDef]
) -> Callable[[Feeds], np.ndarray | None]:
    """A function from a signature's feeds to tokens by row, int [n], or None where it does not apply.

    Runs `tokens` once, so that the first request need not wait for what TensorFlow prepares then.
    """
    tokens = signatures.get("tokens")
    if tokens is None or any(info.dtype != types_pb2.DT_STRING for info in tokens.inputs.values()):
        return lambda feeds: None
    counts = [a for a, info in tokens.outputs.items() if "length" in a and _is_vector(info)]
    if len(counts) != 1:
        return lambda feeds: None
    fetch = tokens.outputs[counts[0]].name
    wanted = {alias: info.name for alias, info in tokens.inputs.items()}
    # Names of a signature's feeds → from them to the feeds of `tokens`.
    readers: dict[frozenset[str], Callable[[Feeds], Feeds]] = {}
    for signature in signatures.values():
        names = {alias: info.name for alias, info in signature.inputs.items() if info.dtype == types_pb2.DT_STRING}
        if set(wanted) <= set(names):
            readers[_all_feeds(signature)] = _columns({names[alias]: name for alias, name in wanted.items()})
        elif len(signature.inputs) == 1 and (alias := next(iter(names), "")) in _EXAMPLES:
            readers[_all_feeds(signature)] = _parsed(names[alias], wanted)

    def count(feeds: Feeds) -> np.ndarray | None:
        read = readers.get(frozenset(feeds))
        try:
            return None if read is None else run(read(feeds))
        except (StatusError, DecodeError):
            return None  # the request itself will fail in the same way, and say why

    def run(feeds: Feeds) -> np.ndarray:
        return runner.run(feeds, [fetch], NO_CALL)[0]

    # A graph's first run is slow; it shall not be a request's.
    try:
        run({name: np.array([b""], object) for name in wanted.values()})
    except StatusError as error:
        _log.warning("the signature `tokens` fails on an empty text: %s", error.code.name)
    return count


def _all_feeds(signature: meta_graph_pb2.SignatureDef) -> frozenset[str]:
    return frozenset(info.name for info in signature.inputs.values())


def _columns(renamed: Mapping[str, str]) -> Callable[[Feeds], Feeds]:
    """Reads a signature that takes what `tokens` takes, and perhaps more."""
    return lambda feeds: {renamed[name]: value for name, value in feeds.items() if name in renamed}


def _parsed(name: str, wanted: Mapping[str, str]) -> Callable[[Feeds], Feeds]:
    """Reads a signature that takes tf.Examples; a feature that is missing is the empty text."""

    def read(feeds: Feeds) -> Feeds:
        examples = [example_pb2.Example.FromString(value) for value in feeds[name].ravel()]
        columns = {}
        for alias, feed in wanted.items():
            columns[feed] = np.empty(len(examples), object)
            columns[feed][:] = [(e.features.feature[alias].bytes_list.value or [b""])[0] for e in examples]
        return columns

    return read


def _is_vector(info: meta_graph_pb2.TensorInfo) -> bool:
    return info.dtype in _INTEGERS and len(info.tensor_shape.dim) == 1
