"""Which spans there are, and which a run learns from."""

from pathlib import Path

import pytest

from components.config import DataConfig
from components.errors import ConfigError
from pipeline.retraining.config import WindowConfig
from pipeline.spans import find_files, find_names, has_spans, spans_of_run


def data(folder: Path, train: str, evaluation: str) -> DataConfig:
    return DataConfig(input=folder, splits={"train": train, "eval": evaluation})


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


def test_newest_version_of_each_span_by_number_not_by_name(tmp_path: Path) -> None:
    write(tmp_path, "span-2/v1/train.csv", "span-2/v1/dev.csv", "span-10/v9/train.csv", "span-10/v10/train.csv",
          "span-10/v10/dev.csv")  # fmt: skip
    found = find_names(data(tmp_path, "span-{SPAN}/v{VERSION}/train.csv", "span-{SPAN}/v{VERSION}/dev.csv"))
    assert found == {
        2: (1, {"train": ["span-2/v1/train.csv"], "eval": ["span-2/v1/dev.csv"]}),
        10: (10, {"train": ["span-10/v10/train.csv"], "eval": ["span-10/v10/dev.csv"]}),
    }


def test_leading_zeros_wildcards_and_folders_with_brackets(tmp_path: Path) -> None:
    base = tmp_path / "in[1]"
    write(base, "day-007/train-a.csv", "day-007/train-b.csv", "day-007/dev.csv", "day-x/train-a.csv", "day-7a/dev.csv")
    section = data(base, "day-{SPAN}/train-*.csv", "day-{SPAN}/dev.csv")
    [(span, (version, by_split))] = find_files(section).items()
    assert (span, version) == (7, None)
    assert sorted(by_split["train"]) == [base / "day-007" / "train-a.csv", base / "day-007" / "train-b.csv"]


def test_field_that_stands_twice_is_the_same_twice(tmp_path: Path) -> None:
    write(tmp_path, "3/train-3.csv", "3/train-4.csv", "3/dev-3.csv")
    found = find_names(data(tmp_path, "{SPAN}/train-{SPAN}.csv", "{SPAN}/dev-{SPAN}.csv"))
    assert found == {3: (None, {"train": ["3/train-3.csv"], "eval": ["3/dev-3.csv"]})}


def test_data_without_spans_is_one(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", "dev.csv")
    section = data(tmp_path, "train.csv", "dev.csv")
    assert not has_spans(section)
    assert find_names(section) == {0: (None, {"train": ["train.csv"], "eval": ["dev.csv"]})}
    assert spans_of_run(section, WindowConfig()) == (0,)


def test_run_takes_whole_spans_only_and_says_when_the_window_is_empty(tmp_path: Path) -> None:
    write(tmp_path, "1/train.csv", "1/dev.csv", "2/train.csv", "2/dev.csv", "3/train.csv")
    section = data(tmp_path, "{SPAN}/train.csv", "{SPAN}/dev.csv")
    assert spans_of_run(section, WindowConfig()) == (2,)
    assert spans_of_run(section, WindowConfig(last="all")) == (1, 2)
    assert spans_of_run(section, WindowConfig(last="all", exclude=(1,))) == (2,)
    with pytest.raises(ConfigError, match=r"window: holds no span; there are 2 whole ones in .*, from 1 to 2"):
        spans_of_run(section, WindowConfig(since=3))
