"""The SavedModel: raw strings in, probabilities, class names and decisions out.

It holds the graph that Transform made, reduced to what tokenising needs, and the classifier, as standard
TensorFlow and TF Text ops and variables; loading it needs neither Keras nor this project.

Texts are answered in the order of their length, so that those of like length are computed together, and in chunks of a
bounded number of padded tokens: one long text among a thousand short ones costs no more memory than alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

# The ops of the Transform graph register when this is imported.
import tensorflow_text  # noqa: F401

from components.classifier.model import probabilities
from components.config import Task
from components.export.classifier import ServedClassifier
from components.trainer.steps import batch_spec

CLASSIFY_METHOD = "tensorflow/serving/classify"
# Padded tokens answered at once: enough rows for the matrix products to run at full speed.
_CHUNK_TOKENS = 8192
_NGRAMS = 5  # of an explanation, by label

_OnRagged = Callable[[dict[str, tf.RaggedTensor]], dict[str, tf.Tensor]]


class TransformGraph:
    """The part of a Transform graph that given outputs need, callable inside a tf.function.

    A Transform graph also checks labels, which a request has not. Cutting the needed part out of the graph, instead
    of feeding made-up labels, leaves those checks behind.

    Args:
      saved_model_dir: `TFTransformOutput.transform_savedmodel_dir`.
    """

    def __init__(self, saved_model_dir: str) -> None:
        function = tf.saved_model.load(saved_model_dir).transform_fn
        if function.captured_inputs:
            raise ValueError(f"{saved_model_dir}: the Transform graph holds tables, which cannot be cut out")
        self._graph_def = function.graph.as_graph_def()
        inputs = function.structured_input_signature[0][0]
        self._inputs = tf.nest.pack_sequence_as(inputs, function.inputs, expand_composites=True)
        self._outputs = tf.nest.pack_sequence_as(
            function.structured_outputs, function.graph.outputs, expand_composites=True
        )

    def __call__(self, features: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """The named outputs for raw features, as tf.Example parsing by the raw feature spec gives them."""
        wanted = {name: self._outputs[name] for name in outputs}
        tensors = tf.nest.flatten(wanted, expand_composites=True)
        graph_def = _needed_by(self._graph_def, [tensor.op.name for tensor in tensors])
        kept = {node.name for node in graph_def.node}
        feeds = {}
        for name, value in features.items():
            targets = tf.nest.flatten(self._inputs[name], expand_composites=True)
            for target, tensor in zip(targets, tf.nest.flatten(value, expand_composites=True), strict=True):
                if target.op.name in kept:
                    feeds[target.name] = tensor
        found = tf.graph_util.import_graph_def(
            graph_def, input_map=feeds, return_elements=[tensor.name for tensor in tensors], name="transform"
        )
        return tf.nest.pack_sequence_as(wanted, found, expand_composites=True)


def _needed_by(graph_def: tf.compat.v1.GraphDef, outputs: Sequence[str]) -> tf.compat.v1.GraphDef:
    """The graph without the nodes that none of the outputs depends on."""
    nodes = {node.name: node for node in graph_def.node}
    needed: set[str] = set()
    waiting = list(outputs)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += [source.lstrip("^").partition(":")[0] for source in nodes[name].input]
    kept = [node for node in graph_def.node if node.name in needed]
    return tf.compat.v1.GraphDef(node=kept, library=graph_def.library, versions=graph_def.versions)


def export(
    path: str,
    model: ServedClassifier,
    transform: TransformGraph,
    raw_spec: Mapping[str, Any],
    task: Task,
    labels: Sequence[str],
    pairs: bool,
    vocabulary: Sequence[str],
    thresholds: np.ndarray | None = None,
) -> None:
    """Writes the SavedModel.

    Args:
      path: the folder to write.
      model: the trained classifier (`components.export.classifier.served`).
      transform: the Transform graph.
      raw_spec: of raw examples (`TFTransformOutput.raw_feature_spec()`).
      task, labels: of the configuration.
      pairs: whether a request has a `text_pair`.
      vocabulary: the tokens in the order of their ids.
      thresholds: float [labels]; for multilabel, what a probability must reach.

    Signatures:
      serving_default: `text` (and `text_pair`), string [batch], to `probabilities` float32 [batch, labels],
        `classes` string [batch, labels] in that order, and `label` string [batch], or for multilabel `labels`
        int64 [batch, labels], 1 where the label applies.
      serialized_examples: `examples`, tf.Example strings [batch], to the same.
      classify: `inputs`, tf.Example strings [batch], to `scores` and `classes`, for TensorFlow Serving's Classify.
      tokens: as serving_default, to `input_ids` int64 [tokens], rows end to end, and `row_lengths` int64 [batch].
      explain: as serving_default, to the same and, each [batch, labels, 5], the n-grams that give most to a label, the
        greatest first: `starts` and `ends` int64, their tokens in `input_ids` of a text, and `parts` float32, what they
        add to the logit. Where there are fewer, zeros.
      transform_features: `examples`, to the transformed `label` or `labels`, `length` and `truncated`, for evaluation.

    No signature, for who loads it in Python: `vocabulary`, a function of nothing to the tokens, string [vocabulary].
    """
    texts = ("text", "text_pair") if pairs else ("text",)
    strings = [tf.TensorSpec([None], tf.string, name) for name in texts]
    names = tf.constant(list(labels))

    @tf.function(input_signature=strings, autograph=False)
    def encode(*columns: tf.Tensor) -> dict[str, tf.RaggedTensor]:
        features = {name: _raw_feature(raw_spec[name], column) for name, column in zip(texts, columns, strict=True)}
        outputs = ["input_ids", "segment_ids"] if pairs else ["input_ids"]
        return {k: tf.RaggedTensor.from_sparse(v) for k, v in transform(features, outputs).items()}

    predicted, explained = _on_ragged(model, task, pairs, len(labels))

    def decided(found: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        rates = found["probabilities"]
        outputs = found | {"classes": tf.tile(names[None, :], [tf.shape(rates)[0], 1])}
        if task == "multilabel":
            bounds = 0.5 if thresholds is None else tf.constant(thresholds, tf.float32)
            outputs["labels"] = tf.cast(rates >= bounds, tf.int64)
        else:
            outputs["label"] = tf.gather(names, tf.argmax(rates, axis=1))
        return outputs

    def answer(*columns: tf.Tensor) -> dict[str, tf.Tensor]:
        return decided(predicted(encode(*columns)))

    def parsed(examples: tf.Tensor) -> list[tf.Tensor]:
        found = tf.io.parse_example(examples, {name: tf.io.RaggedFeature(tf.string) for name in texts})
        columns = []
        for name in texts:  # none, or an empty list, is the empty text
            one = tf.debugging.assert_less_equal(
                found[name].row_lengths(), 1, f"{name}: more than one value in an example"
            )
            with tf.control_dependencies([one]):
                columns.append(found[name].to_tensor("", shape=[None, 1])[:, 0])
        return columns

    @tf.function(input_signature=strings, autograph=False)
    def serving_default(*columns: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(*columns)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")], autograph=False)
    def serialized_examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(*parsed(examples))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")], autograph=False)
    def classify(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        found = answer(*parsed(inputs))
        return {"scores": found["probabilities"], "classes": found["classes"]}

    @tf.function(input_signature=strings, autograph=False)
    def tokens(*columns: tf.Tensor) -> dict[str, tf.Tensor]:
        ids = encode(*columns)["input_ids"]
        return {"input_ids": ids.values, "row_lengths": ids.row_lengths()}

    @tf.function(input_signature=strings, autograph=False)
    def explain(*columns: tf.Tensor) -> dict[str, tf.Tensor]:
        return decided(explained(encode(*columns)))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")], autograph=False)
    def transform_features(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        label = "labels" if task == "multilabel" else "label"
        features = tf.io.parse_example(examples, {name: raw_spec[name] for name in (*texts, label)})
        return transform(features, [label, "length", "truncated"])

    module = tf.Module(name="biobert_cnn")
    # The variables alone: a Keras object would be saved with everything it knows.
    module.weights = model.variables
    # So that the words of an explanation are those that its ids were made from, whatever becomes of the file.
    module.vocabulary = tf.function(lambda: tf.constant(list(vocabulary)), input_signature=[], autograph=False)
    module.vocabulary.get_concrete_function()
    functions = (serving_default, serialized_examples, classify, tokens, explain, transform_features)
    signatures = {function.__name__: function.get_concrete_function() for function in functions}
    tf.saved_model.save(module, path, signatures=signatures)
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(path)
    updater.replace_method_name("classify", CLASSIFY_METHOD, tags="serve")
    updater.save(path)


def _raw_feature(spec: Any, strings: tf.Tensor) -> Any:
    """Strings [batch] in the form that parsing raw examples by `spec` gives."""
    if isinstance(spec, tf.io.VarLenFeature):
        rows = tf.size(strings, tf.int64)
        indices = tf.stack([tf.range(rows), tf.zeros([rows], tf.int64)], axis=1)
        return tf.SparseTensor(indices, strings, tf.stack([rows, tf.ones([], tf.int64)]))
    return tf.reshape(strings, [-1, *spec.shape])


def _packed(ragged: Mapping[str, tf.RaggedTensor], pairs: bool, rows: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
    """The packed batch of ragged ids; of the given rows alone, where there are such."""
    columns = {"ids": ragged["input_ids"]} | ({"segments": ragged["segment_ids"]} if pairs else {})
    if rows is not None:
        columns = {name: tf.gather(column, rows) for name, column in columns.items()}
    batch = {name: tf.cast(column.values, tf.int32) for name, column in columns.items()}
    return batch | {"row_lengths": tf.cast(columns["ids"].row_lengths(), tf.int32)}


def _on_ragged(model: ServedClassifier, task: Task, pairs: bool, labels: int) -> tuple[_OnRagged, _OnRagged]:
    """Functions from ragged ids to `probabilities` [batch, labels]; the second also to the n-grams, see `export`."""
    on_batch = tf.function(input_signature=[batch_spec(pairs)], autograph=False)
    encoded = on_batch(model.encoded)  # by both: the encoder stands in the graph once

    @on_batch
    def classified(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {"probabilities": probabilities(model.logits(*encoded(batch)), task)}

    @on_batch
    def explained(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        hidden, cut = encoded(batch)
        parts, starts, ends = model.explain(hidden, cut, task, _NGRAMS)
        found = {"parts": parts, "starts": tf.cast(starts, tf.int64), "ends": tf.cast(ends, tf.int64)}
        shaped = {name: tf.ensure_shape(values, [None, labels, _NGRAMS]) for name, values in found.items()}
        return {"probabilities": probabilities(model.logits(hidden, cut), task)} | shaped

    shortest = model.head.max_length if model.head.config.kind == "flatten" else 1
    # The parts of all features take about as much memory by label as the encoder takes by token.
    return _chunked(classified, pairs, shortest), _chunked(explained, pairs, max(shortest, labels))


def _chunked(compute: Any, pairs: bool, shortest: int) -> _OnRagged:
    """A function from ragged ids to what a tf.function gives for packed batches, in memory bounded by `_CHUNK_TOKENS`.

    Args:
      compute: to tensors [texts, ...] by name.
      shortest: a text counts as so many tokens at least.
    """
    outputs = compute.get_concrete_function().structured_outputs

    def on_ragged(ragged: dict[str, tf.RaggedTensor]) -> dict[str, tf.Tensor]:
        lengths = tf.maximum(tf.cast(ragged["input_ids"].row_lengths(), tf.int32), shortest)
        order = tf.argsort(lengths, direction="DESCENDING", stable=True)
        count = tf.size(lengths)
        empty = {
            n: tf.TensorArray(v.dtype, 0, dynamic_size=True, infer_shape=False, element_shape=v.shape)
            for n, v in outputs.items()
        }

        def chunk(start: tf.Tensor, number: tf.Tensor, arrays: dict[str, tf.TensorArray]) -> tuple[Any, ...]:
            size = tf.maximum(_CHUNK_TOKENS // lengths[order[start]], 1)
            found = compute(_packed(ragged, pairs, order[start : start + size]))
            return start + size, number + 1, {n: array.write(number, found[n]) for n, array in arrays.items()}

        *_, arrays = tf.while_loop(lambda start, *_: start < count, chunk, (0, 0, empty), parallel_iterations=1)
        back = tf.math.invert_permutation(order)
        found = {name: tf.gather(array.concat(), back) for name, array in arrays.items()}
        return {name: tf.ensure_shape(values, outputs[name].shape) for name, values in found.items()}

    return on_ragged
