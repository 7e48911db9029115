"""The whole of ingest, through the driver and the executor that TFX runs."""

import gzip
import itertools
import json
import logging
import os
import shutil
import stat
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tensorflow.core.example.example_pb2 import Example
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.proto import range_config_pb2
from tfx.types import artifact_utils, standard_artifacts

from components import progress
from components.config import Columns, DataConfig
from components.errors import DataError
from components.examples import files, ingest
from components.examples.component import TextExampleGen, TextExampleGenExecutor
from components.examples.driver import ContentDriver
from components.examples.parse import Reader
from pipeline.spans import find_names

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "pipeline" / "data" / "pmc_rct_sections"
SHARED = Path(os.environ.get("BIOBERT_CNN_DATA", ROOT.parent / "shared" / "data"))
SECTIONS = ("BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS")
# The last argument: TFX would pack itself for remote workers, which takes seconds, if it named no image that has it.
IN_MEMORY = ("--runner=FnApiRunner", "--sdk_container_image=unused")
CSV_SPLITS = {"train": "train.csv", "eval": "dev.csv", "test": "test.csv"}


def shared(name):
    """A folder of data whose licence does not let it be shipped."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not in {SHARED}; set BIOBERT_CNN_DATA to the folder that holds it")
    return SHARED / name


class Run:
    """What one run left."""

    def __init__(self, artifact):
        self.artifact = artifact
        self.folder = Path(artifact.uri)
        self.report = json.loads((self.folder / "ingest_report.json").read_bytes())

    def examples(self, split):
        """The examples of a split, in file order, as plain dictionaries."""
        content = self.content(split)
        found, at = [], 0
        while at < len(content):  # a length of 8 bytes and its checksum, the record and its checksum
            (size,) = struct.unpack_from("<Q", content, at)
            features = Example.FromString(content[at + 12 : at + 12 + size]).features.feature
            found.append({name: list(feature.bytes_list.value) for name, feature in features.items()})
            at += size + 16
        return found

    def texts(self, split):
        return [example["text"][0].decode() for example in self.examples(split)]

    def shards(self):
        """Name and content of every shard."""
        return {
            str(path.relative_to(self.folder)): gzip.decompress(path.read_bytes())
            for path in sorted(self.folder.glob("Split-*/*"))
        }

    def content(self, split):
        """The shards of a split, end to end."""
        return b"".join(content for name, content in self.shards().items() if name.startswith(f"Split-{split}/"))


def resolve(component):
    """The exec properties after the driver."""
    return ContentDriver(None).resolve_exec_properties(dict(component.exec_properties), None, None)


def run(output, data, task="multiclass", labels=SECTIONS, arguments=IN_MEMORY, **options):
    column = data.columns.labels or "labels" if task == "multilabel" else data.columns.label or "label"
    component = TextExampleGen(str(data.input), data, task, labels, column, **options)
    artifact = standard_artifacts.Examples()
    artifact.uri = str(output / "TextExampleGen" / "examples" / "1")
    shutil.rmtree(artifact.uri, ignore_errors=True)
    Path(artifact.uri).mkdir(parents=True)
    executor = TextExampleGenExecutor(BaseBeamExecutor.Context(beam_pipeline_args=list(arguments)))
    executor.Do({}, {"examples": [artifact]}, resolve(component))
    return Run(artifact)


def write(folder, **contents):
    """Files of CSV rows under the header id,text,label; `train` becomes train.csv."""
    folder.mkdir(exist_ok=True)
    for name, rows in contents.items():
        body = rows if isinstance(rows, bytes) else "".join(f"{row}\n" for row in rows).encode()
        (folder / f"{name}.csv").write_bytes(b"id,text,label\n" + body)
    return folder


def config(folder, splits=None, **changes):
    values = {
        "input": folder,
        "splits": splits or {"train": "train.csv", "eval": "eval.csv"},
        "columns": Columns(id="id"),
    }
    return DataConfig(**(values | changes))


# The shipped and shared data


def section_data(folder, **changes):
    return DataConfig(input=folder, splits=CSV_SPLITS, columns=Columns(id="id", slices=("position",)), **changes)


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    return run(tmp_path_factory.mktemp("sections"), section_data(SHIPPED))


def test_shipped_data_has_the_counts_that_it_states(sections):
    splits = sections.report["splits"]
    assert {split: (values["rows"], values["labels"]) for split, values in splits.items()} == {
        "train": (
            16246,
            {"BACKGROUND": 3334, "CONCLUSIONS": 2494, "METHODS": 5932, "OBJECTIVE": 400, "RESULTS": 4086},
        ),
        "eval": (2048, {"BACKGROUND": 461, "CONCLUSIONS": 327, "METHODS": 737, "OBJECTIVE": 43, "RESULTS": 480}),
        "test": (2061, {"BACKGROUND": 407, "CONCLUSIONS": 304, "METHODS": 748, "OBJECTIVE": 49, "RESULTS": 553}),
    }
    assert sections.report["leaked"] == [
        {"splits": ["train", "test"], "texts": 2, "rows": {"train": 2, "test": 2}},
    ]
    assert sections.report["bad"] == {"rows": 0, "share": 0.0, "reasons": {}}
    assert sections.report["dropped"] == {}
    assert sections.report["files"][0] == {
        "file": "train.csv",
        "split": "train",
        "bytes": 2855425,
        "sha256": "6b63cf4ee86a063a996b78bf639a4b767754fe73bfaf243e53e8865cc85e6fff",
        "rows": 16246,
        "bad": 0,
    }
    assert (sections.report["span"], sections.report["version"]) == (0, None)


def test_shipped_data_comes_out_as_csv_reads_it_in_the_same_order(sections):
    import csv

    for split, name in CSV_SPLITS.items():
        with open(SHIPPED / name, encoding="utf-8", newline="") as stream:
            expected = [{key: [value.encode()] for key, value in row.items()} for row in csv.DictReader(stream)]
        assert sections.examples(split) == expected


def test_artifact_is_a_standard_examples_artifact_with_a_report_and_hashes(sections):
    assert artifact_utils.decode_split_names(sections.artifact.split_names) == ["train", "eval", "test"]
    assert sections.artifact.get_string_custom_property("payload_format") == "FORMAT_TF_EXAMPLE"
    assert sections.artifact.get_string_custom_property("file_format") == "tfrecords_gzip"
    assert sorted(path.name for path in sections.folder.iterdir()) == [
        "Split-eval",
        "Split-test",
        "Split-train",
        "hashes",
        "ingest_report.json",
    ]
    assert list(sections.shards()) == [
        "Split-eval/data_tfrecord-00001-00000.gz",
        "Split-test/data_tfrecord-00002-00000.gz",
        "Split-train/data_tfrecord-00000-00000.gz",
    ]


def test_pubmed_rct_files_give_the_rows_of_the_csv_files(sections, tmp_path):
    source = shared("pmc_rct_sections")
    splits = {split: f"original.{name.removesuffix('.csv')}.txt" for split, name in CSV_SPLITS.items()}
    original = run(tmp_path, DataConfig(input=source, format="pubmed_rct", splits=splits))
    for split in splits:
        expected = [{key: row[key] for key in ("text", "label", "id")} for row in sections.examples(split)]
        assert original.examples(split) == expected


def test_multilabel_data_has_the_counts_that_it_states(tmp_path):
    labels = (
        "sustaining proliferative signaling", "resisting cell death", "genomic instability and mutation",
        "activating invasion and metastasis", "tumor promoting inflammation", "evading growth suppressors",
        "inducing angiogenesis", "enabling replicative immortality", "avoiding immune destruction",
        "cellular energetics",
    )  # fmt: skip
    data = DataConfig(input=shared("hoc"), splits=CSV_SPLITS, columns=Columns(id="id"))
    found = run(tmp_path, data, "multilabel", labels)
    train = found.report["splits"]["train"]
    assert (train["rows"], train["without_label"]) == (12119, 9034)
    assert [train["labels"][label] for label in labels] == [674, 602, 523, 448, 375, 268, 238, 219, 185, 136]
    assert {split: values["rows"] for split, values in found.report["splits"].items()} == {
        "train": 12119,
        "eval": 1798,
        "test": 3547,
    }
    assert sum(len(example["labels"]) >= 2 for example in found.examples("train")) == 520


def test_binary_data_has_the_counts_and_leaks_that_it_states(tmp_path):
    data = DataConfig(input=shared("gad"), splits=CSV_SPLITS, columns=Columns(id="id"))
    found = run(tmp_path, data, "binary", ("0", "1"))
    assert {split: values["labels"] for split, values in found.report["splits"].items()} == {
        "train": {"0": 2034, "1": 2227},
        "eval": {"0": 242, "1": 293},
        "test": {"0": 253, "1": 281},
    }
    assert [(leak["splits"], leak["texts"]) for leak in found.report["leaked"]] == [
        (["train", "eval"], 39),
        (["train", "test"], 5),
    ]


# Splits and leaks


def test_leaked_texts_are_dropped_from_train_alone(tmp_path):
    folder = write(
        tmp_path / "in",
        train=["1,a,METHODS", "2,b,METHODS", "3,a,RESULTS", "4,c,METHODS"],
        eval=["5,a,METHODS", "6,d,METHODS"],
        test=["7,c,RESULTS", "8,d,METHODS"],
    )
    splits = {"train": "train.csv", "eval": "eval.csv", "test": "test.csv"}
    found = run(tmp_path, config(folder, splits, drop_leaked=True))
    assert [found.texts(split) for split in splits] == [["b"], ["a", "d"], ["c", "d"]]
    assert found.report["dropped"] == {"train": 3}
    assert found.report["splits"]["train"] == {"rows": 1, "labels": {"METHODS": 1}, "without_label": 0}
    assert found.report["leaked"] == [
        {"splits": ["train", "eval"], "texts": 1, "rows": {"train": 2, "eval": 1}},
        {"splits": ["train", "test"], "texts": 1, "rows": {"train": 1, "test": 1}},
        {"splits": ["eval", "test"], "texts": 1, "rows": {"eval": 1, "test": 1}},
    ]
    assert (found.report["rows"], found.report["files"][0]["rows"]) == (8, 4)


def test_shard_whose_rows_are_all_leaked_is_gone(tmp_path):
    folder = write(tmp_path / "in", train1=["1,a,METHODS"], train2=["2,b,METHODS"], eval=["3,a,METHODS"])
    found = run(tmp_path, config(folder, {"train": "train*.csv", "eval": "eval.csv"}, drop_leaked=True))
    assert found.texts("train") == ["b"]


def test_hash_split_keeps_documents_whole_and_does_not_depend_on_the_rest(tmp_path):
    rows = [f"{number // 3},text {number},METHODS" for number in range(600)]
    shares = {"train": 2, "eval": 1, "test": 1}
    whole = write(tmp_path / "whole", a=rows[:300], b=rows[300:])
    half = write(tmp_path / "half", a=rows[:300])
    found = run(tmp_path / "1", config(whole, {"all": "*.csv"}, hash_split=shares))
    first = run(tmp_path / "2", config(half, {"all": "*.csv"}, hash_split=shares))
    texts = {split: found.texts(split) for split in shares}
    assert sorted(itertools.chain(*texts.values())) == sorted(row.split(",")[1] for row in rows)
    groups = {split: {int(text.split()[1]) // 3 for text in values} for split, values in texts.items()}
    assert [len(values) * 3 for values in groups.values()] == [len(values) for values in texts.values()]
    assert {split: len(values) for split, values in groups.items()} == {"train": 101, "eval": 50, "test": 49}
    for split in shares:
        assert first.texts(split) == [text for text in texts[split] if int(text.split()[1]) < 300]
    assert artifact_utils.decode_split_names(found.artifact.split_names) == ["train", "eval", "test"]


def test_leaks_are_dropped_from_a_hash_split_too(tmp_path):
    # By `split_of`, groups 0 to 5 are train, 6 is test and 11 is eval.
    rows = ["0,a,METHODS", "1,b,METHODS", "2,c,METHODS", "6,a,METHODS", "11,b,METHODS", "11,d,METHODS"]
    data = config(write(tmp_path / "in", all=rows), {"all": "all.csv"}, drop_leaked=True)
    found = run(tmp_path, data)
    assert [found.texts(split) for split in ("train", "eval", "test")] == [["c"], ["b", "d"], ["a"]]
    assert found.report["dropped"] == {"train": 2}
    data = config(
        write(tmp_path / "in", all=[row for row in rows if row[0] != "6"]), {"all": "all.csv"}, drop_leaked=True
    )
    with pytest.raises(DataError, match=r"^split test is empty: no group fell into it"):
        run(tmp_path, data)


def test_hash_split_without_ids_puts_equal_texts_on_one_side(tmp_path):
    folder = write(tmp_path / "in", all=[f"{number},text {number % 20},METHODS" for number in range(60)])
    found = run(tmp_path, config(folder, {"all": "all.csv"}, columns=Columns(), hash_split={"train": 1, "eval": 1}))
    assert found.report["leaked"] == []
    assert all(count == 3 for count in Counter(found.texts("train") + found.texts("eval")).values())


def test_split_of_a_group_never_changes():
    shares = (("train", 8), ("eval", 1), ("test", 1))
    assert [ingest.split_of(group, shares) for group in (b"0", b"6", b"11")] == ["train", "test", "eval"]


def test_file_in_two_splits_is_an_error(tmp_path):
    folder = write(tmp_path / "in", train=["1,a,METHODS"], eval=["2,b,METHODS"])
    with pytest.raises(DataError, match=r"^eval\.csv: matches data\.splits\.train and data\.splits\.eval$"):
        run(tmp_path, config(folder, {"train": "*.csv", "eval": "eval.csv"}))


def test_empty_split_is_an_error(tmp_path):
    folder = write(tmp_path / "in", train=["1,a,METHODS"], eval=[])
    with pytest.raises(
        DataError, match=r"^split eval is empty: its files hold no good row: correct data\.splits\.eval$"
    ):
        run(tmp_path, config(folder))


# Bad rows


def test_bad_rows_are_counted_and_kept_with_file_line_reason_and_bytes(tmp_path):
    good = [f"{number},text {number},METHODS" for number in range(300)]
    body = ("\n".join(good) + "\n").encode() + b"1,caf\xe9,METHODS\n1,secret\n"
    folder = write(tmp_path / "in", train=body, eval=["7,b,OTHER", *good])
    found = run(tmp_path, config(folder))
    letters = [json.loads(line) for line in (found.folder / "dead_letters.jsonl").read_bytes().splitlines()]
    assert [(letter["file"], letter["line"], letter["reason"]) for letter in letters] == [
        ("train.csv", 302, "invalid_utf8"),
        ("train.csv", 303, "wrong_columns"),
        ("eval.csv", 2, "unknown_label"),
    ]
    assert letters[0]["row"].encode("utf-8", "surrogateescape") == b"1,caf\xe9,METHODS"
    assert stat.S_IMODE((found.folder / "dead_letters.jsonl").stat().st_mode) == 0o600
    assert found.report["bad"] == {
        "rows": 3,
        "share": 3 / 603,
        "reasons": {"invalid_utf8": 1, "wrong_columns": 1, "unknown_label": 1},
    }
    assert [(entry["rows"], entry["bad"]) for entry in found.report["files"]] == [(300, 2), (300, 1)]


def test_too_many_bad_rows_stop_the_run_and_their_letters_outlive_the_artifact(tmp_path):
    folder = write(tmp_path / "in", train=["1,a,METHODS", "2,private,OTHER", "3"], eval=["4,b,METHODS"])
    with pytest.raises(DataError) as caught:
        run(tmp_path, config(folder, max_bad_share=0.49))
    letters = tmp_path / "TextExampleGen" / "rejected" / "1" / "dead_letters.jsonl"
    assert str(caught.value) == (
        "2 of 4 rows are bad (50.00%), more than data.max_bad_share allows (49.00%): unknown_label 1, wrong_columns 1. "
        f"Each stands with its file, line and reason in {letters}: correct the files, or raise data.max_bad_share"
    )
    assert [json.loads(line)["line"] for line in letters.read_bytes().splitlines()] == [3, 4]
    assert stat.S_IMODE(letters.stat().st_mode) == 0o600
    report = json.loads((letters.parent / "ingest_report.json").read_bytes())
    assert report["bad"]["reasons"] == {"unknown_label": 1, "wrong_columns": 1}


def test_share_of_bad_rows_at_the_limit_is_allowed(tmp_path):
    folder = write(tmp_path / "in", train=["1,a,METHODS", "2,x,OTHER", "3"], eval=["4,b,METHODS"])
    assert run(tmp_path, config(folder, max_bad_share=0.5)).report["bad"]["rows"] == 2


def test_missing_column_is_one_clear_error(tmp_path):
    folder = write(tmp_path / "in", train=["1,a,METHODS"], eval=["2,b,METHODS"])
    with pytest.raises(
        DataError, match=r"^train\.csv: the column 'pmid' is missing; columns found: 'id', 'text', 'label'"
    ):
        run(tmp_path, config(folder, columns=Columns(id="pmid")))


def test_key_that_no_json_object_has_is_a_missing_column(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "train.jsonl").write_text(
        '{"text": "a", "label": "METHODS", "year": 1}\n{"text": "b", "label": "METHODS"}\n'
    )
    (folder / "eval.jsonl").write_text('{"body": "a", "label": "METHODS", "year": 1}\n' * 3)
    data = config(
        folder, {"train": "train.jsonl", "eval": "eval.jsonl"}, format="jsonl", columns=Columns(slices=("year",))
    )
    with pytest.raises(DataError, match=r"^eval\.jsonl: the column 'text' is missing: .* 'body', 'label', 'year'\."):
        run(tmp_path, data)


def test_defect_of_the_reader_does_not_carry_a_text(tmp_path, monkeypatch, caplog):
    folder = write(tmp_path / "in", train=["1,a,METHODS"] * 3 + ["1,secret,METHODS"], eval=["2,b,METHODS"])
    whole = Reader.row

    def broken(self, record):
        if b"secret" in record.raw:
            raise KeyError(record.raw.decode())
        return whole(self, record)

    monkeypatch.setattr(Reader, "row", broken)
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(RuntimeError, match=r"train\.csv: line 4 or below: KeyError") as caught,
    ):
        run(tmp_path, config(folder))
    assert "secret" not in str(caught.value)
    assert "secret" not in caplog.text


def test_file_changed_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    folder = write(tmp_path / "in", train=["1,a,METHODS"], eval=["2,b,METHODS"])
    plan_file = files.plan_file

    def grow(file, *arguments):
        plan = plan_file(file, *arguments)
        with open(file.path, "ab") as stream:
            stream.write(b"3,c,METHODS\n")
        return plan

    monkeypatch.setattr(files, "plan_file", grow)
    with pytest.raises(DataError, match=r"^an input file was changed while it was read"):
        run(tmp_path, config(folder))


def test_counts_are_reported_and_no_text_is_logged(tmp_path, caplog):
    folder = write(tmp_path / "in", train=["1,secret,METHODS", "2,secret,OTHER"], eval=["3,b,METHODS"])
    events = []
    with caplog.at_level(logging.DEBUG), progress.listening(lambda *event: events.append(event)):
        run(tmp_path, config(folder, max_bad_share=0.5))
    assert events == [("ingest", {"rows": 2, "bad": 1, "dropped": 0})]
    assert "secret" not in caplog.text


# Items and modes


def test_many_items_give_the_same_rows_in_the_same_order(tmp_path, monkeypatch, sections):
    monkeypatch.setattr(TextExampleGenExecutor, "item_bytes", 100_000)
    found = run(tmp_path, section_data(SHIPPED))
    assert len(found.shards()) > 30
    for split in CSV_SPLITS:
        assert found.content(split) == sections.content(split)
    assert found.report == sections.report


@pytest.mark.slow
def test_worker_processes_write_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(TextExampleGenExecutor, "item_bytes", 200_000)
    data = section_data(SHIPPED, neighbours=1, drop_leaked=True)
    alone = run(tmp_path / "1", data)
    arguments = (*IN_MEMORY, "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    assert run(tmp_path / "2", data, arguments=arguments).shards() == alone.shards()


@pytest.mark.slow
def test_portable_runner_writes_the_same_bytes(tmp_path):
    data = section_data(SHIPPED, neighbours=1, drop_leaked=True)
    alone = run(tmp_path / "1", data)
    port_file = tmp_path / "port"
    server = subprocess.Popen(
        [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", "-p", "0",
         "--port_file", str(port_file)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not (port_file.exists() and port_file.read_text()):
            assert server.poll() is None, "the job server ended"
            time.sleep(0.1)
        arguments = (
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{port_file.read_text().strip()}",
            "--environment_type=LOOPBACK",
            "--sdk_container_image=unused",
        )
        assert run(tmp_path / "2", data, arguments=arguments).shards() == alone.shards()
    finally:
        server.terminate()
        server.wait()


# The driver: spans, versions, cache


SPANS = {"train": "span-{SPAN}/v{VERSION}/train.csv", "eval": "span-{SPAN}/v{VERSION}/eval.csv"}


def spans(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        write(folder / name, train=[f"1,{name},METHODS"], eval=[f"2,{name} too,METHODS"])
    return folder


def test_newest_version_of_the_newest_span_is_ingested(tmp_path):
    folder = spans(tmp_path / "in", "span-1/v9", "span-2/v1", "span-10/v2", "span-10/v10")
    found = run(tmp_path, config(folder, SPANS))
    assert found.texts("train") == ["span-10/v10"]
    assert (found.report["span"], found.report["version"]) == (10, 10)
    assert found.artifact.span == 10, "what statistics of two spans are told apart by"
    assert found.report["files"][0]["file"] == "span-10/v10/train.csv"


def test_span_folders_may_have_leading_zeros(tmp_path):
    found = run(tmp_path, config(spans(tmp_path / "in", "span-007/v01", "span-012/v03"), SPANS))
    assert (found.report["span"], found.report["version"]) == (12, 3)
    assert found.texts("train") == ["span-012/v03"]


def test_a_span_can_be_named(tmp_path):
    folder = spans(tmp_path / "in", "span-1/v1", "span-1/v2", "span-2/v1")
    assert run(tmp_path, config(folder, SPANS), range_config=only(1)).texts("train") == ["span-1/v2"]


def only(span):
    """What the graph gives every node of the ingest."""
    return range_config_pb2.RangeConfig(
        static_range=range_config_pb2.StaticRange(start_span_number=span, end_span_number=span)
    )


@pytest.mark.parametrize(
    ("pattern", "folders", "span"),
    [
        ("span-{SPAN}", ("span-007", "span-012"), 7),
        ("span-{SPAN}*", ("span-1-jan", "span-12-dec"), 1),
        ("*{SPAN}", ("day12", "day2"), 2),
        ("{SPAN}/{SPAN}", ("3/3", "3/4"), 3),
        ("span-{SPAN}/v{VERSION}", ("span-07/v009", "span-07/v010", "span-70/v1"), 7),
        ("s{SPAN}/v{VERSION}*", ("s1/v1-a", "s1/v12-b", "s1/v2"), 1),
    ],
)
def test_ingest_of_a_span_reads_the_files_that_the_check_and_the_schedule_found(tmp_path, pattern, folders, span):
    base = spans(tmp_path / "in [1] $HOME (a)", *folders)
    data = config(base, {"train": f"{pattern}/train.csv", "eval": f"{pattern}/eval.csv"})
    version, names = find_names(data)[span]
    found = run(tmp_path, data, range_config=only(span))
    assert (found.report["span"], found.report["version"]) == (span, version)
    assert [file["file"] for file in found.report["files"]] == [*names["train"], *names["eval"]]
    assert found.texts("train") == [name.removesuffix("/train.csv") for name in names["train"]]
    assert len(names["train"]) == 1


def test_span_without_a_file_for_a_split_is_an_error(tmp_path):
    folder = spans(tmp_path / "in", "span-1/v1", "span-2/v1")
    (folder / "span-2" / "v1" / "eval.csv").unlink()
    said = r"^data\.splits\.eval: no file of span 2 in version 1 matches 'span-\{SPAN\}/v\{VERSION\}/eval\.csv' in "
    for chosen in (None, only(2)):
        with pytest.raises(DataError, match=said):
            run(tmp_path, config(folder, SPANS), range_config=chosen)
    with pytest.raises(DataError, match=r"no file of span 5 matches"):
        run(tmp_path, config(folder, SPANS), range_config=only(5))


def test_version_that_comes_while_a_span_is_read_is_for_the_next_run(tmp_path, monkeypatch):
    folder = spans(tmp_path / "in", "span-1/v1")
    drive = ContentDriver.resolve_exec_properties

    def late(self, properties, pipeline, component):
        found = drive(self, properties, pipeline, component)
        spans(folder, "span-1/v2")
        return found

    monkeypatch.setattr(ContentDriver, "resolve_exec_properties", late)
    assert run(tmp_path, config(folder, SPANS), range_config=only(1)).texts("train") == ["span-1/v1"]


def test_pipe_that_matches_a_glob_is_no_data(tmp_path):
    folder = write(tmp_path / "in", train=["1,a,METHODS"], eval=["2,b,METHODS"])
    os.mkfifo(folder / "train-pipe.csv")
    assert run(tmp_path, config(folder, {"train": "train*.csv", "eval": "eval.csv"})).texts("train") == ["a"]


def test_folder_may_have_brackets_in_its_name(tmp_path):
    folder = write(tmp_path / "in [1]", train=["1,a,METHODS", "1,x,OTHER"], eval=["2,b,METHODS"])
    assert run(tmp_path / "out [1]", config(folder, max_bad_share=1)).texts("train") == ["a"]


def test_hidden_files_beside_the_data_are_no_data(tmp_path):
    folder = write(tmp_path / "in", train=["1,a,METHODS"], eval=["2,b,METHODS"])
    for name in (".train.csv", "._train.csv", ".#train.csv"):
        (folder / name).write_bytes(b"what an editor or a copying program leaves behind")
    (folder / ".git").mkdir()
    (folder / ".git" / "train.csv").write_bytes(b"also not")
    data = config(folder, {"train": "*rain.csv", "eval": "eval.csv"})
    assert run(tmp_path, data).texts("train") == ["a"]
    assert find_names(data)[0][1]["train"] == ["train.csv"]
    hidden = config(folder, {"train": ".train.csv", "eval": "eval.csv"})
    (folder / ".train.csv").write_bytes((folder / "train.csv").read_bytes())
    assert run(tmp_path, hidden).texts("train") == ["a"], "a hidden file that is named"


def test_pattern_without_a_file_is_an_error(tmp_path):
    folder = write(tmp_path / "in", train=["1,a,METHODS"])
    with pytest.raises(DataError, match=r"^data\.splits\.eval: no file matches 'eval\.csv' in "):
        run(tmp_path, config(folder))


def cache_key(data, labels=SECTIONS):
    properties = resolve(TextExampleGen(str(data.input), data, "multiclass", labels, "label"))
    return {key: value for key, value in properties.items() if value is not None}


def test_cache_key_follows_content_and_configuration_and_not_modification_times(tmp_path):
    folder = write(tmp_path / "in", train=["1,a,METHODS"], eval=["2,b,METHODS"])
    key = cache_key(config(folder))
    os.utime(folder / "train.csv", (1, 1))
    assert cache_key(config(folder)) == key
    assert cache_key(config(folder), labels=SECTIONS[::-1]) == key
    assert cache_key(config(folder, drop_leaked=True)) != key
    times = (folder / "train.csv").stat()
    (folder / "train.csv").write_bytes(b"id,text,label\n1,c,METHODS\n")
    os.utime(folder / "train.csv", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert cache_key(config(folder)) != key
