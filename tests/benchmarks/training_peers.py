"""PyTorch in the training benchmark, in the peers' environment (peers.sh).

    python training_peers.py FOLDER fp32      # or bf16

FOLDER holds what `training.py` wrote. A line `{"plan": [[0, 5], …]}` on standard input, the numbers of each batch's
texts, is answered by the seconds that training on these batches took.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from inference_peers import CORES, Classifier

RATE, WEIGHT_DECAY, CLIP_NORM = 3e-5, 0.01, 1.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Trainer:
    """What `transformers` does in a step, for the benchmark's network: autocast, clipping, fused AdamW."""

    def __init__(self, folder: Path, precision: str, device: str) -> None:
        stored = np.load(folder / "examples.npz")
        self.ids, self.lengths = stored["ids"].astype(np.int64), stored["lengths"]
        self.ends, self.labels = np.cumsum(self.lengths), stored["labels"].astype(np.int64)
        self.device = device
        self.model = Classifier(folder).to(device)
        self.autocast = torch.autocast(device, DTYPES[precision], enabled=precision == "bf16")
        named = list(self.model.named_parameters())
        apart = [p for name, p in named if name.endswith("bias") or "LayerNorm" in name]
        decayed = [p for name, p in named if not (name.endswith("bias") or "LayerNorm" in name)]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": apart, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)

    def loss(self, rows: list[int]) -> torch.Tensor:
        """The mean loss of these texts, padded to the longest."""
        lengths = self.lengths[rows]
        block = np.zeros((len(rows), lengths.max()), np.int64)
        for n, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            block[n, :length] = self.ids[self.ends[row] - length : self.ends[row]]
        mask = np.arange(block.shape[1]) < lengths[:, None]
        ids, mask, labels = (
            torch.from_numpy(array).to(self.device) for array in (block, mask.astype(np.int64), self.labels[rows])
        )
        with self.autocast:
            logits = self.model.logits(ids, mask)
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    def step(self, rows: list[int]) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        return loss.detach()


def gemm_peak(precision: str, device: str, seconds: float = 1.0) -> float:
    """GFLOP/s of a large product."""
    size = 2048 if device == "cpu" else 8192
    a, b = (torch.rand(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    best, end = 1e9, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        torch.mm(a, b)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


def allow_tf32(allowed: bool) -> None:
    """On GPUs, whether float32 products may round their factors."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def main(folder: Path, precision: str) -> None:
    torch.set_num_threads(CORES)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    allow_tf32(True)  # as TensorFlow does of itself
    trainer = Trainer(folder, precision, device)
    print(json.dumps({"device": "GPU" if device == "cuda" else "CPU"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "peak" in request:
            reply = {"peak": gemm_peak(request["peak"], device)}
        elif "loss" in request:
            trainer.model.eval()
            allow_tf32(False)
            with torch.inference_mode():
                reply = {"loss": float(trainer.loss(request["loss"]))}
            allow_tf32(True)
        else:
            trainer.model.train()
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            for rows in request["plan"]:
                loss = trainer.step(rows)
            float(loss)  # waits for the device
            reply = {"seconds": time.perf_counter() - started}
            if device == "cuda":
                reply["memory_mib"] = torch.cuda.max_memory_allocated() / (1 << 20)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
