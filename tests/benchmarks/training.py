"""Fine-tuning, the product's own step against PyTorch's: the same network, weights, texts and options, in one run.

    python tests/benchmarks/training.py     # BERT-base + CNN; on the GPU where there is one; 2 cores: 15 minutes
    python tests/benchmarks/training.py --layers 2 --hidden 128 --heads 2 --inner 512 --texts 1024 --batches 32 128
    python tests/benchmarks/training.py --split train --texts 8192 --batches 32 256 --buckets 32 64 128      # a GPU

A multi-width CNN over BERT from random weights, cross-entropy, dropout, clipping, and AdamW without decay on biases and
norms; sentences of the shipped pmc_rct_sections as token ids, so that no tokeniser is timed. PyTorch has transformers'
BertModel with scaled_dot_product_attention, fused AdamW and autocast for bf16. Losses without dropout are compared
first: in fp32 they must agree within 1e-4.

Each contestant is a process of its own and keeps all cores while it runs. Each is tried with every way of putting the
same texts into batches (as they come, of similar lengths, sorted, and by a budget of tokens), and keeps the one that is
fastest for it; then they take turns, repeat by repeat, and medians are printed: texts a second, the ratio to PyTorch in
the same precision, the share of the GEMM peak of that precision on real tokens, and memory. Beside other work PyTorch's
threads wait for one another, and its step may take ten times as long: the machine must have nothing else to do.

On a GPU `xla` is the product's step with `training.xla`, by a budget of tokens: what it compiles, once a bucket, is not
timed.

`input` is a profile of the input: the time that making the batches takes, alone, and the time that steps wait for them,
as shares of the steps' time. One part of the step differs on purpose: the product updates the rows of the word
embeddings that a batch has (see components/trainer/optimizer.py), PyTorch's AdamW, and `xla`, go through all of them.

    python tests/benchmarks/training.py --frozen    # the input where it is largest

times the product alone, the encoder frozen and its outputs kept on disk, as in a stage of `training.stages`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from inference import LABELS, ROOT, Contestant, peers_weights, read_texts  # noqa: E402

Plan = dict[str, Any]  # what a contestant is asked: `plan`, the numbers of each batch's texts, and how they were chosen
POLICIES = {"fp32": "float32", "bf16": "mixed_bfloat16"}
LENGTH, RATE = 128, 3e-5
MEAN_TOKENS = 40  # of a sentence, about: a budget of tokens is so many times a number of texts
MIB = 1 << 20


# === What all are given ===


def prepare(folder: Path, geometry: dict[str, int], texts: int, split: str) -> None:
    """Writes configuration, weights and the token ids of so many texts."""
    import numpy as np

    from components.transform.wordpiece import WordPiece

    vocab = ROOT / "pipeline" / "data" / "biobert" / "vocab.txt"
    wordpiece = WordPiece(vocab)
    ids = wordpiece.encode(read_texts(split)[0][:texts], max_length=LENGTH).input_ids
    lengths = ids.row_lengths().numpy().astype(np.int32)
    labels = np.arange(len(lengths), dtype=np.int32) % len(LABELS)
    np.savez(folder / "examples.npz", ids=ids.values.numpy().astype(np.int32), lengths=lengths, labels=labels)
    config = geometry | {"vocab_size": wordpiece.vocab_size, "model_type": "bert", "hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(config))
    np.savez(folder / "weights.npz", **peers_weights(build(folder, "float32")))


def build(folder: Path, policy: str) -> Any:
    """The product's classifier; its random weights are the same in every process."""
    import keras

    from components.classifier.model import build_classifier
    from components.config import HeadConfig
    from components.encoder.config import read_geometry

    keras.utils.set_random_seed(0)
    geometry = read_geometry(folder / "config.json")
    return build_classifier(geometry, HeadConfig(), "multiclass", len(LABELS), max_length=LENGTH, policy=policy)


def batchings(folder: Path, sizes: list[int], buckets: list[int]) -> dict[str, Plan]:
    """Ways of putting all texts into batches, by name."""
    import numpy as np

    from components.config import TrainingConfig
    from components.trainer.batches import plan_epoch
    from components.trainer.static_shapes import StaticShapes

    lengths = np.load(folder / "examples.npz")["lengths"]
    order = np.argsort(lengths, kind="stable")
    plans: dict[str, Plan] = {}

    def add(name: str, plan: list[Any], tokens: int | None = None) -> None:
        plans[name] = {"plan": [[int(row) for row in rows] for rows in plan], "tokens": tokens}

    for size in sizes:
        add(f"{size} as they come", plan_epoch(lengths, size, seed=1, epoch=0))
        add(f"{size} of similar lengths", plan_epoch(lengths, size, seed=1, epoch=0, buckets=buckets))
        add(f"{size} sorted", [order[n : n + size] for n in range(0, len(order), size)])
        tokens = size * MEAN_TOKENS
        add(f"{tokens} tokens", plan_epoch(lengths, size, seed=1, epoch=0, buckets=buckets, tokens=tokens))
        options = TrainingConfig(batch_tokens=tokens, buckets=tuple(buckets))
        static = StaticShapes.of(options, lengths, replicas=1)
        padded = plan_epoch(static.bound(lengths), size, seed=1, epoch=0, buckets=buckets, tokens=tokens)
        add(f"{tokens} tokens with the bucket's padding", padded, tokens)
    return plans


# === Contestants ===


def train(folder: Path, precision: str, xla: bool, frozen: bool, buckets: list[int]) -> None:
    """Ours: the trainer's own step. A line `{"plan": [[0, 5], …], "tokens": null}` on standard input is answered by the
    seconds that these batches took."""
    import numpy as np
    import tensorflow as tf

    from components.config import TrainingConfig
    from components.trainer.batches import Examples, ahead
    from components.trainer.hardware import choose_strategy
    from components.trainer.hidden import with_hidden
    from components.trainer.losses import example_losses
    from components.trainer.optimizer import AdamW
    from components.trainer.stages import learning_variables
    from components.trainer.static_shapes import StaticShapes
    from components.trainer.steps import TrainStep, make_logits_step

    strategy = choose_strategy()
    gpu = has_gpu()
    stored = np.load(folder / "examples.npz")
    examples = Examples(stored["ids"], None, stored["lengths"], stored["labels"], np.arange(len(stored["lengths"])))
    training = TrainingConfig(learning_rate=RATE, buckets=tuple(buckets))
    with strategy.scope():
        model = build(folder, POLICIES[precision])
        still = len(model.encoder.blocks) if frozen else None
        optimizer = AdamW(learning_variables(model, still), training.weight_decay, training.clip_norm)
    if frozen:
        lower = tf.function(lambda batch: model.encoder.lower(batch, still), reduce_retracing=True, autograph=False)
        path, encoder = str(folder / f"hidden-{precision}.npy"), model.encoder
        examples = with_hidden(examples, path, lower, encoder.geometry.hidden_size, encoder.compute_dtype)

    @functools.cache
    def step_of(tokens: int | None) -> TrainStep:
        options = training.model_copy(update={"batch_tokens": tokens})
        shapes = StaticShapes.of(options, examples.lengths, strategy.num_replicas_in_sync) if xla else None
        return TrainStep(model, optimizer, examples, "multiclass", options, None, strategy, still, shapes=shapes)

    print(json.dumps({"device": "GPU" if gpu else "CPU"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "loss" in request:
            rows = np.array(request["loss"])
            tf.config.experimental.enable_tensor_float_32_execution(False)  # losses are compared, to 1e-4
            logits = make_logits_step(model)(examples.batch(rows))
            loss = tf.reduce_mean(example_losses(logits, examples.labels[rows], "multiclass"))
            print(json.dumps({"loss": float(loss)}), flush=True)
            tf.config.experimental.enable_tensor_float_32_execution(True)
            continue
        plan = [[np.array(rows)] for rows in request["plan"]]
        step = step_of(request["tokens"])
        if gpu:
            tf.config.experimental.reset_memory_stats("GPU:0")
        started = asked = time.perf_counter()
        reply = {"waited_seconds": 0.0}
        for inputs in ahead(step.inputs, plan):
            reply["waited_seconds"] += time.perf_counter() - asked
            loss = step(inputs, RATE)
            asked = time.perf_counter()
        float(loss)  # waits for the device
        reply["seconds"] = ended = time.perf_counter() - started
        for batches in plan:
            step.inputs(batches)
        reply["input_seconds"] = time.perf_counter() - started - ended
        if gpu:
            reply["memory_mib"] = tf.config.experimental.get_memory_info("GPU:0")["peak"] / MIB
        print(json.dumps(reply), flush=True)


# === Measuring ===


def compare_losses(contestants: list[Contestant]) -> None:
    losses = {c.name: c.ask(loss=list(range(16)))["loss"] for c in contestants}
    print("losses before training: " + ", ".join(f"{name} {loss:.5f}" for name, loss in losses.items()))
    exact = [loss for name, loss in losses.items() if name.endswith("fp32")]
    if exact and max(exact) - min(exact) > 1e-4:
        raise SystemExit("they do not compute the same function: no benchmark")


def fastest(contestant: Contestant, plans: dict[str, Plan]) -> str:
    """The way of batching that is the fastest for this contestant."""
    static = contestant.name.startswith("xla")
    plans = {name: plan for name, plan in plans.items() if static == (plan["tokens"] is not None)}
    seconds = {}
    for number, (name, plan) in enumerate(plans.items()):
        if contestant.device != "CPU":
            contestant.ask(**plan)  # what is compiled and allocated for a shape takes longer there than the step
        elif number == 0:
            contestant.ask(**plan | {"plan": plan["plan"][:2]})
        seconds[name] = contestant.ask(**plan)["seconds"]
        print(f"  tried: {contestant.name}, {name}: {seconds[name]:.1f} s", file=sys.stderr, flush=True)
    return min(seconds, key=lambda name: seconds[name])


def measure(
    contestants: list[Contestant], plans: dict[str, Plan], repeats: int
) -> tuple[dict[str, str], dict[str, list[dict[str, float]]]]:
    """Of each contestant its best batching, and what it answered in each repeat, all taking turns."""
    best = {c.name: fastest(c, plans) for c in contestants}
    answers: dict[str, list[dict[str, float]]] = {c.name: [] for c in contestants}
    for _ in range(repeats):
        for contestant in contestants:
            answers[contestant.name].append(contestant.ask(**plans[best[contestant.name]]))
    return best, answers


def run(contestants: list[Contestant], folder: Path, arguments: argparse.Namespace) -> None:
    import numpy as np

    lengths = np.load(folder / "examples.npz")["lengths"]
    torch = next((c for c in contestants if c.name.startswith("torch")), None)
    peaks = {precision: torch.ask(peak=precision)["peak"] for precision in arguments.precisions} if torch else {}
    compare_losses(contestants)
    best, answers = measure(contestants, batchings(folder, arguments.batches, arguments.buckets), arguments.repeats)
    layers, hidden, inner = arguments.layers, arguments.hidden, arguments.inner
    flops = 6.0 * layers * (4 * hidden * hidden + 2 * hidden * inner) * float(lengths.sum())  # dense layers, and back
    medians = {name: statistics.median(one["seconds"] for one in found) for name, found in answers.items()}
    frozen = ", all of them frozen and kept" if arguments.frozen else ""
    print(f"\n{layers} layers of {hidden}{frozen}; {len(lengths)} texts of {lengths.mean():.0f} tokens, ", end="")
    print(contestants[0].device)
    print(f"  {'':<12}{'texts/s':>9}{'to torch':>10}{'of peak':>9}{'input':>8}{'waited':>8}{'MiB':>8}  batches")
    for contestant in contestants:
        name, found = contestant.name, answers[contestant.name]
        library, _, precision = name.partition("-")
        line = f"  {name:<12}{len(lengths) / medians[name]:>9.1f}"
        ratio = f"{medians[f'torch-{precision}'] / medians[name]:.2f} x" if torch and library != "torch" else ""
        share = f"{flops / medians[name] / (peaks[precision] * 1e9):.2f}" if peaks else ""
        line += f"{ratio:>10}{share:>9}"
        for kind, width in (("input_seconds", 8), ("waited_seconds", 8)):
            taken = sum(one.get(kind, 0.0) for one in found) / sum(one["seconds"] for one in found)
            line += f"{taken:>{width}.2%}" if library != "torch" else " " * width
        memory = max(one.get("memory_mib", 0.0) for one in found) or contestant.peak_mib()
        print(f"{line}{memory:>8.0f}  {best[name]}", flush=True)
    if peaks:
        print(f"GEMM peak, GFLOP/s: {', '.join(f'{name} {value:.0f}' for name, value in peaks.items())}")


def peers_python() -> str:
    """The interpreter of the peers' environment, which is made where it is not there."""
    return subprocess.run([HERE / "peers.sh"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def has_gpu() -> bool:
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--inner", type=int, default=3072)
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--split", default="test", help="of pmc_rct_sections, where the texts are from")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32], help="sizes to try")
    parser.add_argument("--buckets", type=int, nargs="+", default=[16, 32, 48, 64, 96, 128], help="lengths")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", choices=POLICIES, help="default: bf16 only where the machine has it")
    parser.add_argument("--frozen", action="store_true", help="the product alone, its encoder frozen, outputs kept")
    parser.add_argument("--peers", help="an interpreter with torch and transformers; default: peers.sh makes one")
    # What the benchmark calls itself with, in processes of their own.
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--xla", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        names = {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads"}
        names |= {"inner": "intermediate_size"}
        geometry = {key: getattr(arguments, name) for name, key in names.items()}
        prepare(arguments.prepare, geometry, arguments.texts, arguments.split)
        return
    if arguments.train:
        train(arguments.train, *arguments.precisions, arguments.xla, arguments.frozen, arguments.buckets)
        return
    from components.trainer.hardware import has_bfloat16

    arguments.precisions = arguments.precisions or [p for p in POLICIES if p != "bf16" or has_bfloat16()]
    python = "" if arguments.frozen else arguments.peers or peers_python()
    with tempfile.TemporaryDirectory(prefix="training-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--prepare", name], check=True)
        own = [sys.executable, __file__, "--buckets", *map(str, arguments.buckets), "--train", name]
        own += [*(["--frozen"] if arguments.frozen else []), "--precisions"]
        commands = {f"ours-{p}": [*own, p] for p in POLICIES}
        if has_gpu():
            commands |= {f"xla-{p}": [*own, p, "--xla"] for p in POLICIES}
        if python:
            commands |= {f"torch-{p}": [python, str(HERE / "training_peers.py"), name, p] for p in POLICIES}
        wanted = [who for who in commands if who.partition("-")[2] in arguments.precisions]
        contestants = [Contestant(who, commands[who], folder / f"{who}.log") for who in wanted]
        try:
            run(contestants, folder, arguments)
        finally:
            for contestant in contestants:
                contestant.close()


if __name__ == "__main__":
    main()
