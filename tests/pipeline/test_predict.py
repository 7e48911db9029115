import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from components.config import Columns, DataConfig
from components.errors import DataError, PushError, ServingError
from components.examples.files import InputFile
from pipeline.inputs import row_spec
from pipeline.predict import Predictor, predict, predict_file

ROOT = Path(__file__).parents[2]
TOY = ROOT / "tests" / "components" / "serving_check" / "toy_model.py"
TEXTS = ["Aspirin lowered the risk.", "", "Methods: a randomised trial.", "längst ∆ 𝛽", "x" * 5000]


@pytest.fixture(scope="module")
def toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toy_model", TOY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def data(**values) -> DataConfig:
    return DataConfig(input=Path("unused"), splits={"all": "*.csv"}, **values)


def test_predictions_are_those_of_the_model_in_the_order_of_the_texts(toy: ModuleType, tmp_path: Path) -> None:
    model = toy.ToyModel()
    model.export(tmp_path / "1000")
    toy.ToyModel(seed=2).export(tmp_path / "900")
    version, found = predict(tmp_path, TEXTS)
    expected = model.probabilities(toy.tf.constant(TEXTS)).numpy()
    assert version.number == 1000
    for row, prediction in enumerate(found):
        assert list(prediction.probabilities) == ["A", "B", "C"]
        np.testing.assert_allclose(list(prediction.probabilities.values()), expected[row], atol=1e-6)
        assert prediction.labels == (toy.CLASSES[int(expected[row].argmax())],)
        assert prediction.label == prediction.labels[0]
    _, older = predict(tmp_path, TEXTS, version=900)
    assert older[0].probabilities != found[0].probabilities


def test_multilabel_model_gives_every_label_that_applies(toy: ModuleType, tmp_path: Path) -> None:
    toy.ToyModel(multilabel=True).export(tmp_path / "1")
    _, found = predict(tmp_path, TEXTS)
    for prediction in found:
        assert prediction.labels == tuple(name for name, p in prediction.probabilities.items() if p >= 0.5)
    assert {len(prediction.labels) for prediction in found} != {1}


def test_pairs_must_fit_the_model(toy: ModuleType, tmp_path: Path) -> None:
    toy.ToyModel().export(tmp_path / "single" / "1")
    toy.ToyModel(pairs=True).export(tmp_path / "pairs" / "1")
    with pytest.raises(DataError, match="takes single texts"):
        predict(tmp_path / "single", ["a"], ["b"])
    with pytest.raises(DataError, match="takes pairs"):
        predict(tmp_path / "pairs", ["a"])
    with pytest.raises(DataError, match="2 texts and 1 second segments"):
        predict(tmp_path / "pairs", ["a", "b"], ["c"])
    _, found = predict(tmp_path / "pairs", ["a"], ["b"])
    _, other = predict(tmp_path / "pairs", ["a"], ["zzz"])
    assert found[0].probabilities != other[0].probabilities


def test_a_version_without_explanations_says_so(toy: ModuleType, tmp_path: Path) -> None:
    toy.ToyModel().export(tmp_path / "1")
    export_explained(toy, tmp_path / "2")
    for version in (1, 2):
        with pytest.raises(ServingError, match="exported before there were explanations in words; run the pipeline"):
            predict(tmp_path, ["a"], version=version, explain=True)


def export_explained(toy: ModuleType, path: Path, vocabulary: list[str] | None = None) -> None:
    """A toy whose texts all have four tokens, of which the second and third decide, and the fourth by itself."""
    tf, model = toy.tf, toy.ToyModel()
    text = [tf.TensorSpec([None], tf.string, "text")]
    spans = {"starts": [1, 3, 0], "ends": [3, 4, 0], "parts": [2.0, 0.5, 0.0]}

    def explain(text):
        return {name: tf.tile(tf.constant([[values] * 3]), [tf.size(text), 1, 1]) for name, values in spans.items()}

    signatures = {
        "serving_default": lambda text: model.outputs(text),
        "tokens": lambda text: {"input_ids": tf.tile(tf.range(4, dtype=tf.int64), [tf.size(text)])},
        "explain": explain,
    }
    if vocabulary is not None:
        model.vocabulary = tf.function(lambda: tf.constant(vocabulary), input_signature=[])
        model.vocabulary.get_concrete_function()
    made = {name: tf.function(found, text, autograph=False) for name, found in signatures.items()}
    tf.saved_model.save(model, str(path), {name: found.get_concrete_function() for name, found in made.items()})


def test_an_explanation_is_in_the_words_that_the_version_carries(toy: ModuleType, tmp_path: Path) -> None:
    export_explained(toy, tmp_path / "1", ["[CLS]", "fe", "##ver", "a\u2028b"])
    export_explained(toy, tmp_path / "2", ["[CLS]", "pa", "##in", "[SEP]"])
    for version, ngrams in ((1, [("fever", 2.0), ("a\u2028b", 0.5)]), (2, [("pain", 2.0), ("[SEP]", 0.5)])):
        _, (found,) = predict(tmp_path, ["a"], version=version, explain=True)
        assert found.ngrams == dict.fromkeys(toy.CLASSES, ngrams)


def test_batches_are_bounded_in_texts_and_bytes(toy: ModuleType, tmp_path: Path) -> None:
    predictor = Predictor(toy.ToyModel().export(tmp_path / "1"), batch_size=2)
    sizes = [5, 1, 3 << 20, 2 << 20, 2]
    order = sorted(range(5), key=lambda row: sizes[row])
    assert list(predictor._batches(order, sizes)) == [[1, 4], [0, 3], [2]]


def test_failing_model_is_named_without_the_text(toy: ModuleType, tmp_path: Path) -> None:
    predictor = Predictor(toy.ToyModel(fault="breaks_on_bytes").export(tmp_path / "1"))
    with pytest.raises(ServingError, match="failed on a batch of 1 texts with InvalidArgumentError") as caught:
        predictor.predict([b"\xff secret"])
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_missing_and_broken_versions_are_named(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(PushError, match="no version has been pushed yet"):
        predict(tmp_path, ["a"])
    (tmp_path / "5").mkdir()
    with pytest.raises(ServingError, match=r"5: cannot be loaded as a SavedModel \(OSError\)"):
        predict(tmp_path, ["a"])


def test_file_is_predicted_row_by_row_with_bad_rows_named(toy: ModuleType, tmp_path: Path) -> None:
    toy.ToyModel().export(tmp_path / "serving" / "7")
    (tmp_path / "in.csv").write_bytes(b'id,body\n7,"a text, with\ncomma"\n8,\n9,\xff\n10,last\n')
    found = list(
        predict_file(tmp_path / "serving", tmp_path / "in.csv", data(columns=Columns(text="body", id="id")), chunk=2)
    )
    assert [(row["line"], row.get("id"), row.get("error")) for row in found] == [
        (2, "7", None), (4, None, "empty_text"), (5, None, "invalid_utf8"), (6, "10", None),
    ]  # fmt: skip
    assert set(found[0]) == {"file", "line", "id", "label", "probabilities", "version"}
    assert found[0]["version"] == 7
    assert json.loads(json.dumps(found))[0] == found[0]


def test_plain_text_file_is_one_text_a_line(toy: ModuleType, tmp_path: Path) -> None:
    toy.ToyModel().export(tmp_path / "serving" / "7")
    (tmp_path / "in.txt").write_text("first\tline\n\nthird, line\n")
    found = list(predict_file(tmp_path / "serving", tmp_path / "in.txt", data()))
    assert [row["line"] for row in found] == [1, 3]
    _, (expected,) = predict(tmp_path / "serving", ["third, line"])
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbfthird, line")
    (alone,) = predict_file(tmp_path / "serving", tmp_path / "in.txt", data())
    # As it is asked, alone: beside another text it may round otherwise.
    assert alone["probabilities"] == expected.probabilities, "a byte order mark is no part of the text"
    for head, kind in (("a text".encode("utf-16"), "UTF-16 text"), (b"PK\x03\x04", "a ZIP archive or a spreadsheet")):
        (tmp_path / "in.txt").write_bytes(head + b"\nsecret")
        with pytest.raises(DataError, match=f"^in.txt: is {kind}") as caught:
            list(predict_file(tmp_path / "serving", tmp_path / "in.txt", data()))
        assert "secret" not in str(caught.value)
    assert found[1]["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)


def test_a_file_of_lines_is_not_taken_for_a_table() -> None:
    with pytest.raises(
        DataError, match=r"^notes.txt: is none of .csv, .tsv, .jsonl, .ndjson, .parquet; `predict --file`"
    ):
        row_spec(InputFile(0, "all", "/in/notes.txt", "notes.txt"), data())


def test_pubmed_rct_file_is_read_by_its_own_format(toy: ModuleType, tmp_path: Path) -> None:
    toy.ToyModel(pairs=True).export(tmp_path / "serving" / "7")
    (tmp_path / "in.txt").write_text("###42\nOBJECTIVE\tWhy.\nMETHODS\tHow.\n\n")
    found = list(predict_file(tmp_path / "serving", tmp_path / "in.txt", data(format="pubmed_rct", neighbours=1)))
    assert [(row["line"], row["id"]) for row in found] == [(2, "42"), (3, "42")]
    _, expected = predict(tmp_path / "serving", ["Why.", "How."], ["\nHow.", "Why.\n"])
    for row, prediction in zip(found, expected, strict=True):
        assert row["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-6)


@pytest.mark.slow
def test_commands_leave_the_terminal_to_their_results_and_write_nothing_elsewhere(
    toy: ModuleType, minimal: Path, tmp_path: Path
) -> None:
    toy.ToyModel().export(tmp_path / "root" / "serving" / "biobert_cnn" / "7")
    (tmp_path / "home").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "KERAS_HOME"}
    environment.update(PYTHONPATH=str(ROOT), HOME=str(tmp_path / "home"), TF_CPP_MIN_LOG_LEVEL="0")
    settings = ["--set", f"paths.root={tmp_path / 'root'}", "--json"]

    def run(command: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", command, str(minimal), *arguments, *settings],
            capture_output=True, text=True, cwd=tmp_path, env=environment,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "root" / "logs" / f"{command}.log").read_text() != "", "TensorFlow has something to say"
        return done.stdout

    assert json.loads(run("predict", TEXTS[0]))["version"] == 7
    rows = ("--file", str(next((minimal.parent / "rows").rglob("*.csv"))))
    assert [row["version"] for row in json.loads(run("predict", *rows))["predictions"]] == [7]
    assert json.loads(run("score", str(minimal.parent / "rows"), str(tmp_path / "out")))["rows"] == 2
    assert list((tmp_path / "home").rglob("*")) == []


@pytest.mark.slow
def test_wrong_file_is_named_before_tensorflow_is_imported(tmp_path: Path) -> None:
    (tmp_path / "serving" / "7").mkdir(parents=True)
    (tmp_path / "in.csv").write_text("body\na\n")
    code = (
        "import sys; from pathlib import Path; from components.config import DataConfig\n"
        "from components.errors import DataError; from pipeline.predict import predict_file\n"
        "data = DataConfig(input=Path('x'), splits={'all': 'x'})\n"
        "try: list(predict_file(Path('serving'), Path('in.csv'), data))\n"
        "except DataError as error: print(error)\n"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "in.csv: the column 'text' is missing" in done.stdout, done.stderr
    assert done.stdout.endswith("False\n")


def test_key_that_no_object_has_is_one_error_and_a_missing_one_a_bad_row(toy: ModuleType, tmp_path: Path) -> None:
    toy.ToyModel().export(tmp_path / "serving" / "7")
    (tmp_path / "in.jsonl").write_text('{"body": "a"}\n{"body": "b"}\n')
    with pytest.raises(
        DataError, match=r"in\.jsonl: the column 'text' is missing: no object has it; keys of the first: 'body'"
    ):
        list(predict_file(tmp_path / "serving", tmp_path / "in.jsonl", data(columns=Columns(id="id"))))
    (tmp_path / "in.jsonl").write_text('{"body": "a"}\n{"text": "b"}\n')
    found = list(predict_file(tmp_path / "serving", tmp_path / "in.jsonl", data(columns=Columns(id="id"))))
    assert [row.get("error") for row in found] == ["empty_text", None]


def test_file_that_is_not_there_is_told_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "serving" / "7").mkdir(parents=True)
    with pytest.raises(DataError, match=r"none\.csv: there is no such file"):
        list(predict_file(tmp_path / "serving", tmp_path / "none.csv", data()))
    with pytest.raises(DataError, match=r"is a folder; `score` takes those"):
        list(predict_file(tmp_path / "serving", tmp_path, data()))
