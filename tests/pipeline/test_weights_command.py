"""`biobert-cnn weights`: what a configuration's weights are, and their conversion."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from components.encoder.conversion import read_record
from pipeline.cli import app


@pytest.fixture
def source(minimal: Path) -> Path:
    """A folder of weights for a configuration's encoder, which the configuration names."""
    import numpy as np
    from safetensors.numpy import save_file

    from components.encoder.checkpoint import _places
    from components.encoder.config import BertGeometry

    folder = minimal.parent / "bert"
    folder.mkdir()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Fever", "fever"]
    geometry = BertGeometry(6, 8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (folder / "config.json").write_text(json.dumps(vars(geometry)))
    parts = {part: place.shape for place in _places(geometry) for part in place.parts}
    save_file(
        {f"bert.{name}": np.ones(shape, np.float32) for name, shape in parts.items()}, folder / "model.safetensors"
    )
    minimal.write_text(
        f"{minimal.read_text()}\n[encoder]\nweights = 'bert'\nconfig = 'bert/config.json'\n"
        "[tokenizer]\nvocab = 'bert/vocab.txt'\n"
    )
    return folder


def weights(*arguments: str | Path):
    return CliRunner().invoke(app, ["weights", *map(str, arguments)])


def test_one_command_accounts_for_every_tensor_and_converts_them(minimal: Path, source: Path) -> None:
    looked = weights(minimal)
    assert looked.exit_code == 0, looked.output
    assert "safetensors, 1 layers of 8, 2 heads, vocabulary 6" in looked.stdout
    done = weights(minimal, "--output", minimal.parent / "converted", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["tensors"] == 21
    assert record["sha256"] == read_record(minimal.parent / "converted").sha256
    assert record["sha256"] in looked.stdout
    assert record["source_sha256"] in looked.stdout


def test_a_configuration_is_checked_against_what_stands_beside_local_weights(minimal: Path, source: Path) -> None:
    other = minimal.parent / "other.txt"
    other.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "fever", "Fever"]))
    checked = CliRunner().invoke(app, ["config", "check", str(minimal), "--set", f"tokenizer.vocab={other}"])
    assert checked.exit_code == 2
    assert f"{other} is not the vocabulary of the weights" in checked.output
    (source / "tokenizer_config.json").write_text('{"strip_accents": true}')
    checked = CliRunner().invoke(app, ["config", "check", str(minimal)])
    assert checked.exit_code == 2
    assert "has strip_accents true" in checked.output


def test_what_does_not_fit_is_named_and_nothing_is_written(minimal: Path, source: Path) -> None:
    done = weights(minimal, "--output", minimal.parent / "converted", "--set", "encoder.hidden_size=12")
    assert done.exit_code == 2
    assert "has hidden_size 8, but the encoder is configured with 12" in done.output
    assert not (minimal.parent / "converted").exists()


def test_a_configuration_without_weights_is_told(minimal: Path) -> None:
    done = weights(minimal)
    assert done.exit_code == 2
    assert "encoder.weights: the configuration names none" in done.output
