"""Writes reference/<model>.npz: loss, logits and gradients of every exported model, for comparison.

    python models/reference.py            every model
    python models/reference.py vit bert   some of them

Exporters fold, transpose and merge parameters, so gradients are taken with respect to the initializers of the file as it
stands: a small interpreter runs the ONNX graph on PyTorch tensors in float64 and autograd does the rest. Where the
network's own parameters survive the export, its own gradients must agree.

Arrays of a file:
    <input name>, labels            the batch
    eval/loss, eval/logits          mean cross-entropy without smoothing; BatchNormalization on running statistics
    eval/grad/<initializer>         for every float initializer of more than one element, running statistics excepted
    train/...                       the same on batch statistics; only where the model has BatchNormalization
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper

import make

HERE = Path(__file__).resolve().parent
OUT = HERE / "reference"
BATCH = 4

DTYPES = {
    onnx.TensorProto.FLOAT: torch.float64,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.BOOL: torch.bool,
}


def tensor(proto):
    """A TensorProto as a torch tensor, floats widened to float64."""
    value = torch.from_numpy(numpy_helper.to_array(proto).copy())
    return value.double() if value.is_floating_point() else value


def ints(value):
    return [int(i) for i in value.reshape(-1)]


def reshape(x, shape, allowzero=0):
    dims = [x.shape[i] if d == 0 and not allowzero else d for i, d in enumerate(ints(shape))]
    return x.reshape(dims)


def slice_(x, starts, ends, axes=None, steps=None):
    axes = range(len(starts)) if axes is None else ints(axes)
    steps = [1] * len(starts) if steps is None else ints(steps)
    for start, end, axis, step in zip(ints(starts), ints(ends), axes, steps):
        assert step > 0
        index = range(x.shape[axis])[start:end:step]
        x = x.index_select(axis, torch.tensor(list(index), dtype=torch.int64))
    return x


def gather(x, index, axis=0):
    axis %= x.dim()
    index = torch.where(index < 0, index + x.shape[axis], index)
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def gather_nd(x, index, batch_dims=0):
    assert batch_dims == 0
    return x[tuple(index.unbind(-1))]


def spatial(attributes, *allowed):
    """Symmetric pads, strides and dilations of a convolution or pooling node."""
    assert set(attributes) <= {"kernel_shape", "pads", "strides", "dilations", "auto_pad", *allowed}, attributes
    assert attributes.get("auto_pad", "NOTSET") == "NOTSET"
    rank = len(attributes["kernel_shape"])
    pads = attributes.get("pads", [0] * 2 * rank)
    assert pads[:rank] == pads[rank:], "asymmetric pads"
    return pads[:rank], attributes.get("strides", [1] * rank), attributes.get("dilations", [1] * rank)


def conv(x, w, b=None, group=1, **attributes):
    pads, strides, dilations = spatial(attributes)
    return F.conv2d(x, w, b, strides, pads, dilations, group)


def max_pool(x, ceil_mode=0, **attributes):
    pads, strides, dilations = spatial(attributes)
    return F.max_pool2d(x, attributes["kernel_shape"], strides, pads, dilations, bool(ceil_mode))


def average_pool(x, ceil_mode=0, count_include_pad=0, **attributes):
    pads, strides, _ = spatial(attributes)
    return F.avg_pool2d(x, attributes["kernel_shape"], strides, pads, bool(ceil_mode), bool(count_include_pad))


def gemm(a, b, c=None, alpha=1.0, beta=1.0, transA=0, transB=0):
    y = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return y if c is None else y + beta * c


def split(x, sizes, axis=0):
    return tuple(x.split(ints(sizes), axis))


def squeeze(x, axes=None):
    return x.squeeze() if axes is None else x.squeeze([a % x.dim() for a in ints(axes)])


def unsqueeze(x, axes):
    rank = x.dim() + axes.numel()
    for axis in sorted(a % rank for a in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def divide(a, b):
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def shape(x, start=0, end=None):
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def constant_of_shape(dims, value=None):
    fill = torch.zeros(1, dtype=torch.float64) if value is None else tensor(value)
    return fill.reshape(()).expand(ints(dims)).clone()


def expand(x, dims):
    return x.expand(torch.broadcast_shapes(x.shape, ints(dims)))


def layer_norm(x, scale, bias=None, axis=-1, epsilon=1e-5, stash_type=1):
    return F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def reduce_mean(x, axes=None, keepdims=1, noop_with_empty_axes=0):
    axes = axes if isinstance(axes, list) else ints(axes)
    return x.mean(axes, keepdim=bool(keepdims))


def flatten(x, axis=1):
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


OPERATORS = {
    "Add": torch.add,
    "And": torch.logical_and,
    "AveragePool": average_pool,
    "Cast": lambda x, to, saturate=1: x.to(DTYPES[to]),
    "Clip": lambda x, low=None, high=None: x.clamp(low, high),
    "Concat": lambda *x, axis: torch.cat(x, axis),
    "Constant": lambda value: tensor(value),
    "ConstantOfShape": constant_of_shape,
    "Conv": conv,
    "Div": divide,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherND": gather_nd,
    "Gelu": lambda x, approximate="none": F.gelu(x, approximate=approximate),
    "Gemm": gemm,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "GreaterOrEqual": torch.ge,
    "Identity": lambda x: x,
    "LayerNormalization": layer_norm,
    "MatMul": torch.matmul,
    "Max": torch.maximum,
    "MaxPool": max_pool,
    "Mul": torch.mul,
    "Pow": torch.pow,
    "Range": lambda start, limit, delta: torch.arange(int(start), int(limit), int(delta)),
    "ReduceMean": reduce_mean,
    "Relu": torch.relu,
    "Reshape": reshape,
    "Shape": shape,
    "Slice": slice_,
    "Softmax": lambda x, axis=-1: x.softmax(axis),
    "Split": split,
    "Squeeze": squeeze,
    "Tanh": torch.tanh,
    "Transpose": lambda x, perm: x.permute(perm),
    "Unsqueeze": unsqueeze,
    "Where": torch.where,
}


def attributes(node):
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def run(graph, values, mode, margins=None):
    """Runs the graph on the tensors of `values` (inputs and initializers) and returns its first output.

    `margins` collects how near each Relu or Clip came to its kink, in standard deviations of its input.
    """
    values = dict(values)
    for node in graph.node:
        operands = [values[name] if name else None for name in node.input]
        settings = attributes(node)
        if margins is not None and node.op_type in ("Relu", "Clip"):
            x, *kinks = operands if node.op_type == "Clip" else (operands[0], 0.0)
            margins += [float((x - kink).abs().min() / x.std()) for kink in kinks]
        if node.op_type == "BatchNormalization":
            x, scale, bias, mean, var = operands
            epsilon = settings.get("epsilon", 1e-5)
            batch = mode == "train"
            results = F.batch_norm(x, None if batch else mean, None if batch else var, scale, bias, batch, 0.0, epsilon)
        else:
            results = OPERATORS[node.op_type](*operands, **settings)
        results = results if isinstance(results, tuple) else (results,)
        values.update(zip(node.output, results))
    return values[graph.output[0].name]


def running_statistics(graph):
    return {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}


def quiet_batch(model, graph, modes):
    """Of twenty seeded batches, the one that stays farthest from every kink.

    Where an input of Relu lies within float32 rounding of zero, one gradient is as good as the other.
    """
    weights = {i.name: tensor(i) for i in graph.initializer}

    def margin(seed):
        margins = []
        for mode in modes:
            run(graph, weights | widen(make.inputs(model, BATCH, seed)), mode, margins)
        return min(margins, default=0.0)

    with torch.no_grad():
        return make.inputs(model, BATCH, max(range(100, 120), key=margin))


def widen(batch):
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def gradients(graph, batch, labels, mode):
    """Loss, logits and the gradient with respect to every float initializer of more than one element."""
    values = {i.name: tensor(i) for i in graph.initializer}
    skip = running_statistics(graph)
    leaves = {k: v for k, v in values.items() if v.is_floating_point() and v.numel() > 1 and k not in skip}
    for leaf in leaves.values():
        leaf.requires_grad_()
    logits = run(graph, values | widen(batch), mode)
    loss = F.cross_entropy(logits, labels)
    grads = torch.autograd.grad(loss, leaves.values())
    return loss.detach(), logits.detach(), dict(zip(leaves, grads))


def network_gradients(model, proto, batch, labels, mode):
    """The same by the PyTorch network itself, with the running statistics of the file."""
    network = make.build(model).double()
    stored = {i.name: tensor(i) for i in proto.graph.initializer}
    statistics = {k: stored[k] for k in stored if k in running_statistics(proto.graph)}
    network.load_state_dict(statistics, strict=False)
    network.train(mode == "train")
    logits = network(*widen(batch).values())
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    return loss.detach(), logits.detach(), {k: p.grad for k, p in network.named_parameters()}


def relative(a, b):
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def check(name, model, proto, batch, labels, mode, result):
    """Compares with the network and, where it can run the mode, with ONNX Runtime."""
    loss, logits, grads = result
    own_loss, own_logits, own_grads = network_gradients(model, proto, batch, labels, mode)
    # Folding is done in float32 by the exporter, and float constants of the graph are rounded.
    assert relative(logits, own_logits) < 1e-5, (name, mode, relative(logits, own_logits))
    readers = [i for node in proto.graph.node for i in node.input]
    same = [k for k in grads if k in own_grads and readers.count(k) == 1]
    # Scales that a later normalization cancels have a gradient near zero, all of it rounding.
    floor = 1e-4 * max(g.norm() for g in own_grads.values())
    worst = max((float((grads[k] - own_grads[k]).norm() / own_grads[k].norm().clamp_min(floor)) for k in same))
    assert worst < 1e-4, (name, mode, worst)
    exported_mode = "train" if model.exporter == "train" else "eval"
    if mode == exported_mode or not running_statistics(proto.graph):
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        got = session.run(None, {k: v.numpy() for k, v in batch.items()})[0]
        assert relative(torch.from_numpy(got).double(), logits) < 1e-5, (name, mode)
    print(f"{name:14} {mode:5} loss {loss:.6f}  {len(same)} of {len(grads)} gradients checked, worst {worst:.0e}")


def as_float32(value):
    """Rounds to 16 significant bits (a relative error of 1.5e-5 at most), so that the files compress."""
    bits = value.numpy().astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x80)) & np.uint32(0xFFFFFF00)).view(np.float32)


def main():
    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    OUT.mkdir(exist_ok=True)
    for name in sys.argv[1:] or make.MODELS:
        model = make.MODELS[name]
        proto = onnx.load(HERE / f"{name}.onnx")
        modes = ("eval", "train") if running_statistics(proto.graph) else ("eval",)
        batch = quiet_batch(model, proto.graph, modes)
        classes = proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        labels = torch.randint(classes, (BATCH,), generator=torch.Generator().manual_seed(101))
        arrays = {k: v.numpy() for k, v in batch.items()} | {"labels": labels.numpy()}
        for mode in modes:
            loss, logits, grads = result = gradients(proto.graph, batch, labels, mode)
            check(name, model, proto, batch, labels, mode, result)
            arrays[f"{mode}/loss"] = loss.numpy().astype(np.float32)
            arrays[f"{mode}/logits"] = logits.numpy().astype(np.float32)
            arrays |= {f"{mode}/grad/{k}": as_float32(v) for k, v in grads.items()}
        np.savez_compressed(OUT / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
