"""Which spans there are, and which a run learns from."""

from pathlib import Path

import pytest

from components.config import DataConfig
from components.errors import ConfigError
from components.examples.spans import files_of
from pipeline.retraining.config import WindowConfig
from pipeline.spans import (
    describe_incomplete,
    find_files,
    find_names,
    has_spans,
    incomplete_spans,
    spans_of_run,
)


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


def test_span_in_two_spellings_and_one_that_is_too_large_are_named(tmp_path: Path) -> None:
    write(tmp_path, "span-5/train.csv", "span-5/dev.csv", "span-05/train.csv")
    section = data(tmp_path, "span-{SPAN}/train.csv", "span-{SPAN}/dev.csv")
    with pytest.raises(ConfigError, match=r"have the same \{SPAN\}, written 0?5 and 0?5; rename one"):
        find_names(section)
    versions = data(tmp_path, "s{SPAN}/v{VERSION}/train.csv", "s{SPAN}/v{VERSION}/dev.csv")
    write(tmp_path, "s1/v1/train.csv", "s1/v1/dev.csv", "s2/v01/train.csv", "s2/v01/dev.csv")
    assert set(find_names(versions)) == {1, 2}, "each span may write its versions in its own way"
    write(tmp_path, "s2/v1/dev.csv")
    with pytest.raises(ConfigError, match=r"have the same \{VERSION\}"):
        find_names(versions)
    stamps = data(tmp_path, "{SPAN}/train.csv", "{SPAN}/dev.csv")
    write(tmp_path, "2026112623/train.csv", "2026112623/dev.csv")
    assert spans_of_run(stamps, WindowConfig()) == (2026112623,)
    write(tmp_path, "20261126235959/train.csv")
    with pytest.raises(ConfigError, match=r"\{SPAN\} is 20261126235959, and numbers go to 2147483647"):
        find_names(stamps)


def test_spans_that_lack_a_split_are_told(tmp_path: Path) -> None:
    write(tmp_path, "1/train.csv", "1/dev.csv", "2/train.csv", "7/dev.csv")
    section = data(tmp_path, "{SPAN}/train.csv", "{SPAN}/dev.csv")
    found = incomplete_spans(section, WindowConfig())
    assert found == {2: ("eval",), 7: ("train",)}
    assert incomplete_spans(section, WindowConfig(exclude=(2,), until=6)) == {}
    assert describe_incomplete(section, found) == [
        "span 2 is left out: no file for data.splits.eval ({SPAN}/dev.csv)",
        "span 7 is left out: no file for data.splits.train ({SPAN}/train.csv)",
    ]
    with pytest.raises(ConfigError, match=r"holds no span; there are 1 whole ones .*; span 2 is left out: no file for"):
        spans_of_run(section, WindowConfig(since=2))


def test_run_takes_whole_spans_only_and_says_when_the_window_is_empty(tmp_path: Path) -> None:
    write(tmp_path, "1/train.csv", "1/dev.csv", "2/train.csv", "2/dev.csv", "3/train.csv")
    section = data(tmp_path, "{SPAN}/train.csv", "{SPAN}/dev.csv")
    assert spans_of_run(section, WindowConfig()) == (2,)
    assert spans_of_run(section, WindowConfig(last="all")) == (1, 2)
    assert spans_of_run(section, WindowConfig(last="all", exclude=(1,))) == (2,)
    with pytest.raises(ConfigError, match=r"window: holds no span; there are 2 whole ones in .*, from 1 to 2"):
        spans_of_run(section, WindowConfig(since=3))


def test_one_file_by_two_spellings_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    _, _, names = files_of(tmp_path, {"train": "a.csv", "eval": ".//a.csv"})
    assert names == {"train": ["a.csv"], "eval": ["a.csv"]}
