"""Writes tests/forms/artifacts with ONNX Runtime Training: needs `onnxruntime-training-cpu==1.19.2`, `onnx<1.17` and `torch`.

python tests/forms/make_artifacts.py
"""

import pathlib

import onnx
from onnxruntime.training import artifacts

HERE = pathlib.Path(__file__).parent
model = onnx.load(HERE / "single.onnx")
# The loss works on the logits.
model.graph.node.pop()
del model.graph.output[:]
model.graph.output.append(onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 3]))
artifacts.generate_artifacts(
    model,
    requires_grad=["w1", "b1", "w2"],
    frozen_params=["b2"],
    loss=artifacts.LossType.CrossEntropyLoss,
    artifact_directory=HERE / "artifacts",
)
