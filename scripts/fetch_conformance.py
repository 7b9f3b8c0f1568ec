"""Makes ONNX's own backend tests (models with recorded inputs and outputs) in .conformance/.

The Python package `onnx` has the generators of the operators' cases, which are run, and the cases of whole models as files, which are
copied. It is installed beside them, not into Python, at the version and with the hashes that `scripts/conformance.txt` pins. Inputs and
outputs that are sequences or optional values are taken apart into tensors, by operators around the case's own. The cases of operators
are written at older and newer operator sets too, without outputs. Usage:
    python3 scripts/fetch_conformance.py
"""

import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PIN = ROOT / "scripts" / "conformance.txt"
TARGET = ROOT / ".conformance"
PACKAGES = TARGET / "python"
COPIED = ["simple", "pytorch-operator", "pytorch-converted", "light"]


def pinned():
    return next(l.split()[0] for l in PIN.read_text(encoding="utf-8").splitlines() if l.startswith("onnx=="))


def main():
    stamp = PIN.read_text(encoding="utf-8")
    complete = TARGET / "complete"
    if complete.is_file() and complete.read_text(encoding="utf-8") == stamp:
        print(f"the tests of {pinned()} are at {TARGET}")
        return
    shutil.rmtree(TARGET, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--target", str(PACKAGES), "-r", str(PIN)]
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(f"error: pip could not install {pinned()}\nhint: it takes Python 3.11 to 3.14; check the connection and pip's index")
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    if subprocess.run([sys.executable, "-W", "ignore", __file__, "generate"], env=environment, check=False).returncode != 0:
        sys.exit(f"error: the cases of {pinned()} could not be generated")
    complete.write_text(stamp, encoding="utf-8")
    print(f"the tests of {pinned()} are at {TARGET}")


def generate():
    import onnx.backend.test
    from onnx.backend.test.case.node import collect_testcases

    data = pathlib.Path(onnx.backend.test.__file__).parent / "data"
    for folder in COPIED:
        shutil.copytree(data / folder, TARGET / folder)
    for case in collect_testcases(None):
        write(case, TARGET / "node" / case.name)
    for folder in sorted((TARGET / "node").iterdir()):
        write_versions(folder)


def write_versions(folder):
    """Writes a case of one operator at the newest operator set of each of its versions, before 18 and from 18 on."""
    import onnx

    model = onnx.load(folder / "model.onnx")
    [node, *more] = model.graph.node
    if more or node.domain or "_expanded" in folder.name or "cast" in folder.name:
        return
    [own] = [o for o in model.opset_import if not o.domain]
    newest = {}
    for opset in range(7, onnx.defs.onnx_opset_version() + 1):
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError:
            continue
        newest[schema.since_version, opset < 18] = opset
    for opset in set(newest.values()) - {own.version}:
        own.version, model.ir_version = opset, 10 if opset > 17 else 8
        try:
            onnx.checker.check_model(model)
        except onnx.checker.ValidationError:
            continue
        to = TARGET / "versions" / f"{folder.name}_opset{opset}"
        shutil.copytree(folder, to, ignore=shutil.ignore_patterns("output_*"))
        (to / "model.onnx").write_bytes(model.SerializeToString())


def write(case, folder):
    """Writes a case's model and the values of its first data set."""
    model, (inputs, outputs) = case.model, case.data_sets[0]
    graph = model.graph
    before, after, infos, values = [], [], [], []
    for info, value in zip(graph.input, inputs, strict=False):
        put_together(info.type, info.name, value, before, infos, values)
    results, expected = [], []
    for info, value in zip(graph.output, outputs, strict=False):
        take_apart(info.type, info.name, value, after, results, expected)
    nodes = [*before, *graph.node, *after]
    for field, items in [("input", infos), ("output", results), ("node", nodes)]:
        items = [type(i).FromString(i.SerializeToString()) for i in items]
        graph.ClearField(field)
        getattr(graph, field).extend(items)
    data = folder / "test_data_set_0"
    data.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    for kind, tensors in [("input", values), ("output", expected)]:
        for i, tensor in enumerate(tensors):
            (data / f"{kind}_{i}.pb").write_bytes(tensor.SerializeToString())


def put_together(kind, name, value, nodes, infos, values):
    """Adds the tensors that an input is made of, and the nodes that make it."""
    from onnx import helper

    if kind.HasField("optional_type"):
        inner = kind.optional_type.elem_type
        parts = [] if value is None else [f"{name}_value"]
        if parts:
            put_together(inner, parts[0], value, nodes, infos, values)
        attributes = {} if parts else {"type": inner}
        nodes.append(helper.make_node("Optional", parts, [name], **attributes))
    elif kind.HasField("sequence_type"):
        inner = kind.sequence_type.elem_type
        parts = [f"{name}_{i}" for i in range(len(value))]
        for part, element in zip(parts, value, strict=True):
            put_together(inner, part, element, nodes, infos, values)
        make = helper.make_node("SequenceConstruct", parts, [name])
        empty = helper.make_node("SequenceEmpty", [], [name], dtype=inner.tensor_type.elem_type)
        nodes.append(make if parts else empty)
    else:
        tensor = as_tensor(value, name)
        infos.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
        values.append(tensor)


def take_apart(kind, name, value, nodes, results, expected):
    """Adds the tensors that an output is made of, and the nodes that take it apart."""
    from onnx import TensorProto, helper

    if kind.HasField("optional_type"):
        part = f"{name}_value"
        nodes.append(helper.make_node("OptionalGetElement", [name], [part]))
        take_apart(kind.optional_type.elem_type, part, value, nodes, results, expected)
    elif kind.HasField("sequence_type"):
        for i, element in enumerate(value):
            part, place = f"{name}_{i}", f"{name}_place{i}"
            at = helper.make_tensor(place, TensorProto.INT64, [], [i])
            nodes.append(helper.make_node("Constant", [], [place], value=at))
            nodes.append(helper.make_node("SequenceAt", [name, place], [part]))
            take_apart(kind.sequence_type.elem_type, part, element, nodes, results, expected)
    else:
        tensor = as_tensor(value, name)
        results.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
        expected.append(tensor)


def as_tensor(value, name):
    from onnx import TensorProto, numpy_helper

    return value if isinstance(value, TensorProto) else numpy_helper.from_array(value, name)


if __name__ == "__main__":
    generate() if sys.argv[1:] == ["generate"] else main()
