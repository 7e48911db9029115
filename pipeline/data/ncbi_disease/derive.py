"""Sentences with IOB tags → sentences with one label: whether a disease is named. Made the CSV files beside it.

python pipeline/data/ncbi_disease/derive.py FOLDER_WITH_IOB_FILES OUTPUT_FOLDER
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

FILES = {"train.tsv": "train.csv", "devel.tsv": "dev.csv", "test.tsv": "test.csv"}


def sentences(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(text, label) by sentence: tokens joined by a space; `disease` where a tag begins one, else `none`."""
    tokens: list[str] = []
    label = "none"
    for line in [*lines, ""]:
        token, _, tag = line.rstrip("\n").partition("\t")
        if token:
            tokens.append(token)
            label = "disease" if tag == "B-Disease" else label
        elif tokens:
            yield " ".join(tokens), label
            tokens, label = [], "none"


def main(source: str, target: str) -> None:
    """Writes one CSV file a split, in the order of the source."""
    for name, output in FILES.items():
        with (
            (Path(source) / name).open(encoding="utf-8", newline="\n") as lines,
            (Path(target) / output).open("w", encoding="utf-8", newline="") as stream,
        ):
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["id", "text", "label"])
            writer.writerows([number, text, label] for number, (text, label) in enumerate(sentences(lines)))


if __name__ == "__main__":
    main(*sys.argv[1:])
