import csv
import io
import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.errors import DataError
from components.examples import head, parse
from components.examples.parse import Reader
from components.examples.rows import BadRow, Row, RowSpec

LABELS = frozenset([b"METHODS", b"RESULTS"])


def spec(format="csv", **changes):
    values = {"text": "text", "label": "label", "labels": LABELS, "id": "id"} | changes
    return RowSpec(format, **values)


def lines_of(data, number=1):
    """Physical lines as `files.read_lines` gives them."""
    offset = 0
    for raw in data.splitlines(keepends=True) if b"\r" not in data else re.findall(rb"[^\n]*\n|[^\n]+$", data):
        yield offset, number, raw
        offset, number = offset + len(raw), number + 1


def rows_of(data, row_spec):
    """The rows of a whole file."""
    if row_spec.format not in head.HEADED:
        return list(Reader(row_spec).rows(lines_of(data.removeprefix(parse.BOM))))
    header, newline, rest = data.partition(b"\n")
    return list(Reader(row_spec, head.read_header(header + newline, row_spec, "f")).rows(lines_of(rest, 2)))


def good(rows):
    return [(row.line, row.text, *row.labels) for row in rows if isinstance(row, Row)]


def bad(rows):
    return [(row.line, row.reason) for row in rows if isinstance(row, BadRow)]


# CSV


def test_csv_fields_are_unquoted_and_otherwise_kept_byte_for_byte():
    data = (
        b"\xef\xbb\xbfid,text,label\r\n"
        b"1, two  spaces\t,METHODS\r\n"
        b'2,"He said ""no"", twice",RESULTS\r\n'
        b'"3","two\r\nlines",RESULTS\r\n'
        b"4,\xc2\xa0\xe2\x80\x8bcaf\x65\xcc\x81\xef\xbb\xbf,METHODS\n"
        b"\r\n"
        b'5,"",METHODS\r\n'
        b'6,"""",METHODS'
    )
    rows = rows_of(data, spec())
    assert [tuple(row) for row in rows if isinstance(row, Row)] == [
        (2, b" two  spaces\t", None, (b"METHODS",), b"1", ()),
        (3, b'He said "no", twice', None, (b"RESULTS",), b"2", ()),
        (4, b"two\r\nlines", None, (b"RESULTS",), b"3", ()),
        (6, b"\xc2\xa0\xe2\x80\x8bcaf\x65\xcc\x81\xef\xbb\xbf", None, (b"METHODS",), b"4", ()),
        (9, b'"', None, (b"METHODS",), b"6", ()),
    ]
    assert bad(rows) == [(8, "empty_text")]


def test_csv_columns_are_found_by_name_and_others_passed_over():
    row_spec = spec(text="sentence", label="part", text_pair="question", slices=("year", "journal"))
    data = b"journal,part,x,question,id,sentence,year\nBMJ,METHODS,\xff,why?,7,a,2001\n,RESULTS,,,8,b,\n"
    assert [tuple(row) for row in rows_of(data, row_spec)] == [
        (2, b"a", b"why?", (b"METHODS",), b"7", (b"2001", b"BMJ")),
        (3, b"b", b"", (b"RESULTS",), b"8", (b"", b"")),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1,METHODS", "wrong_columns"),
        (b"1,a,b,METHODS", "wrong_columns"),
        (b'1,a "b" c,METHODS', "bad_quoting"),
        (b'1,"a"b,METHODS', "bad_quoting"),
        (b'1,"a,METHODS', "bad_quoting"),
        (b'1,a",METHODS', "bad_quoting"),
        (b"1,a\xff,METHODS", "invalid_utf8"),
        (b"1,a\xed\xa0\x80,METHODS", "invalid_utf8"),
        (b"\xff,a,METHODS", "invalid_utf8"),
        (b"1,a\0b,METHODS", "nul_character"),
        (b"1,12345678901,METHODS", "too_long"),
        (b"1,,METHODS", "empty_text"),
        (b"1, \t,METHODS", "empty_text"),
        ("1,\u00a0\u2003,METHODS".encode(), "empty_text"),
        (b",a,METHODS", "empty_id"),
        (b"1,a,", "missing_label"),
        (b"1,a,methods", "label_case_or_space"),
        (b"1,a,METHODS ", "label_case_or_space"),
        (b"1,a,METHOD", "unknown_label"),
        (b"1,a,\xff", "unknown_label"),
    ],
)
def test_csv_bad_row_has_its_line_reason_and_bytes_and_costs_no_other_row(line, reason):
    rows = rows_of(b"id,text,label\n0,before,METHODS\n" + line + b"\n2,after,RESULTS\n", spec(max_characters=10))
    assert good(rows) == [(2, b"before", b"METHODS"), (4, b"after", b"RESULTS")]
    assert [tuple(row[:3]) for row in rows if isinstance(row, BadRow)] == [(3, reason, line)]


def test_length_limit_counts_characters_and_not_bytes():
    rows = rows_of("id,text,label\n1,ääääääääää,METHODS\n2,äääääääääää,METHODS\n".encode(), spec(max_characters=10))
    assert good(rows) == [(2, "ä".encode() * 10, b"METHODS")]
    assert bad(rows) == [(3, "too_long")]


@pytest.mark.parametrize(
    "stray",
    [
        b'9,"a stray quote,METHODS',  # closed by nothing below
        b'"9,a stray quote,METHODS',
        b'9,"a stray quote"",METHODS',
        b'9,"a stray, with comma" here,METHODS',
    ],
)
def test_stray_quote_costs_one_line_whatever_follows(stray):
    below = (
        b'10,plain,METHODS\n11,"quoted, with comma",RESULTS\n12,"two\nlines",METHODS\n13,"",METHODS\n14,last,RESULTS\n'
    )
    rows = rows_of(b"id,text,label\n" + stray + b"\n" + below, spec())
    assert bad(rows) == [(2, "bad_quoting"), (7, "empty_text")]
    assert good(rows) == [
        (3, b"plain", b"METHODS"),
        (4, b"quoted, with comma", b"RESULTS"),
        (5, b"two\nlines", b"METHODS"),
        (8, b"last", b"RESULTS"),
    ]


def test_stray_quote_that_another_one_closes_does_not_swallow_the_rows_between():
    # As RFC 4180 alone goes, this is one good row of three columns whose text holds four lines.
    data = b'id,text,label\n1,"a,METHODS\n2,b,RESULTS\n3,c,METHODS\n4,size 5",RESULTS\n5,e,METHODS\n'
    rows = rows_of(data, spec())
    assert bad(rows) == [(2, "bad_quoting"), (5, "bad_quoting")]
    assert good(rows) == [(3, b"b", b"RESULTS"), (4, b"c", b"METHODS"), (6, b"e", b"METHODS")]


def test_quoted_text_of_many_lines_with_commas_is_one_row():
    text = b"Title, short\n\nMETHODS, in brief\nlist: a,b,c\n"
    rows = rows_of(b'id,text,label\n1,"' + text + b'",METHODS\n2,b,RESULTS\n', spec())
    assert good(rows) == [(2, text, b"METHODS"), (7, b"b", b"RESULTS")]


def test_row_of_several_lines_with_wrong_columns_is_one_bad_row():
    rows = rows_of(b'id,text,label\n1,"a\nb",METHODS,x\n2,b,RESULTS\n', spec())
    assert [tuple(row[:3]) for row in rows if isinstance(row, BadRow)] == [(2, "wrong_columns", b'1,"a\nb",METHODS,x')]
    assert good(rows) == [(4, b"b", b"RESULTS")]


def test_multilabel_cell_is_split_and_may_be_empty():
    data = b"id,text,labels\n1,a,x;y\n2,b,\n3,c,x;x\n4,d,x;z\n5,e,x;\n"
    rows = rows_of(data, spec(label="labels", labels=frozenset([b"x", b"y"]), multilabel=True))
    assert [(row.line, row.labels) for row in rows if isinstance(row, Row)] == [
        (2, (b"x", b"y")),
        (3, ()),
        (4, (b"x",)),
    ]
    assert bad(rows) == [(5, "unknown_label"), (6, "unknown_label")]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"id,body,label\n", "f: the column 'text' is missing; columns found: 'id', 'body', 'label'."),
        (b'"id";text;label\n', "f: line 1: the columns are separated by semicolons, and those of CSV by commas: write"),
        (
            b"id\ttext\tlabel\n",
            "f: line 1: the columns are separated by tabs, and those of CSV by commas: set data.for",
        ),
        (b"id, text, label\n", "f: the column 'text' is missing; columns found: 'id', ' text', ' label'."),
        (b"id,text,label,text\n", "f: the column 'text' is there more than once"),
        (b"id,text\r1,a\r", "f: its lines end in CR alone"),
        (b'id,"text,label\n', "f: line 1: the header is not quoted"),
        (b"id,\xff,label\n", "f: line 1: the header is not UTF-8"),
    ],
)
def test_unusable_header_is_one_clear_error(header, message):
    with pytest.raises(DataError) as caught:
        head.read_header(header, spec(), "f")
    assert str(caught.value).startswith(message)


def test_file_without_header_does_not_put_its_text_into_the_message():
    with pytest.raises(DataError) as caught:
        head.read_header(b"17,The patient John Doe was given aspirin.,METHODS\n", spec(), "f")
    assert str(caught.value).startswith(
        "f: the column 'text' is missing; columns found: 3, not shown (if they are no names, the header is missing)"
    )
    for short in (
        b"John Doe HIV,METHODS\n", b"AB1234567,METHODS\n", b'pneumonia,"a, b",x\n', b"label,John Doe,HIV,pneumonia\n",
    ):  # fmt: skip
        with pytest.raises(DataError) as caught:
            head.read_header(short, spec(), "f")
        assert not [word for word in ("John", "HIV", "AB1", "METHODS", "pneumonia") if word in str(caught.value)]


def test_keys_of_a_json_object_are_told_only_where_they_are_names():
    said = str(
        head.missing_key("f", "text", ["John Doe HIV", "Label", "txt", "year", "pneumonia"], spec("jsonl").columns)
    )
    assert "keys of the first: 'Label', 'txt', 'year' and 2 more, not shown" in said


def test_rows_that_end_in_cr_alone_below_a_header_are_refused():
    for format, separator in (("csv", b","), ("tsv", b"\t")):
        rows = [b"id,text,label\n1,a,METHODS\r2,b,RESULTS\r".replace(b",", separator)]
        with pytest.raises(DataError, match=r"^f: line 2: its rows end in CR alone: convert them to LF"):
            head.read_head(io.BytesIO(b"".join(rows)), spec(format), "f")
    for fine in (b'1,"a\rb",METHODS\r\n', b"1,a\rb,METHODS\n", b"1,a,METHODS\r\n2,b,RESULTS\r\n"):
        assert head.read_head(io.BytesIO(b"id,text,label\n" + fine), spec(), "f")[1] == 2
    loose = spec("tsv", id=None, labels=frozenset([b"A", b"B"]))
    assert head.read_head(io.BytesIO(b"label\ttext\nA\tone\rB\ttwo\nA\tthree\n"), loose, "f")[1] == 2


def test_a_nul_character_makes_no_utf_16():
    for first in (b'{"a\0', b"i\0d,text,label\n"):
        head.check_encoding(first, "f")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl", "pubmed_rct"])
def test_utf_16_without_a_mark_is_named(encoding, format):
    with pytest.raises(DataError, match=r"^f: line 1: holds NUL bytes: it is UTF-16 text, or damaged: convert it"):
        head.read_head(io.BytesIO("id,text,label\n".encode(encoding)), spec(format), "f")


@pytest.mark.parametrize(
    ("first", "kind"), [("id".encode("utf-16"), "UTF-16"), (b"\x1f\x8b\x08", "gzip"), (b"PAR1", "Parquet")]
)
def test_file_of_another_kind_is_named_as_such(first, kind):
    with pytest.raises(DataError, match=f"^f: is .*{kind}"):
        head.check_encoding(first, "f")


# The other formats


def test_tsv_has_no_quoting():
    data = b'text\tlabel\r\n"a" and "b\tMETHODS\r\n"c\nd"\tRESULTS\na,b\tMETHODS\nx\ty\tMETHODS\n'
    rows = rows_of(data, spec("tsv", id=None))
    assert good(rows) == [(2, b'"a" and "b', b"METHODS"), (4, b'd"', b"RESULTS"), (5, b"a,b", b"METHODS")]
    assert bad(rows) == [(3, "wrong_columns"), (6, "wrong_columns")]


def test_tsv_that_was_written_with_quoting_is_no_tsv():
    rows = rows_of(b'text\tlabel\n"he said ""no"""\tMETHODS\n"a"\tMETHODS\n', spec("tsv", id=None))
    assert (bad(rows), good(rows)) == ([(2, "quoted_tsv")], [(3, b'"a"', b"METHODS")])
    for header, message in (
        (b'"text"\t"label"\n', "the columns are quoted, and TSV has no quoting: write the file without"),
        (b"text,label\n", "the columns are separated by commas, and those of TSV by tabs: set data.format to csv"),
    ):
        with pytest.raises(DataError, match=f"^f: line 1: {message}"):
            head.read_header(header, spec("tsv", id=None), "f")


def test_jsonl_values_keep_their_characters_and_bad_lines_their_reason():
    lines = [
        rb'{"text": "a\u00e9\ud83d\ude00\n\"", "label": "METHODS", "id": 7, "more": [1]}',
        rb"",
        rb'{"text": "a", "label": "METHODS", "id": "8"',
        rb'["a"]',
        b"[" * 100_000,
        rb'{"text": 5, "label": "METHODS", "id": "8"}',
        rb'{"text": null, "label": "METHODS", "id": "8"}',
        rb'{"label": "METHODS", "id": "8"}',
        rb'{"text": "a\ud83d", "label": "METHODS", "id": "8"}',
        rb'{"text": "a\u0000", "label": "METHODS", "id": "8"}',
        b'{"text": "a\xff", "label": "METHODS", "id": "8"}',
        rb'{"text": "a", "label": ["METHODS"], "id": "8"}',
        rb'{"text": "a", "label": null, "id": "8"}',
        rb'{"text": "a", "label": "OTHER", "id": "8"}',
        rb'{"text": "a", "label": "METHODS", "id": null}',
        rb'{"text": "a", "label": "METHODS", "id": 1.5}',
        rb'{"text": "b", "label": "RESULTS", "id": "9"}',
    ]
    rows = rows_of(b"\n".join(lines), spec("jsonl"))
    assert good(rows) == [(1, 'aé😀\n"'.encode(), b"METHODS"), (17, b"b", b"RESULTS")]
    assert rows[0].id == b"7"
    assert bad(rows) == [
        (3, "broken_json"),
        (4, "broken_json"),
        (5, "broken_json"),
        (6, "wrong_type"),
        (7, "empty_text"),
        (8, "empty_text"),
        (9, "invalid_utf8"),
        (10, "nul_character"),
        (11, "invalid_utf8"),
        (12, "wrong_type"),
        (13, "missing_label"),
        (14, "unknown_label"),
        (15, "empty_id"),
        (16, "wrong_type"),
    ]


def test_jsonl_labels_may_be_a_list_a_string_or_numbers():
    row_spec = spec("jsonl", label="labels", labels=frozenset([b"x", b"1"]), multilabel=True, id=None)
    lines = [
        rb'{"text": "a", "labels": ["x", 1]}',
        rb'{"text": "a", "labels": []}',
        rb'{"text": "a", "labels": "x;1"}',
        rb'{"text": "a", "labels": ""}',
        rb'{"text": "a", "labels": null}',
        rb'{"text": "a", "labels": [["x"]]}',
        rb'{"text": "a", "labels": [null]}',
    ]
    rows = rows_of(b"\n".join(lines), row_spec)
    assert [row.labels for row in rows if isinstance(row, Row)] == [(b"x", b"1"), (), (b"x", b"1"), ()]
    assert bad(rows) == [(5, "missing_label"), (6, "wrong_type"), (7, "unknown_label")]


def test_whole_numbers_that_pandas_made_floats_are_whole_numbers():
    row_spec = spec("jsonl", labels=frozenset([b"1", b"0"]))
    lines = [
        rb'{"text": "a", "label": 1.0, "id": 7.0}',
        rb'{"text": "a", "label": NaN, "id": 8}',
        rb'{"text": "a", "label": 0.5, "id": 8}',
        rb'{"text": "a", "label": -0.0, "id": 8}',
    ]
    rows = rows_of(b"\n".join(lines), row_spec)
    assert [(row.labels, row.id) for row in rows if isinstance(row, Row)] == [((b"1",), b"7"), ((b"0",), b"8")]
    assert bad(rows) == [(2, "missing_label"), (3, "wrong_type")]
    several = spec("jsonl", label="labels", labels=frozenset([b"1"]), multilabel=True, id=None)
    rows = rows_of(b'{"text": "a", "labels": NaN}\n{"text": "a", "labels": [1.0]}', several)
    assert (bad(rows), [row.labels for row in rows[1:]]) == ([(1, "missing_label")], [(b"1",)])


def test_pubmed_rct_sentences_have_the_id_of_their_document():
    data = (
        b"METHODS\tnowhere\n###12\nMETHODS\tfirst\twith tab\nRESULTS\t###second\nno tab here\nOTHER\tx\n\n"
        b"###13 \r\n\nRESULTS\tthird\r\n###\nRESULTS\tfourth"
    )
    rows = rows_of(data, spec("pubmed_rct"))
    assert [tuple(row) for row in rows if isinstance(row, Row)] == [
        (3, b"first\twith tab", None, (b"METHODS",), b"12", ()),
        (4, b"###second", None, (b"RESULTS",), b"12", ()),
        (10, b"third", None, (b"RESULTS",), b"13", ()),
    ]
    assert bad(rows) == [(1, "no_document"), (5, "wrong_columns"), (6, "unknown_label"), (12, "empty_id")]


# Neighbours


def pairs(data, neighbours=1):
    rows = rows_of(data, spec(neighbours=neighbours))
    return [(row.text, row.text_pair) for row in rows if isinstance(row, Row)]


def test_neighbours_are_the_sentences_before_and_after_in_the_same_document():
    data = b"id,text,label\n1,a,METHODS\n1,b,METHODS\n1,c,RESULTS\n2,d,METHODS\n1,e,METHODS\n1,f,METHODS\n"
    assert pairs(data) == [
        (b"a", b"\nb"),
        (b"b", b"a\nc"),
        (b"c", b"b\n"),
        (b"d", b"\n"),
        (b"e", b"\nf"),
        (b"f", b"e\n"),
    ]


def test_more_neighbours_reach_further():
    data = b"id,text,label\n" + b"".join(b"1,%c,METHODS\n" % letter for letter in b"abcde") + b"2,f,METHODS\n"
    assert pairs(data, neighbours=2) == [
        (b"a", b"\nb c"),
        (b"b", b"a\nc d"),
        (b"c", b"a b\nd e"),
        (b"d", b"b c\ne"),
        (b"e", b"c d\n"),
        (b"f", b"\n"),
    ]


def test_line_breaks_of_neighbours_are_spaces():
    data = b'id,text,label\n1,"a\nb",METHODS\n1,c,METHODS\n1,"d\ne",METHODS\n'
    assert pairs(data) == [(b"a\nb", b"\nc"), (b"c", b"a b\nd e"), (b"d\ne", b"c\n")]


@pytest.mark.parametrize("line", [b"1,x,OTHER", b"1,,METHODS", b"no columns", b'1,"x,METHODS'])
def test_bad_row_within_a_document_is_passed_over(line):
    data = b"id,text,label\n1,a,METHODS\n" + line + b"\n1,b,METHODS\n"
    assert pairs(data) == [(b"a", b"\nb"), (b"b", b"a\n")]


def test_bad_row_of_another_document_ends_the_document():
    data = b"id,text,label\n1,a,METHODS\n2,x,OTHER\n1,b,METHODS\n"
    assert pairs(data) == [(b"a", b"\n"), (b"b", b"\n")]


def test_pubmed_rct_document_without_sentences_ends_the_one_before():
    data = b"###1\nMETHODS\ta\n###1\nMETHODS\tb\n###2\n\n###1\nMETHODS\tc\n"
    rows = rows_of(data, spec("pubmed_rct", neighbours=1))
    assert [(row.text, row.text_pair) for row in rows] == [(b"a", b"\nb"), (b"b", b"a\n"), (b"c", b"\n")]


# Any rows written come back


def texts(without="\0"):
    characters = st.characters(codec="utf-8", exclude_characters=without)
    return st.text(characters, min_size=1).filter(lambda text: text.strip())


TABLES = st.lists(st.tuples(texts(), texts(), st.sampled_from(["METHODS", "RESULTS"])), max_size=20)


@settings(deadline=None)
@given(TABLES, st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]), st.booleans())
def test_whatever_csv_writes_comes_back_exactly(table, quoting, bom):
    stream = io.StringIO(newline="")
    csv.writer(stream, quoting=quoting).writerows([("id", "text", "label"), *table])
    rows = rows_of(parse.BOM * bom + stream.getvalue().encode(), spec())
    assert [(row.id.decode(), row.text.decode(), row.labels[0].decode()) for row in rows] == table


@settings(deadline=None)
@given(st.lists(st.tuples(texts(without="\0\t\n\r"), st.sampled_from(["METHODS", "RESULTS"]))))
def test_whatever_is_joined_by_tabs_comes_back_exactly(table):
    data = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in table)
    rows = rows_of(data.encode(), spec("tsv", id=None))
    assert [(row.text.decode(), row.labels[0].decode()) for row in rows] == table


@settings(deadline=None)
@given(TABLES, st.booleans())
def test_whatever_json_writes_comes_back_exactly(table, ensure_ascii):
    lines = [
        json.dumps({"id": group, "text": text, "label": label}, ensure_ascii=ensure_ascii)
        for group, text, label in table
    ]
    rows = rows_of("".join(line + "\n" for line in lines).encode(), spec("jsonl"))
    assert [(row.id.decode(), row.text.decode(), row.labels[0].decode()) for row in rows] == table


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from(["METHODS", "RESULTS"]), texts(without="\0\n\r")), max_size=5)))
def test_whatever_stands_in_pubmed_rct_form_comes_back_exactly(documents):
    data = "".join(
        f"###{number}\n" + "".join(f"{label}\t{text}\n" for label, text in document) + "\n"
        for number, document in enumerate(documents)
    )
    rows = rows_of(data.encode(), spec("pubmed_rct"))
    assert [(row.id.decode(), row.labels[0].decode(), row.text.decode()) for row in rows] == [
        (str(number), label, text) for number, document in enumerate(documents) for label, text in document
    ]


WHOLE_ROWS = [b"1,t,METHODS\n", b'2,"u,v",RESULTS\n']
PIECES = st.sampled_from([b'"', b'""', b",", b"\n", b"\r\n", b"\r", b"a", b"\xff", b" ", b"\0", *WHOLE_ROWS])


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES).map(b"".join))
@example(b'"' + b"1,t,METHODS\n" * 3)
def test_every_line_of_a_broken_csv_file_is_in_exactly_one_row(data):
    rows = rows_of(b"id,text,label\n" + data, spec())
    records = Reader(spec(), ("id", "text", "label")).records(lines_of(data, 2))
    kept = b"\n".join(record.raw for record in records)
    lines, kept_lines = ([line.rstrip(b"\r") for line in whole.split(b"\n")] for whole in (data, kept))
    assert list(filter(None, kept_lines)) == list(filter(None, lines))
    assert [row.line for row in rows] == sorted({row.line for row in rows})


def test_rows_and_records_do_not_show_their_text_when_printed():
    rows = rows_of(b"id,text,label\n1,secret,METHODS\n1,secret,OTHER\n", spec())
    record = next(Reader(spec(), ("id", "text", "label")).records([(0, 1, b"1,secret,METHODS\n")]))
    assert [repr(rows[0]), repr(rows[1])] == ["Row(line=2)", "BadRow(line=3, reason=unknown_label)"]
    assert repr(record) == "Record(offset=0, line=1, reason=None)"


def test_quoted_text_with_lines_that_look_like_rows_is_one_row():
    note = "Risk factors:\nsmoker,no\ndiabetes,yes\nnone other"
    data = f'text,label\n"{note}",no\nplain,yes\n'.encode()
    found = rows_of(data, spec(id=None, labels=frozenset({b"no", b"yes"})))
    assert bad(found) == []
    assert [(row.text, row.labels) for row in found] == [(note.encode(), (b"no",)), (b"plain", (b"yes",))]
