"""What `TextEvaluator` runs: score, compare, check the gates, bless.

raw examples ─ extract ─ TFMA (Beam) ─┬─ metrics by slice ──┬─ metrics.json
                                      └─ predictions ───────┤
raw examples ─ TF-IDF + SVM ──────────── paired bootstrap ──┴─ gates.json ─ blessing
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import tensorflow as tf
import tensorflow_model_analysis as tfma
from absl import logging
from tensorflow_model_analysis.proto import config_pb2
from tfx.components.evaluator import constants
from tfx.components.evaluator import executor as tfx_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.types import standard_component_specs as specs
from tfx.utils import io_utils, path_utils

from components import progress
from components.config import EvaluationConfig, ExportConfig, Task
from components.errors import DataError, ServingError
from components.evaluation import extract, gates, precision, report
from components.evaluation.baseline import BaselineResult, score_baseline
from components.evaluation.documents import read_documents
from components.evaluation.eval_config import OLD, SPAN_SLICE, make_eval_config
from components.evaluation.rows import read_records
from components.evaluation.scores import Array
from components.examples.merge import span_of
from components.export.paths import float32_dir
from components.push import base_path

CUSTOM_CONFIG = "custom_config"
METRICS_FILE = "metrics.json"
GATES_FILE = "gates.json"
# What the baseline learns from when a split is evaluated: all that comes before it.
_TRAIN_SPLITS = {"test": ("train", "eval"), "eval": ("train",)}


@dataclass(frozen=True)
class _Blessed:
    """The latest blessed model, or why there is none to compare with."""

    path: str | None = None
    note: str = "there is no blessed model to compare with yet"
    problem: str | None = None


class Executor(tfx_executor.Executor):
    """TFX's Evaluator executor, with the project's extractor, metrics, baseline and gates."""

    def Do(
        self,
        input_dict: dict[str, list[Any]],
        output_dict: dict[str, list[Any]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Evaluates the model and writes `metrics.json`, `gates.json`, TFMA's results and the blessing.

        Raises:
          DataError: if the split to evaluate is missing or empty.
          ServingError: if the exported model does not answer as the contract of its signatures says.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        config = json.loads(exec_properties[CUSTOM_CONFIG])
        evaluation = EvaluationConfig.model_validate(config["evaluation"])
        task, labels = config["task"], tuple(config["labels"])
        examples = input_dict[specs.EXAMPLES_KEY]
        model = artifact_utils.get_single_instance(input_dict[specs.MODEL_KEY])
        blessed_models = input_dict.get(specs.BASELINE_MODEL_KEY) or []
        path = artifact_utils.get_single_uri(output_dict[specs.EVALUATION_KEY])
        files = _split_files(examples, evaluation.split)
        first = next(read_records(files), None)
        if first is None:
            raise DataError(f"the split {evaluation.split!r} is empty: there is nothing to evaluate on")

        newest = max((span for span in map(span_of, files) if span is not None), default=None)
        spans = [] if newest is None else [SPAN_SLICE]
        base = make_eval_config(evaluation, task, labels, (*config["slices"], *spans))
        scoring = _scoring(base, evaluation, task, labels, config["slices"], newest)
        blessed = _find_blessed(blessed_models, config.get("serving_dir"), scoring, first)
        eval_config = tfma.utils.update_eval_config_with_defaults(base, has_baseline=blessed.path is not None)
        export = ExportConfig.model_validate(config["export"]) if "export" in config else None
        if export is not None:
            eval_config = precision.with_float32(eval_config)
        scoring = _scoring(eval_config, evaluation, task, labels, config["slices"], newest)
        served = _model_path(model)
        paths = {spec.name: str(blessed.path) if spec.is_baseline else served for spec in eval_config.model_specs} | (
            {precision.FLOAT32: float32_dir(served)} if export is not None else {}
        )
        progress.report("evaluate", stage="score")
        started = time.monotonic()
        self._analyse(files, paths, eval_config, scoring, path)
        scored = time.monotonic()
        baseline = None
        if evaluation.baseline:
            progress.report("evaluate", stage="baseline")
            train = [f for split in _TRAIN_SPLITS[evaluation.split] for f in _split_files(examples, split)]
            baseline = score_baseline(train, files, task, labels, config["pairs"], config["neighbours"])
        fitted = time.monotonic()
        progress.report("evaluate", stage="intervals")
        documents = read_documents(files) if scoring.multilabel else None
        guard = config.get("guard", False)
        metrics, bounds = _judge(path, scoring, evaluation, baseline, blessed, export, guard, documents)
        logging.info(
            "Evaluated %d rows: TFMA %.1f s, baseline %.1f s, bootstrap and gates %.1f s.",
            metrics["examples"],
            scored - started,
            fitted - scored,
            time.monotonic() - fitted,
        )
        _bless(output_dict, exec_properties, model, blessed_models, bounds)

    def _analyse(
        self,
        files: Sequence[str],
        paths: dict[str, str],
        eval_config: Any,
        scoring: extract.Scoring,
        path: str,
    ) -> None:
        """Runs TFMA on Beam; the results and the table of predictions go to `path`."""
        shared = [
            tfma.default_eval_shared_model(eval_saved_model_path=model_path, model_name=name, eval_config=eval_config)
            for name, model_path in paths.items()
        ]
        models = shared[0] if len(shared) == 1 else shared
        tabulate, write = extract.prediction_table(scoring, path)
        with self._make_beam_pipeline() as pipeline:
            _ = (
                pipeline
                | "Files" >> beam.Create(sorted(files))
                | "Read" >> beam.io.ReadAllFromTFRecord(with_filename=True)
                | "Batches" >> extract.ToBatches()
                | "AnalyseAndWrite"
                >> tfma.ExtractEvaluateAndWriteResults(
                    eval_config=eval_config,
                    eval_shared_model=models,
                    output_path=path,
                    extractors=[
                        extract.text_extractor(scoring, shared),
                        tfma.extractors.SliceKeyExtractor(eval_config=eval_config, materialize=False),
                    ],
                    evaluators=[
                        *tfma.default_evaluators(eval_config=eval_config, eval_shared_model=models),
                        tabulate,
                    ],
                    writers=[
                        *tfma.default_writers(output_path=path, eval_config=eval_config, eval_shared_model=models),
                        write,
                    ],
                )
            )


def _scoring(
    eval_config: Any, evaluation: EvaluationConfig, task: Task, labels: tuple[str, ...], slices: Sequence[str],
    newest: int | None,
) -> extract.Scoring:  # fmt: skip
    model_specs = {spec.name: spec for spec in eval_config.model_specs}
    return extract.Scoring(task, labels, tuple(slices), evaluation.length_bounds, model_specs, newest)


def _split_files(examples: list[Any], split: str) -> list[str]:
    try:
        uris = artifact_utils.get_split_uris(examples, split)
    except ValueError:
        raise DataError(f"the examples have no split {split!r}; data.splits says which there are") from None
    return sorted(str(file) for uri in uris for file in fileio.glob(io_utils.all_files_pattern(uri)))


def _model_path(model: Any) -> str:
    return path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model))


def _find_blessed(models: list[Any], serving_dir: str | None, scoring: extract.Scoring, record: bytes) -> _Blessed:
    """Looks for a blessed model that can be compared with, and asks it one example.

    Args:
      models: the artifact that the live version was published from, or none.
      serving_dir: where that version is, should its artifact be gone or be another root's.
    """
    if models:
        path = _model_path(artifact_utils.get_single_instance(models))
    else:
        live = base_path.live(Path(serving_dir)) if serving_dir else None
        if live is None or base_path.read_lineage(live[1]) is None:
            return _Blessed()
        path = str(live[1])
    try:
        model = tf.saved_model.load(path)
    except (OSError, ValueError, tf.errors.OpError):  # the message says no more than that
        return _Blessed(problem=f"the latest blessed model cannot be loaded from {path}")
    ((name, candidate),) = scoring.specs.items()
    spec = config_pb2.ModelSpec(is_baseline=True)
    spec.MergeFrom(candidate)
    scoring = replace(scoring, specs={name: spec})
    try:
        if extract.class_names(model, scoring, name, record) != scoring.labels:
            return _Blessed(note="the latest blessed model has other labels, so there is nothing to compare with")
        extract.ask(model, scoring, name, [record])
    except ServingError as error:
        return _Blessed(problem=str(error))
    return _Blessed(path=path)


def _judge(
    path: str,
    scoring: extract.Scoring,
    evaluation: EvaluationConfig,
    baseline: BaselineResult | None,
    blessed: _Blessed,
    export: ExportConfig | None,
    guard: bool,
    documents: Array | None,
) -> tuple[dict[str, Any], list[gates.Bound]]:
    """Puts the figures together, checks the gates, on old spans too where they are guarded, writes both files."""
    candidate = next(name for name, spec in scoring.specs.items() if not spec.is_baseline)
    labels = scoring.labels
    figures = report.read_figures(tfma.load_eval_result(path, model_name=candidate), labels)
    predictions = report.read_predictions(path, candidate)
    metrics: dict[str, Any] = {"split": evaluation.split}
    metrics |= report.model_report(figures, predictions, scoring, evaluation.bootstrap_samples)
    metrics |= {"baseline": None, "baseline_per_label": None, "baseline_rows": None, "paired": None}
    metrics |= {"blessed": None, "blessed_per_label": None, "documents": None}
    if documents is not None:
        metrics["documents"] = report.document_report(documents, predictions, baseline, evaluation.bootstrap_samples)
    baselines: dict[str, gates.Figures] = {}
    blesseds: dict[str, gates.Figures] = {}
    guarded = _old_spans(figures, evaluation.min_span_rows) if guard else []
    if baseline is not None:
        members = predictions.members()
        baselines = {
            "": report.baseline_figures(baseline, labels),
            **{name: report.baseline_figures(baseline.part(members[name]), labels) for name in guarded},
        }
        metrics |= _plain("baseline", baselines[""])
        metrics["baseline_rows"] = {"train": baseline.train_rows, "used": baseline.used_rows}
        metrics["paired"] = report.paired_report(predictions, baseline, evaluation.paired_samples)
    if blessed.path is not None:
        result = report.read_figures(tfma.load_eval_result(path, model_name=tfma.BASELINE_KEY), labels)
        blesseds = {name: found for name, (_, found) in result.items()}
        metrics |= _plain("blessed", blesseds[""])
    bounds = []
    for name in ["", *guarded]:
        bounds += gates.check_gates(
            evaluation.gates,
            figures[name][1],
            baseline=baselines.get(name),
            blessed=blesseds.get(name),
            blessed_note=blessed.note,
            blessed_problem=blessed.problem,
            where=_where(name),
        )
    if export is not None:
        reference = report.read_figures(tfma.load_eval_result(path, model_name=precision.FLOAT32), labels)
        metrics |= _plain("float32", reference[""][1])
        other = report.read_predictions(path, precision.FLOAT32)
        bounds += precision.check_precision(export, figures, reference, predictions, other)
    verdict = {"blessed": gates.all_hold(bounds), "gates": [bound.to_json() for bound in bounds]}
    for name, content in ((METRICS_FILE, metrics), (GATES_FILE, verdict)):
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        io_utils.write_string_file(os.path.join(path, name), text + "\n")
    return metrics, bounds


def _old_spans(figures: Mapping[str, tuple[int, gates.Figures]], minimum: int) -> list[str]:
    """The slices of the old spans together, and of each of them that has so many rows."""
    numbers = sorted(int(name.partition("=")[2]) for name in figures if re.fullmatch(rf"{SPAN_SLICE}=\d+", name))
    each = [f"{SPAN_SLICE}={number}" for number in numbers[:-1]]
    together = f"{SPAN_SLICE}={OLD}"
    return [name for name in [together, *each] if name in figures and (name == together or figures[name][0] >= minimum)]


def _where(name: str) -> str:
    """A slice of old spans in words; "" for all rows."""
    number = name.partition("=")[2]
    return "" if not name else "the old spans" if number == OLD else f"span {number}"


def _plain(name: str, figures: gates.Figures) -> dict[str, Any]:
    """Another model's figures as JSON values."""
    return {
        name: {metric: report.number(value) for metric, value in figures.overall.items()},
        f"{name}_per_label": {
            label: {measure: report.number(value) for measure, value in values.items()}
            for label, values in figures.by_label.items()
        },
    }


def _bless(
    output_dict: dict[str, list[Any]],
    exec_properties: dict[str, Any],
    model: Any,
    blessed_models: list[Any],
    bounds: Sequence[gates.Bound],
) -> None:
    """Writes the blessing as TFX's Evaluator does, and which gates failed into its custom properties."""
    blessing = artifact_utils.get_single_instance(output_dict[specs.BLESSING_KEY])
    blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY, model.uri)
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY, model.id)
    if blessed_models:
        before = blessed_models[0]
        blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY, before.uri)
        blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_ID_KEY, before.id)
    if "current_component_id" in exec_properties:
        blessing.set_string_custom_property("component_id", exec_properties["current_component_id"])
    holds = gates.all_hold(bounds)
    failed = "; ".join(bound.message for bound in bounds if not bound.passed)
    message = "every gate holds" if holds else failed
    blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_BLESSING_MESSAGE_KEY, message)
    name = constants.BLESSED_FILE_NAME if holds else constants.NOT_BLESSED_FILE_NAME
    io_utils.write_string_file(os.path.join(blessing.uri, name), "")
    blessing.set_int_custom_property(
        constants.ARTIFACT_PROPERTY_BLESSED_KEY,
        constants.BLESSED_VALUE if holds else constants.NOT_BLESSED_VALUE,
    )
    logging.info("%s: %s", name, message)
