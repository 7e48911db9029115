"""Asks the installed tokenisers about every code point and writes `unicode_rules.txt`.

    python -m components.transform.unicode_probe

Run it after an upgrade of transformers, tokenizers or tensorflow-text, when the test of the table says that they
changed.
"""

import itertools
from collections.abc import Iterator
from importlib.metadata import version

import numpy as np

from components.transform.unicode_table import (
    CLASS_NAMES,
    CODE_POINTS,
    DROP,
    ISOLATE,
    LETTER,
    RULES_FILE,
    SPACE,
    UnicodeRules,
    hangul_decompositions,
    runs,
)

# With this vocabulary the ids of "a", a code point, "a" tell what the code point is.
_VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##a")
_UNK, _A, _SUFFIX_A = 1, 4, 5
_CLASS_OF_IDS = {
    (_A, _SUFFIX_A): DROP,
    (_A, _A): SPACE,
    (_A, _UNK, _A): ISOLATE,
    (_UNK,): LETTER,
    (_A, _SUFFIX_A, _SUFFIX_A): LETTER,  # "a" itself, and what folds to it
}
_BLOCK = 1 << 16


def probe_rules() -> UnicodeRules:
    """The rules as the installed transformers and TF Text have them."""
    import tensorflow_text as tf_text
    from transformers import BertTokenizer

    vocab = {token: index for index, token in enumerate(_VOCABULARY)}
    cased = BertTokenizer(vocab=vocab, do_lower_case=False)
    uncased = BertTokenizer(vocab=vocab, do_lower_case=True).backend_tokenizer.normalizer
    engine_tokenizer = tf_text.FastWordpieceTokenizer(list(_VOCABULARY))
    reference = np.full(CODE_POINTS, LETTER, np.uint8)
    engine = np.full(CODE_POINTS, LETTER, np.uint8)
    fold = {}
    for code_points in _blocks():
        block = slice(code_points.start, code_points.stop)
        probes = [f"a{chr(code_point)}a" for code_point in code_points]
        # `cased(probes)` asks this too, and makes Python lists of much else.
        encoded = cased.backend_tokenizer.encode_batch_fast(probes, add_special_tokens=False)
        reference[block] = [_CLASS_OF_IDS[tuple(found.ids)] for found in encoded]
        tokens = engine_tokenizer.tokenize(probes)
        ids, ends = tokens.values.numpy().tolist(), tokens.row_splits.numpy().tolist()
        engine[block] = [_CLASS_OF_IDS[tuple(ids[start:end])] for start, end in itertools.pairwise(ends)]
        for code_point in code_points:
            if reference[code_point] in (DROP, SPACE):
                continue
            folded = uncased.normalize_str(chr(code_point))
            if len(folded) > 1:
                folded = folded.strip(" ")  # the reference puts spaces around Chinese characters
            if folded != chr(code_point):
                fold[code_point] = tuple(map(ord, folded))
    return UnicodeRules(reference, engine, fold)


def format_rules(rules: UnicodeRules) -> str:
    """The text of `unicode_rules.txt`."""
    tools = ", ".join(f"{name} {version(name)}" for name in ("transformers", "tokenizers", "tensorflow-text"))
    lines = [
        "# What each code point is to BERT's tokenisers. Written by components/transform/unicode_probe.py from",
        f"# {tools}.",
        "# class FIRST LAST CLASS: for transformers.BertTokenizer (letter where no line says otherwise).",
        "# engine FIRST LAST CLASS: for tensorflow_text.FastWordpieceTokenizer, where that is another class.",
        "# fold FIRST LAST TARGETS: for uncased vocabularies. One target: the first code point's, the following",
        "# ones go to the following ones. No target: dropped. Hangul syllables are decomposed by arithmetic.",
    ]
    for value in (DROP, SPACE, ISOLATE):
        lines += [f"class {first:x} {last:x} {CLASS_NAMES[value]}" for first, last in runs(rules.reference == value)]
    for value, name in enumerate(CLASS_NAMES):
        different = (rules.engine == value) & (rules.reference != value)
        lines += [f"engine {first:x} {last:x} {name}" for first, last in runs(different)]
    lines += _format_fold(rules.fold)
    return "\n".join(lines) + "\n"


def _format_fold(fold: dict[int, tuple[int, ...]]) -> Iterator[str]:
    hangul = dict(hangul_decompositions())
    entries = sorted((key, value) for key, value in fold.items() if hangul.get(key) != value)
    start = 0
    for end in range(1, len(entries) + 1):
        if end < len(entries) and _continues(entries[end - 1], entries[end]):
            continue
        first, last = entries[start], entries[end - 1]
        targets = "".join(f" {target:x}" for target in first[1])
        yield f"fold {first[0]:x} {last[0]:x}{targets}"
        start = end


def _continues(before: tuple[int, tuple[int, ...]], after: tuple[int, tuple[int, ...]]) -> bool:
    if after[0] != before[0] + 1 or len(after[1]) != len(before[1]):
        return False
    if len(after[1]) == 1:
        return after[1][0] == before[1][0] + 1
    return after[1] == before[1]


def _blocks() -> Iterator[range]:
    """All code points but the surrogates, which no valid UTF-8 holds."""
    yield range(0xD800)
    yield range(0xE000, _BLOCK)
    for first in range(_BLOCK, CODE_POINTS, _BLOCK):
        yield range(first, first + _BLOCK)


if __name__ == "__main__":
    RULES_FILE.write_text(format_rules(probe_rules()), encoding="ascii")
