"""An explanation is of every n-gram once, with all that its features add to a label's logit."""

from collections import defaultdict

import numpy as np
import pytest
from keras import ops

from components.classifier.explanation import explain
from components.classifier.model import build_classifier
from components.config import HeadConfig
from components.encoder.config import BertGeometry

GEOMETRY = BertGeometry(
    vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=24, initializer_range=0.5,
)  # fmt: skip
LENGTHS = (2, 3, 19, 5)


def added_up(features, ngrams, weights):
    """Of one text, by label: n-grams and the sum of their features' parts, the greatest first."""
    ranked = []
    for label in range(weights.shape[1]):
        sums = defaultdict(float)
        for feature, (first, end) in enumerate(ngrams.tolist()):
            if end > first:
                sums[first, end] += features[feature] * weights[feature, label]
        ranked.append(sorted(sums.items(), key=lambda one: -one[1]))
    return ranked


@pytest.mark.parametrize(
    ("kind", "task", "units", "overlap"),
    [
        ("multi_width", "multiclass", 0, None),
        ("multi_width", "binary", 5, 2),
        ("attention", "multilabel", 5, None),
        ("flatten", "binary", 0, None),
        ("flatten", "multiclass", 0, 2),
        ("global_max", "multiclass", 5, 2),
        ("stacked", "multiclass", 0, None),
    ],
)
def test_parts_are_the_sums_of_the_features_of_an_ngram(kind, task, units, overlap):
    rng = np.random.default_rng(4)
    head = HeadConfig(kind=kind, widths=(1, 2), filters=(6, 7), dense_units=units)
    longest = 24 if overlap is None else 8
    model = build_classifier(GEOMETRY, head, task, 2 if task == "binary" else 3, 1, longest, overlap=overlap)
    for variable in model.trainable_weights:
        variable.assign(variable.numpy() + rng.normal(size=variable.shape, scale=0.05))
    ids = rng.integers(0, 30, sum(LENGTHS)).astype(np.int32)
    batch = {"ids": ids, "row_lengths": np.array(LENGTHS, np.int32)}
    batch = batch if model.windows is None else model.windows.split(batch)
    hidden = model.encoder(batch)
    features, ngrams = (
        ops.convert_to_numpy(values) for values in (model.head(hidden, batch), model.head.ngrams(hidden, batch))
    )
    found = [ops.convert_to_numpy(values) for values in explain(model, hidden, batch, task, 6)]
    assert {values.shape for values in found} == {(4, 2 if task == "binary" else 3, 6)}
    seen = 0
    for text in range(len(LENGTHS)):
        weights = model.output_dense.kernel.numpy()
        if units:  # the hidden layer is linear where its units are above 0
            kernel, bias = model.hidden.kernel.numpy(), model.hidden.bias.numpy()
            weights = kernel @ (weights * (features[text] @ kernel + bias > 0)[:, None])
        if task == "binary":
            weights = np.concatenate([-weights, weights], axis=1)
        for label, ranked in enumerate(added_up(features[text], ngrams[text], weights)):
            parts, starts, ends = (values[text, label] for values in found)
            count = min(6, len(ranked))
            np.testing.assert_allclose(parts[:count], [part for _, part in ranked[:count]], rtol=0, atol=1e-5)
            sums = dict(ranked)
            for first, end, part in zip(starts[:count], ends[:count], parts[:count], strict=True):
                assert 1 <= first < end <= LENGTHS[text] - 1
                assert sums[first, end] == pytest.approx(part, abs=1e-5)
            assert len(set(zip(starts[:count], ends[:count], strict=True))) == count
            assert not any(values[count:].any() for values in (parts, starts, ends))
            seen += count
    assert seen > 12


def test_the_token_that_a_filter_looks_for_is_what_is_named():
    geometry = BertGeometry(vocab_size=30, hidden_size=8, num_hidden_layers=0, max_position_embeddings=24)
    model = build_classifier(geometry, HeadConfig(widths=(1,), filters=(1,)), "multiclass", 2, 1, 24)
    word = np.array([9, -9, 9, -9, 9, -9, 9, -9], np.float32)
    model.encoder.embeddings.word.assign(model.encoder.embeddings.word.numpy() + np.outer(np.arange(30) == 7, word))
    model.head.stages[0].kernels[0].assign(word[:, None])
    model.output_dense.kernel.assign([[-1.0, 1.0]])
    batch = {"ids": np.array([2, 5, 7, 6, 3, 2, 6, 6, 6, 7, 3], np.int32), "row_lengths": np.array([5, 6], np.int32)}
    parts, starts, ends = map(ops.convert_to_numpy, explain(model, model.encoder(batch), batch, "multiclass", 2))
    assert starts[:, 1].tolist() == [[2, 0], [4, 0]]
    assert ends[:, 1].tolist() == [[3, 0], [5, 0]]
    np.testing.assert_array_equal(parts[:, 0], -parts[:, 1])
    assert np.all(parts[:, 1, 0] > 50)  # 8 values of 1 after normalisation, times 9


def test_without_convolutions_there_is_nothing_to_tell():
    model = build_classifier(GEOMETRY, HeadConfig(kind="cls"), "multiclass", 3, 1, 24)
    batch = {"ids": np.zeros(7, np.int32), "row_lengths": np.array([2, 5], np.int32)}
    for values in explain(model, model.encoder(batch), batch, "multiclass", 6):
        assert values.shape == (2, 3, 6)
        assert not ops.convert_to_numpy(values).any()
