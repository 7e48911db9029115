"""Exports a BioBERT-CNN with random weights by this project's own code, without a training run.

    python tests/serving/exported_model.py FOLDER [--geometry=default|bert_base|tiny] [--pairs]

The text goes the product's way: its Transform function over the shipped vocabulary, its encoder and head, its export.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ROOT = Path(__file__).resolve().parents[2]

LABELS = ["BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS"]
MAX_LENGTH = 128
# What pipeline/configs/default.toml trains, but for the filters; the geometry of BioBERT; one that tests can afford.
GEOMETRIES: dict[str, dict[str, int]] = {
    "default": {"hidden_size": 128, "num_hidden_layers": 0, "num_attention_heads": 2, "intermediate_size": 256},
    "bert_base": {},
    "tiny": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
}


def export_random_model(path: Path, geometry: str = "default", pairs: bool = False) -> Path:
    """Writes a SavedModel with the head `multi_width` (widths 2 to 5, 160 filters; tiny: 8) to `path`."""
    import apache_beam as beam
    import keras
    import tensorflow as tf
    import tensorflow_transform as tft
    import tensorflow_transform.beam as tft_beam
    from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

    from components.classifier.model import build_classifier
    from components.config import EncoderConfig, HeadConfig
    from components.encoder.config import read_geometry
    from components.export.classifier import served
    from components.trainer.export import TransformGraph, export
    from components.transform.preprocessing import preprocessing_fn
    from components.transform.vocab_file import read_tokens

    data = ROOT / "pipeline" / "data" / "biobert"
    vocab = data / "vocab.txt"
    one = tf.io.FixedLenFeature([1], tf.string)
    spec = {"text": one, "label": one} | ({"text_pair": one} if pairs else {})
    custom = {
        "vocab_file": str(vocab), "lower_case": False, "max_length": MAX_LENGTH, "pairs": pairs,
        "task": "multiclass", "labels": LABELS, "passthrough": [],
    }  # fmt: skip
    row = {"text": [b"Aspirin reduced mortality."], "label": [LABELS[0].encode()]}
    row |= {"text_pair": [b"Mortality fell."]} if pairs else {}
    with tempfile.TemporaryDirectory() as folder:
        metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))
        with beam.Pipeline(runner="FnApiRunner") as pipeline, tft_beam.Context(temp_dir=folder):
            rows = pipeline | beam.Create([row])
            _, graph = (rows, metadata) | tft_beam.AnalyzeAndTransformDataset(lambda i: preprocessing_fn(i, custom))
            graph | tft_beam.WriteTransformFn(folder)
        keras.utils.set_random_seed(1)
        tokens = read_tokens(vocab)
        overrides = EncoderConfig(**GEOMETRIES[geometry])
        head = HeadConfig(filters=(8 if geometry == "tiny" else 160,))
        model = build_classifier(
            read_geometry(data / "config.json", overrides, len(tokens)), head, "multiclass", len(LABELS), 1 + pairs,
            MAX_LENGTH,
        )  # fmt: skip
        transform = tft.TFTransformOutput(folder).transform_savedmodel_dir
        export(str(path), served(model)[0], TransformGraph(transform), spec, "multiclass", LABELS, pairs, tokens)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), default="default")
    parser.add_argument("--pairs", action="store_true")
    args = parser.parse_args()
    logging.getLogger("absl").setLevel("ERROR")
    export_random_model(args.folder, args.geometry, args.pairs)
    sys.stdout.flush()
    os._exit(0)  # all is written; Beam and TensorFlow, taken down together at exit, end in a segmentation fault


if __name__ == "__main__":
    main()
