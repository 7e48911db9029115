"""What the model server costs and bears: `python tests/benchmarks/serving.py [--model_base_path=FOLDER]`.

Prints ratios, each measured in alternation on the same machine in the same minutes:

- latency:    median of single texts through the server minus the in-process call, in milliseconds;
- throughput: texts/s at saturation over the bare SavedModel called in-process with ideal batches;
- overload:   at twice the rate it can carry, p99 of what is accepted, and how fast the rest is refused.

Without a model it makes one with this project's signatures and the shape of a small encoder (random weights): what is
measured is the server. The server is a process of its own, the load comes from this one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import grpc
import numpy as np
import tensorflow as tf
import tensorflow_text as text_ops

from serving import bench
from serving.client import Options, make_requests
from serving.errors import Code

ROOT = Path(__file__).resolve().parents[2]
WORDS = "patients with reduced ejection fraction were randomly assigned to receive the drug or placebo daily"


def export_model(path: Path, hidden: int, layers: int) -> None:
    """A packed text classifier: hashed words, embeddings, `layers` of dense · dense, mean over words, softmax."""

    class Model(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            draw = tf.random.Generator.from_seed(0)
            self.table = tf.Variable(draw.normal([5000, hidden]))
            self.layers = [
                (
                    tf.Variable(draw.normal([hidden, 4 * hidden], 0, 0.05)),
                    tf.Variable(draw.normal([4 * hidden, hidden], 0, 0.05)),
                )
                for _ in range(layers)
            ]
            self.out = tf.Variable(draw.normal([hidden, 5], 0, 0.1))

        def words(self, text):
            return text_ops.WhitespaceTokenizer().tokenize(text)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
        def predict(self, text):
            words = self.words(text)
            x = tf.gather(self.table, tf.strings.to_hash_bucket_fast(words.values, 5000))  # (tokens, hidden)
            for up, down in self.layers:
                x = x + tf.nn.relu(x @ up) @ down
            pooled = tf.math.segment_mean(x, words.value_rowids())
            classes = tf.constant([["a", "b", "c", "d", "e"]])
            probabilities = tf.nn.softmax(pooled @ self.out)
            return {
                "probabilities": probabilities,
                "classes": tf.tile(classes, [tf.shape(probabilities)[0], 1]),
                "label": tf.gather(classes[0], tf.argmax(probabilities, -1)),
            }

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
        def tokens(self, text):
            words = self.words(text)
            return {"input_ids": tf.strings.to_hash_bucket_fast(words.values, 5000), "row_lengths": words.row_lengths()}

    model = Model()
    tf.saved_model.save(model, str(path), signatures={"serving_default": model.predict, "tokens": model.tokens})


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 10 to 60 words, about the length of the sentences of an abstract."""
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS.split(), k=generator.randint(10, 60))) for _ in range(count)]


class Server:
    """The server under test; a context manager that yields its address."""

    def __init__(self, base_path: Path, *flags: str):
        self._command = [
            sys.executable, "-m", "serving.server", "--port=0", "--model_name=m", f"--model_base_path={base_path}",
            *flags,
        ]  # fmt: skip

    def __enter__(self) -> str:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().split()[-1]

    def cpu_s(self) -> float:
        """Processor time that the server has used (Linux only: /proc)."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait()


class InProcess:
    """The bare SavedModel, as `tf.saved_model.load` gives it."""

    def __init__(self, base_path: Path):
        newest = max((p for p in base_path.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
        self._model = tf.saved_model.load(str(newest))
        self._signature = self._model.signatures["serving_default"]
        _, self._inputs = self._signature.structured_input_signature

    def __call__(self, texts: list[str]) -> np.ndarray:
        values = tf.constant(texts)
        return self._signature(**dict.fromkeys(self._inputs, values))["probabilities"].numpy()


def serialized(texts: list[str], batch: int, pairs: bool) -> list[bytes]:
    options = Options(batch_size=batch, batch_bytes=1 << 30)
    return [m.SerializeToString() for _, m in make_requests("m", options, texts, texts if pairs else None)]


def measure_latency(bare: InProcess, base_path: Path, pairs: bool, count: int) -> dict[str, float]:
    """Single texts, one after another, in-process and through the server in turn."""
    texts = make_texts(count)
    direct, served = [], []
    with Server(base_path) as target, grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(bench.PREDICT_METHOD)
        requests = serialized(texts, 1, pairs)
        for text, request in zip(texts[:20], requests[:20], strict=True):
            bare([text])
            call(request, timeout=60)
        for text, request in zip(texts, requests, strict=True):
            started = time.perf_counter()
            bare([text])
            middle = time.perf_counter()
            call(request, timeout=60)
            direct.append(middle - started)
            served.append(time.perf_counter() - middle)
    return {
        "in_process_ms": round(statistics.median(direct) * 1e3, 3),
        "server_ms": round(statistics.median(served) * 1e3, 3),
        "added_ms": round((statistics.median(served) - statistics.median(direct)) * 1e3, 3),
        # On a machine that is busy with other things, the quieter moments tell more.
        "added_ms_of_the_fastest_tenth": round((np.quantile(served, 0.1) - np.quantile(direct, 0.1)) * 1e3, 3),
    }


async def saturate(target: str, requests: list[bytes], under_way: int, seconds: float) -> tuple[float, float]:
    """Keeps `under_way` requests under way for a time; returns answered requests/s and the share refused."""
    answered = refused = 0
    end = time.perf_counter() + seconds
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_unary(bench.PREDICT_METHOD)

        async def worker(number: int) -> None:
            nonlocal answered, refused
            at = number
            while time.perf_counter() < end:
                try:
                    await call(requests[at % len(requests)], timeout=60)
                    answered += 1
                except grpc.RpcError as error:
                    if error.code().value[0] != Code.RESOURCE_EXHAUSTED:
                        raise
                    refused += 1
                at += under_way

        started = time.perf_counter()
        await asyncio.gather(*(worker(i) for i in range(under_way)))
        return answered / (time.perf_counter() - started), refused / max(1, answered + refused)


def batching_file(folder: Path, max_batch: int, enqueued: int, threads: int) -> Path:
    path = folder / "batching_parameters.txt"
    path.write_text(
        f"max_batch_size {{ value: {max_batch} }} batch_timeout_micros {{ value: 1000 }} "
        f"max_enqueued_batches {{ value: {enqueued} }} num_batch_threads {{ value: {threads} }}"
    )
    return path


def measure_throughput(
    bare: InProcess, base_path: Path, folder: Path, pairs: bool, seconds: float, batch: int, texts_a_request: int
) -> dict[str, float]:
    """Texts/s of the bare model with batches of texts sorted by length, and of the saturated server, in turn."""
    texts = make_texts(64 * batch)
    ideal = sorted(texts, key=len)
    batches = [ideal[i : i + batch] for i in range(0, len(ideal), batch)]
    parameters = batching_file(folder, batch, 20, 1)
    flags = ("--enable_batching", f"--batching_parameters_file={parameters}", "--grpc_max_threads=256")
    under_way = max(8, 3 * batch // texts_a_request)
    direct, served, refused, direct_cpu, served_cpu = [], [], [], [], []
    server = Server(base_path, *flags)
    with server as target:
        requests = serialized(texts, texts_a_request, pairs)
        asyncio.run(saturate(target, requests, under_way, 1.0))
        for _ in range(3):
            for some in batches[:2]:
                bare(some)
            started, done, at = time.perf_counter(), 0, 0
            cpu = time.process_time()
            while time.perf_counter() - started < seconds:
                bare(batches[at % len(batches)])
                done += batch
                at += 1
            direct.append(done / (time.perf_counter() - started))
            direct_cpu.append((time.process_time() - cpu) / done)
            started, cpu = time.perf_counter(), server.cpu_s()
            rate, share = asyncio.run(saturate(target, requests, under_way, seconds))
            served.append(rate * texts_a_request)
            served_cpu.append((server.cpu_s() - cpu) / (served[-1] * (time.perf_counter() - started)))
            refused.append(share)
    return {
        "texts_a_request": texts_a_request,
        "in_process_texts_s": round(statistics.median(direct), 1),
        "server_texts_s": round(statistics.median(served), 1),
        "ratio": round(statistics.median(served) / statistics.median(direct), 3),
        # The same by processor time, which other processes on the machine disturb less.
        "ratio_of_processor_time": round(statistics.median(direct_cpu) / statistics.median(served_cpu), 3),
        "refused": round(max(refused), 3),
    }


def measure_overload(base_path: Path, folder: Path, pairs: bool, seconds: float, batch: int, texts: int) -> dict:
    """Twice the rate that it can carry, in an open loop."""
    parameters = batching_file(folder, batch, 2, 1)
    flags = ("--enable_batching", f"--batching_parameters_file={parameters}", "--grpc_max_threads=256")
    requests = serialized(make_texts(512), texts, pairs)
    with Server(base_path, *flags) as target:
        asyncio.run(saturate(target, requests, 16, 1.0))
        carried, _ = asyncio.run(saturate(target, requests, max(8, 2 * batch // texts), seconds))
        due = bench.arrivals(2 * carried, seconds, seed=1)
        report = asyncio.run(bench.run(target, "m", requests, due, Options(timeout_s=30)))
    # What is accepted waits for at most the queue and the batch before it.
    bound = (2 + 2) * batch / texts / carried
    return {
        "carried_requests_s": round(carried, 1),
        "offered_requests_s": round(len(due) / seconds, 1),
        **report.summary(),
        "bound_ms": round(bound * 1e3, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_base_path", type=Path, help="folder of version folders; default: a made-up model")
    parser.add_argument("--hidden", type=int, default=384, help="width of the made-up model")
    parser.add_argument("--layers", type=int, default=4, help="its layers")
    parser.add_argument("--pairs", action="store_true", help="the model takes text_pair")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base_path = args.model_base_path
        if base_path is None:
            base_path = folder / "model"
            export_model(base_path / "1", args.hidden, args.layers)
        bare = InProcess(base_path)
        print(json.dumps({"latency": measure_latency(bare, base_path, args.pairs, 300)}), flush=True)
        for texts in (1, args.batch):
            found = measure_throughput(bare, base_path, folder, args.pairs, args.seconds, args.batch, texts)
            print(json.dumps({"throughput": found}), flush=True)
        found = measure_overload(base_path, folder, args.pairs, args.seconds, args.batch, 4)
        print(json.dumps({"overload": found}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
