"""A client as any team would write it: gRPC and TensorFlow Serving's API, nothing of this project.

python plain_client.py HOST:PORT MODEL TEXT …       prints {"probabilities": …, "label": …, "version": …}
"""

import json
import sys

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def main() -> None:
    target, model, *texts = sys.argv[1:]
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = "serving_default"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto(texts, tf.string))
    with grpc.insecure_channel(target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        reply = stub.Predict(request, timeout=60)
    outputs = {name: tf.make_ndarray(tensor) for name, tensor in reply.outputs.items()}
    print(
        json.dumps(
            {
                "version": reply.model_spec.version.value,
                "probabilities": outputs["probabilities"].tolist(),
                "classes": [[name.decode() for name in row] for row in outputs["classes"]],
                "label": [name.decode() for name in outputs["label"]],
                "own": sorted(
                    name for name in sys.modules if name.split(".")[0] in ("pipeline", "components", "serving")
                ),
            }
        )
    )


if __name__ == "__main__":
    main()
