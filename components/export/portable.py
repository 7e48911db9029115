"""Whether an export will run where it is served: TensorFlow Serving 2.20, on CPUs with and without AVX-512.

Its ops are looked up in the list of those that stock TensorFlow 2.20 has. A model of low precision is also asked
made-up texts in child processes, with what this CPU has and with oneDNN held to AVX2: an op that fails there may end
its process, and one that saturates answers wrongly.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorflow.core.protobuf import saved_model_pb2
from tfx.dsl.io import fileio
from tfx.utils import io_utils

from components.errors import ExportError
from components.serving_check import tethered
from components.transform.vocab_file import read_tokens

# What a child is told, by how the message names it.
MACHINES: Mapping[str, Mapping[str, str]] = {
    "with the instructions of this machine": {"TF_ENABLE_ONEDNN_OPTS": "1"},
    "without AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX2", "TF_ENABLE_ONEDNN_OPTS": "0"},
}
_PROBE = Path(__file__).with_name("probe.py")
_TETHERED = Path(tethered.__file__)
_TIMEOUT_S = 600.0
_LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233)  # words
_HOSTILE = (b"", b" \t\n", b"\xff\xfe\xc3\x28", b"before\x00after", b"x" * 10_000, b"[CLS] [SEP] [PAD] [MASK]")


def check_ops(model: str) -> None:
    """Refuses a SavedModel with an op that stock TensorFlow Serving 2.20 does not compute on a CPU.

    Raises:
      ExportError: naming the ops.
    """
    lines = Path(__file__).with_name("serving_ops.txt").read_text(encoding="ascii").splitlines()
    known = {name for line in lines if not line.startswith("#") for name in line.split()}
    with fileio.open(os.path.join(model, "saved_model.pb"), "rb") as file:
        graph = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs[0].graph_def
    functions = {function.signature.name for function in graph.library.function}
    used = {node.op for node in graph.node}
    used.update(node.op for function in graph.library.function for node in function.node_def)
    missing = sorted(used - known - functions)
    if missing:
        raise ExportError(
            f"the export holds {len(missing)} op{'s' if len(missing) > 1 else ''} that TensorFlow Serving 2.20 lacks: "
            f"{', '.join(missing)}; it could not be served"
        )


def made_up_texts(vocab_file: str, seed: int = 0) -> list[bytes]:
    """Words of a vocabulary in random order, in texts of growing length, and texts meant to break a tokeniser."""
    words = [token for token in read_tokens(vocab_file) if not token.startswith(("[", "##"))] or ["a"]
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=count)).encode() for count in _LENGTHS] + list(_HOSTILE)


def check_answers(
    model: str,
    texts: Sequence[bytes],
    pairs: bool,
    tolerance: float,
    machines: Mapping[str, Mapping[str, str]] = MACHINES,
) -> None:
    """Asks a SavedModel in one child process for each kind of machine; all must give the same probabilities.

    Args:
      model: its folder.
      texts: for `text` and, if `pairs`, in reverse order for `text_pair`.
      tolerance: greatest difference of a probability.
      machines: environment variables by name.

    Raises:
      ExportError: a child died, or gave numbers that are none, or others than the first one.
    """
    columns = {"text": list(texts)} | ({"text_pair": list(texts)[::-1]} if pairs else {})
    with tempfile.TemporaryDirectory(prefix="export-check-") as folder:
        local = model
        if "://" in model:
            local = os.path.join(folder, "model")
            io_utils.copy_dir(model, local)
        file = Path(folder) / "texts.json"
        file.write_text(json.dumps({name: [text.hex() for text in values] for name, values in columns.items()}))
        first: np.ndarray | None = None
        for machine, settings in machines.items():
            found = _ask(local, file, machine, settings)
            if not np.isfinite(found).all():
                raise ExportError(f"the export answers with what is not a number, {machine}; it is not served")
            first = found if first is None else first
            difference = float(np.abs(found - first).max())
            if difference > tolerance:
                raise ExportError(
                    f"the export answers differently {machine}: a probability is {difference:.3g} off, and "
                    f"export.tolerance is {tolerance:g}; choose another export.precision"
                )


def _ask(model: str, texts: Path, machine: str, settings: Mapping[str, str]) -> np.ndarray:
    # No GPU: it is the CPU that is tried, and the trainer holds the GPU.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", **settings}
    try:
        done = subprocess.run(
            [sys.executable, str(_TETHERED), str(os.getpid()), sys.executable, str(_PROBE), model, str(texts)],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ExportError(f"the export had not answered after {_TIMEOUT_S:g} s, {machine}") from None
    if done.returncode:
        status = done.returncode
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        raise ExportError(f"a process that asked the export {how}, {machine}; choose another export.precision")
    return np.asarray(json.loads(done.stdout.splitlines()[-1])["probabilities"], np.float64)
