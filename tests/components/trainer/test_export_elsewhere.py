"""The exported model in a plain TensorFlow 2.20 process: that of TensorFlow Serving's newest release."""

import json
import os
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from components.trainer.run_fn import run_fn

PACKAGES = ("tensorflow==2.20.*", "tensorflow-text==2.20.1")

_SCRIPT = """
import json, sys
import tensorflow as tf, tensorflow_text
columns = json.load(open(sys.argv[2]))
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
inputs = {name: tf.constant([bytes.fromhex(text) for text in texts]) for name, texts in columns.items()}
answer = serve(**inputs)
foreign = [name for name in sys.modules if name.split(".")[0] in ("components", "tfx", "tensorflow_transform")]
print(json.dumps({"version": tf.__version__, "foreign": foreign,
                  "probabilities": answer["probabilities"].numpy().tolist(),
                  "label": [label.decode() for label in answer["label"].numpy()]}))
"""

HOSTILE = [
    b"a d b c", b"", b" ", b"a " * 500_000, b"x" * 1_000_000, b"\xff\xfe\xfa", b"a \xc3", b"\x00", b"\x1f\x7f",
    "\u200d\u00ad\ufeff".encode(), "\U0001f469\u200d\U0001f52c e\u0301".encode(), b"[CLS] [SEP] [PAD] ##a",
]  # fmt: skip


@pytest.mark.slow
def test_an_export_answers_the_same_in_plain_tensorflow_2_20(fn_args, tmp_path, make_environment):
    plain_python = make_environment(*PACKAGES)
    args = fn_args(pairs=True)
    run_fn(args)
    columns = {"text": HOSTILE, "text_pair": HOSTILE[::-1]}
    (tmp_path / "script.py").write_text(_SCRIPT)
    texts = {name: [text.hex() for text in values] for name, values in columns.items()}
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    # Nothing of this process's own: importing TensorFlow Transform alone sets TF_USE_LEGACY_KERAS.
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    command = [str(plain_python), str(tmp_path / "script.py"), args.serving_model_dir, str(tmp_path / "texts.json")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    there = json.loads(done.stdout.splitlines()[-1])
    assert there["version"].startswith("2.20.")
    assert there["foreign"] == []
    serve = tf.saved_model.load(args.serving_model_dir).signatures["serving_default"]
    here = serve(**{name: tf.constant(values) for name, values in columns.items()})
    np.testing.assert_allclose(there["probabilities"], here["probabilities"], rtol=0, atol=1e-5)
    assert there["label"] == [label.decode() for label in here["label"].numpy()]
