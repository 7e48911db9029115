"""Long texts in windows: against plain Python, and nothing at all done to a text that fits."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from components.encoder.windows import Windows


def packed(texts):
    ids = np.array([token for text in texts for token in text], np.int32)
    return {"ids": ids, "row_lengths": np.array([len(text) for text in texts], np.int32)}


def split(texts, length, overlap):
    """The windows as lists, and the text that each is of."""
    found = {k: np.asarray(v).tolist() for k, v in Windows(length, overlap).split(packed(texts)).items()}
    assert found["text_lengths"] == [len(text) for text in texts]
    ends = np.cumsum(found["row_lengths"])
    rows = [found["ids"][end - size : end] for end, size in zip(ends, found["row_lengths"], strict=True)]
    assert sum(found["row_lengths"]) == len(found["ids"])
    return rows, found["text_of_row"]


def expected(text, length, overlap):
    cls, *content, sep = text
    room = length - 2
    windows, start = [content[:room]], 0
    while start + room < len(content):
        start += room - overlap
        windows.append(content[start : start + room])
    return [[cls, *window, sep] for window in windows]


def test_the_example_of_the_docstring():
    rows, texts = split([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 9]], 6, 2)
    assert rows == [[0, 1, 2, 3, 4, 9], [0, 3, 4, 5, 6, 9], [0, 5, 6, 7, 8, 9], [0, 1, 9]]
    assert texts == [0, 0, 0, 1]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 40), max_size=6),
    length=st.integers(3, 12),
    data=st.data(),
)
def test_windows_are_those_of_plain_python(lengths, length, data):
    overlap = data.draw(st.integers(0, (length - 2) // 2))
    texts = [[100 * n + k for k in range(size)] for n, size in enumerate(lengths)]
    rows, of_text = split(texts, length, overlap)
    wanted = [expected(text, length, overlap) for text in texts]
    assert rows == [window for windows in wanted for window in windows]
    assert of_text == [n for n, windows in enumerate(wanted) for _ in windows]
    # every token stands in some window, and none beyond its text
    for n, text in enumerate(texts):
        assert {token for row, t in zip(rows, of_text, strict=True) if t == n for token in row} == set(text)
