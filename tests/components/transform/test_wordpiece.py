"""The in-graph tokeniser: the reference's ids on any string, special tokens, truncation, refusals."""

import random
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.config import EncoderConfig
from components.encoder.config import geometry_in_use
from components.errors import CheckpointError, ConfigError
from components.transform.vocab_file import read_tokens
from components.transform.wordpiece import WordPiece

SMALL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "pain", "fell", "##s", "no", ".", "a", "##a"]
DATA = Path(__file__).parents[4] / "shared" / "data"
TEXTS = tf.TensorSpec([None], tf.string)


def in_graph(wordpiece):
    """A function from texts (str or bytes) to lists of ids, traced once."""
    tokenize = tf.function(wordpiece.tokenize, input_signature=[TEXTS])
    return lambda texts: tokenize(tf.constant(texts, tf.string)).to_list()


@pytest.fixture(scope="module")
def cased(cased_tokens, reference):
    return in_graph(WordPiece(cased_tokens)), reference(cased_tokens)


@pytest.fixture(scope="module")
def uncased(uncased_tokens, reference):
    return in_graph(WordPiece(uncased_tokens, lower_case=True)), reference(uncased_tokens, lower_case=True)


@pytest.fixture(params=["cased", "uncased"])
def both(request):
    """(ours, the reference) for the cased and for the uncased vocabulary."""
    return request.getfixturevalue(request.param)


def differing(pair, texts):
    ours, theirs = pair
    return [text for text, mine, its in zip(texts, ours(texts), theirs(texts), strict=True) if mine != its]


# === Golden ids ===


def test_ordinary_text_has_biobert_ids(cased):
    assert cased[0](["The pain fell.", "Aspirin reduced pain."]) == [
        [1109, 2489, 2204, 119],
        [1249, 8508, 4854, 3549, 2489, 119],
    ]


def test_special_tokens_written_in_a_text_are_ordinary_text(cased, cased_tokens):
    texts = ["[SEP]", "a [CLS] b", "[UNK]", "[PAD]", "[MASK]", "[unused1]"]
    special = {cased_tokens.index(text) for text in ("[SEP]", "[CLS]", "[UNK]", "[PAD]", "[MASK]", "[unused1]")}

    ids = cased[0](texts)

    assert ids[0] == [cased_tokens.index(piece) for piece in ("[", "SE", "##P", "]")]
    assert not special & {one for row in ids for one in row}
    assert differing(cased, texts) == []


# === Any string ===

HOSTILE = [
    "",
    " ",
    "\0",
    "\x0b",
    "\x85",
    "\u200b",
    "\ufeff",
    "\ufffd",
    "\ue000",
    "\ue001",
    "\uf8ff1",
    "\U0010ffff",
    "a\u200db",
    "a\u00adb",
    "a\x0bb",
    "a\x85b",
    "a\u00a0b",
    "a\u2028b",
    "a\u3000b",
    "a\ue000b",
    "x\u061dy",
    "x\u166dy",
    "x\U000111c9y",
    "x\U0002b820y",
    "x\U0002b920y",
    "👩\u200d⚕️ pain",
    "naïve Äpfel ΑΣ İstanbul ﬁn ½ Å",
    "각난 각",
    "e\u0301\u0301 a\u0327\u0301b",
    "##ing ### ##",
    "don't -- p<0.05",
    "mg·kg⁻¹ β-blocker 5‰",
]
LONG = [
    "a" * 100,
    "a" * 101,
    "é" * 100,
    "é" * 101,
    "𝒜" * 100,
    "𝒜" * 101,
    "a" * 60 + "\u200d" * 60 + "a" * 40,
    "a" * 60 + "\u200d" * 60 + "a" * 41,
    "a" * 60 + "," + "a" * 60,
    "a" * 101 + "," + "b",
    "b " + "a" * 101 + " b",
    "각" * 33,
    "각" * 34,
    "e\u0301" * 100,
    "e\u0301" * 101,
    "\u061d" * 101,
    "一" * 101,
]


@pytest.mark.parametrize("text", HOSTILE + LONG)
def test_a_hostile_text_has_the_references_ids(both, text):
    assert differing(both, [text]) == []


def test_hostile_and_plain_texts_in_one_batch_keep_their_rows(both):
    texts = ["pain", "a\u200db", "", "fell", "x" * 101, "no pain"]

    assert both[0](texts) == [both[0]([text])[0] for text in texts]
    assert differing(both, texts) == []


def test_a_batch_of_no_texts_has_no_rows(both):
    assert both[0]([]) == []


@pytest.mark.slow
def test_every_code_point_has_the_references_ids_alone_and_inside_a_word(both):
    texts = []
    for first in range(0, 0x110000, 64):
        chars = [chr(c) for c in range(first, first + 64) if not 0xD800 <= c < 0xE000]
        texts += [" ".join(chars), "".join(f"a{char}a " for char in chars)]

    assert differing(both, texts) == []


AWKWARD = (
    "\0\t\n\r\x0b\x0c\x1c\x85\xa0\xad \u1680\u180e\u2007\u200b\u200c\u200d\u2028\u2029\u202f\u2060\u3000\ufeff\ufffd"
    "\u0300\u0301\u0327\u0345\u20dd\u302e\U0001d165\ufe0f\U0001f3fd\u061c\u061d\u166d\U000111c9\ue000"
    "한각一𝒜👩⚕ıİßΣςǅﬃ½[]#'’-·¡µ"
)


def characters(drawn: bytes) -> str:
    """A character for each three bytes: Latin, of the first plane, of any, or an awkward one.

    A byte is drawn many times faster than a character.
    """
    found = []
    for kind, high, low in zip(drawn[::3], drawn[1::3], drawn[2::3], strict=False):
        number = high << 8 | low
        code = number % 0x250 if kind < 64 else number if kind < 128 else (kind % 17) << 16 | number
        found.append(AWKWARD[number % len(AWKWARD)] if kind >= 196 or 0xD800 <= code < 0xE000 else chr(code))
    return "".join(found)


def runs(longest: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=3, max_size=3 * longest).map(characters)


pieces = st.one_of(
    runs(40),
    st.sampled_from(["[SEP]", "[CLS]", "[UNK]", "[PAD]", "[MASK]", "[unused1]", "##s", "👩\u200d⚕️", "pain", "The"]),
    st.builds(lambda part, times: part * times, runs(3), st.integers(30, 110)),
    st.text("abcdeABCDE .,-", min_size=1, max_size=40),
)
strings = st.lists(pieces, min_size=1, max_size=5).map("".join)


def batches(size: int) -> st.SearchStrategy[list[str]]:
    return st.lists(strings, min_size=size, max_size=size, unique=True)


few = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
many = settings(few, max_examples=1200)


@few
@given(texts=batches(5))
def test_a_thousand_random_strings_have_the_references_ids(cased, texts):
    assert differing(cased, texts) == []


@pytest.mark.slow
def test_twenty_thousand_random_strings_have_the_references_ids(cased, uncased):  # drawing them takes long
    drawn = []

    @many
    @given(texts=batches(20))
    def draw(texts):
        drawn.extend(texts)

    draw()
    texts = list(dict.fromkeys(drawn))
    assert len(texts) >= 20_000
    assert differing(cased, texts) == []
    assert differing(uncased, texts) == []


BROKEN = [
    b"\xff\xfe pain",
    b"pa\xffin",
    b"\xc0\x80",
    b"\xed\xa0\x80a",
    b"a\xf5\x80\x80\x80b",
    b"\xe2\x82a\xe2\x82",
    b"\xf0\x9f\x91 pain",
    b"\xe0\x80\x80 \xf0\x80\x80\x80 \xf4\x90\x80\x80",
]


def test_bytes_that_are_not_utf8_count_as_replacement_characters(both):
    rng = random.Random(0)
    broken = BROKEN + [bytes(rng.choices(range(256), k=rng.randrange(1, 40))) for _ in range(2000)]
    for _ in range(2000):
        text = bytearray("Pain fell — no 痛み, naïve 👩\u200d⚕️.".encode())
        for _ in range(rng.randrange(1, 4)):
            text[rng.randrange(len(text))] = rng.randrange(256)
        broken.append(bytes(text))

    ours, theirs = both
    assert ours(broken) == theirs([text.decode("utf-8", "replace") for text in broken])


@pytest.mark.parametrize(
    "part",
    [
        "a", "pain ",
        *(pytest.param(part, marks=pytest.mark.slow) for part in ("\u200d", ",", "痛", "é", "ab\u200d ", "\0")),
    ],
)  # fmt: skip
def test_a_text_of_a_megabyte_has_the_references_ids(both, part):
    text = part * (1_000_000 // len(part.encode()))

    assert differing(both, [text, "pain"]) == []


def test_one_text_of_a_megabyte_among_thousands_does_not_widen_the_others(both):
    texts = [*(f"pain\u200d {number}" for number in range(5000)), "pain\u200d " * 125_000]

    assert differing(both, texts) == []


def test_encoding_a_megabyte_among_thousands_keeps_to_the_greatest_length():
    texts = [*["pain"] * 5000, "pain " * 200_000]

    encoded = WordPiece(SMALL).encode(texts, texts[::-1], max_length=64)

    assert encoded.input_ids.row_lengths().numpy().tolist() == [64, *[5] * 4999, 64]
    assert encoded.truncated.numpy().nonzero()[0].tolist() == [0, 5000]


def test_a_vocabulary_with_letters_that_the_engine_cuts_at_has_the_references_ids(reference):
    tokens = [*SMALL, "\u061d", "##\u061d", "a\u061d", "\ue001", "\u166d", "\u4e00\u4e00", "##\u4e00", ""]
    texts = [
        "\u061d",
        "a\u061d",
        "pain\u061d\u061d",
        "\ue001",
        "\u166d",
        "a\u166da",
        "\u4e00\u4e00",
        "a\u4e00",
        "\uf8ff0",
    ]

    assert differing((in_graph(WordPiece(tokens)), reference(tokens)), texts) == []


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets that cannot be shipped are not at hand")
def test_every_line_of_every_data_set_has_the_references_ids(both):
    for file in sorted(path for path in DATA.rglob("*") if path.suffix in {".csv", ".tsv", ".txt"}):
        lines = list(dict.fromkeys(file.read_text(encoding="utf-8").split("\n")))  # each once: some are a word a line
        assert (file.name, differing(both, lines)) == (file.name, [])


@pytest.mark.slow
def test_every_shipped_text_has_the_references_ids(cased, vocab_file):
    for file in sorted((vocab_file.parents[1] / "pmc_rct_sections").glob("*.csv")):
        lines = file.read_text(encoding="utf-8").split("\n")
        assert (file.name, differing(cased, lines)) == (file.name, [])


# === Special tokens and truncation ===


def test_one_segment_stands_between_cls_and_sep():
    encoded = WordPiece(SMALL).encode(["pain fell.", "no pains xyz", ""], max_length=5)

    assert encoded.input_ids.to_list() == [[2, 4, 5, 8, 3], [2, 7, 4, 6, 3], [2, 3]]
    assert encoded.segment_ids.to_list() == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0]]
    assert encoded.truncated.numpy().tolist() == [False, True, False]
    assert encoded.unknown.numpy().tolist() == [0, 0, 0]
    assert (encoded.input_ids.dtype, encoded.segment_ids.dtype, encoded.unknown.dtype) == (tf.int32,) * 3


def test_a_pair_is_the_second_segment_with_its_sep():
    encoded = WordPiece(SMALL).encode(["pain fell", "xyz", ""], ["no", "", ""], max_length=9)

    assert encoded.input_ids.to_list() == [[2, 4, 5, 3, 7, 3], [2, 1, 3, 3], [2, 3, 3]]
    assert encoded.segment_ids.to_list() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1]]
    assert encoded.truncated.numpy().tolist() == [False, False, False]
    assert encoded.unknown.numpy().tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("max_length", "ids"),
    [
        (11, [2, 4, 4, 4, 3, 7, 7, 3, 5, 5, 3]),
        (10, [2, 4, 4, 4, 3, 7, 3, 5, 5, 3]),
        (9, [2, 4, 4, 3, 7, 3, 5, 5, 3]),
        (7, [2, 4, 3, 7, 3, 5, 3]),
    ],
)
def test_a_third_segment_comes_after_the_second_and_both_are_cut_as_one(max_length, ids):
    encoded = WordPiece(SMALL).encode(["pain pain pain", ""], ["no no", ""], ["fell fell", ""], max_length=max_length)

    assert encoded.input_ids.to_list() == [ids, [2, 3, 3, 3]]
    segments = encoded.segment_ids.to_list()
    assert segments[0] == sorted(segments[0])
    assert [segments[0].count(n) for n in (1, 2)] == [1 + ids.count(7), 1 + ids.count(5)]
    assert segments[1] == [0, 0, 1, 2]
    assert encoded.truncated.numpy().tolist() == [max_length < 11, False]


@pytest.mark.parametrize("max_length", [3, 4, 5, 6, 7, 8, 11, 16, 31, 512])
def test_pairs_are_truncated_longest_first_as_the_reference_does(bert_tokenizer, max_length):
    rng = random.Random(max_length)
    words = ["pain", "fells", "no.", "xyz", "a"]
    lengths = [(rng.randrange(20), rng.randrange(20)) for _ in range(300)]
    texts, pairs = ([" ".join(rng.choices(words, k=length[side])) for length in lengths] for side in (0, 1))
    theirs = bert_tokenizer(SMALL)(texts, pairs, truncation="longest_first", max_length=max_length)
    whole = bert_tokenizer(SMALL)(texts, pairs)["input_ids"]

    encoded = WordPiece(SMALL).encode(texts, pairs, max_length=max_length)

    assert encoded.input_ids.to_list() == theirs["input_ids"]
    assert encoded.segment_ids.to_list() == theirs["token_type_ids"]
    assert encoded.truncated.numpy().tolist() == [len(ids) > max_length for ids in whole]
    assert encoded.unknown.numpy().tolist() == [ids.count(1) for ids in theirs["input_ids"]]


@pytest.mark.parametrize("max_length", [2, 3, 4, 9, 512])
def test_single_texts_are_truncated_as_the_reference_does(bert_tokenizer, max_length):
    texts = [" ".join(["pain", "fells", "xyz"][:count] * count) for count in range(8)]
    theirs = bert_tokenizer(SMALL)(texts, truncation="longest_first", max_length=max_length)

    encoded = WordPiece(SMALL).encode(texts, max_length=max_length)

    assert encoded.input_ids.to_list() == theirs["input_ids"]
    assert encoded.segment_ids.to_list() == theirs["token_type_ids"]


def test_a_length_without_room_for_the_special_tokens_is_refused():
    with pytest.raises(ConfigError, match="max_length: 2 is less than the 3 special tokens"):
        WordPiece(SMALL).encode(["a"], ["a"], max_length=2)


def test_a_saved_module_answers_as_the_one_that_was_saved(tmp_path):
    module = WordPiece(SMALL, lower_case=True)
    module.ids = tf.function(lambda texts: module.tokenize(texts).to_tensor(), input_signature=[TEXTS])
    tf.saved_model.save(module, str(tmp_path))

    loaded = tf.saved_model.load(str(tmp_path))

    assert loaded.ids(tf.constant(["PAIN fe\u0301lls", "n\u200do", ""])).numpy().tolist() == [
        [4, 5, 6],
        [7, 0, 0],
        [0] * 3,
    ]


# === Vocabularies ===


def test_a_vocabulary_file_gives_the_ids_of_its_lines(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(SMALL) + "\n", encoding="utf-8")

    wordpiece = WordPiece(file)

    assert wordpiece.vocab_size == 11
    assert (wordpiece.pad_id, wordpiece.unk_id, wordpiece.cls_id, wordpiece.sep_id) == (0, 1, 2, 3)
    assert wordpiece.tokenize(["pains."]).to_list() == [[4, 6, 8]]


def test_a_vocabulary_without_special_tokens_is_refused_by_name(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("[PAD]\n[UNK]\npain\n", encoding="utf-8")

    with pytest.raises(
        CheckpointError, match=r"vocab\.txt: 3 tokens, without \[CLS\], \[SEP\]\..*use the encoder's own"
    ):
        WordPiece(file)


def test_a_vocabulary_with_a_token_twice_is_refused_with_its_lines(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join([*SMALL, "pain"]), encoding="utf-8")

    with pytest.raises(
        CheckpointError, match=r"vocab\.txt: tokens that occur more than once: 1, the first on lines 5, 12\."
    ):
        WordPiece(file)


def test_only_line_ends_part_the_tokens_of_a_file_in_every_step(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a\u2028b", "c\x85", "d\x0be"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}')
    assert read_tokens(tmp_path / "vocab.txt") == tokens
    geometry = geometry_in_use(tmp_path / "config.json", EncoderConfig(), tmp_path / "vocab.txt")
    assert WordPiece(tmp_path / "vocab.txt").vocab_size == geometry.vocab_size == len(tokens)


def test_a_vocabulary_file_that_is_missing_or_not_utf8_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.txt: cannot be read \(No such file or directory\)"):
        WordPiece(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"[PAD]\n\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.txt: not UTF-8"):
        WordPiece(str(tmp_path / "latin.txt"))
