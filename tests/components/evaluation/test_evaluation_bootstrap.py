"""The bootstrap against distributions that are known."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from components.evaluation import bootstrap


def one_hot(labels, count):
    return np.arange(count) == np.asarray(labels)[:, None]


def test_interval_of_accuracy_is_the_binomial_one():
    # Resampled accuracy is Binomial(n, accuracy) / n.
    truth = one_hot(np.zeros(400, int), 2)
    decision = one_hot(np.arange(400) >= 300, 2)
    overall, _ = bootstrap.metric_intervals(truth, decision, decision.astype(np.float32), "multiclass", 4000)
    expected = stats.binom.ppf([0.025, 0.975], 400, 0.75) / 400
    assert overall["accuracy"] == pytest.approx(expected, abs=1 / 400)


def test_interval_of_recall_follows_the_rows_of_the_label():
    truth = one_hot([0] * 90 + [1] * 10, 2)
    decision = one_hot([0] * 95 + [1] * 5, 2)
    _, by_label = bootstrap.metric_intervals(truth, decision, decision.astype(np.float32), "multiclass", 2000)
    # Resampled, the label has Binomial(100, 0.1) rows, and of those each is found with chance 0.5.
    generator = np.random.default_rng(0)
    rows = generator.binomial(100, 0.1, 20_000)
    expected = np.quantile(generator.binomial(rows, 0.5) / rows, [0.025, 0.975])
    assert by_label[1]["recall"] == pytest.approx(expected, abs=0.02)
    assert by_label[1]["precision"] == (1.0, 1.0)


def test_paired_difference_of_accuracy_has_the_known_spread():
    # Of 500 rows the model alone is right on 60, the baseline alone on 20: difference 0.08, standard error
    # sqrt((80/500 - 0.08**2) / 500).
    truth = one_hot(np.zeros(500, int), 2)
    model, baseline = one_hot(np.arange(500) < 20, 2), one_hot(np.arange(500) >= 440, 2)
    difference, low, high = bootstrap.paired_differences(truth, model, baseline, 20_000)["accuracy"]
    error = np.sqrt((80 / 500 - 0.08**2) / 500)
    assert difference == pytest.approx(0.08)
    assert (low, high) == pytest.approx((0.08 - 1.96 * error, 0.08 + 1.96 * error), abs=0.002)


def test_paired_difference_is_zero_everywhere_when_both_decide_alike():
    truth, decision = one_hot([0, 1, 2, 2], 3), one_hot([0, 2, 2, 1], 3)
    found = bootstrap.paired_differences(truth, decision, decision, 100)
    assert found["macro_f1"] == (0.0, 0.0, 0.0)


def test_paired_difference_of_macro_f1_is_the_difference_of_scikit_learns():
    generator = np.random.default_rng(1)
    truth, a, b = generator.integers(0, 3, (3, 200))
    found = bootstrap.paired_differences(one_hot(truth, 3), one_hot(a, 3), one_hot(b, 3), 500)["macro_f1"]
    expected = f1_score(truth, a, average="macro") - f1_score(truth, b, average="macro")
    assert found[0] == pytest.approx(expected, abs=1e-12)
    resampled = []
    for _ in range(500):
        rows = generator.integers(0, 200, 200)
        resampled.append(
            f1_score(truth[rows], a[rows], average="macro") - f1_score(truth[rows], b[rows], average="macro")
        )
    assert found[1:] == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.02)


def test_same_seed_same_numbers_whatever_the_order_of_the_rows():
    generator = np.random.default_rng(2)
    truth, a, b = generator.integers(0, 4, (3, 300))
    masks = [one_hot(x, 4) for x in (truth, a, b)]
    order = generator.permutation(300)
    found = bootstrap.paired_differences(*masks, 200, seed=7)
    assert bootstrap.paired_differences(*(m[order] for m in masks), 200, seed=7) == found
    assert bootstrap.paired_differences(*masks, 200, seed=8)["macro_f1"][1:] != found["macro_f1"][1:]


def test_intervals_hold_the_figure_for_rows_with_several_labels():
    generator = np.random.default_rng(4)
    truth = generator.random((300, 3)) < 0.4
    probabilities = np.clip(0.3 * truth + 0.7 * generator.random((300, 3)), 0, 1).astype(np.float32)
    overall, by_label = bootstrap.metric_intervals(truth, probabilities > 0.5, probabilities, "multilabel", 300)
    assert sorted(overall) == [
        "accuracy", "calibration_error", "macro_f1", "micro_f1", "pr_auc", "weighted_f1"
    ]  # fmt: skip
    macro = f1_score(truth, probabilities > 0.5, average="macro")
    assert overall["macro_f1"][0] < macro < overall["macro_f1"][1]
    for low, high in overall.values():
        assert 0 <= low < high <= 1
    assert [sorted(values) for values in by_label] == [["f1", "precision", "recall"]] * 3


def test_many_rows_get_fewer_resamples_but_never_under_a_hundred():
    assert bootstrap.resamples(2061, 1000) == 1000
    assert bootstrap.resamples(100_000, 1000) == 200
    assert bootstrap.resamples(50_000_000, 1000) == 100
    assert bootstrap.resamples(50_000_000, 20) == 20
