"""What a version costs before it serves: loading it, and the first answer of each signature, as a warm-up asks for it.

    python tests/serving/exported_model.py FOLDER --geometry=bert_base && python tests/benchmarks/loading.py FOLDER

Of several exported models the later ones are compared with the first. Each is loaded as the server does (a session),
in a process of its own, in turns; medians of the rounds. Seconds of processor time, since a server that changes
versions answers on the same cores meanwhile; MiB of anonymous memory that came with it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from process_usage import anonymous_mib

ROOT = Path(__file__).resolve().parents[2]
SIGNATURES = ("serving_default", "serialized_examples", "classify", "explain", "tokens")
TEXT = b"Patients were randomly assigned to receive aspirin or placebo for twelve weeks."


def load(folder: str) -> dict[str, float]:
    """Seconds of each step, and `memory`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the server
    import numpy as np
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2

    from serving.loader import SessionRunner

    texts = {"text": TEXT, "text_pair": b""}
    feature = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text])) for name, text in texts.items()}
    example = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    before, found, at = anonymous_mib(), {}, time.process_time()
    runner = SessionRunner(folder, ["serve"], config_pb2.ConfigProto())
    found["load"], at = time.process_time() - at, time.process_time()
    for name in SIGNATURES:
        signature = runner.meta_graph.signature_def[name]
        feeds = {info.name: np.array([texts.get(key, example)], object) for key, info in signature.inputs.items()}
        runner.run(feeds, [info.name for info in signature.outputs.values()])
        found[name], at = time.process_time() - at, time.process_time()
    found["all"] = sum(found.values())
    return found | {"memory, MiB": anonymous_mib() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="folders of exported models")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)  # what it calls itself with
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(str(args.models[0]))))
        return
    rounds: dict[Path, list[dict[str, float]]] = {model: [] for model in args.models}
    for _ in range(args.rounds):
        for model, found in rounds.items():
            command = [sys.executable, __file__, "--load", str(model.resolve())]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    medians = [{step: statistics.median(f[step] for f in found) for step in found[0]} for found in rounds.values()]
    for step, first in medians[0].items():
        others = "".join(f"{median[step]:>12.2f}{median[step] / first:>8.2f} x" for median in medians[1:])
        print(f"{step:<24}{first:>12.2f}{others}")


if __name__ == "__main__":
    main()
