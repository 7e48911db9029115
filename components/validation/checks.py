"""What must hold before anything is learned from the data; pure functions of statistics and bounds.

TFDV finds what differs from the schema, from the previous span and from serving; this module adds what TFDV has no
rule for, and words every finding as a feature, a reason and a remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

from components.config import ValidationConfig
from components.statistics.derive import COVERAGE, PAIR, TOKENS, UNKNOWN


@dataclass(frozen=True)
class Problem:
    """One reason not to train on this data."""

    split: str
    feature: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"split {self.split}, feature {self.feature}: {self.reason}. {self.remedy}."


def schema_problems(split: str, anomalies: anomalies_pb2.Anomalies) -> list[Problem]:
    """What TFDV found against the schema."""
    remedy = (
        "Correct the data; or, where the data is right, change the curated schema (`biobert-cnn schema freeze` writes "
        "one to review) and name it in validation.schema_file"
    )
    found = [
        Problem(split, name, _tidy(info.description or info.short_description), remedy)
        for name, info in sorted(anomalies.anomaly_info.items())
    ]
    if anomalies.HasField("dataset_anomaly_info"):
        found.append(Problem(split, "(all)", _tidy(anomalies.dataset_anomaly_info.description), remedy))
    return found


def content_problems(
    split: str,
    statistics: statistics_pb2.DatasetFeatureStatisticsList,
    config: ValidationConfig,
    label_feature: str,
    labels: Sequence[str],
) -> list[Problem]:
    """Too few examples, a label without rows, texts that the vocabulary does not fit."""
    dataset = statistics.datasets[0]
    found = []
    if dataset.num_examples < config.min_examples:
        return [
            Problem(
                split, "(all)",
                f"{dataset.num_examples} examples, fewer than validation.min_examples = {config.min_examples}",
                "Give more rows, check data.splits and the dead letters, or lower the bound",
            )
        ]  # fmt: skip
    features = {_name(feature): feature for feature in dataset.features}
    if split == "train":
        counts = label_counts(statistics, label_feature)
        scarce = [label for label in labels if counts.get(label, 0) < config.min_label_count]
        if scarce:
            listed = ", ".join(f"{label} {counts.get(label, 0)}" for label in scarce)
            found.append(
                Problem(
                    split, label_feature,
                    f"too few rows of: {listed} (validation.min_label_count = {config.min_label_count})",
                    "Add rows of these labels, take the labels out of the configuration, or lower the bound",
                )
            )  # fmt: skip
    has_pairs = PAIR + TOKENS in features
    for prefix in ("", PAIR) if has_pairs else ("",):
        means = {measure: features[prefix + measure].num_stats.mean for measure in (TOKENS, UNKNOWN, COVERAGE)}
        found += _vocabulary_problems(split, prefix, means, config)
    if has_pairs and not features[PAIR + TOKENS].num_stats.max:
        found.append(
            Problem(
                split, PAIR + TOKENS, "every row's second text is empty",
                "Check data.columns.text_pair, or take it out of the configuration",
            )
        )  # fmt: skip
    return found


def _vocabulary_problems(
    split: str, prefix: str, means: Mapping[str, float], config: ValidationConfig
) -> list[Problem]:
    """Of texts that the vocabulary does not fit; the means of their measures are given."""
    found = []
    share = means[UNKNOWN] / means[TOKENS] if means[TOKENS] else 0.0
    if share > config.max_unknown_share:
        found.append(
            Problem(
                split, prefix + UNKNOWN,
                f"{share:.1%} of the tokens are [UNK], above validation.max_unknown_share = "
                f"{config.max_unknown_share}",
                "Check the files' encoding and tokenizer.vocab (is it that of this language?)",
            )
        )  # fmt: skip
    if means[COVERAGE] < config.min_token_coverage:
        found.append(
            Problem(
                split, prefix + COVERAGE,
                f"{means[COVERAGE]:.1%} of the words stand whole in the vocabulary, below "
                f"validation.min_token_coverage = {config.min_token_coverage}",
                "Check tokenizer.vocab and tokenizer.lower_case (a cased vocabulary needs lower_case = false)",
            )
        )  # fmt: skip
    return found


def label_counts(statistics: statistics_pb2.DatasetFeatureStatisticsList, label_feature: str) -> dict[str, int]:
    """Rows by label."""
    for feature in statistics.datasets[0].features:
        if _name(feature) == label_feature:
            return {bucket.label: int(bucket.sample_count) for bucket in feature.string_stats.rank_histogram.buckets}
    return {}


def with_comparators(schema: schema_pb2.Schema, config: ValidationConfig, label_feature: str) -> schema_pb2.Schema:
    """The schema with the configured bounds of drift and skew; bounds of a curated schema are kept."""
    result = schema_pb2.Schema()
    result.CopyFrom(schema)
    for feature in result.feature:
        if feature.name == label_feature and config.label_drift is not None:
            feature.drift_comparator.infinity_norm.threshold = config.label_drift
        lengths = feature.name in (TOKENS, PAIR + TOKENS)
        if lengths and config.length_drift is not None:
            feature.drift_comparator.jensen_shannon_divergence.threshold = config.length_drift
        if lengths and config.length_skew is not None:
            feature.skew_comparator.jensen_shannon_divergence.threshold = config.length_skew
    return result


def comparison_problems(
    statistics: statistics_pb2.DatasetFeatureStatisticsList,
    schema: schema_pb2.Schema,
    previous: statistics_pb2.DatasetFeatureStatisticsList | None = None,
    serving: statistics_pb2.DatasetFeatureStatisticsList | None = None,
) -> list[Problem]:
    """Drift of the training data against the previous span, and skew against what the server was asked."""
    found: list[Problem] = []
    if previous is not None:
        anomalies = tfdv.validate_statistics(statistics, schema, previous_statistics=previous)
        remedy = "Look at what changed in this span; where it is meant, raise validation.label_drift or length_drift"
        found += _compared(anomalies, "drift", "drifted from the previous span", remedy)
    if serving is not None:
        # Requests carry no label, so only the text's measures are compared.
        measured = schema_pb2.Schema()
        measured.CopyFrom(schema)
        del measured.feature[:]
        measured.feature.extend(f for f in schema.feature if f.HasField("skew_comparator"))
        anomalies = tfdv.validate_statistics(statistics, measured, serving_statistics=serving)
        remedy = (
            "Train on texts like those that are served; where the difference is meant, raise validation.length_skew"
        )
        found += _compared(anomalies, "skew", "is skewed against the serving logs", remedy)
    return found


def _compared(anomalies: anomalies_pb2.Anomalies, kind: str, what: str, remedy: str) -> Iterable[Problem]:
    types = anomalies_pb2.AnomalyInfo.Type
    for name, info in sorted(anomalies.anomaly_info.items()):
        reasons = [r for r in info.reason if kind.upper() in types.Name(r.type) or "HIGH" in types.Name(r.type)]
        if reasons:
            yield Problem("train", name, f"{what}: {_tidy('; '.join(r.description for r in reasons))}", remedy)


def _tidy(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


def _name(feature: statistics_pb2.FeatureNameStatistics) -> str:
    return feature.name or ".".join(feature.path.step)
