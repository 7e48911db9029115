"""Reads a WordPiece vocabulary, checks it, and prepares it for the in-graph engine."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from components.transform.rewrite import stand_ins
from components.transform.unicode_table import DROP, ISOLATE, SPACE, UnicodeRules
from components.transform.vocab_file import SPECIAL_TOKENS, check_tokens, read_tokens

SUFFIX = "##"
_UNMATCHABLE = "\uf8ff"  # private use: the reference drops it from every text


def read_vocabulary(vocab: Sequence[str] | str | PathLike) -> list[str]:
    """Reads and checks a vocabulary.

    Args:
      vocab: the tokens in the order of their ids, or the path of a file, as `read_tokens` takes it.

    Returns:
      The tokens; a token's place is its id.

    Raises:
      ConfigError: the file is missing or is not UTF-8.
      CheckpointError: a special token is missing or a token stands there twice.
    """
    if isinstance(vocab, str | PathLike):
        place, tokens = f"vocabulary file {Path(vocab)}", read_tokens(vocab)
    else:
        place, tokens = "vocabulary", list(vocab)
    check_tokens(tokens, place)
    return tokens


def engine_vocabulary(tokens: Sequence[str], rules: UnicodeRules) -> list[str]:
    """The tokens as the engine must know them, same ids.

    A token that the reference can never produce from a text (`[SEP]` is cut at its brackets) is renamed to one that
    no text can hold, and letters with a stand-in are replaced by it.
    """
    replace = stand_ins(rules)
    return [
        token.translate(replace) if _can_match(token, rules) else f"{_UNMATCHABLE}{index}"
        for index, token in enumerate(tokens)
    ]


def _can_match(token: str, rules: UnicodeRules) -> bool:
    if token in SPECIAL_TOKENS:
        return False
    piece = token.removeprefix(SUFFIX)
    classes = [rules.reference[ord(char)] for char in piece]
    if len(classes) == 1 and classes[0] == ISOLATE:
        return piece == token
    return bool(classes) and not {DROP, SPACE, ISOLATE} & set(classes)
