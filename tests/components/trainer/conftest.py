"""Small data, transformed by the real Transform function, in the layout that TFX's Trainer is given."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from components import progress
from components.config import EncoderConfig, ExportConfig, HeadConfig, TrainingConfig

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{letter}" for letter in "abcdefgh"), "."]
LABELS = ["LOW", "MIDDLE", "HIGH"]


def rows_of(count: int, task: str, pairs: bool, shift: int = 0) -> list[dict]:
    """Texts whose letters tell their label, lengths from the empty text upwards."""
    rows = []
    for n in range(shift, shift + count):
        label = n % (2 if task == "binary" else 3)
        row = {"text": [" ".join("abc"[label] + "defgh"[n % 5] for _ in range(n % 11)).encode()]}
        if pairs:
            row["text_pair"] = [("abc"[label] + " h" * (n % 7)).encode()]
        if task == "multilabel":
            row["labels"] = [name.encode() for k, name in enumerate(LABELS) if k == label or (n % 4 == 0 and k == 2)]
        else:
            row["label"] = [LABELS[label].encode()]
        rows.append(row)
    return rows


@pytest.fixture(scope="session")
def eval_rows():
    """A function (task, pairs) -> the raw rows of the split `eval`."""
    return lambda task="multiclass", pairs=False: rows_of(45, task, pairs, shift=1000)


@pytest.fixture(scope="session")
def transformed(tmp_path_factory):
    """A function (task, pairs) -> FnArgs without its outputs, made once a session."""
    import apache_beam as beam
    import tensorflow as tf
    import tensorflow_transform as tft
    import tensorflow_transform.beam as tft_beam
    from tensorflow_transform.tf_metadata import dataset_metadata, metadata_io, schema_utils

    from components.transform.preprocessing import preprocessing_fn

    made = {}

    def make(task: str = "multiclass", pairs: bool = False) -> SimpleNamespace:
        if (task, pairs) in made:
            return made[task, pairs]
        folder = tmp_path_factory.mktemp(f"transformed-{task}-{pairs}")
        (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
        (folder / "config.json").write_text(
            '{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, '
            '"max_position_embeddings": 16, "vocab_size": 99}'
        )
        labels = LABELS[:2] if task == "binary" else LABELS
        custom = {
            "vocab_file": str(folder / "vocab.txt"),
            "lower_case": False,
            "max_length": 16,
            "overlap": None,
            "pairs": pairs,
            "task": task,
            "labels": labels,
        }
        one = tf.io.FixedLenFeature([1], tf.string)
        spec = {"text": one, "text_pair": one} if pairs else {"text": one}
        spec |= {"labels": tf.io.VarLenFeature(tf.string)} if task == "multilabel" else {"label": one}
        metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))

        def preprocess(inputs):
            return preprocessing_fn(inputs, custom | {"passthrough": []})

        # Beam only makes the graph, which learns nothing from the rows; transforming them by it takes Beam seconds.
        with beam.Pipeline(runner="FnApiRunner") as pipeline, tft_beam.Context(temp_dir=str(folder / "tmp")):
            some = pipeline | beam.Create(rows_of(3, task, pairs)), metadata
            some | tft_beam.AnalyzeDataset(preprocess) | tft_beam.WriteTransformFn(str(folder))
        graph = tft.TFTransformOutput(str(folder))
        raw, coder = (tft.coders.ExampleProtoCoder(m.schema) for m in (metadata, graph.transformed_metadata))
        for name, rows, shards in (
            ("train", rows_of(90, task, pairs), 3),
            ("eval", rows_of(45, task, pairs, shift=1000), 1),
        ):
            given = tf.io.parse_example([raw.encode(row) for row in rows], spec)
            found = {
                name: (tf.RaggedTensor.from_sparse(v) if isinstance(v, tf.SparseTensor) else v).numpy()
                for name, v in graph.transform_raw_features(given).items()
            }
            records = [coder.encode({name: values[n] for name, values in found.items()}) for n in range(len(rows))]
            (folder / f"Split-{name}").mkdir()
            for shard in range(shards):
                path = str(folder / f"Split-{name}" / f"examples-{shard:05d}-of-{shards:05d}.gz")
                with tf.io.TFRecordWriter(path, "GZIP") as writer:
                    for record in records[shard::shards]:
                        writer.write(record)
        metadata_io.write_metadata(metadata, str(folder / "metadata"))
        made[task, pairs] = SimpleNamespace(
            train_files=[str(folder / "Split-train" / "*")],
            eval_files=[str(folder / "Split-eval" / "*")],
            transform_output=str(folder),
            custom_config=custom | {"encoder_config_file": str(folder / "config.json")},
        )
        return made[task, pairs]

    return make


@pytest.fixture(scope="session")
def make_fn_args(transformed):
    """A function that gives complete FnArgs; keyword arguments are sections of the configuration."""

    def make(folder, task="multiclass", pairs=False, encoder=None, head=None, training=None, export=None):
        base = transformed(task, pairs)
        settings = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "checkpoint_steps": 2, "buckets": (8, 16)}
        sections = {
            "encoder": EncoderConfig(**(encoder or {})),
            "head": HeadConfig(**({"widths": (1, 2), "filters": (4,), "dropout": 0.2} | (head or {}))),
            "training": TrainingConfig(**(settings | (training or {}))),
        }
        custom = {name: section.model_dump(mode="json") for name, section in sections.items()}
        if export:
            custom["export"] = ExportConfig(**export).model_dump(mode="json")
        return SimpleNamespace(
            train_files=base.train_files,
            eval_files=base.eval_files,
            transform_output=base.transform_output,
            serving_model_dir=str(folder / "export"),
            model_run_dir=str(folder / "run"),
            base_model=None,
            custom_config=base.custom_config | custom | {"checkpoint_dir": str(folder / "checkpoints")},
        )

    return make


def save_weights(path, model, *_):
    """In the place of `export`: the variables as it writes them, and no signature, which take seconds to trace."""
    import tensorflow as tf

    module = tf.Module()
    module.weights = model.variables
    tf.saved_model.save(module, path)


@pytest.fixture
def weights_alone(monkeypatch):
    """Runs export their weights and nothing else: for what looks at no answer of the export."""
    monkeypatch.setattr("components.trainer.run_fn.export", save_weights)


@pytest.fixture(scope="module")
def trainings():
    """What `trained_once` keeps, by the configuration."""
    return {}


@pytest.fixture
def trained_once(monkeypatch, trainings):
    """Runs of one configuration but for `export`, which training does not look at, share one training."""
    from components.trainer import fit

    def once(config, *rest):
        key = json.dumps({name: value for name, value in config.items() if name not in ("export", "checkpoint_dir")})
        if key not in trainings:
            trainings[key] = fit.fit(config, *rest)
        return trainings[key]

    monkeypatch.setattr("components.trainer.run_fn.fit", once)


@pytest.fixture
def fn_args(make_fn_args, tmp_path):
    """`make_fn_args`, writing into the test's own folder."""

    def make(task="multiclass", pairs=False, folder=tmp_path, **sections):
        return make_fn_args(folder, task, pairs, **sections)

    return make


@pytest.fixture
def resumed(tiny_loop, tmp_path):
    """A function of a loop's settings: the loop, run to its end from the checkpoint there, and its first step."""

    def run(**options):
        again = tiny_loop(tmp_path, **options)
        steps = []
        with progress.listening(lambda _, report: steps.append(report["step"])):
            again.run()
        return again, min(steps)

    return run


class Cut(Exception):
    """In the place of a kill: nothing after the reported step is done."""


@pytest.fixture(scope="session")
def tiny_loop():
    """A function (folder, ...) that gives a Loop of a two-layer encoder on 40 made-up texts, 5 steps an epoch; further
    keyword arguments are of the training.

    Loops of the same folder share their checkpoints; every one starts from the same random weights.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    from components.classifier.model import build_classifier
    from components.encoder.config import BertGeometry
    from components.trainer.batches import Examples
    from components.trainer.loop import Loop

    def examples(count: int, seed: int) -> Examples:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(2, 13, count).astype(np.int32)
        labels = rng.integers(0, 3, count).astype(np.int32)
        # the first token tells the label
        ids = np.concatenate([[label, *rng.integers(3, 20, n - 1)] for n, label in zip(lengths, labels, strict=True)])
        return Examples(ids.astype(np.int32), None, lengths, labels, np.arange(count))

    def make(folder: Path, policy="float32", dropout=0.2, head=None, layers=2, prepare=None, **training):
        settings = {"batch_size": 8, "learning_rate": 0.01, "checkpoint_steps": 2, "buckets": (6, 12)}
        geometry = BertGeometry(
            vocab_size=20, hidden_size=8, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=12,
            max_position_embeddings=16, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )  # fmt: skip
        keras.utils.set_random_seed(1)
        config = HeadConfig(**({"widths": (2,), "filters": (4,), "dropout": dropout} | (head or {})))
        model = build_classifier(geometry, config, "multiclass", 3, 1, 16, policy)
        if prepare is not None:
            prepare(model)
        return Loop(
            model, examples(40, 0), examples(20, 1), "multiclass", TrainingConfig(**(settings | training)), None,
            tf.distribute.get_strategy(), str(folder / "checkpoint"), str(folder / "logs"),
        )  # fmt: skip

    return make


@pytest.fixture
def every_step(monkeypatch):
    """Every step is reported."""
    from components.trainer import loop

    monkeypatch.setattr(loop, "_REPORT_SECONDS", 0.0)


@pytest.fixture
def cut_at(every_step):
    """A function that runs a loop until it reports so many steps."""

    def run(loop, step: int) -> None:
        def stop(_, values):
            if values["step"] >= step:
                raise Cut

        with pytest.raises(Cut), progress.listening(stop):
            loop.run()

    return run
