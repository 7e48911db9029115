"""The reference tokeniser, the shipped vocabulary, and an uncased vocabulary made from it."""

from pathlib import Path

import pytest

import pipeline
from components.transform.unicode_table import load_rules


@pytest.fixture(scope="session")
def vocab_file() -> Path:
    return Path(pipeline.__file__).parent / "data" / "biobert" / "vocab.txt"


@pytest.fixture(scope="session")
def cased_tokens(vocab_file) -> list[str]:
    return vocab_file.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="session")
def uncased_tokens(cased_tokens) -> list[str]:
    """BioBERT's vocabulary folded, and every letter that folding can produce, as a word and as a suffix."""
    fold = load_rules().fold
    folded = ["".join(chr(t) for c in token for t in fold.get(ord(c), (ord(c),))) for token in cased_tokens[106:]]
    letters = sorted({chr(target) for targets in fold.values() for target in targets})
    suffixes = [f"##{letter}" for letter in letters]
    return list(dict.fromkeys([*cased_tokens[:106], *folded, *letters, *suffixes]))


@pytest.fixture(scope="session")
def bert_tokenizer():
    """transformers' BertTokenizer for a list of tokens."""
    from transformers import BertTokenizer

    def build(tokens: list[str], *, lower_case: bool = False) -> BertTokenizer:
        vocab = {token: index for index, token in enumerate(tokens)}
        return BertTokenizer(vocab=vocab, do_lower_case=lower_case)

    return build


@pytest.fixture(scope="session")
def reference(bert_tokenizer):
    """A function from texts to the ids that transformers gives them, without special tokens."""

    def build(tokens: list[str], *, lower_case: bool = False):
        tokenizer = bert_tokenizer(tokens, lower_case=lower_case)
        ids_alone = {"return_token_type_ids": False, "return_attention_mask": False}  # takes less time
        how = {"add_special_tokens": False, "split_special_tokens": True, **ids_alone}
        return lambda texts: tokenizer(texts, **how)["input_ids"]

    return build
