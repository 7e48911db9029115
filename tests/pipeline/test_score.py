import csv
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components import progress
from components.config import Columns, DataConfig
from components.errors import BusyError, DataError, PipelineError, PushError, ServingError
from components.examples.rows import Row
from pipeline import score_items
from pipeline.inputs import find_files
from pipeline.predict import Predictor, predict
from pipeline.predictions import score_files
from pipeline.score import score

ROOT = Path(__file__).parents[2]
TOY = ROOT / "tests" / "components" / "serving_check" / "toy_model.py"
DATA = DataConfig(input=Path("unused"), splits={"all": "*.csv"}, columns=Columns(id="id"))
# How many of the rows below fall into an item, about 20 bytes each.
ITEM = 400


@pytest.fixture(scope="module")
def toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toy_model", TOY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def serving(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    toy.ToyModel().export(folder / "1000")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with 120 rows in two CSV files."""
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    write_csv(folder / "b.csv", range(60))
    write_csv(folder / "more" / "a.csv", range(60, 120))
    (folder / "readme.md").write_text("no data")
    (folder / ".hidden.csv").write_text("no data")
    return folder


def text_of(number: int) -> str:
    return "word " * (number * 7 % 13 + 1) + str(number)


def write_csv(path: Path, numbers: range) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows([f"id{number}", text_of(number)] for number in numbers)


def read(output: Path) -> list[dict[str, Any]]:
    """Every row of all shards, in order."""
    return [json.loads(line) for path in sorted(output.glob("part-*.jsonl")) for line in path.open()]


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def test_every_row_is_scored_once_in_the_order_of_the_input(serving: Path, source: Path, tmp_path: Path) -> None:
    done = score(serving, source, tmp_path / "out", DATA, item_bytes=ITEM)
    rows = read(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"id{number}" for number in range(120)]
    assert [(row["file"], row["line"]) for row in rows[58:62]] == [
        ("b.csv", 60), ("b.csv", 61), ("more/a.csv", 2), ("more/a.csv", 3),
    ]  # fmt: skip
    _, expected = predict(serving, [text_of(number) for number in range(120)])
    for row, prediction in zip(rows, expected, strict=True):
        assert row["label"] == prediction.label
        assert row["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-6)
        assert row["version"] == 1000
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {**done, **manifest} == done
    assert manifest["rows"] == 120
    assert manifest["bad"] == {"rows": 0, "reasons": {}}
    assert sum(manifest["labels"].values()) == 120
    assert len(manifest["shards"]) > 4
    for shard in manifest["shards"]:
        assert hashlib.sha256((tmp_path / "out" / shard["shard"]).read_bytes()).hexdigest() == shard["sha256"]
    assert [file["file"] for file in manifest["files"]] == ["b.csv", "more/a.csv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")) == [".lock"]


def test_each_real_folder_is_entered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    for folder in ("x/sub", "_temporary/0", "closed"):
        (source / folder).mkdir(parents=True)
        (source / folder / "a.csv").write_text("text\na\n")
    for name, target in (("asub", "x/sub"), ("zx", "x"), ("x/up", ".."), ("above", "..")):
        (source / name).symlink_to(target)
    listed = Path.iterdir

    def iterdir(folder: Path):
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    files, skipped = find_files(source, DATA)
    assert [file.name for file in files] == ["x/sub/a.csv"]
    assert skipped == ["_temporary/", "above/", "asub/", "closed/", "x/up/", "zx/"]


def test_what_is_passed_over_is_told_and_a_link_to_a_folder_elsewhere_is_followed(
    serving: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("c.csv.gz", "d.json", "_e.csv"):
        (source / name).write_text("no data")
    (tmp_path / "elsewhere").mkdir()
    write_csv(tmp_path / "elsewhere" / "f.csv", range(120, 130))
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(source)
    (source / "within").symlink_to(source / "more")
    done = score(serving, source, tmp_path / "out", DATA)
    assert [file["file"] for file in done["files"]] == ["b.csv", "linked/f.csv", "more/a.csv"]
    assert done["skipped"] == ["_e.csv", "c.csv.gz", "d.json", "linked/back/", "readme.md", "within/"]
    config = SimpleNamespace(
        serving_dir=serving, data=DATA, root=tmp_path / "root", beam=SimpleNamespace(pipeline_args=())
    )
    score_files(config, source, tmp_path / "out", None, "jsonl", as_json=False)
    said = capsys.readouterr().out
    assert said.endswith("passed over: _e.csv, c.csv.gz, d.json and 3 more (see manifest.json)\n")


@pytest.mark.slow
def test_killed_job_goes_on_and_gives_the_same_bytes(serving: Path, source: Path, tmp_path: Path) -> None:
    whole = score(serving, source, tmp_path / "whole", DATA, item_bytes=ITEM)
    # Killed when the third item's shard is there and its mark is not, and when the fifth's is half written.
    code = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from components.config import Columns, DataConfig; from pipeline import score, score_items\n"
        "real, marks = score_items.whole_file, []\n"
        "def whole_file(path, work, private=False):\n"
        "    if path.suffix == '.json' and path.name.startswith('part'):\n"
        "        marks.append(path)\n"
        "        if len(marks) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(path, work, private)\n"
        "score_items.whole_file = whole_file\n"
        "data = DataConfig(input=Path('unused'), splits={'all': '*.csv'}, columns=Columns(id='id'))\n"
        "score.score(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), data, item_bytes=int(sys.argv[5]))"
    )
    out = tmp_path / "out"
    killed = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), str(serving), str(source), str(out), str(ITEM)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (out / "manifest.json").exists()
    marks = sorted((out / ".work").glob("part-??????.json"))
    assert len(marks) == 2
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*") if (out / ".work" / path.stem) in marks}
    # What a power cut can leave: a shard shorter than its mark says, a draft, a mark without an end.
    (out / ".work" / "part-000009.jsonl.1.draft").write_text("half")
    (out / ".work" / "part-000007.json").write_text('{"rows"')

    done = score(serving, source, out, DATA, item_bytes=ITEM)
    assert done["resumed_items"] == 2
    assert contents(out) == contents(tmp_path / "whole")
    assert done["shards"] == whole["shards"]
    for name, modified in kept.items():
        assert (out / name).stat().st_mtime_ns == modified


def test_finished_job_is_not_done_again(serving: Path, source: Path, tmp_path: Path) -> None:
    first = score(serving, source, tmp_path / "out", DATA, item_bytes=ITEM)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    again = score(serving, source, tmp_path / "out", DATA, item_bytes=ITEM)
    assert again["resumed_items"] == len(first["shards"])
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")} == before
    assert {**again, "seconds": 0, "resumed_items": 0} == {**first, "seconds": 0, "resumed_items": 0}


def test_failed_item_keeps_the_others_and_its_error_names_no_text(
    serving: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Predictor.probabilities, []

    def fail(self: Predictor, texts: list[bytes], pairs: Any = None) -> Any:
        calls.append(len(texts))
        if len(calls) == 3:
            raise ServingError("the model failed on a batch of 4 texts with InvalidArgumentError")
        return real(self, texts, pairs)

    monkeypatch.setattr(Predictor, "probabilities", fail)
    with pytest.raises(ServingError, match=r"^the model failed on a batch of 4 texts with InvalidArgumentError$"):
        score(serving, source, tmp_path / "out", DATA, item_bytes=ITEM)
    assert not (tmp_path / "out" / "manifest.json").exists()
    done = score(serving, source, tmp_path / "out", DATA, item_bytes=ITEM)
    assert done["resumed_items"] == 2
    assert [row["id"] for row in read(tmp_path / "out")] == [f"id{number}" for number in range(120)]


def test_bad_rows_go_to_a_private_dead_letter_file(serving: Path, source: Path, tmp_path: Path) -> None:
    (source / "c.jsonl").write_bytes(
        b'{"text": "good", "id": 5}\n{"text": ""}\nno json \xff secret\n{"text": 3}\n{"text": "no id"}\n'
    )
    done = score(serving, source, tmp_path / "out", DATA, item_bytes=ITEM)
    assert done["rows"] == 122
    assert done["bad"] == {"rows": 3, "reasons": {"empty_text": 1, "invalid_utf8": 1, "wrong_type": 1}}
    letters = [json.loads(line) for line in (tmp_path / "out" / "dead_letters.jsonl").open()]
    assert [(letter["file"], letter["line"], letter["reason"]) for letter in letters] == [
        ("c.jsonl", 2, "empty_text"), ("c.jsonl", 3, "invalid_utf8"), ("c.jsonl", 4, "wrong_type"),
    ]  # fmt: skip
    assert letters[1]["row"].encode("utf-8", "surrogateescape") == b"no json \xff secret"
    assert (tmp_path / "out" / "dead_letters.jsonl").stat().st_mode & 0o777 == 0o600
    rows = [row for row in read(tmp_path / "out") if row["file"] == "c.jsonl"]
    assert [(row["line"], row["id"]) for row in rows] == [(1, "5"), (5, "")]


def test_texts_are_in_no_shard(serving: Path, source: Path, tmp_path: Path) -> None:
    score(serving, source, tmp_path / "out", DATA, item_bytes=ITEM)
    assert not any(b"word" in content for content in contents(tmp_path / "out").values())


def test_parquet_in_and_out(serving: Path, tmp_path: Path) -> None:
    texts = [text_of(number) for number in range(50)]
    pq.write_table(pa.table({"text": texts, "extra": list(range(50))}), tmp_path / "in.parquet", row_group_size=20)
    done = score(serving, tmp_path / "in.parquet", tmp_path / "out", DATA, item_bytes=1, format="parquet")
    assert [shard["rows"] for shard in done["shards"]] == [20, 20, 10]
    tables = [pq.read_table(tmp_path / "out" / shard["shard"]) for shard in done["shards"]]
    rows = pa.concat_tables(tables).to_pylist()
    assert json.loads(tables[0].schema.metadata[b"classes"]) == ["A", "B", "C"]
    _, expected = predict(serving, texts)
    assert [row["label"] for row in rows] == [prediction.label for prediction in expected]
    assert rows[7]["probabilities"] == pytest.approx(list(expected[7].probabilities.values()), abs=1e-6)
    assert {key: rows[23][key] for key in ("file", "line", "id", "version")} == {
        "file": "in.parquet", "line": 24, "id": "", "version": 1000,
    }  # fmt: skip


def test_multilabel_rows_have_a_list_of_labels(toy: ModuleType, source: Path, tmp_path: Path) -> None:
    toy.ToyModel(multilabel=True).export(tmp_path / "multi" / "1")
    for format in ("jsonl", "parquet"):
        score(tmp_path / "multi", source / "b.csv", tmp_path / format, DATA, format=format)
    rows = read(tmp_path / "jsonl")
    for row in rows:
        assert row["labels"] == [name for name, p in row["probabilities"].items() if p >= 0.5]
    (shard,) = (tmp_path / "parquet").glob("part-*")
    assert [row["labels"] for row in pq.read_table(shard).to_pylist()] == [row["labels"] for row in rows]


def test_neighbours_reach_over_the_edges_of_items(toy: ModuleType, tmp_path: Path) -> None:
    toy.ToyModel(pairs=True).export(tmp_path / "pairs" / "1")
    with (tmp_path / "in.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows([f"doc{number // 4}", f"s{number}."] for number in range(40))
    data = DATA.model_copy(update={"neighbours": 1})
    done = score(tmp_path / "pairs", tmp_path / "in.csv", tmp_path / "out", data, item_bytes=60)
    assert len(done["shards"]) > 3
    pairs = [
        "\n".join(f"s{other}." if other // 4 == number // 4 else "" for other in (number - 1, number + 1))
        for number in range(40)
    ]
    _, expected = predict(tmp_path / "pairs", [f"s{number}." for number in range(40)], pairs)
    for row, prediction in zip(read(tmp_path / "out"), expected, strict=True):
        assert row["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-6)


def test_job_that_goes_on_stays_with_its_version(
    toy: ModuleType, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.ToyModel().export(tmp_path / "serving" / "1")
    real = score_items.score_item
    monkeypatch.setattr(
        score_items, "score_item", lambda job, number, *rest: None if number == 3 else real(job, number, *rest)
    )
    with pytest.raises(FileNotFoundError):
        score(tmp_path / "serving", source, tmp_path / "out", DATA, item_bytes=ITEM)
    monkeypatch.undo()
    toy.ToyModel(seed=2).export(tmp_path / "serving" / "2")
    done = score(tmp_path / "serving", source, tmp_path / "out", DATA, item_bytes=ITEM)
    assert done["version"] == 1
    assert {row["version"] for row in read(tmp_path / "out")} == {1}
    with pytest.raises(PipelineError, match=r"holds a job with another version \(1, now 2\)"):
        score(tmp_path / "serving", source, tmp_path / "out", DATA, item_bytes=ITEM, version=2)


def test_output_folder_of_another_job_is_refused(serving: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    score(serving, source, out, DATA, item_bytes=ITEM)
    with pytest.raises(PipelineError, match=r"another format \(jsonl, now parquet\)"):
        score(serving, source, out, DATA, item_bytes=ITEM, format="parquet")
    with pytest.raises(PipelineError, match="another data; give a new folder"):
        score(serving, source, out, DATA.model_copy(update={"max_characters": 9}), item_bytes=ITEM)
    os.utime(source / "b.csv", (1, 1))  # the same bytes under another date are the same input
    assert score(serving, source, out, DATA, item_bytes=ITEM)["rows"] == 120
    write_csv(source / "b.csv", range(59))
    with pytest.raises(DataError, match="begun on other input files"):
        score(serving, source, out, DATA, item_bytes=ITEM)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(PipelineError, match="is not empty and holds no scoring job"):
        score(serving, source, tmp_path / "full", DATA)
    assert os.listdir(tmp_path / "full") == ["mine.txt"]
    with pytest.raises(DataError, match="lies inside the input"):
        score(serving, source, source / "out", DATA)


def test_second_job_in_the_same_folder_is_refused(serving: Path, source: Path, tmp_path: Path) -> None:
    refused = []

    def again(event: str, values: dict) -> None:
        try:
            score(serving, source, tmp_path / "out", DATA, item_bytes=ITEM)
        except BusyError as error:
            refused.append(str(error))

    with progress.listening(again):
        score(serving, source, tmp_path / "out", DATA, item_bytes=ITEM)
    assert refused
    assert "another process is scoring into this folder" in refused[0]


def test_wrong_input_is_named(serving: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        score(serving, tmp_path / "none", tmp_path / "out", DATA)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no data file \(\.csv, \.jsonl, \.ndjson, \.parquet, \.tsv\)"):
        score(serving, tmp_path / "empty", tmp_path / "out1", DATA)
    (source / "c.csv").write_text("id,body\n1,x\n")
    with pytest.raises(DataError, match=r"c\.csv: the column 'text' is missing"):
        score(serving, source, tmp_path / "out2", DATA)
    (source / "c.csv").rename(source / "c.jsonl")
    (source / "c.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(
        DataError, match=r"c\.jsonl: the column 'text' is missing: no object has it; keys of the first: 'body'"
    ):
        score(serving, source, tmp_path / "out2", DATA)
    (source / "c.jsonl").unlink()
    with pytest.raises(PushError, match="there is no version 5; there are 1000"):
        score(serving, source, tmp_path / "out3", DATA, version=5)


def test_model_that_takes_pairs_refuses_data_without(toy: ModuleType, source: Path, tmp_path: Path) -> None:
    toy.ToyModel(pairs=True).export(tmp_path / "pairs" / "1")
    with pytest.raises(DataError, match="the model takes pairs"):
        score(tmp_path / "pairs", source, tmp_path / "out", DATA)


def test_progress_ends_with_every_item_and_row(serving: Path, source: Path, tmp_path: Path) -> None:
    reports = []
    with progress.listening(lambda event, values: reports.append((event, values))):
        done = score(serving, source, tmp_path / "out", DATA, item_bytes=ITEM)
    items = len(done["shards"])
    assert reports[-1] == ("score", {"items": items, "of": items, "rows": 120})


def test_rows_held_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(number, b"x" * 10, None, (), None, ()) for number in range(10)]
    monkeypatch.setattr(score_items, "CHUNK_ROWS", 4)
    assert [len(chunk) for chunk in score_items._chunks(rows)] == [4, 4, 2]
    monkeypatch.setattr(score_items, "_CHUNK_BYTES", 25)
    assert [len(chunk) for chunk in score_items._chunks(rows)] == [3, 3, 3, 1]


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes_and_the_same_errors(
    toy: ModuleType, serving: Path, source: Path, tmp_path: Path
) -> None:
    arguments = ["--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    score(serving, source, tmp_path / "one", DATA, item_bytes=ITEM)
    score(serving, source, tmp_path / "many", DATA, item_bytes=ITEM, beam_pipeline_args=arguments)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    toy.ToyModel(fault="breaks_on_bytes").export(tmp_path / "broken" / "1")
    (source / "d.csv").write_text("id,text\n1,fine\n")
    pairs = DATA.model_copy(update={"columns": Columns(text_pair="id")})
    with pytest.raises(DataError, match=r"^the model takes single texts: leave the second segment out$"):
        score(serving, source, tmp_path / "pairs", pairs, beam_pipeline_args=arguments)
