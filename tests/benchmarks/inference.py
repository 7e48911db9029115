"""Strings in, probabilities out: the exported model in its precisions against torch, ONNX Runtime and OpenVINO.

    python tests/benchmarks/inference.py                              # BERT-base + CNN, all that this CPU can do
    python tests/benchmarks/inference.py --batches 1 8 --repeats 5 --precisions fp32 int8 --no-abstracts

BERT-base and a multi-width CNN head from random weights, the same for all. Texts are sentences of the shipped
pmc_rct_sections, and its abstracts (all sentences of an article). Each contestant is a process of its own and keeps all
cores while it runs; they take turns, repeat by repeat, and medians are printed: texts a second as the texts come and
sorted by length (which padding likes), and the ratio to the best peer of the same precision. Answers are compared
first: in fp32 they must agree within 1e-4. `onednn` is torch with oneDNN's dense layers.

The peers have an environment of their own, made by tests/benchmarks/peers.sh at the first call.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from process_usage import peak_mib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the server
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
PEERS = (
    "torch-fp32", "torch-bf16", "onednn-fp32", "onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-bf16",
    "openvino-int8",
)  # fmt: skip
LABELS = ["BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS"]
CALIBRATION = 64  # sentences by which ranges of int8 are set, ours and OpenVINO's
COUNTS = {1: 24, 8: 64, 32: 64, 256: 256}  # texts a repeat, by batch size
LENGTH = 512


# === What all are given ===


def read_texts(split: str = "test") -> tuple[list[str], list[str]]:
    """The shipped sentences of a split in the order of the file, shuffled once, and the abstracts that they make."""
    with open(ROOT / "pipeline" / "data" / "pmc_rct_sections" / f"{split}.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    abstracts = [
        " ".join(row["text"] for row in group) for _, group in itertools.groupby(rows, key=lambda row: row["id"])
    ]
    import numpy as np

    rng = np.random.default_rng(0)
    return [rows[n]["text"] for n in rng.permutation(len(rows))], [
        abstracts[n] for n in rng.permutation(len(abstracts))
    ]


def prepare(folder: Path, layers: int, precisions: Sequence[str]) -> None:
    """Writes the exports, and the same weights, configuration and vocabulary for the peers."""
    import keras
    import numpy as np

    from components.classifier.model import build_classifier
    from components.config import HeadConfig
    from components.encoder.config import BertGeometry
    from components.export.classifier import served
    from components.trainer.export import export
    from components.transform.vocab_file import read_tokens
    from components.transform.wordpiece import WordPiece

    data = ROOT / "pipeline" / "data"
    vocab = data / "biobert" / "vocab.txt"
    keras.utils.set_random_seed(0)
    tokens = read_tokens(vocab)
    geometry = BertGeometry(vocab_size=len(tokens), num_hidden_layers=layers)
    model = build_classifier(geometry, HeadConfig(), "multiclass", len(LABELS), max_length=LENGTH)
    sentences, _ = read_texts()
    encoded = WordPiece(vocab).encode(sentences[-CALIBRATION:], max_length=LENGTH).input_ids
    calibration = [{"ids": encoded.values.numpy(), "row_lengths": encoded.row_lengths().numpy().astype(np.int32)}]
    transform, spec = transform_graph(folder, vocab)
    for precision in precisions:
        lowered, _ = served(model, PRECISIONS[precision], calibration)
        export(str(folder / precision), lowered, transform, spec, "multiclass", LABELS, False, tokens)
    (folder / "vocab.txt").write_bytes(vocab.read_bytes())
    config = {name: getattr(geometry, name) for name in geometry.__dataclass_fields__}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert", "hidden_act": "gelu"}))
    (folder / "calibration.json").write_text(json.dumps(sentences[-CALIBRATION:]))
    np.savez(folder / "weights.npz", **peers_weights(model))


def transform_graph(folder: Path, vocab: Path) -> tuple[Any, Any]:
    """The Transform graph of the product's own preprocessing, as a pipeline run makes it."""
    import apache_beam as beam
    import tensorflow as tf
    import tensorflow_transform.beam as tft_beam
    from tensorflow_transform import TFTransformOutput
    from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

    from components.trainer.export import TransformGraph
    from components.transform.preprocessing import preprocessing_fn

    spec = {name: tf.io.FixedLenFeature([1], tf.string) for name in ("text", "label")}
    config = {
        "vocab_file": str(vocab), "lower_case": False, "max_length": LENGTH, "pairs": False, "task": "multiclass",
        "labels": LABELS, "passthrough": [],
    }  # fmt: skip
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))
    with beam.Pipeline(runner="FnApiRunner") as pipeline, tft_beam.Context(temp_dir=str(folder / "tmp")):
        rows = pipeline | beam.Create([{"text": [b"a text"], "label": [LABELS[0].encode()]}]), metadata
        _, graph = rows | tft_beam.AnalyzeAndTransformDataset(lambda inputs: preprocessing_fn(inputs, config))
        _ = graph | tft_beam.WriteTransformFn(str(folder / "transform"))
    output = TFTransformOutput(str(folder / "transform"))
    return TransformGraph(output.transform_savedmodel_dir), spec


def peers_weights(model: Any) -> dict[str, Any]:
    """The classifier's weights by the names of transformers' BertModel, and the head's."""
    import numpy as np

    found: dict[str, Any] = {}

    def put(name: str, kernel: Any, bias: Any) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = np.asarray(kernel).T.copy(), np.asarray(bias)

    def norm(name: str, layer: Any) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = np.asarray(layer.gamma), np.asarray(layer.beta)

    embeddings = model.encoder.embeddings
    for ours, theirs in (("word", "word"), ("position", "position"), ("segment", "token_type")):
        found[f"embeddings.{theirs}_embeddings.weight"] = np.asarray(getattr(embeddings, ours))
    norm("embeddings.LayerNorm", embeddings.norm)
    for number, block in enumerate(model.encoder.blocks):
        at = f"encoder.layer.{number}"
        kernels, biases = (np.split(np.asarray(part), 3, axis=-1) for part in block.attention.qkv.weights)
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            put(f"{at}.attention.self.{name}", kernel, bias)
        put(f"{at}.attention.output.dense", *block.attention.output_dense.weights)
        norm(f"{at}.attention.output.LayerNorm", block.attention_norm)
        put(f"{at}.intermediate.dense", *block.intermediate.weights)
        put(f"{at}.output.dense", *block.output_dense.weights)
        norm(f"{at}.output.LayerNorm", block.output_norm)
    stage = model.head.stages[0]
    for width, kernel, bias in zip(stage.widths, stage.kernels, stage.biases, strict=True):
        found[f"kernel_{width}"], found[f"bias_{width}"] = np.asarray(kernel), np.asarray(bias)
    found["output_kernel"], found["output_bias"] = (np.asarray(value) for value in model.output_dense.weights)
    return found


# === Contestants ===


class Contestant:
    """A process that classifies when it is told to."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
            )
        self._log = log
        self.device = self._reply().get("device", "CPU")

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name} ended:\n{self._log.read_text()[-2000:]}")

    def peak_mib(self) -> float:
        return peak_mib(self._process.pid)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(model: str) -> None:
    """Ours: the exported SavedModel in a process that loads nothing else of the product."""
    import numpy as np
    import tensorflow as tf
    import tensorflow_text  # noqa: F401

    answer = tf.saved_model.load(model).signatures["serving_default"]
    print(json.dumps({"ready": model}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        texts, batch = request["texts"], request["batch"]
        started = time.perf_counter()
        parts = [
            answer(text=tf.constant(texts[n : n + batch]))["probabilities"].numpy() for n in range(0, len(texts), batch)
        ]
        reply: dict[str, Any] = {"seconds": time.perf_counter() - started}
        if request.get("answer"):
            reply["probabilities"] = np.concatenate(parts).astype(float).tolist()
        print(json.dumps(reply), flush=True)


# === Measuring ===


def compare_answers(contestants: list[Contestant], texts: list[str]) -> None:
    import numpy as np

    answers = {c.name: np.array(c.ask(texts=texts, batch=8, answer=True)["probabilities"]) for c in contestants}
    first, reference = next(iter(answers.items()))  # ours, in fp32 where that is among them
    for name, found in answers.items():
        difference = float(np.abs(found - reference).max())
        agreement = float((found.argmax(1) == reference.argmax(1)).mean())
        print(f"  {name:<14} differs from {first} by at most {difference:.2g}, decides alike in {agreement:.0%}")
        if name.endswith("fp32") and first.endswith("fp32") and difference > 1e-4:
            raise SystemExit(f"{name} does not compute the same function: no benchmark")


def measure(contestants: list[Contestant], texts: list[str], batch: int, repeats: int) -> dict[str, float]:
    """Median texts/s of each, all taking turns; one round first is not counted."""
    seconds: dict[str, list[float]] = {c.name: [] for c in contestants}
    for repeat in range(repeats + 1):
        for contestant in contestants:
            # Warm with a part of it: the first calls compile, pack and allocate.
            part = texts if repeat else texts[: max(batch, len(texts) // 4)]
            found = contestant.ask(texts=part, batch=batch)["seconds"]
            if repeat:
                seconds[contestant.name].append(found)
    return {name: len(texts) / statistics.median(times) for name, times in seconds.items()}


def report(title: str, speeds: dict[str, dict[str, float]], tokens: float, flops: float, peak: float) -> None:
    """One table: rows are contestants, columns the orders of the texts."""
    print(f"\n{title}")
    print(f"  {'':<14}" + "".join(f"{order:>16}{'':>10}" for order in speeds) + f"{'of fp32 GEMM peak':>20}")
    names = list(next(iter(speeds.values())))
    for name in names:
        library, _, precision = name.partition("-")
        line = f"  {name:<14}"
        for found in speeds.values():
            peers = [v for other, v in found.items() if other.endswith(precision) and not other.startswith("ours")]
            ratio = f"{found[name] / max(peers):.2f} x" if library == "ours" and peers else ""
            line += f"{found[name]:>16.1f}{ratio:>10}"
        share = next(iter(speeds.values()))[name] * tokens * flops / (peak * 1e9)
        print(line + f"{share:>20.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="default: bf16 only where the CPU has it")
    parser.add_argument("--texts", type=int, help=f"at most so many a repeat; default by batch size: {COUNTS}")
    parser.add_argument("--no-abstracts", action="store_true")
    parser.add_argument("--no-peers", action="store_true", help="ours alone, in their precisions")
    parser.add_argument("--keep", type=Path, help="a new folder for the exports, which then stay")
    # What the benchmark calls itself with, in processes of their own.
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    if arguments.prepare:
        prepare(arguments.prepare, arguments.layers, arguments.precisions)
        sys.stdout.flush()
        os._exit(0)  # all is written; Beam and TensorFlow, taken down together at exit, end in a segmentation fault
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    fast_bf16 = "avx512_bf16" in flags or "amx_bf16" in flags
    precisions = arguments.precisions or [p for p in PRECISIONS if p != "bf16" or fast_bf16]
    peers = [] if arguments.no_peers else [name for name in PEERS if name.partition("-")[2] in precisions]
    python = ""
    if peers:
        done = subprocess.run([HERE / "peers.sh"], stdout=subprocess.PIPE, text=True, check=True)
        python = done.stdout.strip()
    with contextlib.ExitStack() as stack:
        if arguments.keep:
            arguments.keep.mkdir(parents=True)
        folder = (
            arguments.keep.resolve()
            if arguments.keep
            else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inference-")))
        )
        own = [sys.executable, __file__, "--layers", str(arguments.layers), "--precisions", *precisions]
        with (folder / "prepare.log").open("wb") as log:  # Beam and Transform say a great deal
            subprocess.run([*own, "--prepare", str(folder)], stdout=log, stderr=log, check=True)
        commands = {f"ours-{p}": [sys.executable, __file__, "--serve", str(folder / p)] for p in precisions}
        commands |= {peer: [python, str(HERE / "inference_peers.py"), str(folder), peer] for peer in peers}
        contestants = [Contestant(who, command, folder / f"{who}.log") for who, command in commands.items()]
        try:
            run(contestants, json.loads((folder / "config.json").read_text()), arguments)
        finally:
            for contestant in contestants:
                contestant.close()


def run(contestants: list[Contestant], geometry: dict[str, Any], arguments: argparse.Namespace) -> None:
    from components.transform.wordpiece import WordPiece

    sentences, abstracts = read_texts()
    wordpiece = WordPiece(ROOT / "pipeline" / "data" / "biobert" / "vocab.txt")
    layers, hidden, inner = (geometry[k] for k in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    flops = 2.0 * layers * (4 * hidden * hidden + 2 * hidden * inner)  # a token, dense layers
    with_peak = [c for c in contestants if c.name.startswith("torch")]
    peak = with_peak[0].ask(peak=True)["peak"] if with_peak else float("nan")
    cores = len(os.sched_getaffinity(0))
    print(f"{layers} layers of {hidden}, {cores} cores, fp32 GEMM peak {peak:.0f} GFLOP/s")
    compare_answers(contestants, sentences[:16])
    kinds = [("sentences", sentences, arguments.batches)]
    if not arguments.no_abstracts:
        kinds.append(("abstracts", abstracts, [batch for batch in arguments.batches if batch <= 8]))
    for kind, all_texts, batches in kinds:
        for batch in batches:
            count = COUNTS.get(batch, 2 * batch) // (4 if kind == "abstracts" else 1)
            texts = all_texts[: min(count, arguments.texts or count)]
            lengths = wordpiece.encode(texts, max_length=LENGTH).input_ids.row_lengths().numpy()
            orders = {"as they come": texts}
            if batch > 1:
                orders["sorted"] = [texts[n] for n in lengths.argsort(kind="stable")]
            speeds = {order: measure(contestants, part, batch, arguments.repeats) for order, part in orders.items()}
            title = f"{kind}, batch {batch}: {len(texts)} texts of {lengths.mean():.0f} tokens; texts/s"
            report(title, speeds, float(lengths.mean()), flops, peak)
    print("\npeak memory, MiB: " + ", ".join(f"{c.name} {c.peak_mib():.0f}" for c in contestants))


if __name__ == "__main__":
    main()
