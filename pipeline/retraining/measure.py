"""Measures the live version against what has come since; runs in a process of its own, for it imports TensorFlow.

    python -m pipeline.retraining.measure CONFIG [--set KEY=VALUE …] --live VERSION --span N --digest HEX

Prints one JSON object, `{"measurements": […], "errors": {…}}`, of numbers and names, never a text:

- drift: the newest span against the data that the live version was trained on, by TFDV: the L-infinity norm of the
  labels' shares, and the Jensen-Shannon divergence of the texts' lengths in tokens;
- serving_drift: the sampled request log against that data, likewise (lengths alone: requests carry no label);
- score: the live version's metric on labels that it has not seen.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sqlite3
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.config import ValidationConfig
from components.errors import PipelineError
from components.push import base_path
from pipeline import spans
from pipeline.config import Config, load_config
from pipeline.environment import spare_the_collector
from pipeline.retraining import lineage, observe

if TYPE_CHECKING:
    from components.examples.rows import Row

_log = logging.getLogger(__name__)
Labels = Sequence[str]  # of one row
_CHUNK = 1024  # texts measured at once


def measure(config: Config, live: int, span: int, digest: str) -> dict[str, Any]:
    """All that `config.schedule` bounds; a rule that cannot be measured leaves the others as they are.

    Args:
      live: the live version.
      span: the newest whole span, 0 for data without spans; `digest` is of its files.

    Returns:
      `measurements`, and `errors`: why by rule that was not measured.
    """
    schedule = config.schedule
    _, facts = base_path.live_lineage(config.serving_dir)

    def measure_score() -> dict[str, float]:
        seen = span in lineage.spans_of(facts.get("data") or {})
        rows = sample(fresh_rows(config, span, seen), schedule.score_rows)
        return {schedule.score_metric: score(config, live, rows)}

    @cache
    def training() -> Any:
        return training_statistics(config, facts)

    def measure_drift() -> dict[str, float]:
        return drift(config, training(), labelled_rows(config, span, ("train", "all")))

    def measure_serving_drift() -> dict[str, float]:
        return serving_drift(config, training())

    found: list[dict[str, Any]] = []
    errors: dict[str, str] = {}
    rules = {"score": measure_score, "drift": measure_drift, "serving_drift": measure_serving_drift}
    for rule, values in rules.items():
        if rule not in schedule.bounds:
            continue
        try:
            evidence = observe.logs_digest(config) if rule == "serving_drift" else digest
            for what, value in values().items():
                found.append({"rule": rule, "live": live, "evidence": evidence, "value": value, "what": what})
        except PipelineError as error:
            errors[rule] = str(error)
        except Exception as error:  # where it broke, and not its words, which may quote a text
            _log.error("%s: %s\n%s", rule, type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
            errors[rule] = f"{type(error).__name__}; see the log of the measuring"
    return {"measurements": found, "errors": errors}


# === Rows ===


def labelled_rows(config: Config, span: int, splits: Sequence[str]) -> Iterator[Row]:
    """The good rows of a span's splits, in order."""
    from components.examples.files import InputFile, ItemReader, plan_file
    from components.examples.rows import BadRow
    from components.examples.spec import row_spec

    spec = row_spec(_ingest(config))
    _, by_split = spans.find_files(config.data)[span]
    for split in splits:
        for number, path in enumerate(sorted(by_split.get(split, []))):
            file = InputFile(number, split, str(path), path.relative_to(config.data.input).as_posix())
            for item in plan_file(file, spec).items:
                yield from (row for row in ItemReader(item, spec) if not isinstance(row, BadRow))


def fresh_rows(config: Config, span: int, seen: bool) -> Iterator[Row]:
    """The rows of a span that the live version has not learned from: all, or those of the split that is evaluated."""
    evaluated = config.evaluation.split
    if not seen:
        return labelled_rows(config, span, tuple(config.data.splits))
    if "all" not in config.data.splits:
        return labelled_rows(config, span, (evaluated,))
    from components.examples.ingest import split_of_row

    shares = _ingest(config)["hash_split"]
    return (row for row in labelled_rows(config, span, ("all",)) if split_of_row(row, shares) == evaluated)


def _ingest(config: Config) -> dict[str, Any]:
    """What ingest is told."""
    from components.examples.spec import executor_config

    return executor_config(config.data, config.task, config.labels, config.label_column)


def sample(rows: Iterable[Row], count: int) -> list[Row]:
    """At most `count` rows, each as likely as any other; the same ones each time."""
    dice = random.Random(0)
    kept: list[Row] = []
    for number, row in enumerate(rows):
        if number < count:
            kept.append(row)
        elif (place := dice.randrange(number + 1)) < count:
            kept[place] = row
    return kept


# === Score ===


def score(config: Config, live: int, rows: list[Row]) -> float:
    """The metric `schedule.score_metric` of a version on labelled rows.

    Raises:
      PipelineError: there are no rows.
    """
    from pipeline.predict import Predictor
    from pipeline.versions import find_version

    if not rows:
        raise PipelineError("schedule.min_score: the newest span has no good row to score on")
    model = Predictor(find_version(config.serving_dir, live).path)
    pairs = [row.text_pair or b"" for row in rows] if model.pairs else None
    _, predicted = model.probabilities([row.text for row in rows], pairs)
    truth = [tuple(label.decode() for label in row.labels) for row in rows]
    return metric(config.schedule.score_metric, config.labels, truth, predicted)


def metric(
    name: str, labels: Sequence[str], truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> float:
    """accuracy (of whole label sets), or an F1, of label sets against label sets."""
    import numpy as np
    from sklearn.metrics import accuracy_score, f1_score

    def mask(sets: Sequence[Labels]) -> Any:
        return np.array([[label in row for label in labels] for row in sets], dtype=int)

    if name == "accuracy":
        return float(accuracy_score(mask(truth), mask(predicted)))
    return float(f1_score(mask(truth), mask(predicted), average=name.removesuffix("_f1"), zero_division=0.0))


# === Drift ===


def training_statistics(config: Config, facts: dict[str, Any]) -> Any:
    """The statistics of the training split of what a version was trained on.

    Raises:
      PipelineError: they are gone, or the version is not of this pipeline root.
    """
    examples = (facts.get("artifacts") or {}).get("examples") or {}
    database = config.root / "metadata.sqlite"
    row = None
    if database.exists():
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=30.0)) as store:
            row = store.execute(
                "SELECT a.uri FROM Event i JOIN Event o ON o.execution_id = i.execution_id "
                "JOIN Artifact e ON e.id = i.artifact_id JOIN Artifact a ON a.id = o.artifact_id "
                "JOIN Type t ON t.id = a.type_id "
                "WHERE e.id = ? AND e.uri = ? AND i.type IN (2, 3) AND o.type IN (1, 4) "
                "AND t.name = 'ExampleStatistics' ORDER BY a.id DESC LIMIT 1",
                (examples.get("id"), examples.get("uri")),
            ).fetchone()
    path = None if row is None else Path(row[0]) / "Split-train" / "FeatureStats.pb"
    if path is None or not path.exists():
        raise PipelineError(
            f"schedule.drift: the statistics of the live version's training data are not in {config.root}; the next "
            "push makes them anew"
        )
    from tensorflow_data_validation import load_stats_binary

    return load_stats_binary(str(path))


def drift(config: Config, training: Any, rows: Iterable[Row]) -> dict[str, float]:
    """The distance of a span's labels and text lengths from the training data's, by feature."""
    return _distances(config, training, "drift", current=_statistics(config, rows))


def serving_drift(config: Config, training: Any) -> dict[str, float]:
    """The distance of the logged requests' text lengths from the training data's."""
    import apache_beam as beam
    from tensorflow_data_validation import load_stats_binary

    from components import beam_memo
    from components.validation.serving_logs import write_statistics
    from pipeline.beam import beam_arguments

    beam_memo.remember()
    arguments = list(beam_arguments(config.beam))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/serving.pb"
        with beam.Pipeline(argv=arguments) as pipeline:
            write_statistics(
                pipeline, str(config.validation.serving_logs), str(config.vocab_file), config.tokenizer.lower_case, path
            )
        return _distances(config, training, "skew", serving=load_stats_binary(path))


def _statistics(config: Config, rows: Iterable[Row]) -> Any:
    """TFDV's statistics of rows: their labels and the measures of their texts, as the step `statistics` makes them."""
    import numpy as np
    import pyarrow as pa
    from tensorflow_data_validation import StatsOptions
    from tensorflow_data_validation.statistics.stats_impl import generate_statistics_in_memory

    from components.statistics.derive import TextMeasurer

    measurer = TextMeasurer(str(config.vocab_file), config.tokenizer.lower_case)
    labels: list[list[bytes]] = []
    measures: dict[str, list[Any]] = {}
    texts: list[bytes] = []

    def flush() -> None:
        if texts:
            for name, values in measurer.measure(texts).items():
                measures.setdefault(name, []).append(values)
            texts.clear()

    for row in rows:
        labels.append(list(row.labels))
        texts.append(row.text)
        if len(texts) == _CHUNK:
            flush()
    flush()
    if not labels:
        raise PipelineError("schedule.drift: the newest span has no good row to compare")
    columns = {config.label_feature: pa.array(labels, pa.list_(pa.binary()))}
    offsets = pa.array(np.arange(len(labels) + 1, dtype=np.int32))
    for name, parts in measures.items():
        columns[name] = pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(parts)))
    batch = pa.RecordBatch.from_arrays(list(columns.values()), list(columns))
    return generate_statistics_in_memory(batch, StatsOptions(num_top_values=200, num_rank_histogram_buckets=200))


def _distances(config: Config, training: Any, kind: str, current: Any = None, serving: Any = None) -> dict[str, float]:
    """TFDV's measurements of one comparison, by feature, whether or not they are beyond a threshold."""
    import tensorflow_data_validation as tfdv

    from components.validation.checks import with_comparators

    bounds = ValidationConfig(label_drift=1.0, length_drift=1.0, length_skew=1.0)  # only what is measured is wanted
    schema = with_comparators(tfdv.infer_schema(training), bounds, config.label_feature)
    compared = [item for item in schema.feature if item.HasField(f"{kind}_comparator")]
    kept = [type(item).FromString(item.SerializeToString()) for item in compared]
    del schema.feature[:]
    schema.feature.extend(kept)
    if current is not None:
        found = tfdv.validate_statistics(current, schema, previous_statistics=training)
    else:
        found = tfdv.validate_statistics(training, schema, serving_statistics=serving)
    return {
        ".".join(info.path.step): float(max(item.value for item in getattr(info, f"{kind}_measurements")))
        for info in found.drift_skew_info
        if getattr(info, f"{kind}_measurements")
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The process's entry."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.retraining.measure")
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--live", type=int, required=True)
    parser.add_argument("--span", type=int, required=True)
    parser.add_argument("--digest", required=True)
    given = parser.parse_args(arguments)
    try:
        found = measure(load_config(given.config, given.overrides), given.live, given.span, given.digest)
    except PipelineError as error:
        print(json.dumps({"error": str(error)}))
        return error.exit_status
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    spare_the_collector()
    raise SystemExit(main())
