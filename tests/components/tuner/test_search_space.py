"""The search space: what may stand in it, and the way of its values through KerasTuner and back."""

import json

import pytest
from pydantic import ValidationError

from components.config import SpaceConfig, TunerConfig
from components.errors import ConfigError, DivergenceError, PipelineError
from components.trainer.hyperparameters import decoded, with_values
from components.tuner.search import Search
from components.tuner.space import hyperparameters

SPACE = {
    "head": {"kind": ["cls", "attention"], "widths": [[2], [2, 3]], "filters": {"min": 4, "max": 8}},
    "training": {"learning_rate": {"min": 1e-4, "max": 1e-2, "sampling": "log"}},
}


def search(folder, train, run="one", space=SPACE, **options):
    config = TunerConfig(space=space, **({"algorithm": "random", "max_trials": 4} | options))
    return Search(config, "macro_f1", train, str(folder / run), str(folder / "kept"))


def test_a_space_is_sorted_and_typed_by_its_values():
    found = hyperparameters(SpaceConfig(**SPACE))
    assert [(one.name, type(one).__name__) for one in found.space] == [
        ("head.filters", "Int"), ("head.kind", "Choice"), ("head.widths", "Choice"),
        ("training.learning_rate", "Float"),
    ]  # fmt: skip
    assert found.space[2].values == ["[2]", "[2, 3]"]


def test_values_of_a_trial_stand_in_the_sections_they_are_of():
    values = decoded({"head.kind": '"cls"', "head.widths": "[2, 3]", "training.learning_rate": 0.003})
    config = {"task": "binary", "head": {"kind": "flatten", "dropout": 0.5}, "training": {}}
    assert with_values(config, values) == {
        "task": "binary",
        "head": {"kind": "cls", "dropout": 0.5, "widths": [2, 3]},
        "training": {"learning_rate": 0.003},
    }
    assert config["head"] == {"kind": "flatten", "dropout": 0.5}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "is empty; name what to search over"),
        ({"head": {"kindd": ["cls", "flatten"]}}, "head.kindd: is not a known key; known here: kind"),
        ({"training": {"metric": ["accuracy", "macro_f1"]}}, "training.metric: stays the same for all trials"),
        ({"head": {"kind": ["cls"]}}, "head.kind: give at least two values"),
        ({"training": {"learning_rate": {"min": 1, "max": 1}}}, "must be less than max"),
        ({"training": {"weight_decay": {"min": 0, "max": 1, "sampling": "log"}}}, "log needs a min above 0"),
        ({"training": {"weight_decay": {"min": 0.1, "max": 1, "sampling": "log", "step": 2}}}, "logarithmic range has"),
        ({"data": {"input": ["a", "b"]}}, "Extra inputs are not permitted"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space, message):
    with pytest.raises(ValidationError, match=message):
        TunerConfig(space=space)


@pytest.mark.parametrize("algorithm", ["random", "bayesian", "grid"])
def test_a_search_cut_off_goes_on_with_what_it_knows(tmp_path, algorithm):
    def score(values):
        return 1 / (1 + values["head.filters"]) + 0.3 * (values["head.kind"] == "cls")

    trained, whole = [], []

    def cut(values, folder):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(values)
        return score(values)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, cut, "first", algorithm=algorithm).search()

    def go_on(values, folder):
        trained.append(values)
        return score(values)

    again = search(tmp_path, go_on, "second", algorithm=algorithm)
    again.search()
    uncut = search(tmp_path / "uncut", lambda values, _: whole.append(values) or score(values), algorithm=algorithm)
    uncut.search()
    assert len(whole) == 4
    assert trained == whole  # each once, and the same ones in the same order
    best = decoded(again.get_best_hyperparameters()[0].values)
    assert best == decoded(uncut.get_best_hyperparameters()[0].values) == max(whole, key=score)
    kept = sorted(json.loads(file.read_text())["score"] for file in (tmp_path / "kept").glob("*.json"))
    assert kept == sorted(map(score, whole))


def test_values_that_do_not_work_are_passed_over_and_known(tmp_path):
    tried = []

    def train(values, folder):
        tried.append(values)
        if values["head.kind"] == "cls":
            raise DivergenceError("not finite")
        return 0.5

    for run in ("first", "second"):
        found = search(tmp_path, train, run, max_trials=6)
        found.search()
        assert decoded(found.get_best_hyperparameters()[0].values)["head.kind"] == "attention"
    assert len(tried) == 6
    assert {values["head.kind"] for values in tried} == {"cls", "attention"}


def test_a_search_without_a_single_result_says_why(tmp_path):
    def train(values, folder):
        raise ConfigError("head.filters: give one number")

    with pytest.raises(PipelineError, match=r"none of 4 trials .*: head\.filters: give one number"):
        search(tmp_path, train).search()


def test_any_other_failure_ends_the_search(tmp_path):
    tried = []

    def train(values, folder):
        tried.append(values)
        raise OSError("disk")

    with pytest.raises(Exception, match="a trial failed: OSError") as caught:
        search(tmp_path, train).search()
    assert isinstance(caught.value.__cause__, OSError)
    assert len(tried) == 1
    assert list((tmp_path).glob("kept/*.json")) == []
