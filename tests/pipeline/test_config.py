"""The configuration says what is wrong, where, and what would be right."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from components.errors import ConfigError
from pipeline.config import load_config

SHIPPED = ("default", "pmc_rct_context", "ncbi_disease")
CONFIGS = Path(__file__).parents[2] / "pipeline" / "configs"


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_minimal_configuration_has_defaults_and_absolute_paths(minimal: Path) -> None:
    config = load_config(minimal)
    assert config.name == "mine"
    assert config.data.input == minimal.parent / "rows"
    assert config.label_column == "label"
    assert config.vocab_file.name == "vocab.txt"
    assert config.vocab_file.exists()
    assert config.root == Path.cwd() / "runs" / "mine"
    assert config.serving_dir == config.root / "serving" / "biobert_cnn"


def test_name_is_the_files_and_where_that_is_none_it_says_what_to_write(minimal: Path) -> None:
    odd = minimal.rename(minimal.with_name("my config.toml"))
    assert "my config.toml: name: none is given, and the file's own, 'my config', is none" in message(odd)
    assert 'write  name = "my-config"  at the top of the file, or rename it' in message(odd)
    assert load_config(odd, ["name=mine"]).name == "mine"
    odd.write_text(f'name = "own"\n{odd.read_text()}')
    assert load_config(odd).name == "own"


def test_byte_order_mark_is_no_mistake(minimal: Path) -> None:
    minimal.write_bytes(b"\xef\xbb\xbf" + minimal.read_bytes())
    assert load_config(minimal).name == "mine"


def test_a_search_is_read_from_nested_keys_and_is_no_part_by_default(minimal: Path) -> None:
    assert load_config(minimal).tuner is None
    rates = "tuner.space.training.learning_rate={min=1e-4, max=1e-2, sampling='log'}"
    config = load_config(minimal, ["tuner.space.head.kind=['cls', 'attention']", rates])
    assert config.tuner is not None
    assert sorted(config.tuner.space.by_name()) == ["head.kind", "training.learning_rate"]
    assert config.tuner == type(config.tuner).model_validate(config.tuner.model_dump(mode="json"))


def test_a_search_does_not_go_with_a_warm_start(minimal: Path) -> None:
    for name in ("train", "dev"):
        (minimal.parent / "rows" / f"1-{name}.csv").write_text("text,label\na,yes\n")
    spans = ["data.splits={train='{SPAN}-train.csv', eval='{SPAN}-dev.csv'}", "window.warm_start=true", "window.last=2"]
    load_config(minimal, spans)
    found = message(minimal, *spans, "tuner.space.head.kind=['cls', 'attention']")
    assert "tuner: trials do not start from the live model; set window.warm_start = false" in found


@pytest.mark.parametrize(
    ("overrides", "metric"),
    [
        ([], "macro_f1"),
        (["evaluation.gates=[{metric='pr_auc',min=0.5},{metric='accuracy',min=0.5}]"], "pr_auc"),
        (["evaluation.gates=[{min=0.5}]"], "macro_f1"),
        (["evaluation.gates=[{label='yes',measure='recall',min=0.9},{metric='accuracy',min=0.5}]"], "accuracy"),
        (["evaluation.gates=[{metric='calibration_error',max=0.1}]", "training.epochs=2"], "macro_f1"),
        (["evaluation.gates=[{metric='pr_auc',min=0.5}]", "training.metric=accuracy"], "accuracy"),
    ],
)
def test_early_stopping_goes_by_the_first_gate_over_all_labels_unless_told(
    minimal: Path, overrides: list[str], metric: str
) -> None:
    assert load_config(minimal, overrides).training.metric == metric


def test_configuration_cannot_be_changed(minimal: Path) -> None:
    with pytest.raises(ValidationError):
        load_config(minimal).name = "other"  # type: ignore[misc]


def test_override_is_toml_or_else_a_string(minimal: Path) -> None:
    config = load_config(
        minimal, ["training.epochs=7", "head.kind=cls", "head.widths=[3,4]", "data.columns.slices=['journal']"]
    )
    assert (config.training.epochs, config.head.kind, config.head.widths) == (7, "cls", (3, 4))
    assert config.data.columns.slices == ("journal",)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["tokenizer.overlap=64"], "tokenizer: overlap: 64 tokens are more than half of a window's 126"),
        (["data.columns.text_pair='b'"], "tokenizer.long_text: windows are cut from single texts; a pair is truncated"),
        (["training.stages=[{layers=1, epochs=1}]"], 'is not kept for "windows"; set cache = false in training.stages'),
    ],
)
def test_windows_of_long_texts_are_refused_with_what_they_cannot_go_with(minimal, overrides, expected) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load_config(minimal, ["tokenizer.long_text=windows", *overrides])


def test_the_longest_text_is_what_all_windows_hold(minimal: Path) -> None:
    assert load_config(minimal).tokenizer.longest_text == 128
    windows = load_config(minimal, ["tokenizer.long_text=windows", "tokenizer.max_windows=3"]).tokenizer
    assert windows.longest_text == 2 + 126 + 2 * (126 - 32)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "validation.length_skew=0.1",
            "length_skew: name the server's request log in validation.serving_logs",
        ),
        (
            "validation.label_drift=0.1",
            "label_drift: it is against the span before, and the data has no spans",
        ),
        ("validation.length_drift=0.1", "validation.length_drift: it is against the span before"),
        ("training.ephocs=3", "training.ephocs: is not a known key; did you mean 'epochs'?"),
        ("data.columns.txt='a'", "data.columns.txt: is not a known key; did you mean 'text'?"),
        ("training.epochs=0", "training.epochs: Input should be greater than 0; 0 given"),
        ("training.epochs='many'", 'unable to parse string as an integer; "many" given'),
        ("training.stages=[{layers=1, epochs=1, rate=3}]", "training.stages.0.rate: is not a known key"),
        ("training.stages=[{layers=13, epochs=1}]", "stage 1 trains 13 layers, but the encoder has 12; write layers"),
        ("export.precision=fp16", "'float32', 'bfloat16' or 'int8'; \"fp16\" given"),
        ("tuner.space.head.kindd=['cls','flatten']", "tuner.space: head.kindd: is not a known key; known here: kind"),
        ("tuner.space.head.kind=['cls','cnn']", "tuner.space.head.kind: \"cnn\": Input should be 'flatten'"),
        ("tuner.space.head.dropout={min=0.1, max=1}", "tuner.space.head.dropout: 1: Input should be less than 1"),
        ("tuner.max_trials=3", "tuner.space: is missing"),
        ("head.kind=cnn", "'attention' or 'cls'; \"cnn\" given"),
        ("head.filters=[1,2]", "give one number, or one for each of the 4 widths"),
        ("labels=['a','a']", "a label stands there twice"),
        ("labels=['a','b','c']", "a binary task has two"),
        ("evaluation.split=test", "there is no split 'test'; data.splits gives train, eval"),
        ("data.splits={all='*.csv', train='x'}", "'all' (split by hash) cannot stand beside splits by file"),
        ("data.splits={train='train.csv'}", "give 'train' and 'eval'"),
        ("data.splits.train='/x/*.csv'", "must be a glob inside data.input"),
        ("data.splits.train='{SPAM}.csv'", "splits: {SPAM}: the fields are {SPAN} and {VERSION}."),
        ("data.splits.train='{SPAN:3}/train.csv'", "splits: {SPAN:3}: the fields are {SPAN} and {VERSION}."),
        (
            "data.splits.train='{YYYY-MM}/train.csv'",
            "{YYYY-MM}: the fields are {SPAN} and {VERSION}. A day is the span",
        ),
        (
            "data.splits.train='{YYYY}-{MM}-{DD}/train.csv'",
            "{DD}, {MM}, {YYYY}: the fields are {SPAN} and {VERSION}. A day is the span that is numbered YYYYMMDD",
        ),
        ("tokenizer.max_length=9999", "is more than the encoder's max_position_embeddings, 512"),
        ("data.neighbours=true", "name the column that holds the document in columns.id"),
        ("data.columns.labels='x'", "data.columns.labels: a binary task reads data.columns.label"),
        ("data.columns.slices=['label']", "are names of the pipeline itself; rename the column"),
        ("evaluation.gates=[{metric='macro_f1'}]", "give min, max, min_gain_over_blessed or min_gain_over_baseline"),
        ("evaluation.gates=[{label='maybe', measure='f1', min=0.5}]", "'maybe' is not one of the labels"),
        ("training.class_weights={yes=2.0}", "give a weight for every label"),
        ("training.buckets=[8,4]", "lengths must grow"),
        ("evaluation.length_bounds=[16,16]", "evaluation.length_bounds: length_bounds: lengths must grow"),
        ("training.epochs=true", "training.epochs: a number is wanted"),
        ("training.epochs='3'", "training.epochs: a number is wanted, written as 3 or 0.5 and without quotes"),
        ("training.xla='yes'", "training.xla: true or false is wanted"),
        ("training.xla=1", "training.xla: true or false is wanted"),
        ("data.max_bad_share=true", "data.max_bad_share: a number is wanted"),
        ("data.columns.text='label'", "data.columns: 'label' is the column of the label; it cannot be another's too"),
        ("data.columns.id='text'", "'text' is the column of text and of id; each has its own"),
        ("data.columns={label='outcome', slices=['outcome']}", "hold labels, by which metrics are reported anyhow"),
        ("labels=['no','yes ']", "labels: 'yes ' begins or ends in white space"),
        ("labels=['no',' ']", "labels: ' ' begins or ends in white space"),
        ("local.timeout_s=1e20", "local.timeout_s: Input should be less than or equal to 1000000000"),
        ("schedule.settle_s=1e20", "schedule.settle_s: Input should be less than or equal to 1000000000"),
        ("data.max_characters=99999999999999999999", "data.max_characters: "),
        ("data.hash_split={train=99999999999999999999,eval=1}", "data.hash_split.train: "),
        ("encoder.hidden_size=99999999999999999999", "encoder.hidden_size: "),
        ("beam.pipeline_args=['--runner=Nope']", "'--runner=Nope': Beam has no such runner"),
        ('paths.root="a\\u0000b"', "paths.root: must be the path of a folder"),
        ("paths.root=rows/train.csv", "train.csv is a file; give a folder"),
        ("paths.root='runs [1]'", "runs [1] has [ in its name, which TFX and Beam take for a wildcard"),
        ("paths.serving=rows/train.csv", "train.csv is a file; give a folder"),
        ("local.steps.trainer.retris=1", "local.steps.trainer.retris: is not a known key; did you mean 'retries'?"),
        ("paths.serving=' '", "paths.serving: must be the path of a folder"),
        ("data.columns.slices=['a','a']", "columns.slices: a column stands there twice"),
        ("data.columns.slices=['text']", "are names of the pipeline itself"),
        ("data.columns={text='body', slices=['body']}", "['body'] hold texts; name columns of few values"),
        ("training.learning_rate=inf", "training.learning_rate: Input should be a finite number"),
        ("name='..'", "name: String should match pattern"),
        ("serving.model_name='.hidden'", "serving.model_name: String should match pattern"),
        ("data.input='gs://bucket/data'", "data.input: must be a folder of this machine (a mounted one will do)"),
        ("paths.root='gs://bucket/root'", "paths.root: must be a folder of this machine"),
        ("beam.pipeline_args=['runner=x']", "'runner=x' is no flag of Beam's; write each as --name=value"),
        ("encoder.weights=nowhere", "nowhere is neither a folder, nor the prefix of a TensorFlow checkpoint"),
        ("encoder.weights=rows", "rows holds neither model.safetensors, nor pytorch_model.bin, nor a model.ckpt-*"),
        ("tokenizer.vocab=rows", "tokenizer.vocab: "),
        ("validation.schema_file=rows", "rows cannot be read (Is a directory)"),
        ("validation.schema_file=rows/train.csv", "train.csv is not a schema in text form"),
        ("nonsense", "write section.key=value"),
        ("labels.x=1", "'labels' is a value, not a section"),
    ],
)
def test_mistake_is_named_with_key_value_and_remedy(
    minimal: Path, override: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(minimal.parent)  # paths of overrides start from the working folder
    assert expected in message(minimal, override)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("evaluation.gates=[{metric='f2', min=0.5}]", "evaluation.gates.0.metric: Input should be 'accuracy', 'macro"),
        ("evaluation.gates=[{min=1.5}]", "evaluation.gates.0.min: Input should be less than or equal to 1; 1.5 given"),
        ("evaluation.gates=[{min_gain_over_blessed=-2}]", "0.min_gain_over_blessed: Input should be greater than"),
        ("evaluation.gates=[{min=0.9, max=0.1}]", "evaluation.gates.0: min: 0.9 is more than max, 0.1"),
        ("training.class_weights='even'", "should be 'none' or 'balanced', or a valid dictionary; \"even\" given"),
        ("training.class_weights={no=1, yes=-1}", "class_weights.yes: Input should be greater than 0; -1 given"),
        ("training.stages=[{layers=1, epochs=1, rate=3}]", "stages.0.rate: is not a known key; known here: layers, "),
        (
            "tuner.space.head.dropout={min=1, max=0}",
            "dropout: Input should be a valid tuple, or min: must be less than",
        ),
        ("tuner={max_trials=0}", "tuner.space: is missing\n  tuner.max_trials: Input should be greater than 0"),
    ],
)
def test_mistake_is_named_once_whatever_kinds_a_value_may_be_of(minimal: Path, override: str, expected: str) -> None:
    text = message(minimal, override)
    assert expected in text
    assert f"{len(expected.splitlines())} mistake" in text
    assert len(text.splitlines()) == 1 + len(expected.splitlines())


def test_all_mistakes_are_named_at_once(minimal: Path) -> None:
    text = message(minimal, "training.epochs=0", "head.dropout=2.0")
    assert "2 mistakes" in text
    assert "training.epochs" in text
    assert "head.dropout" in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.input=nowhere", "data.input:"),
        ("data.splits.train=nothing-*.csv", "data.splits.train: no file matches 'nothing-*.csv'"),
        ("tokenizer.vocab=missing.txt", "tokenizer.vocab:"),
        ("validation.schema_file=missing.pbtxt", "validation.schema_file:"),
    ],
)
def test_missing_file_is_named(minimal: Path, override: str, expected: str) -> None:
    text = message(minimal, override)
    assert "what it points at is missing" in text
    assert expected in text


def test_vocabulary_without_special_tokens_is_refused_before_anything_runs(minimal: Path) -> None:
    vocabulary = minimal.parent / "vocab.txt"
    vocabulary.write_text("[PAD]\n[CLS]\n[SEP]\nword\n")
    told = message(minimal, f"tokenizer.vocab={vocabulary}")
    assert f"tokenizer.vocab: {vocabulary}: 4 tokens, without [UNK]" in told


def test_vocabulary_with_a_token_twice_is_refused_before_anything_runs(minimal: Path) -> None:
    vocabulary = minimal.parent / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\nword\n")
    assert "the first on lines 5, 6" in message(minimal, f"tokenizer.vocab={vocabulary}")


def test_data_input_that_is_a_file_is_explained(minimal: Path) -> None:
    text = message(minimal, f"data.input={minimal.parent}/rows/train.csv")
    assert "is a file; name its folder, and the file in data.splits" in text


def test_weights_are_found_from_the_configurations_folder(minimal: Path) -> None:
    hub = "some/model@" + "0123456789" * 4
    (minimal.parent / "bert").mkdir()
    (minimal.parent / "bert" / "model.safetensors").write_bytes(b"")
    minimal.write_text(minimal.read_text() + '[encoder]\nweights = "bert"\n')
    assert load_config(minimal).encoder.weights == str(minimal.parent / "bert")
    assert load_config(minimal, [f"encoder.weights={hub}"]).encoder.weights == hub


def test_lower_casing_before_weights_of_cased_text_is_refused_and_before_random_ones_is_not(minimal: Path) -> None:
    load_config(minimal, ["tokenizer.lower_case=true"])
    text = message(minimal, "tokenizer.lower_case=true", "encoder.weights=some/model@" + "0123456789" * 4)
    assert "tokenizer.lower_case: is true, but encoder.weights are of cased text" in text


def test_curated_schema_of_other_labels_is_refused_beforehand(minimal: Path) -> None:
    schema = minimal.parent / "mine.schema.pbtxt"
    schema.write_text('feature { name: "label" type: BYTES string_domain { value: "yes" } }')
    text = message(minimal, f"validation.schema_file={schema}")
    assert "gives label the values ['yes'], the configuration has labels = ['no', 'yes']" in text
    schema.write_text('feature { name: "label" type: BYTES string_domain { value: "no" value: "yes" } }')
    load_config(minimal, [f"validation.schema_file={schema}"])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--runer=FnApiRunner"], "Beam knows no --runer"),
        (["--direct_num_workers=many"], "argument --direct_num_workers: invalid int value: 'many'"),
        (["--runner=FnApiRunner", "--direct_num_workers=2"], None),
        (["--runner=PortableRunner", "--job_endpoint=h:1", "--option_of_the_job_server=x"], None),
    ],
)
def test_beam_flag_that_beam_does_not_know_is_named(flags: list[str], expected: str | None) -> None:
    from components.config import BeamConfig
    from pipeline.beam import beam_arguments

    if expected is None:
        assert beam_arguments(BeamConfig(pipeline_args=flags)) == flags
        return
    with pytest.raises(ConfigError) as caught:
        beam_arguments(BeamConfig(pipeline_args=flags))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("options", "above", "mode", "workers"),
    [
        ({}, False, "in_memory", 1),
        ({}, True, "multi_processing", 3),
        ({"mode": "in_memory"}, True, "in_memory", 1),
        ({"mode": "multi_processing"}, False, "multi_processing", 3),
    ],
)
def test_large_data_alone_is_spread_over_processes_unless_told(
    options: dict[str, Any], above: bool, mode: str, workers: int, tmp_path: Path
) -> None:
    from components.config import BeamConfig
    from pipeline.beam import beam_arguments

    beam = BeamConfig(workers=3, **options)
    data = tmp_path / "data.csv"
    data.touch()
    os.truncate(data, int(beam.parallel_above_mb * 2**20) + above)
    flags = beam_arguments(beam, [data])
    assert flags[:3] == ["--runner=FnApiRunner", f"--direct_running_mode={mode}", f"--direct_num_workers={workers}"]


def test_size_of_parquet_is_that_of_its_rows_unpacked(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.beam import unpacked_bytes

    texts = [f"the same long text, {number}. " * 40 for number in range(2000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    (tmp_path / "b.csv").write_text("text\na\n")
    (tmp_path / "c.parquet").write_bytes(b"broken")
    files = [tmp_path / name for name in ("a.parquet", "b.csv", "c.parquet")]
    rows = sum(map(len, texts))
    assert files[0].stat().st_size < rows / 10
    assert rows <= unpacked_bytes(files) < rows * 1.1


def test_file_that_is_missing_or_not_toml_is_named(tmp_path: Path) -> None:
    assert "there is no such configuration file" in message(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("task = ")
    assert "is not valid TOML" in message(broken)
    broken.write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in message(broken)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configuration_is_valid_where_its_data_is(path: Path) -> None:
    try:
        config = load_config(path)
    except ConfigError as error:
        if "what it points at is missing" in str(error) and path.stem not in (
            "default",
            "pmc_rct_context",
            "ncbi_disease",
        ):
            pytest.skip(f"the data of {path.name} is not on this machine")
        raise
    assert config.name == path.stem


def test_reading_a_configuration_imports_nothing_heavy() -> None:
    code = (
        "import sys, pipeline.cli, pipeline.config, pipeline.fingerprint, pipeline.records, pipeline.summary\n"
        f"pipeline.config.load_config({str(CONFIGS / 'default.toml')!r})\n"
        "heavy = {'tensorflow', 'tfx', 'apache_beam', 'numpy', 'pandas', 'keras', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(','.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
