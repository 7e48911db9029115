from hypothesis import given, settings
from hypothesis import strategies as st

from components.examples.leaks import HASH_BYTES, Leak, find_leaks, sorted_hashes, text_hash


def reader(content, read=None):
    """Reads parts of what stands under a path, and notes which."""

    def part(path, start, size):
        found = content[path][start : start + size]
        if read is not None:
            read.append((path, start, len(found)))
        return found

    return part


def leaks_of(splits, rows_at_once, read=None):
    """Leaks of texts by split, each split in two files."""
    content = {}
    for split, texts in splits.items():
        for part in (0, 1):
            content[f"{split}-{part}"] = sorted_hashes(b"".join(text_hash(text) for text in texts[part::2]))
    files = {split: [f"{split}-0", f"{split}-1"] for split in splits}
    rows = sum(len(texts) for texts in splits.values())
    return find_leaks(files, reader(content, read), rows, rows_at_once)


@settings(deadline=None)
@given(st.integers(1, 10))
def test_shared_texts_and_their_rows_are_counted_by_pair(rows_at_once):
    splits = {"train": [b"a", b"b", b"a", b"c", b"d"], "eval": [b"e", b"a", b"c", b"c"], "test": [b"d", b"f"]}
    leaks, shared = leaks_of(splits, rows_at_once)
    assert leaks == [Leak(("train", "eval"), 2, (3, 3)), Leak(("train", "test"), 1, (1, 1))]
    assert shared["train", "test"] == text_hash(b"d")
    assert sorted(shared["train", "eval"][at : at + HASH_BYTES] for at in (0, HASH_BYTES)) == sorted(
        [text_hash(b"a"), text_hash(b"c")]
    )


def test_splits_without_shared_texts_have_no_leaks():
    assert leaks_of({"train": [b"a"], "eval": [b"b"], "test": []}, 1) == ([], {})


def test_hashes_with_equal_first_halves_are_told_apart():
    same, one, other = bytes(8), b"\1" * 8, b"\2" * 8
    content = {"train": same + one, "eval": same + other}
    assert find_leaks({"train": ["train"], "eval": ["eval"]}, reader(content), 2) == ([], {})


def test_however_many_ranges_there_are_each_byte_is_read_once(monkeypatch):
    monkeypatch.setattr("components.examples.leaks._LEAST_READ", 2)
    train = [str(n).encode() for n in range(2000)]
    splits = {"train": train, "eval": [b"new", *train[::7]]}
    read = []
    leaks, shared = leaks_of(splits, 50, read)
    assert leaks == [Leak(("train", "eval"), 286, (286, 286))]
    assert len(shared["train", "eval"]) == 286 * HASH_BYTES
    parts = {}
    for path, start, size in read:
        assert start == parts.get(path, 0)
        assert size <= 50 * HASH_BYTES
        parts[path] = start + size
    assert sum(parts.values()) == (2000 + 287) * HASH_BYTES


def test_pair_from_a_column_counts_as_part_of_the_text():
    assert len({text_hash(b"a"), text_hash(b"a", b""), text_hash(b"a", b"b"), text_hash(b"b", b"a")}) == 4
