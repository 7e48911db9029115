"""The shipped table against the installed tokenisers, code point by code point."""

import numpy as np
import pytest

from components.transform.unicode_probe import format_rules, probe_rules
from components.transform.unicode_table import (
    CODE_POINTS,
    DROP,
    ISOLATE,
    LETTER,
    RULES_FILE,
    SPACE,
    character_class,
    load_rules,
    two_level,
)


@pytest.mark.slow
def test_the_shipped_rules_are_what_the_installed_tokenisers_do_with_every_code_point():
    probed, shipped = probe_rules(), load_rules()

    np.testing.assert_array_equal(shipped.reference, probed.reference)
    np.testing.assert_array_equal(shipped.engine, probed.engine)
    assert shipped.fold == probed.fold
    rules = [line for line in RULES_FILE.read_text(encoding="ascii").splitlines() if not line.startswith("#")]
    assert [line for line in format_rules(probed).splitlines() if not line.startswith("#")] == rules


@pytest.mark.parametrize(
    ("code_point", "reference", "engine"),
    [
        (0x00, DROP, LETTER),
        (0x09, SPACE, SPACE),
        (0x0B, DROP, SPACE),
        (0x2C, ISOLATE, ISOLATE),
        (0x41, LETTER, LETTER),
        (0xA0, SPACE, SPACE),
        (0x061D, LETTER, ISOLATE),  # punctuation since Unicode 14
        (0x166D, ISOLATE, LETTER),  # no longer punctuation since Unicode 14
        (0x200D, DROP, LETTER),
        (0x4E00, ISOLATE, ISOLATE),
        (0xE000, DROP, LETTER),
        (0x2B820, LETTER, ISOLATE),  # the first of CJK extension E, which the reference leaves in a word
        (0x10FFFD, DROP, LETTER),
    ],
)
def test_a_code_point_has_its_class(code_point, reference, engine):
    rules = load_rules()

    assert (rules.reference[code_point], rules.engine[code_point]) == (reference, engine)


def test_folding_lowers_decomposes_and_drops_accents():
    fold = load_rules().fold

    assert fold[ord("A")] == (ord("a"),)
    assert fold[ord("É")] == (ord("e"),)
    assert fold[0x0301] == ()
    assert fold[ord("각")] == (0x1100, 0x1161, 0x11A8)
    assert fold[ord("가")] == (0x1100, 0x1161)
    assert ord("ß") not in fold


def test_folding_leaves_nothing_to_fold_and_no_character_that_is_dropped_or_a_space():
    rules = load_rules()
    targets = {target for sequence in rules.fold.values() for target in sequence}

    assert not targets & set(rules.fold)
    assert {int(rules.reference[target]) for target in targets} == {ISOLATE, LETTER}


def test_two_levels_hold_the_same_values_in_a_tenth_of_the_room():
    values = load_rules().reference
    page_of, pages = two_level(values)
    code_points = np.arange(CODE_POINTS)

    np.testing.assert_array_equal(pages[page_of[code_points // 256] * 256 + code_points % 256], values)
    assert page_of.nbytes + pages.nbytes < values.nbytes / 10


def test_a_character_class_lists_runs():
    assert character_class(np.array([False, True, True, False, True])) == r"\x{1}-\x{2}\x{4}-\x{4}"
