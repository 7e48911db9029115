"""config.json and overrides to a geometry; what the encoder cannot do is refused by name."""

import json

import pytest

from components.config import EncoderConfig
from components.encoder.config import BertGeometry, check_case, read_geometry
from components.errors import CheckpointError, ConfigError

BASE = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20, "vocab_size": 7}


@pytest.fixture
def config_file(tmp_path):
    def write(**changes):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(BASE | changes))
        return path

    return write


def test_absent_keys_take_berts_defaults(config_file):
    assert read_geometry(config_file()) == BertGeometry(
        vocab_size=7,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=512,
        type_vocab_size=2,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        layer_norm_eps=1e-12,
        initializer_range=0.02,
    )


def test_overrides_replace_the_files_values(config_file):
    geometry = read_geometry(config_file(layer_norm_eps=1e-6), EncoderConfig(hidden_size=24, num_hidden_layers=0))
    assert (geometry.hidden_size, geometry.num_hidden_layers, geometry.layer_norm_eps) == (24, 0, 1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "roberta"),
        ("hidden_act", "gelu_new"),
        ("hidden_act", "relu"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"bits": 8}),
        ("embedding_size", 4),
        ("architectures", ["RobertaModel"]),
    ],
)
def test_an_unsupported_setting_is_refused_by_name(config_file, key, value):
    with pytest.raises(CheckpointError, match=key):
        read_geometry(config_file(**{key: value}))


def test_harmless_keys_of_other_tools_are_ignored(config_file):
    path = config_file(
        transformers_version="5.0", model_type="bert", is_decoder=False, position_embedding_type="absolute"
    )
    assert read_geometry(path).hidden_size == 12


def test_other_spellings_of_the_same_are_accepted(config_file):
    path = config_file(hidden_act="gelu_python", architectures=["BertForMaskedLM"])
    path.write_text("\ufeff" + path.read_text())
    assert read_geometry(path).hidden_size == 12


def test_heads_must_divide_the_hidden_size(config_file):
    with pytest.raises(ConfigError, match="12 cannot be divided among 5"):
        read_geometry(config_file(num_attention_heads=5))


def test_without_layers_the_heads_do_not_matter(config_file):
    assert read_geometry(config_file(num_attention_heads=5, num_hidden_layers=0)).num_hidden_layers == 0


@pytest.mark.parametrize("value", [-1, "12", None, True, 1.5])
def test_a_size_that_is_no_number_is_named(config_file, value):
    with pytest.raises(ConfigError, match="intermediate_size"):
        read_geometry(config_file(intermediate_size=value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_attention_heads", 0, "num_attention_heads is 0; a layer has at least 1"),
        ("intermediate_size", 0, "intermediate_size is 0; a layer has at least 1"),
        ("hidden_size", 0, "hidden_size is 0; a number of at least 1 is needed"),
        ("type_vocab_size", 0, "type_vocab_size is 0; a number of at least 1 is needed"),
        ("max_position_embeddings", 0, "max_position_embeddings is 0; a number of at least 1 is needed"),
        ("layer_norm_eps", float("nan"), "layer_norm_eps is nan; a number of at least 0 is needed"),
        ("initializer_range", float("inf"), "initializer_range is inf; a number of at least 0 is needed"),
        ("hidden_dropout_prob", 1.5, "hidden_dropout_prob is 1.5; a share from 0 to 1 is needed"),
        ("attention_probs_dropout_prob", 2, "attention_probs_dropout_prob is 2; a share from 0 to 1 is needed"),
    ],
)
def test_a_value_that_no_encoder_can_have_is_named(config_file, key, value, message):
    with pytest.raises(ConfigError, match=f"config.json: {message}"):
        read_geometry(config_file(**{key: value}))


def test_it_is_known_whether_the_number_of_layers_was_chosen(config_file):
    assert not read_geometry(config_file(layers_chosen=True), EncoderConfig(hidden_size=24)).layers_chosen
    assert read_geometry(config_file(), EncoderConfig(num_hidden_layers=2)).layers_chosen
    assert read_geometry(config_file()).as_config().keys() >= BASE.keys()
    assert "layers_chosen" not in read_geometry(config_file()).as_config()


def test_random_weights_take_the_vocabularys_size(config_file):
    assert read_geometry(config_file(), EncoderConfig(), vocab_size=9).vocab_size == 9


def test_pretrained_weights_need_a_row_for_each_token(config_file):
    assert read_geometry(config_file(), EncoderConfig(weights="model"), vocab_size=5).vocab_size == 5
    with pytest.raises(CheckpointError, match="vocab_size is 7, but the vocabulary has 9"):
        read_geometry(config_file(), EncoderConfig(weights="model"), vocab_size=9)


def test_the_vocabulary_of_pretrained_weights_tells_the_case_of_their_text():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    cased, lower = [*special, "fever", "Fever", "##s"], [*special, "fever", "##s", "\u0391"]
    check_case(cased, lower_case=False)
    check_case(lower, lower_case=True)
    check_case([*lower * 25, "@GENE$", "<CHEM>"], lower_case=True)
    with pytest.raises(ConfigError, match=r"lower_case: is true, .* of cased text: .* in 1 of its tokens"):
        check_case(cased, lower_case=True)
    with pytest.raises(ConfigError, match="in 2 of its tokens"):
        check_case([*lower * 24, "@GENE$", "<CHEM>"], lower_case=True)
    with pytest.raises(ConfigError, match=r"lower_case: is false, .* of lower-cased text"):
        check_case(lower, lower_case=False)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="absent"):
        read_geometry(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_geometry(tmp_path / "broken.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match="one JSON object"):
        read_geometry(tmp_path / "list.json")
