"""Rows without labels, as `score` and `predict --file` read them."""

from pathlib import Path

import pytest

from components.config import Columns, DataConfig
from components.errors import DataError
from pipeline.inputs import find_files, read_rows, row_id


def ids(path: Path, column: str) -> list[str]:
    data = DataConfig(input=Path("unused"), splits={"all": "*"}, columns=Columns(id=column))
    (file,), _ = find_files(path, data)
    return [row_id(row) for row in read_rows(file, data)]


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("a.csv", "id,text\n7,a\n", "id"),
        ("a.csv", '\ufeff"id",text\r\n7,a\r\n', "id"),
        ("a.csv", '"pm,id",text\n7,a\n', "pm,id"),
        ("a.csv", 'text,"the ""id"""\na,7\n', 'the "id"'),
        ("a.tsv", "text\tpm,id\na\t7\n", "pm,id"),
        ("a.jsonl", '{"text": "a", "pm,id": "7"}\n', "pm,id"),
    ],
)
def test_id_is_handed_on_whatever_its_column_is_called(tmp_path: Path, name: str, content: str, column: str) -> None:
    (tmp_path / name).write_text(content)
    assert ids(tmp_path / name, column) == ["7"]
    assert ids(tmp_path / name, "other") == [""]


def test_file_without_the_column_of_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,body\n7,a\n")
    with pytest.raises(DataError, match="text"):
        ids(tmp_path / "a.csv", "id")
