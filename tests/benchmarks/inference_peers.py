"""The peers of the inference benchmark: one process a contestant, in their own environment (peers.sh).

    python inference_peers.py FOLDER NAME      # torch-fp32, torch-bf16, onednn-fp32, onnx-int8, openvino-fp32, …

FOLDER holds what `inference.py` wrote: `weights.npz` (by the names of transformers' BertModel, and the head's),
config, vocabulary and texts to calibrate by. Each is used as its documentation advises: the Rust tokeniser, padding to
the longest of the batch, all cores, graph optimisations on. A line `{"texts": [...], "batch": 8}` on standard input is
answered by the seconds that all of these took, strings in and probabilities out; `{"answer": true}` adds the
probabilities.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel, BertTokenizer

CORES = len(os.sched_getaffinity(0))
INPUTS = ("input_ids", "attention_mask")


class Classifier(torch.nn.Module):
    """BertModel and the multi-width CNN head, on padded batches; dropout is in training alone."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config = BertConfig.from_json_file(folder / "config.json")
        config._attn_implementation = "sdpa"
        self.bert = BertModel(config, add_pooling_layer=False)
        weights = {name: torch.from_numpy(value) for name, value in np.load(folder / "weights.npz").items()}
        own = {name: weights.pop(name) for name in list(weights) if name.startswith(("kernel_", "bias_", "output_"))}
        self.bert.load_state_dict(weights)
        self.widths = sorted(int(name.removeprefix("kernel_")) for name in own if name.startswith("kernel_"))
        self.convolutions = torch.nn.ModuleList()
        for width in self.widths:
            kernel, bias = own[f"kernel_{width}"], own[f"bias_{width}"]  # [width * hidden, filters]
            convolution = torch.nn.Conv1d(config.hidden_size, len(bias), width)
            filters = kernel.reshape(width, config.hidden_size, -1).permute(2, 1, 0).contiguous()
            convolution.weight, convolution.bias = (torch.nn.Parameter(value) for value in (filters, bias))
            self.convolutions.append(convolution)
        self.dropout = torch.nn.Dropout(0.5)
        self.output = torch.nn.Linear(*own["output_kernel"].shape)
        self.output.weight = torch.nn.Parameter(own["output_kernel"].T.contiguous())
        self.output.bias = torch.nn.Parameter(own["output_bias"])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.logits(input_ids, attention_mask).float(), 1)

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(1).to(hidden.dtype)  # (B, 1, L)
        rows = hidden.transpose(1, 2) * mask  # zeros beyond the text, as beyond the batch
        pooled = []
        for width, convolution in zip(self.widths, self.convolutions, strict=True):
            padded = torch.nn.functional.pad(rows, ((width - 1) // 2, width // 2))
            pooled.append((torch.relu(convolution(padded)) * mask).amax(2))
        return self.output(self.dropout(torch.cat(pooled, 1)))


def has_vnni() -> bool:
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    return "avx512_vnni" in flags or "avx_vnni" in flags


class PackedLinear(torch.nn.Module):
    """oneDNN's linear over a weight that it has packed once, in place of MKL's, which `nn.Linear` is in float32; what
    `torch.compile` with `freezing` makes of `nn.Linear` where the batch's size is not known beforehand."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = linear.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pack(module: torch.nn.Module) -> None:
    """Every `nn.Linear` below becomes a `PackedLinear`."""
    for name, child in module.named_children():
        if type(child) is torch.nn.Linear:
            setattr(module, name, PackedLinear(child))
        else:
            pack(child)


def torch_contestant(folder: Path, precision: str, packed: bool = False):
    """PyTorch's eager mode: `nn.Linear` is MKL's product in float32 and oneDNN's in bfloat16."""
    torch.set_num_threads(CORES)
    model = Classifier(folder).eval()
    if precision == "bf16":
        model = model.to(torch.bfloat16)
    if packed:
        pack(model)

    def run(encoded: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(value) for name, value in encoded.items()}).numpy()

    return run


def onnx_file(folder: Path, precision: str) -> Path:
    """The exported, fused and, for int8, dynamically quantised graph; made once."""
    fused, file = folder / "fused.onnx", folder / f"{precision}.onnx"
    if precision == "fp32":
        file = fused
    if file.exists():
        return file
    if not fused.exists():
        plain = folder / "plain.onnx"
        axes = {0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("length", min=2, max=512)}
        example = (torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64))
        with torch.inference_mode():
            torch.onnx.export(
                Classifier(folder).eval(), example, str(plain), dynamo=True, input_names=list(INPUTS),
                output_names=["probabilities"], dynamic_shapes=(axes, axes), external_data=False, verbose=False,
            )  # fmt: skip
        from onnxruntime.transformers import optimizer

        config = json.loads((folder / "config.json").read_text())
        optimized = optimizer.optimize_model(
            str(plain), "bert", num_heads=config["num_attention_heads"], hidden_size=config["hidden_size"], opt_level=1
        )
        print("fused:", optimized.get_fused_operator_statistics(), file=sys.stderr)
        optimized.save_model_to_file(str(fused))
    if precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # As onnxruntime advises where there is no VNNI: 7 bits, or products saturate.
        quantize_dynamic(
            fused, file, per_channel=True, reduce_range=not has_vnni(), weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Attention"],
        )  # fmt: skip
    return file


def onnx_contestant(folder: Path, precision: str):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    file = onnx_file(folder, precision)
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda encoded: session.run(None, encoded)[0]


def openvino_contestant(folder: Path, precision: str):
    import openvino

    core = openvino.Core()
    source = folder / "openvino.xml"
    if not source.exists():
        example = {name: torch.ones(2, 8, dtype=torch.int64) for name in INPUTS}
        model = openvino.convert_model(Classifier(folder).eval(), example_input=example)
        openvino.save_model(model, source, compress_to_fp16=False)
    model = core.read_model(source)
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": CORES}
    if precision == "int8":  # what is not int8 computes as OpenVINO finds best
        import nncf

        texts = json.loads((folder / "calibration.json").read_text())
        model = nncf.quantize(
            model, nncf.Dataset(texts, lambda text: encode(folder, [text])), model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(texts),
        )  # fmt: skip
    else:
        hints["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
    compiled = core.compile_model(model, "CPU", hints)
    request = compiled.create_infer_request()
    names = [tensor.get_any_name() for tensor in compiled.inputs]
    return lambda encoded: next(iter(request.infer(dict(zip(names, encoded.values(), strict=True))).values()))


@functools.cache
def tokenizer_of(folder: Path) -> BertTokenizer:
    vocab = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    limit = BertConfig.from_json_file(folder / "config.json").max_position_embeddings
    return BertTokenizer(vocab={token: n for n, token in enumerate(vocab)}, do_lower_case=False, model_max_length=limit)


def encode(folder: Path, texts: list[str]) -> dict[str, np.ndarray]:
    """Padded to the longest text: INPUTS, each int64 [texts, tokens]."""
    found = tokenizer_of(folder)(texts, padding="longest", truncation=True, return_tensors="np")
    return {name: found[name].astype(np.int64) for name in INPUTS}


CONTESTANTS = {
    "torch": torch_contestant,
    "onednn": functools.partial(torch_contestant, packed=True),
    "onnx": onnx_contestant,
    "openvino": openvino_contestant,
}


def gemm_peak(seconds: float = 1.0) -> float:
    """GFLOP/s of a large float32 product."""
    torch.set_num_threads(CORES)
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    best, end = 1e9, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best / 1e9


def main(folder: Path, name: str) -> None:
    library, _, precision = name.partition("-")
    run = CONTESTANTS[library](folder, precision)

    def classify(texts: list[str], batch: int) -> list[np.ndarray]:
        found = []
        for start in range(0, len(texts), batch):
            found.append(run(encode(folder, texts[start : start + batch])))
        return found

    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "peak" in request:
            print(json.dumps({"peak": gemm_peak()}), flush=True)
            continue
        started = time.perf_counter()
        answers = classify(request["texts"], request["batch"])
        reply = {"seconds": time.perf_counter() - started}
        if request.get("answer"):
            reply["probabilities"] = np.concatenate(answers).astype(float).tolist()
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
