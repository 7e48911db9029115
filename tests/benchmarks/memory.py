"""Where the memory of a loaded model is: what TensorFlow holds, and what the C library keeps that is free.

    python tests/serving/exported_model.py FOLDER --geometry=bert_base && python tests/benchmarks/memory.py FOLDER

Loads an exported model as the server does (a session) and has two threads compute, as the server's two: single texts,
then batches of 32; then gives back what is free (`malloc_trim`). For each stage, MiB: the process's anonymous memory;
what of it is in use by the C library's count (`mallinfo2`, glibc 2.33 or newer); and the difference, which is memory
that is free but kept, stacks, compiled code and what is mapped past the C library. The texts are shipped sentences.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the server
sys.path.insert(0, str(Path(__file__).resolve().parent))
from process_usage import anonymous_mib
from server_load import read_texts

TEXTS = 2_000
THREADS = 2
MIB = 1 << 20
FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"  # in this order: malloc.h


class Counts(ctypes.Structure):
    """What `mallinfo2` returns: bytes, but for the numbers of blocks."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]


def c_library() -> ctypes.CDLL:
    """Raises: SystemExit: it does not count, as musl's and older glibc's."""
    found = ctypes.CDLL(None)
    if not hasattr(found, "mallinfo2"):
        raise SystemExit("memory: this C library has no mallinfo2; glibc 2.33 or newer has")
    found.mallinfo2.restype = Counts
    return found


def show(stage: str, library: ctypes.CDLL) -> None:
    anonymous, counts = anonymous_mib(), library.mallinfo2()
    used = (counts.uordblks + counts.hblkhd) / MIB
    print(f"{stage:<28}{anonymous:>10.0f}{used:>10.0f}{anonymous - used:>12.0f}", flush=True)


def batches(texts: list[str], size: int, count: int) -> Iterator[list[str]]:
    for number in range(count):
        at = number * size % (len(texts) - size)
        yield texts[at : at + size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of an exported model")
    parser.add_argument("--single", type=int, default=200, help="texts that go alone")
    parser.add_argument("--batches", type=int, default=24, help="batches of 32")
    args = parser.parse_args()
    library = c_library()
    texts = read_texts(TEXTS)

    import numpy as np
    from tensorflow.core.protobuf import config_pb2

    from serving.loader import SessionRunner

    weights = sum(path.stat().st_size for path in (args.model / "variables").iterdir()) / MIB
    print(f"weights {weights:.0f} MiB\n{'MiB':<28}{'anonymous':>10}{'in use':>10}{'difference':>12}")
    show("before", library)
    runner = SessionRunner(str(args.model), ["serve"], config_pb2.ConfigProto())
    signature = runner.meta_graph.signature_def["serving_default"]
    fetches = [info.name for info in signature.outputs.values()]
    show("loaded", library)

    def answer(some: list[str]) -> None:
        values = {"text": some, "text_pair": [""] * len(some)}
        runner.run({info.name: np.array(values[name], object) for name, info in signature.inputs.items()}, fetches)

    with ThreadPoolExecutor(THREADS) as pool:
        for size, count in ((1, args.single), (32, args.batches)):
            list(pool.map(answer, batches(texts, size, count)))
            show(f"{count} batches of {size}", library)
    library.malloc_trim(0)
    show("free memory given back", library)


if __name__ == "__main__":
    main()
