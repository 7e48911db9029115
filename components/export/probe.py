"""`python probe.py MODEL TEXTS`: an exported model's answers, in a process that may die of them.

MODEL is a SavedModel, TEXTS a JSON file: input of `serving_default` to a list of texts in hexadecimal. The last line
of the output is JSON: `probabilities`, and `version` of TensorFlow. It imports TensorFlow and TF Text alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(model: str, texts: str) -> None:
    """Prints the answers, all texts in one batch."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  (registers the tokeniser's ops)

    columns = json.loads(Path(texts).read_text(encoding="ascii"))
    serve = tf.saved_model.load(model).signatures["serving_default"]
    inputs = {
        name: tf.constant([bytes.fromhex(text) for text in values], tf.string) for name, values in columns.items()
    }
    answer = serve(**inputs)["probabilities"].numpy()
    print(json.dumps({"version": tf.__version__, "probabilities": answer.tolist()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
