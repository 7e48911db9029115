"""The two schemas of a run: one that data is validated against, and one that examples are parsed by.

The first, inferred by TFDV or curated by a person, has the label's domain and bounds on the texts' measures. The
second follows from the configuration alone: it names the features that stand in an example.
"""

from __future__ import annotations

import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2

from components.statistics.derive import COVERAGE, DERIVED_FEATURES, PAIR, PAIR_FEATURES


def infer_schema(
    statistics: list[statistics_pb2.DatasetFeatureStatisticsList],
    labels: list[str],
    label_feature: str,
    multilabel: bool = False,
) -> schema_pb2.Schema:
    """A schema that all given statistics satisfy, the label's domain being the configured labels.

    A row has one label; of a `multilabel` task none or more.
    """
    schema = tfdv.infer_schema(statistics[0], infer_feature_shape=False)
    for more in statistics[1:]:
        schema = tfdv.update_schema(schema, more, infer_feature_shape=False)
    for feature in schema.feature:
        if feature.name in DERIVED_FEATURES + PAIR_FEATURES:
            feature.lifecycle_stage = schema_pb2.LifecycleStage.VALIDATION_DERIVED
            feature.presence.min_fraction, feature.presence.min_count = 1.0, 1
            _bound(feature)
        elif feature.name == label_feature:
            feature.ClearField("domain_info")
            feature.ClearField("domain")
            feature.string_domain.name = label_feature
            feature.string_domain.value.extend(labels)
            if multilabel:  # that all rows of the first data have one label says nothing of the next
                feature.value_count.Clear()
                feature.value_count.min = 0
        else:
            # A column to slice by (a journal, a year) gets new values with every span: that is no anomaly.
            feature.ClearField("domain")
            for field in ("int_domain", "float_domain", "string_domain", "bool_domain"):
                feature.ClearField(field)
    used = {feature.domain for feature in schema.feature if feature.domain}
    for domain in [domain for domain in schema.string_domain if domain.name not in used]:
        schema.string_domain.remove(domain)
    schema.feature.sort(key=lambda feature: feature.name)  # TFDV's order is not the same in every process of Beam
    return schema


def _bound(feature: schema_pb2.Feature) -> None:
    feature.ClearField("domain_info")
    if feature.name in (COVERAGE, PAIR + COVERAGE):
        feature.float_domain.min, feature.float_domain.max = 0.0, 1.0
    else:
        feature.int_domain.min = 0


def example_schema(
    label_feature: str, multilabel: bool, has_pairs: bool, has_id: bool, slices: list[str]
) -> schema_pb2.Schema:
    """What stands in a raw example: bytes, one value each, but for the labels of a multi-label task."""
    schema = schema_pb2.Schema()
    names = [
        "text",
        *(["text_pair"] if has_pairs else []),
        *(["id"] if has_id else []),
        *slices,
        label_feature,
    ]
    for name in names:
        feature = schema.feature.add(name=name, type=schema_pb2.BYTES)
        if name == label_feature and multilabel:
            feature.value_count.min = 0
        else:
            feature.shape.dim.add(size=1)
            feature.presence.min_fraction, feature.presence.min_count = 1.0, 1
    return schema
