"""What is refused at export: ops that TensorFlow Serving lacks, processes that die, answers that differ by machine."""

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from components.errors import ExportError
from components.export import portable

MACHINES = {"here": {}, "elsewhere": {"ELSEWHERE": "1"}}


@pytest.fixture
def probe(monkeypatch, tmp_path):
    """A function that puts a script of these lines in the place of the probe; `columns` holds the texts."""

    def make(*lines):
        head = "import json, os, sys\ncolumns = json.load(open(sys.argv[2]))\nfar = 'ELSEWHERE' in os.environ\n"
        (tmp_path / "probe.py").write_text(head + "\n".join(lines))
        monkeypatch.setattr(portable, "_PROBE", tmp_path / "probe.py")

    return make


def test_ops_of_the_list_pass_and_another_is_named(tmp_path):
    module = tf.Module()
    module.double = tf.function(lambda x: 2.0 * x, input_signature=[tf.TensorSpec([None], tf.float32)])
    tf.saved_model.save(module, str(tmp_path))
    portable.check_ops(str(tmp_path))
    file = tmp_path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    node = next(n for f in saved.meta_graphs[0].graph_def.library.function for n in f.node_def if n.op == "Mul")
    node.op = "MulOfTomorrow"
    file.write_bytes(saved.SerializeToString())
    with pytest.raises(ExportError, match=r"1 op that TensorFlow Serving 2.20 lacks: MulOfTomorrow; it could not"):
        portable.check_ops(str(tmp_path))


def test_machines_that_agree_pass_and_both_segments_are_asked(probe):
    probe(
        "assert [bytes.fromhex(t) for t in columns['text_pair']] == [b'c', b'a b']",
        "print('a log line')",
        "print(json.dumps({'probabilities': [[0.5 + 0.01 * far]] * len(columns['text'])}))",
    )
    portable.check_answers("model", [b"a b", b"c"], pairs=True, tolerance=0.011, machines=MACHINES)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("print(json.dumps({'probabilities': [[0.5 + 0.02 * far]]}))", r"differently elsewhere: a probability is 0.02"),
        ("print(json.dumps({'probabilities': [[float('nan')]]}))", "with what is not a number, here"),
        ("os.abort() if far else print(json.dumps({'probabilities': [[1.0]]}))", "ended by SIGABRT, elsewhere"),
        ("sys.exit(3)", "ended with status 3, here"),
    ],
)
def test_an_export_is_refused_that_answers_wrongly_or_ends_its_process(probe, line, message):
    probe(line)
    with pytest.raises(ExportError, match=message):
        portable.check_answers("model", [b"a"], pairs=False, tolerance=0.011, machines=MACHINES)


def test_made_up_texts_are_words_of_the_vocabulary_and_hostile_ones(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nfever\n##s\ndose\n")
    texts = portable.made_up_texts(str(tmp_path / "vocab.txt"))
    assert texts == portable.made_up_texts(str(tmp_path / "vocab.txt"))
    assert {word for text in texts[:12] for word in text.split()} == {b"fever", b"dose"}
    assert {b"", b"before\x00after"} <= set(texts)


@pytest.mark.slow
def test_the_probe_gives_a_models_own_answers(tmp_path):
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def serving_default(text):
        return {"probabilities": tf.cast(tf.strings.length(text), tf.float32)[:, None] / 10.0}

    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"serving_default": serving_default})
    (tmp_path / "texts.json").write_text('{"text": ["6162", "", "00ff61"]}')
    found = portable._ask(str(tmp_path / "model"), tmp_path / "texts.json", "here", {})
    assert found[:, 0] == pytest.approx([0.2, 0.0, 0.3])
