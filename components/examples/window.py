"""Several spans' Examples → one, without copying where the file system can link.

Each span is ingested by a node of its own, so that TFX's cache answers for those that are known; everything after this
component sees one Examples artifact, whatever the window. Texts that two splits of the window share, be they of one
span or of several, are counted and, with `data.drop_leaked`, dropped from train.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.errors import DataError
from components.examples.ingest import HASHES, Shard, make_folder, read_bytes, shard_name, writing
from components.examples.leaks import each_hash, find_leaks, text_hash
from components.examples.merge import Dropped, Roles, merge, place, prefix_of
from components.examples.outcome import REPORT, all_dropped


class Executor(base_executor.BaseExecutor):
    """Links the files of each split, looks for texts that two splits share, puts the ingest reports together."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        config = json.loads(exec_properties["custom_config"])
        spans = sorted(input_dict["spans"], key=lambda artifact: artifact.span)
        window = artifact_utils.get_single_instance(output_dict["examples"])
        roles = Roles(**config["roles"])
        if roles.evaluate_newest and len(spans) < 2:
            raise DataError(
                "window.evaluate_newest: the window holds one span, so there is none to learn from; wait for the next, "
                "or set it to false"
            )
        newest = spans[-1]
        window.split_names = newest.split_names
        window.span = newest.span
        for name in ("payload_format", "file_format"):  # custom properties: how the records are to be read
            window.set_string_custom_property(name, newest.get_string_custom_property(name))
        reports = []
        hashes: dict[str, dict[str, str]] = {name: {} for name in artifact_utils.decode_split_names(window.split_names)}
        for number, artifact in enumerate(spans):
            with fileio.open(os.path.join(artifact.uri, REPORT), "r") as file:
                reports.append(json.loads(file.read()))
            targets = {}
            for split in artifact_utils.decode_split_names(artifact.split_names):
                target = place(split, len(spans) - 1 - number, roles)
                if target is None:
                    continue
                targets[split] = target
                _link(
                    artifact_utils.get_split_uri([artifact], split),
                    os.path.join(window.uri, f"Split-{target}"),
                    prefix_of(artifact.span, split),
                )
            for path in fileio.glob(os.path.join(artifact.uri, HASHES, "*")):
                split, shard = shard_name(os.path.basename(str(path)))
                if split in targets:
                    target = targets[split]
                    name = f"Split-{target}/{prefix_of(artifact.span, split)}{shard}"
                    hashes[target][str(path)] = os.path.join(window.uri, name)
        rows = sum(report["rows"] for report in reports)
        leaks, shared = find_leaks({split: sorted(paths) for split, paths in hashes.items()}, read_bytes, rows)
        dropped = Dropped()
        if config["drop_leaked"]:
            leaked = each_hash(b"".join(found for pair, found in shared.items() if "train" in pair))
            for path, shard in sorted(hashes.get("train", {}).items()):
                if leaked and not leaked.isdisjoint(each_hash(read_bytes(path))):
                    _drop(shard, leaked, config["pairs"], os.path.join(window.uri, ".work"), dropped)
        report = merge(reports, roles, leaks, dropped)
        if dropped.rows and not report["splits"]["train"]["rows"]:
            raise all_dropped("train", dropped.rows)
        with fileio.open(os.path.join(window.uri, REPORT), "w") as file:
            file.write(json.dumps(report, indent=1))


def _drop(path: str, leaked: frozenset[bytes], pairs: bool, work: str, dropped: Dropped) -> None:
    """Writes a shard anew without the rows whose text is among `leaked`; one that has no other row is removed."""
    import tensorflow as tf

    make_folder(work)
    with writing(path, work) as stream:
        shard = Shard(stream)
        for record in tf.data.TFRecordDataset(path, compression_type="GZIP").as_numpy_iterator():
            feature = tf.train.Example.FromString(record).features.feature
            text, *_ = feature["text"].bytes_list.value
            digest = text_hash(text, feature["text_pair"].bytes_list.value[0] if pairs else None)
            if digest not in leaked:
                shard.add(record, digest)
                continue
            labels = [*feature["label"].bytes_list.value, *feature["labels"].bytes_list.value]
            dropped.rows += 1
            dropped.labels.update(label.decode() for label in labels or [b""])
        shard.finish()
    if not shard.rows:
        fileio.remove(path)
    fileio.rmtree(work)


def _link(source: str, target: str, prefix: str) -> None:
    """Every file of a folder under a name of its own in another: a hard link where that can be, a copy elsewhere."""
    fileio.makedirs(target)
    for name in sorted(str(found) for found in fileio.listdir(source)):
        before, after = os.path.join(source, name), os.path.join(target, f"{prefix}{name}")
        if "://" not in source and "://" not in target:
            try:
                os.link(before, after)
                continue
            except OSError:  # another file system, or one without links
                pass
        fileio.copy(before, after)


class SpanWindowSpec(ComponentSpec):
    """One Examples artifact a span in; one of the window out."""

    PARAMETERS = {"custom_config": ExecutionParameter(type=str)}
    INPUTS = {"spans": ChannelParameter(type=standard_artifacts.Examples)}
    OUTPUTS = {"examples": ChannelParameter(type=standard_artifacts.Examples)}


class SpanWindow(base_component.BaseComponent):
    """Puts the spans of a window together."""

    SPEC_CLASS = SpanWindowSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self, spans: types.BaseChannel, *, roles: Roles, drop_leaked: bool = False, pairs: bool = False, code: str = ""
    ) -> None:
        """Args:
        spans: the Examples of every span.
        roles: what each of them is for.
        drop_leaked: drop rows of train whose text also stands in another split of the window.
        pairs: whether a text is told from another by its `text_pair`, too.
        code: a fingerprint of this step's code, so that a changed one is not answered from the cache.
        """
        super().__init__(
            SpanWindowSpec(
                spans=spans,
                examples=types.Channel(type=standard_artifacts.Examples),
                custom_config=json.dumps(
                    {"roles": asdict(roles), "drop_leaked": drop_leaked, "pairs": pairs, "code": code}, sort_keys=True
                ),
            )
        )
