"""The search in the graph: a node between transform and trainer where it is configured, else none."""

from pathlib import Path

from pipeline.config import load_config
from pipeline.graph import create_pipeline

SEARCH = "tuner.space.head.kind=['cls', 'attention']"


def nodes(path: Path, *overrides: str):
    return {node.id: node for node in create_pipeline(load_config(path, overrides), {}).components}


def test_a_search_is_a_node_whose_result_the_trainer_takes(minimal: Path) -> None:
    plain, searched = nodes(minimal), nodes(minimal, SEARCH)
    assert [name for name in searched if name not in plain] == ["tuner"]
    order = list(searched)
    assert order.index("transform") < order.index("tuner") < order.index("trainer")
    best = searched["trainer"].inputs["hyperparameters"]
    assert (best.producer_component_id, best.output_key) == ("tuner", "best_hyperparameters")
    assert "hyperparameters" not in plain["trainer"].inputs
    # without a search the trainer is told what it always was, and TFX's cache knows it again
    assert plain["trainer"].exec_properties == searched["trainer"].exec_properties


def test_a_search_with_pretrained_weights_takes_them_as_the_trainer_does(minimal: Path) -> None:
    weights = "encoder.weights=dmis-lab/biobert-v1.1@551ca18efd7f052c8dfa0b01c94c2a8e68bc5488"
    searched = nodes(minimal, SEARCH, weights)
    for name in ("tuner", "trainer"):
        assert searched[name].inputs["encoder_weights"].producer_component_id == "weights"
    assert searched["trainer"].inputs["hyperparameters"].producer_component_id == "tuner"
    assert set(searched["tuner"].outputs) == {"best_hyperparameters", "tuner_results"}
