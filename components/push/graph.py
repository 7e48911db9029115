"""What a SavedModel's graph computes, as a digest: the same for the same model, however often it is exported anew.

TensorFlow numbers functions, and the arguments of loops, by what a process traced before, and writes them in the order
of their names: two exports of one model differ in `saved_model.pb` all over. TensorFlow's own fingerprint does not see
what stands within functions (tensorflow/cc/saved_model/fingerprinting.cc), which is all of a model's work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from components.errors import PushError


def graph_digest(file: Path) -> str:
    """sha256, hexadecimal, of the graph, signatures and functions of a `saved_model.pb`, without names that only count.

    Raises:
      PushError: it is no SavedModel.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except DecodeError:
        raise PushError(f"{file}: is not a SavedModel; run the trainer again") from None
    digest = hashlib.sha256()
    for part in model.meta_graphs:
        functions = _Functions(part.graph_def.library.function)
        for node in part.graph_def.node:
            functions.rename(node.attr.values())
            digest.update(_hash(node))
        for name in sorted(part.signature_def):
            digest.update(name.encode() + _hash(part.signature_def[name]))
        digest.update(b"".join(sorted(functions.digests())))
    return digest.hexdigest()


class _Functions:
    """The functions of a graph, each called by the digest of what it does; they are changed on the way."""

    def __init__(self, functions: Iterable[Any]) -> None:
        self._functions = {function.signature.name: function for function in functions}
        self._digests: dict[str, bytes] = {}

    def digests(self) -> list[bytes]:
        return [self._digest(name) for name in self._functions]

    def rename(self, values: Iterable[Any]) -> None:
        """Calls the functions that attributes name by their digests."""
        for value in values:
            for function in [value.func] if value.HasField("func") else value.list.func:
                if function.name in self._functions:
                    function.name = self._digest(function.name).hex()
                self.rename(function.attr.values())

    def _digest(self, name: str) -> bytes:
        if name not in self._digests:
            function = self._functions[name]
            function.signature.name = ""
            places = {arg.name: f"argument {place}" for place, arg in enumerate(function.signature.input_arg)}
            for arg in function.signature.input_arg:
                arg.name = places[arg.name]
            for facts in function.arg_attr.values():
                facts.attr.pop("_user_specified_name", None)
            for node in function.node_def:
                node.input[:] = [_renamed(source, places) for source in node.input]
                self.rename(node.attr.values())
            results = [function.ret[arg.name] for arg in function.signature.output_arg]
            function.ret.clear()
            for place, (arg, source) in enumerate(zip(function.signature.output_arg, results, strict=True)):
                arg.name = f"result {place}"
                function.ret[arg.name] = _renamed(source, places)
            self.rename(function.attr.values())
            self._digests[name] = _hash(function)
        return self._digests[name]


def _renamed(source: str, places: dict[str, str]) -> str:
    """Of `node`, `node:output:0` or `^node`."""
    name, colon, rest = source.removeprefix("^").partition(":")
    return f"{'^' * source.startswith('^')}{places.get(name, name)}{colon}{rest}"


def _hash(message: Any) -> bytes:
    return hashlib.sha256(message.SerializeToString(deterministic=True)).digest()
