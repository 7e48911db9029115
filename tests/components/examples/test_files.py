import csv
import hashlib
import io
import json
import re
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import DataError
from components.examples import files
from components.examples.files import InputFile, ItemReader, plan_file, read_lines
from components.examples.rows import BadRow, Row, RowSpec

LABELS = frozenset([b"METHODS", b"RESULTS"])


def spec(format="csv", **changes):
    values = {"text": "text", "label": "label", "labels": LABELS, "id": "id"} | changes
    return RowSpec(format, **values)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Writes bytes to a file and gives it as an input."""
    path = tmp_path_factory.mktemp("input") / "file"

    def write(data):
        path.write_bytes(data)
        return InputFile(0, "train", str(path), "file")

    return write


def read(file, row_spec, item_bytes=files.ITEM_BYTES):
    """All rows as plain tuples, and the number of items they came in."""
    items = plan_file(file, row_spec, item_bytes).items
    return [(type(row), *row) for item in items for row in ItemReader(item, row_spec)], len(items)


# Any cut gives the same rows

IDS = st.sampled_from([b"1", b"2", b""])
CELLS = st.lists(st.sampled_from([b"a", b'"', b'""', b",", b"\n", b"\r", b"\xff", b"\t"]), max_size=4).map(b"".join)
CSV_LINES = st.one_of(
    st.tuples(IDS, CELLS, st.sampled_from([b"METHODS", b"x"])).map(b",".join),
    st.tuples(IDS, CELLS, st.just(b"METHODS")).map(
        lambda row: b'%b,"%b",%b' % (row[0], row[1].replace(b'"', b'""'), row[2])
    ),
    CELLS,
)
JSON_LINES = st.one_of(
    st.builds(
        lambda group, text: json.dumps({"id": group, "text": text, "label": "METHODS"}).encode(),
        st.sampled_from(["1", "2", None, [], 3]),
        st.sampled_from(["a", "", "b\n"]),
    ),
    st.just(b"{"),
    st.just(b""),
)
RCT_LINES = st.sampled_from([b"###1", b"###2", b"###", b"METHODS\ta", b"METHODS\tb", b"x\tb", b"METHODS", b"", b" "])
TSV_LINES = st.tuples(IDS, st.sampled_from([b"a", b'"', b""]), st.just(b"METHODS")).map(b"\t".join)
FORMATS = {
    "csv": (b"id,text,label\n", CSV_LINES),
    "tsv": (b"id\ttext\tlabel\n", TSV_LINES),
    "jsonl": (b"", JSON_LINES),
    "pubmed_rct": (b"\xef\xbb\xbf", RCT_LINES),
}


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_rows_are_the_same_wherever_a_file_is_cut(file, format, data):
    head, line = FORMATS[format]
    content = data.draw(st.lists(line, max_size=12))
    end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    source = file(head + end.join(content) + data.draw(st.sampled_from([b"", end])))
    row_spec = spec(format, neighbours=data.draw(st.integers(0, 2)))
    assert read(source, row_spec, data.draw(st.integers(1, 60)))[0] == read(source, row_spec)[0]


def test_cuts_fall_between_records_and_never_within_a_document_with_neighbours(file):
    rows = b'1,"a\nb",METHODS\n1,c,METHODS\n2,d,METHODS\n2,e,METHODS\n'
    source = file(b"id,text,label\n" + rows)
    apart = plan_file(source, spec(), 1)
    assert [(item.start, item.end, item.line) for item in apart.items] == [
        (14, 30, 2),
        (30, 42, 4),
        (42, 54, 5),
        (54, 66, 6),
    ]
    together = plan_file(source, spec(neighbours=1), 1)
    assert [(item.part, item.start, item.end, item.line) for item in together.items] == [(0, 14, 42, 2), (1, 42, 66, 5)]
    assert (apart.bytes, apart.sha256) == (66, hashlib.sha256(b"id,text,label\n" + rows).hexdigest())


def test_pubmed_rct_documents_are_never_cut(file):
    source = file(b"###1\nMETHODS\ta\nRESULTS\tb\n\n###2\nMETHODS\tc\n")
    items = plan_file(source, spec("pubmed_rct"), 1).items
    assert [(item.start, item.end, item.line) for item in items] == [(0, 26, 1), (26, 41, 5)]


def test_overlong_line_is_cut_and_passed_over():
    stream = io.BytesIO(b"ab\n" + b"x" * 100 + b"\ncd\nlast")
    assert list(read_lines(stream, 0, 200, 1, 10)) == [
        (0, 1, b"ab\n"),
        (3, 2, b"x" * 11),
        (104, 3, b"cd\n"),
        (107, 4, b"last"),
    ]


def test_row_over_the_limit_is_bad_and_its_end_is_no_row_of_its_own(file):
    row_spec = spec(max_characters=100)
    text = b"x" * (row_spec.row_limit + 1)
    source = file(b"id,text,label\n1,a,METHODS\n2," + text + b",METHODS\n3,b,RESULTS\n")
    rows, _ = read(source, row_spec)
    assert [row[:2] for row in rows if row[0] is Row] == [(Row, 2), (Row, 4)]
    assert [row[1:3] for row in rows if row[0] is BadRow] == [(3, "too_long")]


# Files that cannot be used


@pytest.mark.parametrize(
    ("content", "format", "message"),
    [
        (b"", "csv", "file: is empty; its first line must name the columns"),
        ("id,text,label".encode("utf-16"), "csv", "file: is UTF-16 text: convert it to UTF-8"),
        (b"\x1f\x8b\x08\x00", "jsonl", "file: is compressed by gzip: decompress it"),
        (b"PAR1xxxxPAR1", "csv", "file: is Parquet: set data.format to parquet"),
        (b"id,text,label\n", "parquet", "file: is not a Parquet file, or is damaged"),
        (b"PAR1" + b"\0" * 40 + b"PAR1", "parquet", "file: is not a Parquet file, or is damaged"),
    ],
)
def test_file_of_another_kind_is_one_clear_error(file, content, format, message):
    with pytest.raises(DataError) as caught:
        plan_file(file(content), spec(format))
    assert str(caught.value) == message


def test_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(DataError) as caught:
        plan_file(InputFile(0, "train", str(tmp_path / "none"), "none"), spec())
    assert str(caught.value) == "none: cannot be read (No such file or directory)"


@pytest.mark.parametrize("columns", [{"slices": ("year",)}, {"text_pair": "year"}])
def test_pubmed_rct_has_no_further_columns(file, columns):
    with pytest.raises(DataError, match=r"^file: the column 'year' is missing; columns found: 'id', 'label', 'text'"):
        plan_file(file(b"###1\n"), spec("pubmed_rct", **columns))


# Parquet


def parquet(file, columns, **options):
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, **options)
    return file(stream.getvalue())


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip), max_size=30),
    st.integers(1, 10),
    st.sampled_from([pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]),
)
def test_whatever_parquet_holds_comes_back_exactly_by_row_groups(file, texts, group_rows, kind):
    encoded = [text.encode() for text in texts]
    array = pa.array(encoded if kind == pa.binary() else texts, kind)
    labels = ["METHODS" if index % 2 else "RESULTS" for index in range(len(texts))]
    source = parquet(
        file, {"x": labels, "text": array, "label": labels, "id": list(range(len(texts)))}, row_group_size=group_rows
    )
    rows, items = read(source, spec("parquet"), 1)
    assert [(row[1], row[2], row[4], row[5]) for row in rows] == [
        (index + 1, text, (labels[index].encode(),), str(index).encode()) for index, text in enumerate(encoded)
    ]
    assert items == max(1, -(-len(texts) // group_rows))  # pyarrow writes an empty group for an empty table


def test_parquet_bad_rows_have_their_row_number_and_values(file):
    broken = pa.array([b"a", b"b\xff", None, b"c"]).cast(pa.binary()).view(pa.string())
    source = parquet(file, {"text": broken, "label": ["METHODS", "METHODS", "RESULTS", None]})
    rows, _ = read(source, spec("parquet", id=None))
    assert rows == [
        (Row, 1, b"a", None, (b"METHODS",), None, ()),
        (BadRow, 2, "invalid_utf8", b'{"text": "b\\udcff", "label": "METHODS"}', None),
        (BadRow, 3, "empty_text", b'{"text": null, "label": "RESULTS"}', None),
        (BadRow, 4, "missing_label", b'{"text": "c", "label": null}', None),
    ]


def test_parquet_lists_of_labels_and_slices_of_other_types(file):
    source = parquet(
        file,
        {
            "text": ["a", "b"],
            "labels": pa.array([["x", "y"], []], pa.list_(pa.string())),
            "year": [2001, None],
            "share": [0.5, 1.0],
            "ok": [True, False],
        },
    )
    row_spec = spec(
        "parquet",
        label="labels",
        labels=frozenset([b"x", b"y"]),
        multilabel=True,
        id=None,
        slices=("year", "share", "ok"),
    )
    rows, _ = read(source, row_spec)
    assert [(row[4], row[6]) for row in rows] == [
        ((b"x", b"y"), (b"2001", b"0.5", b"true")),
        ((), (b"", b"1.0", b"false")),
    ]


def test_parquet_date_that_python_has_none_for_costs_its_row_alone(file):
    days = pa.array([1, 10**8, 2], pa.date32())
    table = pa.table({"text": ["a", "b", "c"], "label": pa.array([1.0, 1.0, None]), "day": days})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    row_spec = spec("parquet", labels=frozenset([b"1"]), id=None, slices=("day",))
    found, _ = read(file(stream.getvalue()), row_spec)
    assert [row[1:3] for row in found] == [(1, b"a"), (2, "wrong_type"), (3, "missing_label")]
    assert json.loads(found[1][3])["day"] == "out of range"


def test_parquet_with_neighbours_is_one_item(file):
    columns = {"id": [1, 1, 1], "text": ["a", "b", "c"], "label": ["METHODS"] * 3}
    rows, items = read(parquet(file, columns, row_group_size=1), spec("parquet", neighbours=1), 1)
    assert [(row[2], row[3]) for row in rows] == [(b"a", b"\nb"), (b"b", b"a\nc"), (b"c", b"b\n")]
    assert items == 1


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("text", pa.array([1, 2]), "the column 'text' is of type int64, and a text is a string; convert it"),
        ("text", pa.array([["a"], ["b"]]), "the column 'text' is of type list<"),
        ("text", pa.array([{"a": 1}, {"a": 2}]), "the column 'text' is of type struct<a: int64>, and a text"),
        (
            "label",
            pa.array([Decimal("1.5"), Decimal("2.5")]),
            "the column 'label' is of type decimal128(2, 1); convert",
        ),
        ("id", pa.array([{"a": 1}, {"a": 2}]), "the column 'id' is of type struct<a: int64>; convert it to strings or"),
    ],
)
def test_parquet_column_of_a_type_that_cannot_be_is_named(file, column, values, message):
    columns = {"id": ["1", "2"], "text": ["a", "b"], "label": ["METHODS", "METHODS"], column: values}
    with pytest.raises(DataError, match=f"^file: {re.escape(message)}"):
        plan_file(parquet(file, columns), spec("parquet"))


def test_parquet_without_a_column_is_one_clear_error(file):
    with pytest.raises(DataError, match=r"^file: the column 'id' is missing; columns found: 'text', 'label'"):
        plan_file(parquet(file, {"text": ["a"], "label": ["METHODS"]}), spec("parquet"))


def test_large_csv_is_read_in_order_over_many_items(file):
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([("id", "text", "label"), *((i, f'row "{i}",\n', "METHODS") for i in range(5000))])
    rows, items = read(file(stream.getvalue().encode()), spec(), 4096)
    assert [row[2] for row in rows] == [f'row "{i}",\n'.encode() for i in range(5000)]
    assert items > 20
