"""What stands beside weights is held against what is in use; ids of another tokeniser are never fed to an encoder."""

import json
from pathlib import Path

import pytest

from components.encoder.companions import check_companions
from components.encoder.config import BertGeometry
from components.encoder.sources import find_source
from components.errors import CheckpointError, ConfigError
from components.transform.vocab_file import read_tokens
from components.transform.wordpiece import WordPiece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LOWER = [*SPECIAL, "fever", "##s", "e", "resume"]
CASED = [*SPECIAL, "Fever", "fever", "##s", "e"]
FEW = [*SPECIAL, *(f"t{n}" for n in range(200)), "@GENE$"]  # too few capitals to tell the case
NORMALIZER = {
    "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
    "lowercase": True,
}  # fmt: skip


def tokenizer_json(tokens: list[str], normalizer: dict | None = None, **model: object) -> dict:
    """As transformers 5 writes it, as its only account of a vocabulary."""
    special = [{"id": n, "content": name, "special": True} for n, name in enumerate(SPECIAL)]
    vocabulary = {token: n for n, token in reversed(list(enumerate(tokens)))}
    wordpiece = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": vocabulary}
    return {
        "added_tokens": special, "normalizer": NORMALIZER | (normalizer or {}),
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "model": wordpiece | model,
    }  # fmt: skip


def json_of(*arguments: object, **model: object) -> dict:
    return {"tokenizer": tokenizer_json(*arguments, **model)}


def config_of(**settings: object) -> dict:
    return {"tokenizer_config": settings}


def check(folder: Path, tokens: list[str], lower_case: bool, **files: dict) -> None:
    """Files beside weights, by name without suffix, against a vocabulary in use."""
    (folder / "beside").mkdir(exist_ok=True)
    (folder / "beside" / "model.safetensors").touch()
    for name, content in files.items():
        (folder / "beside" / f"{name}.json").write_text(json.dumps(content))
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    geometry = BertGeometry(len(tokens), 8, 1, 2, 12)
    check_companions(find_source(str(folder / "beside")), geometry, folder / "vocab.txt", lower_case)


@pytest.mark.parametrize(
    ("tokens", "lower_case", "files"),
    [
        (LOWER, True, {}),
        (LOWER, True, {"tokenizer_config": {"do_lower_case": True, "strip_accents": None}}),
        (LOWER, True, {"tokenizer_config": {"strip_accents": True}, "tokenizer": tokenizer_json(LOWER)}),
        (CASED, False, {"tokenizer_config": {"do_lower_case": False, "tokenize_chinese_chars": True}}),
        (CASED, False, {"tokenizer_config": {"do_lower_case": True}}),  # wrong there, as in published cased models
        (FEW, True, {"tokenizer_config": {"do_lower_case": True}}),
        (FEW, False, {"tokenizer": tokenizer_json(FEW, {"lowercase": False})}),
        (FEW, False, {"tokenizer": tokenizer_json(FEW), "tokenizer_config": {"do_lower_case": False}}),
    ],
)
def test_a_tokeniser_that_cuts_texts_as_ours_is_accepted(
    tmp_path: Path, tokens: list[str], lower_case: bool, files: dict
) -> None:
    check(tmp_path, tokens, lower_case, **files)


@pytest.mark.parametrize(
    ("tokens", "lower_case", "files", "message"),
    [
        (FEW, True, config_of(do_lower_case=False), "do_lower_case false, but tokenizer.lower_case is true"),
        (FEW, False, json_of(FEW), "do_lower_case true, but tokenizer.lower_case is false"),
        (LOWER, True, config_of(strip_accents=False), "has strip_accents false"),
        (CASED, False, config_of(strip_accents=True), "has strip_accents true"),
        (LOWER, True, json_of(LOWER, {"strip_accents": False}), "has strip_accents false"),
        (LOWER, True, config_of(tokenize_chinese_chars=False), "tokenize_chinese_chars false"),
        (LOWER, True, json_of(LOWER, {"handle_chinese_chars": False}), "handle_chinese_chars false"),
        (LOWER, True, json_of(LOWER, {"clean_text": False}), "clean_text false"),
        (LOWER, True, config_of(do_basic_tokenize=False), "do_basic_tokenize false"),
        (LOWER, True, json_of(LOWER, {"type": "Sequence"}), "has the normalizer Sequence; only BertNormalizer is"),
        (LOWER, True, {"tokenizer": tokenizer_json(LOWER) | {"pre_tokenizer": None}}, "has the pre_tokenizer None"),
        (LOWER, True, {"added_tokens": {"@GENE$": 9}}, "adds 1 tokens to WordPiece's, the first '@GENE\\$'"),
        (LOWER, True, config_of(added_tokens_decoder={"9": {"content": "@CHEM$"}}), "first '@CHEM"),
        (LOWER, True, json_of([*LOWER[:5], "##s", "fever", *LOWER[7:]]), "tokenizer.vocab at .*json"),
        (LOWER, True, json_of(LOWER, type="BPE"), "model.type is 'BPE'"),
        (LOWER, True, json_of(LOWER, vocab={"a": 1}), "has not each id from 0 on once"),
        (LOWER, True, {"tokenizer": {}}, "model.type is None"),
    ],
)
def test_a_tokeniser_that_cuts_texts_otherwise_is_refused_by_name(
    tmp_path: Path, tokens: list[str], lower_case: bool, files: dict, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        check(tmp_path, tokens, lower_case, **files)


@pytest.mark.parametrize("chinese", [True, False])
@pytest.mark.parametrize("accents", [None, True, False])
@pytest.mark.parametrize("lower_case", [True, False])
def test_a_folder_that_transformers_wrote_is_accepted_exactly_where_ids_are_equal(
    tmp_path: Path, lower_case: bool, accents: bool | None, chinese: bool
) -> None:
    from transformers import BertTokenizer

    words = [
        "fever",
        "Fever",
        "resume",
        "r\u00e9sum\u00e9",
        "\u4e2d",
        "\u6587",
        "\u4e2d\u6587",
        *(f"t{n}" for n in range(200)),
    ]
    tokens = [*SPECIAL, *words]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "vocab.txt").write_text("\n".join(tokens) + "\n")
    theirs = BertTokenizer.from_pretrained(
        tmp_path / "in", do_lower_case=lower_case, strip_accents=accents, tokenize_chinese_chars=chinese
    )
    theirs.save_pretrained(tmp_path / "beside")
    texts = ["Fever fever", "resume r\u00e9sum\u00e9 R\u00c9SUM\u00c9", "\u4e2d\u6587"]
    ours = WordPiece(tokens, lower_case=lower_case).encode(texts, max_length=16).input_ids.to_list()
    if theirs(texts)["input_ids"] == ours:
        check(tmp_path, tokens, lower_case)
        assert find_source(str(tmp_path / "beside")).vocab == tmp_path / "beside" / "tokenizer.json"
    else:
        with pytest.raises(CheckpointError, match=r"strip_accents|tokenize_chinese_chars"):
            check(tmp_path, tokens, lower_case)


def test_a_damaged_file_beside_the_weights_is_named(tmp_path: Path) -> None:
    check(tmp_path, LOWER, True)
    (tmp_path / "beside" / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json: is not JSON"):
        check(tmp_path, LOWER, True)


def test_tokenizer_json_may_be_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(LOWER)))
    assert read_tokens(path) == LOWER
    encoded = WordPiece(str(path), lower_case=True).encode(["Fevers, R\u00c9SUM\u00c9"], max_length=16)
    assert encoded.input_ids.to_list() == [[2, 5, 6, 1, 8, 3]]


@pytest.mark.slow
def test_tokenizer_json_of_a_published_model_holds_its_vocab_txt(minilm: Path) -> None:
    assert read_tokens(minilm / "tokenizer.json") == read_tokens(minilm / "vocab.txt")
