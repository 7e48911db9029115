"""What tests of the pipeline share: the smallest configuration there is, with its data."""

from pathlib import Path

import pytest

MINIMAL = """
task = "binary"
labels = ["no", "yes"]
[data]
input = "rows"
splits = { train = "train.csv", eval = "dev.csv" }
[evaluation]
split = "eval"
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    (tmp_path / "rows").mkdir()
    for name in ("train.csv", "dev.csv"):
        (tmp_path / "rows" / name).write_text("text,label\na,yes\n")
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    return path
