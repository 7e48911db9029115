"""The shipped data is what its README says, and can be made again from its source."""

import csv
import hashlib
import re
import runpy
from collections import Counter
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "pipeline" / "data"
SOURCE = Path(__file__).parents[3] / "shared" / "data" / "ncbi_disease"


@pytest.mark.parametrize("name", ["train", "dev", "test"])
def test_ncbi_disease_has_the_rows_labels_and_digest_that_it_states(name: str) -> None:
    content = (DATA / "ncbi_disease" / f"{name}.csv").read_bytes()
    labels = Counter(row["label"] for row in csv.DictReader(content.decode().splitlines()))
    stated = re.search(rf"`{name}\.csv` \| ([\d,]+) \| disease ([\d,]+); none ([\d,]+) \| `(\w+)`",
                       (DATA / "ncbi_disease" / "README.md").read_text())  # fmt: skip
    assert stated is not None
    rows, disease, none = (int(stated[n].replace(",", "")) for n in (1, 2, 3))
    assert (sum(labels.values()), labels) == (rows, {"disease": disease, "none": none})
    assert hashlib.sha256(content).hexdigest() == stated[4]


def test_ncbi_disease_is_made_again_from_the_corpus(tmp_path: Path) -> None:
    if not SOURCE.exists():
        pytest.skip("the corpus in IOB form is not on this machine")
    runpy.run_path(str(DATA / "ncbi_disease" / "derive.py"))["main"](str(SOURCE), str(tmp_path))
    for name in ("train", "dev", "test"):
        assert (tmp_path / f"{name}.csv").read_bytes() == (DATA / "ncbi_disease" / f"{name}.csv").read_bytes()


def test_sentence_names_a_disease_where_a_tag_begins_one() -> None:
    sentences = runpy.run_path(str(DATA / "ncbi_disease" / "derive.py"))["sentences"]
    lines = ["BRCA1\tO\n", "causes\tO\n", "\n", "breast\tB-Disease\n", "cancer\tI-Disease\n", ".\tO\n", "\n", "\n"]
    assert list(sentences(lines)) == [("BRCA1 causes", "none"), ("breast cancer .", "disease")]
