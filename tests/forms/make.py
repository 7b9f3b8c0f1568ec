"""Writes the models of tests/forms: python tests/forms/make.py (needs `onnx`)."""

import pathlib

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

HERE = pathlib.Path(__file__).parent


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, **attributes)


def weights(dtype):
    rng = np.random.default_rng(3)
    shapes = {"w1": (8, 16), "b1": (16,), "w2": (16, 3), "b2": (3,)}
    values = {name: (rng.standard_normal(shape) * 0.4).astype(np.float16) for name, shape in shapes.items()}
    return [numpy_helper.from_array(value.astype(dtype), name) for name, value in values.items()]


LAYERS = [
    node("MatMul", ["x", "w1"], ["m1"]),
    node("Add", ["m1", "b1"], ["a1"]),
    node("Tanh", ["a1"], ["h"]),
    node("MatMul", ["h", "w2"], ["m2"]),
    node("Add", ["m2", "b2"], ["logits"]),
]


def save(name, nodes, initializers, inputs, outputs):
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    (HERE / f"{name}.onnx").write_bytes(model.SerializeToString())


def network(name, dtype, kind):
    """A network of two layers that ends in probabilities."""
    ports = [helper.make_tensor_value_info(n, kind, ["N", d]) for n, d in [("x", 8), ("p", 3)]]
    save(name, [*LAYERS, node("Softmax", ["logits"], ["p"])], weights(dtype), ports[:1], ports[1:])


def own_loss():
    """The same with its own loss, which takes the labels as an input and comes before the logits."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])
    target = helper.make_tensor_value_info("target", TensorProto.INT32, ["N", 1])
    outputs = [
        helper.make_tensor_value_info("loss", TensorProto.FLOAT, []),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3]),
    ]
    axes = numpy_helper.from_array(np.array([1], dtype=np.int64), "axes")
    loss = [node("Squeeze", ["target", "axes"], ["classes"]), node("SoftmaxCrossEntropyLoss", ["logits", "classes"], ["loss"])]
    save("own_loss", [*LAYERS, *loss], [*weights(np.float32), axes], [x, target], outputs)


def quantized():
    """The same, its hidden values rounded to eight bits."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", d]) for n, d in [("x", 8), ("logits", 3)]]
    scale = numpy_helper.from_array(np.array(1 / 127, dtype=np.float32), "scale")
    zero = numpy_helper.from_array(np.array(0, dtype=np.int8), "zero")
    rounded = [node("QuantizeLinear", ["h", "scale", "zero"], ["q"]), node("DequantizeLinear", ["q", "scale", "zero"], ["r"])]
    last = [node("MatMul", ["r", "w2"], ["m2"]), LAYERS[-1]]
    save("quantized", [*LAYERS[:3], *rounded, *last], [*weights(np.float32), scale, zero], ports[:1], ports[1:])


network("half", np.float16, TensorProto.FLOAT16)
network("single", np.float32, TensorProto.FLOAT)
own_loss()
quantized()
