"""A column that the data files do not have is named before anything runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import load_config

FOUND = "columns found: 'text', 'label'"


def check(minimal: Path, *overrides: str, command: tuple[str, ...] = ("config", "check")) -> tuple[int, str]:
    settings = [f"paths.root={minimal.parent}/root", *overrides]
    done = CliRunner().invoke(app, [*command, str(minimal), *(part for value in settings for part in ("--set", value))])
    return done.exit_code, done.output


@pytest.mark.parametrize("key", ["text", "text_pair", "label", "id", "slices"])
def test_every_configured_column_is_looked_for(minimal: Path, key: str) -> None:
    status, said = check(minimal, f"data.columns.{key}={['absent'] if key == 'slices' else 'absent'}")
    assert (status, f"data.columns: dev.csv: the column 'absent' is missing; {FOUND}" in said) == (2, True)


def test_columns_that_are_there_pass_and_nothing_heavy_is_imported_for_it(minimal: Path) -> None:
    code = (
        "import sys; from pipeline.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = {'tensorflow', 'tfx', 'apache_beam', 'pandas'} & set(sys.modules)\n"
        "sys.exit(','.join(heavy) or status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "config", "check", str(minimal)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ": valid; " in done.stdout


def test_a_run_is_refused_before_it_begins(minimal: Path) -> None:
    status, said = check(minimal, "data.columns.label=outcome", command=("run",))
    assert (status, "dev.csv: the column 'outcome' is missing" in said) == (2, True)
    assert not (minimal.parent / "root").exists()


def test_file_of_two_splits_is_named(minimal: Path) -> None:
    status, said = check(minimal, "data.splits.train=*.csv")
    assert (status, "dev.csv: matches data.splits.train and data.splits.eval" in said) == (2, True)


def test_name_that_is_not_utf_8_is_told_as_far_as_it_can_be_written(minimal: Path) -> None:
    rows = minimal.parent / "rows"
    (rows / "train.csv").rename(os.fsdecode(os.fsencode(rows) + b"/tr\xe9.csv"))
    status, said = check(minimal, "data.splits.train=tr*.csv")
    assert (status, r"tr\xe9.csv: the name of the file is not UTF-8; rename it" in said) == (2, True)


def test_pipe_is_no_data_and_holds_up_nobody(minimal: Path) -> None:
    os.mkfifo(minimal.parent / "rows" / "pipe.csv")
    status, said = check(minimal, "data.splits.train=pipe.csv")
    assert (status, "data.splits.train: no file matches 'pipe.csv' in " in said) == (2, True)
    assert check(minimal, "data.splits.train=[pt]*.csv")[0] == 0


@pytest.mark.parametrize("format", ["tsv", "jsonl", "parquet"])
def test_other_formats(minimal: Path, format: str) -> None:
    rows = minimal.parent / "rows"
    for split in ("train", "dev"):
        path = rows / f"{split}.{format}"
        if format == "tsv":
            path.write_text("text\tlabel\na\tyes\n")
        elif format == "jsonl":  # a key that only the last object has is there
            path.write_text('\ufeff{"text": "a", "label": "no"}\n{"text": "a", "label": "no", "year": 1}\n')
        else:
            pq.write_table(pa.table({"text": ["a"], "label": ["yes"]}), path)
    files = f'data.splits={{ train = "train.{format}", eval = "dev.{format}" }}'
    assert check(minimal, f"data.format={format}", files)[0] == 0
    status, said = check(minimal, f"data.format={format}", files, "data.columns.id=pmid")
    found = "no object has it; keys of the first: 'text', 'label'" if format == "jsonl" else FOUND
    assert (status, f"dev.{format}: the column 'pmid' is missing" in said, found in said) == (2, True, True)
    if format == "jsonl":
        assert check(minimal, "data.format=jsonl", files, "data.columns.slices=['year']")[0] == 0


@pytest.mark.parametrize(
    ("format", "content", "said"),
    [
        ("csv", b"", "dev.csv: is empty; its first line must name the columns"),
        ("csv", b"\xff\xfet\x00", "dev.csv: is UTF-16 text: convert it to UTF-8"),
        ("parquet", b"text,label\n", "dev.csv: is not a Parquet file, or is damaged"),
    ],
)
def test_file_that_is_of_another_format_is_named(minimal: Path, format: str, content: bytes, said: str) -> None:
    (minimal.parent / "rows" / "dev.csv").write_bytes(content)
    status, output = check(minimal, f"data.format={format}")
    assert (status, said in output) == (2, True)


def test_of_spans_the_newest_is_looked_at_and_a_run_leaves_them_to_its_ingest(minimal: Path) -> None:
    rows = minimal.parent / "rows"
    for span, header in ((1, "text,label"), (2, "body,label")):
        for split in ("train", "dev"):
            (rows / f"{span}-{split}.csv").write_text(f"{header}\na,yes\n")
    spans = 'data.splits={ train = "{SPAN}-train.csv", eval = "{SPAN}-dev.csv" }'
    status, said = check(minimal, spans)
    assert (status, "2-dev.csv: the column 'text' is missing; columns found: 'body', 'label'" in said) == (2, True)
    assert check(minimal, spans, "window.until=1")[0] == 0
    load_config(minimal, [spans])


def test_no_text_of_a_file_without_a_header_is_told(minimal: Path) -> None:
    text = "The patient was admitted with severe pain."
    (minimal.parent / "rows" / "dev.csv").write_text(f'"{text}",yes\n')
    status, said = check(minimal)
    assert (status, "if they are no names, the header is missing" in said, text in said) == (2, True, False)
    assert json.dumps(text) not in said
