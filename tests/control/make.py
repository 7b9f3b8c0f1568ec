"""Writes the models of tests/control.rs: python tests/control/make.py (needs `onnx`)."""

import pathlib

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

HERE = pathlib.Path(__file__).parent
F, I, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def tensor(name, values, dtype=np.float32):
    return numpy_helper.from_array(np.array(values, dtype=dtype), name)


def info(name, shape=None, dtype=F):
    return helper.make_tensor_value_info(name, dtype, shape)


def save(name, nodes, initializers=(), outputs=("y",), width=4):
    shapes = [info(o, ["N", None]) for o in outputs]
    graph = helper.make_graph(nodes, name, [info("x", ["N", width])], shapes, list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    (HERE / f"{name}.onnx").write_bytes(model.SerializeToString())


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, **attributes)


WEIGHT = tensor("w", np.linspace(-1, 1, 16).reshape(4, 4))


def branch():
    """A branch that the width decides; both sides read the weight outside."""
    yes = helper.make_graph([node("MatMul", ["x", "w"], ["a"])], "yes", [], [info("a")])
    no = helper.make_graph([node("Mul", ["x", "x"], ["b"])], "no", [], [info("b")])
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "one"], ["width"]),
        node("Equal", ["width", "four"], ["is"]),
        node("If", ["is"], ["c"], then_branch=yes, else_branch=no),
        node("Tanh", ["c"], ["y"]),
    ]
    save("branch", nodes, [WEIGHT, tensor("one", 1, np.int64), tensor("four", 4, np.int64)])


def loop():
    """As many rounds as the width; a state, and an output collected every round."""
    body = helper.make_graph(
        [
            node("MatMul", ["h", "w"], ["p"]),
            node("Tanh", ["p"], ["q"]),
            node("Add", ["q", "x"], ["next"]),
            node("ReduceSum", ["next", "axis"], ["sum"], keepdims=0),
            node("Identity", ["go"], ["on"]),
        ],
        "body",
        [info("i", [], I), info("go", [], B), info("h")],
        [info("on", [], B), info("next"), info("sum")],
    )
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "one"], ["width"]),
        node("Loop", ["width", "", "x"], ["h_last", "sums"], body=body),
        node("Transpose", ["sums"], ["columns"], perm=[1, 0]),
        node("Concat", ["h_last", "columns"], ["y"], axis=1),
    ]
    save("loop", nodes, [WEIGHT, tensor("one", 1, np.int64), tensor("axis", [1], np.int64)])


def scan():
    """A recurrence along the columns, one of the scans from the end."""
    body = helper.make_graph(
        [
            node("Mul", ["h", "c"], ["p"]),
            node("Add", ["p", "d"], ["q"]),
            node("Tanh", ["q"], ["next"]),
            node("Mul", ["next", "next"], ["out"]),
        ],
        "body",
        [info("h"), info("c"), info("d")],
        [info("next"), info("out")],
    )
    nodes = [
        node("ReduceMean", ["x"], ["h"], axes=[1], keepdims=0),
        node(
            "Scan",
            ["h", "x", "x"],
            ["last", "all"],
            body=body,
            num_scan_inputs=2,
            scan_input_axes=[1, 1],
            scan_input_directions=[0, 1],
            scan_output_axes=[1],
        ),
        node("Unsqueeze", ["last", "axis"], ["column"]),
        node("Concat", ["column", "all"], ["y"], axis=1),
    ]
    save("scan", nodes, [tensor("axis", [1], np.int64)])


def lists():
    """Split into a list, a loop that fills another one, elements by position, joined again."""
    body = helper.make_graph(
        [
            node("SequenceAt", ["parts", "i"], ["part"]),
            node("Sin", ["part"], ["new"]),
            node("SequenceInsert", ["list", "new", "front"], ["longer"]),
            node("Identity", ["go"], ["on"]),
        ],
        "body",
        [info("i", [], I), info("go", [], B), helper.make_tensor_sequence_value_info("list", F, None)],
        [info("on", [], B), helper.make_tensor_sequence_value_info("longer", F, None)],
    )
    nodes = [
        node("SplitToSequence", ["x", "two"], ["parts"], axis=1),
        node("SequenceLength", ["parts"], ["n"]),
        node("SequenceEmpty", [], ["empty"], dtype=F),
        node("Loop", ["n", "yes", "empty"], ["full"], body=body),
        node("ConcatFromSequence", ["full"], ["joined"], axis=1),
        node("SequenceAt", ["parts", "last"], ["end"]),
        node("Concat", ["joined", "end"], ["y"], axis=1),
    ]
    constants = [tensor("two", 2, np.int64), tensor("last", -1, np.int64), tensor("front", 0, np.int64)]
    save("lists", nodes, [*constants, tensor("yes", True, bool)])


def unknown():
    """A branch that the data decides."""
    yes = helper.make_graph([node("Neg", ["x"], ["a"])], "yes", [], [info("a")])
    no = helper.make_graph([node("Identity", ["x"], ["b"])], "no", [], [info("b")])
    nodes = [
        node("ReduceMax", ["x"], ["top"], keepdims=0),
        node("Greater", ["top", "zero"], ["is"]),
        node("If", ["is"], ["c"], then_branch=yes, else_branch=no),
        node("MatMul", ["c", "w"], ["y"]),
    ]
    save("unknown", nodes, [WEIGHT, tensor("zero", 0.0)])


for make in [branch, loop, scan, lists, unknown]:
    make()
