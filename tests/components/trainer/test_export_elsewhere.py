"""Exported models in a plain TensorFlow 2.20 process: that of TensorFlow Serving's newest release."""

import json
import os
import subprocess
from typing import Any

import numpy as np
import pytest

from components.export import admission
from components.export.paths import float32_dir
from components.trainer.export import export
from components.trainer.run_fn import run_fn

SIGNATURES = {"serving_default", "serialized_examples", "classify", "tokens", "explain", "transform_features"}
PACKAGES = ("tensorflow==2.20.*", "tensorflow-text==2.20.1")

# Of this process and of the plain one: what every signature answers, lists by name of the output.
_ASK = """
import tensorflow as tf

def ask(folder, columns):
    model = tf.saved_model.load(folder)
    one = model.signatures["serving_default"](**{name: tf.constant(texts[:1]) for name, texts in columns.items()})
    label = one["label"].numpy()[0]
    rows = [dict(zip([*columns, "label"], [*row, label])) for row in zip(*columns.values())]
    feature = lambda text: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text]))
    examples = [tf.train.Example(features=tf.train.Features(feature={k: feature(v) for k, v in row.items()}))
                for row in rows]
    inputs = columns | dict.fromkeys(("examples", "inputs"), [example.SerializeToString() for example in examples])
    found = {}
    for name, signature in model.signatures.items():
        wanted = signature.structured_input_signature[1]
        answer = signature(**{key: tf.constant(inputs[key]) for key in wanted})
        found[name] = {key: value.numpy() for key, value in answer.items()}
        found[name] = {key: [item.decode() for item in value.ravel()] if value.dtype == object else value.tolist()
                       for key, value in found[name].items()}
    return found
"""
_SCRIPT = f"""{_ASK}
import json, sys
import tensorflow_text
answers = [ask(folder, {{name: [bytes.fromhex(text) for text in texts] for name, texts in columns.items()}})
           for folder, columns in json.load(open(sys.argv[1]))]
foreign = [name for name in sys.modules if name.split(".")[0] in ("components", "tfx", "tensorflow_transform")]
print(json.dumps({{"version": tf.__version__, "foreign": foreign, "answers": answers}}))
"""

LONG = [b"a " * 500_000, b"x" * 1_000_000]  # asked of float32 alone: the signatures read them in the same way in all
HOSTILE = [
    b"a d b c", b"", b" ", b"a " * 500, b"x" * 1000, b"\xff\xfe\xfa", b"a \xc3", b"\x00", b"\x1f\x7f",
    "\u200d\u00ad\ufeff".encode(), "\U0001f469\u200d\U0001f52c e\u0301".encode(), b"[CLS] [SEP] [PAD] ##a",
]  # fmt: skip


def low_alone(path, *contract):
    """`export`, but for the float32 beside a low precision."""
    if path != float32_dir(path):
        export(path, *contract)


@pytest.mark.slow
def test_exports_of_every_precision_answer_the_same_in_plain_tensorflow_2_20(
    fn_args, trained_once, tmp_path, environments, monkeypatch
):
    plain_python = environments.make(*PACKAGES)
    folders = {}
    for precision in ("bfloat16", "int8"):
        args = fn_args(pairs=True, folder=tmp_path / precision, export={"precision": precision}, training={"epochs": 1})
        with monkeypatch.context() as patch:
            if precision == "bfloat16":  # once is enough for the processes that ask the export, and for float32
                patch.setattr(admission, "check_answers", lambda *_: None)
                patch.setattr("components.trainer.run_fn.export", low_alone)
            run_fn(args)
        folders[precision] = args.serving_model_dir
    folders["float32"] = float32_dir(folders["int8"])
    asked = {}
    for precision in folders:
        texts = HOSTILE + (LONG if precision == "float32" else [])
        asked[precision] = {"text": texts, "text_pair": texts[::-1]}
    (tmp_path / "script.py").write_text(_SCRIPT)
    coded = [
        (folders[precision], {name: [text.hex() for text in texts] for name, texts in columns.items()})
        for precision, columns in asked.items()
    ]
    (tmp_path / "asked.json").write_text(json.dumps(coded))
    # Nothing of this process's own: importing TensorFlow Transform alone sets TF_USE_LEGACY_KERAS.
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    command = [str(plain_python), str(tmp_path / "script.py"), str(tmp_path / "asked.json")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    there = json.loads(done.stdout.splitlines()[-1])
    assert there["version"].startswith("2.20.")
    assert there["foreign"] == []
    own: dict[str, Any] = {}
    exec(_ASK, own)
    for precision, answers in zip(folders, there["answers"], strict=True):
        tolerance = 1e-5 if precision == "float32" else 2e-3
        here = own["ask"](folders[precision], asked[precision])
        assert set(here) == set(answers) == SIGNATURES
        for signature, outputs in here.items():
            assert set(outputs) == set(answers[signature])
            for name, values in outputs.items():
                found = answers[signature][name]
                if name in ("starts", "ends"):  # of n-grams that are as good as one another either may come first
                    assert np.shape(found) == np.shape(values)
                elif isinstance(np.ravel(values)[0], float):
                    np.testing.assert_allclose(found, values, rtol=0, atol=tolerance, err_msg=f"{signature} {name}")
                else:
                    assert found == values, (signature, name)
