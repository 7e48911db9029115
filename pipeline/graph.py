"""The pipeline's graph: wiring only, in the order in which the data flows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_metadata.proto import metadata_store_pb2
from tfx.components import ExampleValidator, Trainer, Transform, Tuner
from tfx.dsl.components.common import resolver
from tfx.orchestration import pipeline
from tfx.proto import range_config_pb2, trainer_pb2, transform_pb2
from tfx.types import Channel, channel, standard_artifacts

from components.encoder.component import PretrainedWeights
from components.evaluation.component import TextEvaluator
from components.examples.component import TextExampleGen
from components.examples.merge import Roles
from components.examples.window import SpanWindow
from components.push.component import Push
from components.push.live_model import LiveModelStrategy
from components.schema.component import TextSchemaGen
from components.serving_check.component import ServingCheck
from components.statistics.component import TextStatisticsGen
from components.trainer.component import PretrainedTrainer, PretrainedTuner
from components.validation.component import DataGate
from components.validation.previous import PreviousSchemaStrategy, PreviousStatisticsStrategy
from pipeline import spans
from pipeline.beam import beam_arguments
from pipeline.config import Config
from pipeline.fingerprint import FileHashes, code_fingerprint, file_hash, input_files, serving_logs, weight_files
from pipeline.retraining.housekeeping import ARTIFACTS

# Generated code: mypy sees no messages in it.
_range: Any = range_config_pb2
_trainer: Any = trainer_pb2
_transform: Any = transform_pb2


def create_pipeline(config: Config, facts: dict[str, Any], attempt: int = 0):
    """The TFX pipeline of a configuration.

    Args:
      config: validated.
      facts: what the pushed version's lineage says of this run beside the artifacts (fingerprint, code revision).
      attempt: how often a serving check refused so far; the check after a refusal is made anew.
    """
    task, labels, data = config.task, list(config.labels), config.data
    slices = list(data.columns.slices)
    vocab, lower_case = str(config.vocab_file), config.tokenizer.lower_case
    splits = list(data.split_names)

    ingest, examples = _ingest(config)

    statistics = TextStatisticsGen(
        examples=examples.outputs["examples"],
        vocab_file=vocab,
        lower_case=lower_case,
        pairs=config.data.columns.text_pair is not None,
        code=code_fingerprint("components/statistics", "components/transform") + file_hash(config.vocab_file),
    ).with_id("statistics")

    previous_schema = resolver.Resolver(
        strategy_class=PreviousSchemaStrategy,
        current=statistics.outputs["statistics"],
        schema=Channel(type=standard_artifacts.Schema, producer_component_id="schema", output_key="schema"),
    ).with_id("previous_schema")

    schema = TextSchemaGen(
        statistics=statistics.outputs["statistics"],
        previous_schema=previous_schema.outputs["schema"],
        task=task,
        labels=labels,
        has_pairs=data.has_pairs,
        has_id=data.has_id,
        slices=slices,
        curated=config.validation.schema_file,
        curated_hash=file_hash(config.validation.schema_file) if config.validation.schema_file else "",
        code=code_fingerprint("components/schema"),
    ).with_id("schema")

    anomalies = ExampleValidator(statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"]).with_id(
        "anomalies"
    )

    previous = resolver.Resolver(
        strategy_class=PreviousStatisticsStrategy,
        current=statistics.outputs["statistics"],
        statistics=Channel(type=standard_artifacts.ExampleStatistics, producer_component_id="statistics"),
    ).with_id("previous_statistics")

    gate = DataGate(
        statistics=statistics.outputs["statistics"],
        schema=schema.outputs["schema"],
        anomalies=anomalies.outputs["anomalies"],
        previous_statistics=previous.outputs["statistics"],
        validation=config.validation,
        task=task,
        labels=labels,
        vocab_file=vocab,
        lower_case=lower_case,
        logs_fingerprint=_logs_fingerprint(config),
        code=code_fingerprint("components/validation"),
    ).with_id("data_gate")

    transform = Transform(
        examples=examples.outputs["examples"],
        schema=schema.outputs["example_schema"],
        preprocessing_fn="components.transform.preprocessing.preprocessing_fn",
        splits_config=_transform.SplitsConfig(analyze=["train"], transform=splits),
        # Its statistics would list texts; ours (step 2) do not.
        disable_statistics=True,
        custom_config={
            "vocab_file": vocab,
            "vocab_hash": file_hash(config.vocab_file),
            "lower_case": lower_case,
            "max_length": config.tokenizer.longest_text,
            "pairs": data.has_pairs,
            "neighbours": bool(data.neighbours),
            "task": task,
            "labels": labels,
            "passthrough": [],
            "code": code_fingerprint("components/transform"),
        },
    ).with_id("transform")
    transform.add_upstream_node(gate)

    live = resolver.Resolver(
        strategy_class=LiveModelStrategy,
        config={"serving_dir": str(config.serving_dir)},
        model=Channel(type=standard_artifacts.Model, producer_component_id="trainer"),
        pushed_model=Channel(type=standard_artifacts.PushedModel, producer_component_id="push"),
    ).with_id("live_model")

    training: dict[str, Any] = {
        "run_fn": "components.trainer.run_fn.run_fn",
        "examples": transform.outputs["transformed_examples"],
        "transform_graph": transform.outputs["transform_graph"],
        "base_model": live.outputs["model"] if config.window.warm_start else None,
        "train_args": _trainer.TrainArgs(splits=["train"]),
        "eval_args": _trainer.EvalArgs(splits=["eval"]),
        "custom_config": {
            "task": task,
            "labels": labels,
            "pairs": data.has_pairs,
            "neighbours": bool(data.neighbours),
            "vocab_file": vocab,
            "lower_case": lower_case,
            "max_length": config.tokenizer.max_length,
            "overlap": config.tokenizer.window_overlap,
            "encoder_config_file": str(config.encoder_config_file),
            "encoder": config.encoder.model_dump(mode="json"),
            "head": config.head.model_dump(mode="json"),
            "training": config.training.model_dump(mode="json"),
            **_export_settings(config),
            # The files themselves, not only their names: TFX's cache must see an edited one.
            "file_hashes": _encoder_hashes(config),
            "checkpoint_dir": str(config.root / "checkpoints"),
            "code": code_fingerprint(
                "components/encoder",
                "components/classifier",
                "components/export",
                "components/trainer",
                "components/evaluation/scores.py",
            ),
        },
    }
    weights = _pretrained_weights(config)
    tuner = _tuner(config, training, weights)
    if tuner is not None:
        training["hyperparameters"] = tuner.outputs["best_hyperparameters"]
    if weights is None:
        trainer = Trainer(**training).with_id("trainer")
    else:
        trainer = PretrainedTrainer(encoder_weights=weights.outputs["weights"], **training).with_id("trainer")

    evaluator = TextEvaluator(
        examples=examples.outputs["examples"],
        model=trainer.outputs["model"],
        baseline_model=live.outputs["model"],
        serving_dir=str(config.serving_dir),
        task=task,
        labels=labels,
        evaluation=config.evaluation,
        export=config.export,
        slices=slices,
        pairs=data.has_pairs,
        guard=config.window.warm_start and config.window.guard,
        neighbours=bool(data.neighbours),
        code=code_fingerprint("components/evaluation"),
    ).with_id("evaluator")

    check = ServingCheck(
        model=trainer.outputs["model"],
        model_run=trainer.outputs["model_run"],
        examples=examples.outputs["examples"],
        model_blessing=evaluator.outputs["blessing"],
        serving=config.serving,
        attempt=attempt,
        code=code_fingerprint("components/serving_check", "serving"),
    ).with_id("serving_check")

    push = Push(
        model=trainer.outputs["model"],
        model_run=trainer.outputs["model_run"],
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=check.outputs["blessing"],
        evaluation=evaluator.outputs["evaluation"],
        examples=examples.outputs["examples"],
        serving_dir=str(config.serving_dir),
        keep_versions=config.serving.keep_versions,
        facts=facts,
    ).with_id("push")

    return pipeline.Pipeline(
        pipeline_name=config.name,
        pipeline_root=str(config.root / ARTIFACTS),
        components=[
            *([weights] if weights else []),
            *ingest,
            statistics,
            previous_schema,
            schema,
            anomalies,
            previous,
            gate,
            transform,
            live,
            *([tuner] if tuner else []),
            trainer,
            evaluator,
            check,
            push,
        ],
        enable_cache=True,
        metadata_connection_config=_metadata_connection(config.root),
        beam_pipeline_args=[*beam_arguments(config.beam, _data_files(config))],
    )


def _metadata_connection(root: Path) -> Any:
    """ML Metadata in the root; unlike TFX's own helper it makes no folder, for a graph is also compiled elsewhere."""
    protocol: Any = metadata_store_pb2  # generated code
    connection = protocol.ConnectionConfig()
    connection.sqlite.filename_uri = str(root / "metadata.sqlite")
    connection.sqlite.connection_mode = protocol.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
    return connection


def _ingest(config: Config) -> tuple[list[Any], Any]:
    """The nodes of the ingest, and the one of them that gives the run's Examples: `examples`.

    One node for data without spans and for a window of one span; else one for each span of the window, named by the
    span's number so that TFX's cache knows it again when the window has moved on, and one that puts them together.
    """
    data, window = config.data, config.window
    if window.last != 1:  # rows are dropped once, where all spans are seen
        data = data.model_copy(update={"drop_leaked": False})
    members = spans.spans_of_run(data, window)

    def node(span: int, name: str) -> Any:
        static = None
        if spans.has_spans(data):
            static = _range.RangeConfig(static_range=_range.StaticRange(start_span_number=span, end_span_number=span))
        return TextExampleGen(
            input_base=str(data.input),
            data=data,
            task=config.task,
            labels=list(config.labels),
            label_column=config.label_column,
            range_config=static,
        ).with_id(name)

    if window.last == 1:
        examples = node(members[-1], "examples")
        return [examples], examples
    ingest = [node(span, f"examples_{span}") for span in members]
    window_examples = SpanWindow(
        channel.union([item.outputs["examples"] for item in ingest]),
        roles=Roles(config.evaluation.split, window.evaluate_newest, window.guard, window.learn_last),
        drop_leaked=config.data.drop_leaked,
        pairs=data.columns.text_pair is not None,
        code=code_fingerprint("components/examples"),
    ).with_id("examples")
    return [*ingest, window_examples], window_examples


def _export_settings(config: Config) -> dict[str, Any]:
    """What the trainer must know to export a low precision; the gates' bounds do not train a model anew."""
    if config.export.precision == "float32":
        return {}
    return {"export": config.export.model_dump(mode="json", include={"precision", "calibration_texts", "tolerance"})}


def _pretrained_weights(config: Config) -> PretrainedWeights | None:
    """The node that converts `encoder.weights`; None for random weights."""
    if config.encoder.weights is None:
        return None
    return PretrainedWeights(
        encoder=config.encoder,
        encoder_config_file=str(config.encoder_config_file),
        vocab_file=str(config.vocab_file),
        lower_case=config.tokenizer.lower_case,
        file_hashes=_encoder_hashes(config),
        code=code_fingerprint("components/encoder"),
    ).with_id("weights")


def _tuner(config: Config, training: dict[str, Any], weights: PretrainedWeights | None) -> Any | None:
    """The node of the search, which trains as the trainer does; None where there is none."""
    if config.tuner is None:
        return None
    settings = {k: v for k, v in training["custom_config"].items() if k not in ("export", "checkpoint_dir")}
    tuning: dict[str, Any] = {
        "tuner_fn": "components.tuner.tuner_fn.tuner_fn",
        **{key: training[key] for key in ("examples", "transform_graph", "train_args", "eval_args")},
        "custom_config": {
            **settings,
            "tuner": config.tuner.model_dump(mode="json"),
            "tuner_dir": str(config.root / "tuner"),
            "code": settings["code"] + code_fingerprint("components/tuner"),
        },
    }
    if weights is None:
        return Tuner(**tuning).with_id("tuner")
    return PretrainedTuner(encoder_weights=weights.outputs["weights"], **tuning).with_id("tuner")


def _data_files(config: Config) -> list[Path]:
    """The data that a run reads."""
    return [file for file in input_files(config) if file.is_relative_to(config.data.input)]


def _encoder_hashes(config: Config) -> list[str]:
    hashes = FileHashes(config.root / "file_hashes.json")
    return [hashes.of(file) for file in [config.vocab_file, config.encoder_config_file, *weight_files(config)]]


def _logs_fingerprint(config: Config) -> str:
    hashes = FileHashes(config.root / "file_hashes.json")
    return ",".join(map(hashes.of, serving_logs(config)))
