"""The trainer's and the tuner's node for pretrained weights: typed input in, TFX's own told where it is."""

import pytest
from tfx.components.trainer import executor as tfx_executor
from tfx.components.tuner import executor as tfx_tuner
from tfx.proto import trainer_pb2
from tfx.types import Channel, standard_artifacts
from tfx.utils import json_utils

from components.encoder.component import EncoderWeights
from components.trainer.component import Executor, PretrainedTrainer, TunerExecutor


def test_the_spec_is_tfx_trainers_and_the_weights():
    trainer = PretrainedTrainer(
        encoder_weights=Channel(type=EncoderWeights),
        examples=Channel(type=standard_artifacts.Examples),
        transform_graph=Channel(type=standard_artifacts.TransformGraph),
        base_model=None,
        run_fn="components.trainer.run_fn.run_fn",
        train_args=trainer_pb2.TrainArgs(),
        eval_args=trainer_pb2.EvalArgs(),
        custom_config={"task": "binary"},
    )
    assert set(trainer.inputs) == {"encoder_weights", "examples", "transform_graph"}
    assert {name: channel.type_name for name, channel in trainer.outputs.items()} == {
        "model": "Model",
        "model_run": "ModelRun",
    }
    assert json_utils.loads(trainer.exec_properties["custom_config"]) == {"task": "binary"}


@pytest.mark.parametrize(
    ("executor", "base"), [(Executor, tfx_executor.GenericExecutor), (TunerExecutor, tfx_tuner.Executor)]
)
def test_the_executor_hands_the_folder_on(monkeypatch, executor, base):
    seen = {}

    def do(self, input_dict, output_dict, exec_properties):
        seen.update(inputs=input_dict, outputs=output_dict, properties=exec_properties)

    monkeypatch.setattr(base, "Do", do)
    weights = EncoderWeights()
    weights.uri = "/somewhere"
    properties = {"run_fn": "a.b", "custom_config": json_utils.dumps({"task": "binary"})}
    executor().Do({"examples": [], "encoder_weights": [weights]}, {"model": []}, properties)
    assert seen["inputs"] == {"examples": []}
    assert seen["outputs"] == {"model": []}
    assert seen["properties"]["run_fn"] == "a.b"
    assert json_utils.loads(seen["properties"]["custom_config"]) == {"task": "binary", "encoder_weights": "/somewhere"}
    assert properties["custom_config"] == json_utils.dumps({"task": "binary"})
