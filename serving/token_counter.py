"""How many tokens the rows of a request have, asked of the model itself.

This project's models have a `tokens` signature that takes what `serving_default` takes and returns the number of
tokens of each text. Other models have none, and their batches are judged by rows alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.errors import StatusError
from serving.loader import NO_CALL, Feeds, Runner

_log = logging.getLogger(__name__)
_INTEGERS = (types_pb2.DT_INT32, types_pb2.DT_INT64)


def token_counter(
    runner: Runner, signatures: Mapping[str, meta_graph_pb2.SignatureDef]
) -> Callable[[Feeds], np.ndarray | None]:
    """A function from feeds of `serving_default` to tokens by row, int [n], or None where it does not apply.

    Runs the signature once, so that the first request need not wait for what TensorFlow prepares then.
    """
    default, tokens = signatures.get("serving_default"), signatures.get("tokens")
    if default is None or tokens is None or not set(tokens.inputs) <= set(default.inputs):
        return lambda feeds: None
    if any(info.dtype != types_pb2.DT_STRING for info in tokens.inputs.values()):
        return lambda feeds: None
    counts = [a for a, info in tokens.outputs.items() if "length" in a and _is_vector(info)]
    if len(counts) != 1:
        return lambda feeds: None
    fetch = tokens.outputs[counts[0]].name
    renamed = {default.inputs[alias].name: tokens.inputs[alias].name for alias in tokens.inputs}
    expected = {info.name for info in default.inputs.values()}

    def count(feeds: Feeds) -> np.ndarray | None:
        if set(feeds) != expected:
            return None
        try:
            return run(feeds)
        except StatusError:
            return None  # the request itself will fail in the same way, and say why

    def run(feeds: Feeds) -> np.ndarray:
        return runner.run({renamed[n]: v for n, v in feeds.items() if n in renamed}, [fetch], NO_CALL)[0]

    # A graph's first run is slow; it shall not be a request's.
    try:
        run({name: np.array([b""], object) for name in expected})
    except StatusError as error:
        _log.warning("the signature `tokens` fails on an empty text: %s", error.code.name)
    return count


def _is_vector(info: meta_graph_pb2.TensorInfo) -> bool:
    return info.dtype in _INTEGERS and len(info.tensor_shape.dim) == 1
