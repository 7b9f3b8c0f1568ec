"""Training of freshly constructed networks, as exporters write them, against PyTorch's.

    python benches/zoo_train.py                     every architecture, and the report docs/zoo-train.md
    python benches/zoo_train.py resnet 'dynamo-*'   architectures and forms whose names hold or match a word; prints only
    python benches/zoo_train.py --open              only what was not right in an earlier run
    python benches/zoo_train.py --report            the report from earlier runs of this binary

Each architecture of zoo_networks.py keeps its initial values, so that exporters find many equal tensors to merge, and is exported as

- `script-default`, `dynamo-default`: what `torch.onnx.export(model, (x,), file)` writes, its batch fixed at 1;
- `script-eval`: the TorchScript exporter in evaluation mode with a dynamic batch, BatchNormalization folded;
- `script-train`: the same in training mode without folding; `dynamo-train`: the dynamo exporter without optimization;
- `script-live`: as `script-train`, with dropout and stochastic depth on, for networks that have them. The other forms have them off.

`bisam train` makes two steps of SGD and of SAM, PyTorch makes the same steps in float64 and in float32, and

- every parameter and every running statistic of PyTorch must be found in `last.onnx`, up to its layout:
  ‖a − b‖ ≤ 1e-4 max(‖m‖, 1e-3 largest ‖m‖) with m PyTorch's movement, or within three roundings of the stored numbers;
- every tensor of the file that changed must be one of these;
- `last.onnx` must give the same answer twice, and PyTorch's in evaluation mode within 1e-3 of what the steps moved it by.

Where an exporter folds (BatchNormalization into a convolution, a parametrization into its weight), what is left in the file is
trained in PyTorch, too; where the dynamo exporter's record says that a tensor was computed from several, and they differ for that
reason, the export is left out, named in the report; a bias of zeros that it takes out of the file is fixed.

Near the kink of a Relu rounding decides, and where a network is steep, steps magnify that. So batches are taken on which PyTorch's
float32 run repeats its float64 one; up to three of them are tried, and one that agrees is enough. If there is no such batch
of eight, or PyTorch's own steps part as far when every weight is off by a millionth, the first step is compared by itself, on four samples. An export for
which that does not help either, and whose error is at most twice that of PyTorch's float32, is undecided.

`script-live` cannot be compared step by step. Two runs of one seed must agree bit for bit, another seed must not, and `last.onnx` must
compute what PyTorch computes in evaluation mode with the weights read back.

Exports, small references and results stay in .zoo-train/ (4 GB); a result is used again as long as the binary is the same.
"""

import argparse
import ast
import copy
import fnmatch
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import traceback
import warnings
import zlib
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))
import zoo  # noqa: E402
from zoo_networks import CLASSES, NETWORKS  # noqa: E402

CACHE = ROOT / ".zoo-train"
REPORT = ROOT / "docs" / "zoo-train.md"

FORMS = ("script-default", "dynamo-default", "script-eval", "script-train", "dynamo-train", "script-live")
METHODS = ("sgd", "sam")
TOLERANCE, OUTPUT_TOLERANCE = 1e-4, 1e-3
# An error below this may come from units at the kink of a Relu; then another batch, of another seed, decides.
KINK = 1.0
SEEDS, TRIES = range(3, 11), 3
# An error up to so many times that of PyTorch's own float32 may be rounding.
LENIENCY = 2
BATCH, FEW, STEPS, RHO = 8, 4, 2, 0.05
# Small enough for two steps not to magnify rounding, large enough to be seen in float32.
SHARE = 0.003
# Roundings of a stored number that may add up in an export and two steps.
ROUNDINGS = 3
LIVE_RATE = 0.1
LARGEST, TRAIN_SECONDS, FORM_SECONDS = 30_000_000, 120, 900
# References of more bytes are made again when they are needed again.
KEPT = 8 << 20


# Networks and files


def drops(module):
    """The modules that drop at random, with the attribute that says how often."""
    for m in module.modules():
        kind = type(m).__name__
        named = "drop" in kind.lower() or "Depth" in kind
        for name in ("drop_prob", "p") if named else ("drop_rate",):
            if isinstance(getattr(m, name, None), float):
                yield m, name


def fresh(network, live=False):
    """The network as its constructor leaves it. What drops at random is off, or on if it is to be `live`."""
    torch.manual_seed(0)
    module = network.build()
    for m, name in drops(module):
        setattr(m, name, (getattr(m, name) or LIVE_RATE) if live else 0.0)
    return module


def export(module, network, form, path):
    """Writes the file of one form."""
    exporter, kind = form.split("-")
    if kind != "default":
        known = {"live": "train"}
        return zoo.export(module, zoo.inputs(network, zoo.TRACED_BATCH, 2), f"{exporter}-{known.get(kind, kind)}", path)
    module.eval()
    example = tuple(zoo.inputs(network, 1, 2).values())
    if exporter == "script":
        torch.onnx.export(module, example, str(path), dynamo=False)
    else:
        torch.onnx.export(module, example, str(path), dynamo=True, external_data=False, verbose=False)


def stored(path):
    """Every float tensor of a file by name, those of Constant nodes and of bodies among them."""
    found = {}

    def visit(graph):
        found.update((i.name, numpy_helper.to_array(i)) for i in graph.initializer)
        for node in graph.node:
            for a in node.attribute:
                if node.op_type == "Constant" and a.name == "value":
                    found[node.output[0]] = numpy_helper.to_array(a.t)
                elif a.type == onnx.AttributeProto.GRAPH:
                    visit(a.g)

    visit(onnx.load(path).graph)
    return {k: v for k, v in found.items() if v.dtype == np.float32 and v.size}


def feed(runner, batch):
    """A batch by the names of the file's inputs: the exporter's own names are in the order of the arguments."""
    names = [i.name for i in runner.get_inputs()]
    arrays = {k: v.numpy() for k, v in batch.items()}
    if all(name in arrays for name in names):
        return {name: arrays[name] for name in names}
    if len(names) != len(arrays):
        raise RuntimeError(f"the export has inputs {names} for {list(arrays)}")
    return dict(zip(names, arrays.values()))


def fixed_batch(runner):
    """The batch that a file is fixed to, or None."""
    size = runner.get_inputs()[0].shape[0]
    return size if isinstance(size, int) else None


def outputs(runner, batch):
    """The first output, sample by sample where the file takes no more."""
    whole = feed(runner, batch)
    count = len(next(iter(whole.values())))
    size = fixed_batch(runner) or count
    parts = [{k: v[i : i + size] for k, v in whole.items()} for i in range(0, count, size)]
    return np.concatenate([runner.run(None, part)[0] for part in parts])


def norms(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]


def prepare(name, form, network):
    """The path of the export, or why there is none."""
    path, refused = (CACHE / name / f"{form}.{kind}" for kind in ("onnx", "refused"))
    if refused.exists():
        return None, refused.read_text()
    if path.exists():
        return path, None
    part = path.with_suffix(".part.onnx")
    try:
        module = fresh(network, form.endswith("live"))
        state = copy.deepcopy(module.state_dict())
        export(module, network, form, part)
        module.load_state_dict(state)
        if not form.endswith("live"):
            runner = zoo.session(str(part))
            batch = zoo.inputs(network, fixed_batch(runner) or zoo.BATCH, 3)
            module.train(form == "script-train")
            with torch.no_grad():
                want = module(*batch.values()).numpy()
            if not np.allclose(outputs(runner, batch), want, rtol=1e-2, atol=2e-2 * want.std() + 1e-6):
                raise RuntimeError("the export does not compute what the network computes")
        part.rename(path)
        return path, None
    except Exception as error:
        traceback.print_exc()
        part.unlink(missing_ok=True)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        refused.write_text(f"{type(error).__name__}: {lines[0][:200]}".replace(str(part), path.name))
        return None, refused.read_text()


# What PyTorch trains: the network, with folded what the exporter folded


class Known:
    """The tensors of a file, found again by size and extremes: the same for every layout, and practically never for other tensors,
    unless all elements are equal."""

    def __init__(self, tensors):
        self.extremes = {}
        for v in tensors:
            self.extremes.setdefault(v.size, []).append((float(v.min()), float(v.max())))

    def has(self, array, near=0.0):
        found = self.extremes.get(array.size, ())
        low, high = float(array.min()), float(array.max())
        slack = near * max(abs(low), abs(high))
        return any(abs(a - low) <= slack and abs(b - high) <= slack for a, b in found)


def followers(module, example):
    """Pairs of a convolution or linear layer and the BatchNormalization that alone reads its output."""
    made, pairs, count, hooks = {}, [], {}, []

    def produced(m, _, result):
        made[id(result)] = (m, result)
        count[m] = count.get(m, 0) + 1

    def reads(m, arguments):
        producer = made.get(id(arguments[0]))
        count[m] = count.get(m, 0) + 1
        if producer:
            pairs.append((producer[0], m))

    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
    for m in module.modules():
        if isinstance(m, kinds):
            hooks.append(m.register_forward_hook(produced))
        elif isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
            hooks.append(m.register_forward_pre_hook(reads))
    with torch.no_grad():
        module.eval()(*example.values())
    for hook in hooks:
        hook.remove()
    return [(a, b) for a, b in pairs if count[a] == count[b] == 1]


@torch.no_grad()
def fold(layer, norm):
    """Puts a BatchNormalization into the layer before it; what is left of it changes nothing and is not trained."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    transposed = isinstance(layer, torch.nn.modules.conv._ConvTransposeNd)
    axis = 1 if transposed and layer.groups == 1 else 0
    layer.weight.mul_(scale.view([-1 if a == axis else 1 for a in range(layer.weight.dim())]))
    bias = 0.0 if layer.bias is None else layer.bias
    layer.bias = torch.nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
    for tensor, value in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1)):
        tensor.fill_(value)
        tensor.requires_grad = False
    norm.eps, norm.folded = 0.0, True


class Tracking(TorchFunctionMode):
    """Passes every float tensor that is computed from parameters alone, numbered in their order, through `replace`.

    Casts have no numbers: there are others in float64 than in float32.
    """

    CASTS = (torch.Tensor.float, torch.Tensor.double, torch.Tensor.to, torch.Tensor.type, torch.Tensor.type_as)

    def __init__(self, module, replace):
        super().__init__()
        self.replace, self.kept, self.count = replace, [], 0
        self.from_parameters = {id(p) for p in module.parameters()}
        self.still = {id(b) for b in module.buffers()} | self.from_parameters

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if not all(id(t) in self.still for t in tensors):
            return result
        from_parameters = any(id(t) in self.from_parameters for t in tensors)
        return tree_map(lambda t: self.computed(t, from_parameters, func in self.CASTS), result)

    def computed(self, t, from_parameters, cast):
        if not isinstance(t, torch.Tensor) or id(t) in self.still:
            return t
        if from_parameters and t.is_floating_point() and t.numel():
            if not cast:
                t = self.replace(self.count, t)
                self.count += 1
            self.from_parameters.add(id(t))
        self.kept.append(t)
        self.still.add(id(t))
        return t


def fold_constants(module, known, example, rows):
    """Makes parameters of what the file holds as computed from parameters; with `rows` not of what is a table's rows laid out, which are
    made a table again."""
    arrays = [p.detach().numpy() for p in module.parameters()]
    parameters, tables = Known(arrays), [p for p in arrays if p.ndim == 2 and p.min() != p.max()]
    plain, values = type(module).forward, {}

    def looked_up(array):
        return rows and array.size > 1 and any(np.isin(array, table).all() for table in tables)

    def discover(number, t):
        array = t.detach().numpy()
        if known.has(array, 2e-6) and not parameters.has(array, 2e-6) and not looked_up(array):
            values[str(number)] = torch.nn.Parameter(t.detach().clone())
        return t

    with torch.no_grad(), Tracking(module, discover):
        plain(module.eval(), *example.values())
    if not values:
        return

    def forward(self, *inputs):
        # Of another batch size, a step may put the folded tensor into another shape first.
        def replaced(number, t):
            kept = self.folded[str(number)] if str(number) in self.folded else t
            return kept if kept.shape == t.shape else t

        with Tracking(self, replaced):
            return plain(self, *inputs)

    module.folded = torch.nn.ParameterDict(values)
    module.__class__ = type(type(module).__name__, (type(module),), {"forward": forward})


def fold_as(module, tensors, example, rows):
    """Folds what the file with these tensors has folded: weights that are not in it any more, and what is computed from them."""
    known = Known(tensors.values())
    for m in [m for m in module.modules() if parametrize.is_parametrized(m)]:
        for name in list(m.parametrizations):
            if not all(known.has(p.detach().numpy()) for p in m.parametrizations[name].parameters()):
                parametrize.remove_parametrizations(m, name)
    for layer, norm in followers(module, example):
        weight = dict(layer.named_parameters(recurse=False)).get("weight")
        if weight is not None and norm.affine and norm.track_running_stats and not known.has(weight.detach().numpy()):
            fold(layer, norm)
    fold_constants(module, known, example, rows)


def folded_from(model):
    """What the dynamo exporter's optimizer has computed each tensor of a file from."""
    values = (*model.graph.initializer, *model.graph.value_info)
    entries = ((v.name, e) for v in values for e in v.metadata_props if e.key == "pkg.onnxscript.optimizer.folded_from")
    return {name: ast.literal_eval(entry.value) for name, entry in entries}


def freeze_left_out(module, model):
    """Fixes the zero biases that the dynamo exporter's optimizer has taken out of the file."""
    left_out, made_of = set(), folded_from(model)
    for node in (n for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm") and len(n.input) < 3):
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
        weights = [node.input[1], *made_of.get(node.input[1], [])]
        left_out.update(re.sub("weight$", "bias", name) for name in weights)
        left_out.update(f"{scope}.bias" for scope in ast.literal_eval(scopes)[-2:-1])
    for name, parameter in module.named_parameters():
        if name in left_out and not parameter.detach().any():
            parameter.requires_grad_(False)


@torch.no_grad()
def load_statistics(module, tensors):
    """Tracing in training mode has moved the running statistics that the file holds."""
    for name, buffer in module.named_buffers():
        if name in tensors and tensors[name].size == buffer.numel():
            buffer.copy_(torch.from_numpy(tensors[name].reshape(buffer.shape).copy()))


def set_training(module, form):
    """Training mode as `bisam train` has it: of an export in evaluation mode, BatchNormalization alone changes."""
    module.train(form in ("script-train", "script-live"))
    for m in norms(module):
        m.train(not getattr(m, "folded", False))


def state_of(module):
    """Trained parameters and float buffers by name, each tensor once."""
    buffers = [(k, b) for k, b in module.named_buffers() if b.is_floating_point()]
    return dict(zoo.trained(module)), dict(buffers)


def forget(module):
    """In evaluation mode LeViT keeps what it once looked up in a table that has moved since."""
    for m in module.modules():
        if hasattr(m, "attention_bias_cache"):
            m.attention_bias_cache = {}


def gradients(module, batch, labels):
    """Gradients of the loss by parameter name; zeros where it does not depend on a parameter."""
    forget(module)
    names, parameters = zip(*zoo.trained(module))
    logits = module(*batch)
    found = torch.autograd.grad(F.cross_entropy(logits, labels), parameters, allow_unused=True)
    return {k: torch.zeros_like(p) if g is None else g for k, p, g in zip(names, parameters, found)}


def step(module, batch, labels, lr, method):
    """One step of SGD or SAM (Foret et al. 2021, equation 2); running statistics move with the first pass only."""
    first = gradients(module, batch, labels)
    with torch.no_grad():
        parameters = dict(zoo.trained(module))
        if method == "sam":
            kept = copy.deepcopy(module.state_dict())
            norm = torch.sqrt(sum((g.double() ** 2).sum() for g in first.values()))
            for k, p in parameters.items():
                p += (RHO / (norm + 1e-12)).to(p.dtype) * first[k]
            with torch.enable_grad():
                first = gradients(module, batch, labels)
            module.load_state_dict(kept)
        for k, p in parameters.items():
            p -= lr * first[k]


def example_of(batch, wide):
    return [v.double() if wide and v.is_floating_point() else v for v in batch.values()]


def cut(batch, first, size):
    return {k: v[first : first + size] for k, v in batch.items()}


def run_pytorch(module, form, batch, labels, probe, lr, method, steps, wide):
    """Movements of parameters and buffers, and logits in evaluation mode before and after, as float64 arrays."""
    module = copy.deepcopy(module)
    module = module.double() if wide else module.float()

    def logits():
        forget(module)
        with torch.no_grad():
            return module.eval()(*example_of(probe, wide)).double().numpy()

    before = {k: v.detach().clone() for part in state_of(module) for k, v in part.items()}
    found = {"logits/before": logits()}
    size = len(labels) // steps
    for first in range(0, len(labels), size):
        set_training(module, form)
        step(module, example_of(cut(batch, first, size), wide), labels[first : first + size], lr, method)
    found["logits/after"] = logits()
    after = {k: v.detach() for part in state_of(module) for k, v in part.items()}
    return found | {f"move/{k}": (after[k].double() - before[k].double()).numpy() for k in before}


def learning_rate(module, form, batch, labels, method):
    """One that moves the weights by about SHARE in the first step, as a short number."""
    module = copy.deepcopy(module)
    set_training(module, form)
    before = [p.detach().clone() for _, p in zoo.trained(module)]
    step(module, example_of(batch, False), labels, 1.0, method)

    def norm(tensors):
        return float(torch.sqrt(sum((t.double() ** 2).sum() for t in tensors)))

    size = norm(p.detach() - b for b, (_, p) in zip(before, zoo.trained(module)))
    if not np.isfinite(size) or size == 0:
        raise RuntimeError("PyTorch's own gradient is zero or not a number")
    return float(f"{min(SHARE * norm(before) / size, 1.0):.1g}")


def reference(name, form, network, module, size, seed, method, steps):
    """PyTorch's steps on a seeded batch, from the cache if they are there: (batch, labels, probe, arrays)."""
    batch = zoo.inputs(network, size * STEPS, seed)
    labels = torch.randint(CLASSES, (size * STEPS,), generator=torch.Generator().manual_seed(seed))
    batch, labels = cut(batch, 0, size * steps), labels[: size * steps]
    probe = zoo.inputs(network, zoo.BATCH - 1, 77)
    state = [v.detach().numpy().tobytes() for part in state_of(module) for v in part.values()]
    mode = [getattr(m, "folded", False) for m in norms(module)]
    key = zlib.crc32(b"".join(state) + repr((mode, sorted(getattr(module, "folded", {})))).encode())
    done = CACHE / name / f"{key:08x}.{size}.{seed}.{method}.{steps}.npz"
    if done.exists():
        return batch, labels, probe, dict(np.load(done))
    lr = learning_rate(module, form, cut(batch, 0, size), labels[:size], method)
    narrow = run_pytorch(module, form, batch, labels, probe, lr, method, steps, False)
    try:
        wide = run_pytorch(module, form, batch, labels, probe, lr, method, steps, True)
    except Exception:
        wide = narrow
    # What is finite in float32 only, such as a mask of float32's lowest number added to another, has no reference in float64.
    if not all(np.isfinite(v).all() for v in wide.values()):
        wide = narrow
    if not all(np.isfinite(v).all() for v in wide.values()):
        raise RuntimeError("PyTorch's own steps end in what is not a number")
    arrays = {"lr": np.float64(lr)} | wide
    for key, value in narrow.items():
        if np.linalg.norm(value - wide[key]) > 1e-5 * np.linalg.norm(wide[key]):
            arrays[f"float32/{key}"] = value
    stored_as = {k: v.astype(np.float32) if "move/" in k else v for k, v in arrays.items()}
    np.savez(done, **stored_as)
    return batch, labels, probe, arrays


# Comparing


def layouts(array):
    """The array in every order of its axes, flat; its own order first."""
    if array.ndim > 4:
        yield array.reshape(-1)
        return
    for order in itertools.permutations(range(array.ndim)):
        yield array.transpose(order)


def distance(value, arrays, scale):
    """The least ‖value − a‖ over several arrays in any layout; infinite when nothing is near, compared with the values or `scale`."""
    flat = value.reshape(-1).astype(np.float64)
    places = np.linspace(0, flat.size - 1, min(flat.size, 64)).astype(int)
    best = np.inf
    for array in arrays:
        for laid in layouts(array):
            near = np.asarray(laid.flat[places])
            size = max(np.linalg.norm(near), np.linalg.norm(flat[places]))
            if np.linalg.norm(near - flat[places]) <= max(0.5 * size, scale):
                best = min(best, float(np.linalg.norm(laid.reshape(-1) - flat)))
                if best <= 1e-6 * np.linalg.norm(flat):
                    return best
            if array.size < 2:
                break
    return best


class Expected:
    """A tensor that PyTorch trained: its values afterwards, and the movement that errors are measured by."""

    def __init__(self, before, moves, floor):
        before = before.astype(np.float64)
        self.values = [before + m.reshape(before.shape) for m in moves]
        self.moved = np.linalg.norm(moves[0])
        rounding = np.linalg.norm(np.spacing(np.abs(self.values[0]).astype(np.float32)).astype(np.float64))
        self.scale = max(self.moved, floor, ROUNDINGS * rounding / TOLERANCE, 1e-30)
        self.own = np.linalg.norm(moves[-1] - moves[0]) / self.scale

    def error(self, value):
        return distance(value, self.values, self.scale) / self.scale


def recurrent(module):
    """Tensors that ONNX's recurrent operators have made of several parameters: (name, parameters, how to make it)."""
    orders = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}

    def gates(array, order):
        parts = np.split(array, len(order))
        return np.concatenate([parts[g] for g in order])

    for prefix, m in module.named_modules():
        order = orders.get(type(m).__name__)
        if order is None or not isinstance(m, torch.nn.RNNBase):
            continue
        for layer in range(m.num_layers):
            ends = ("", "_reverse") if m.bidirectional else ("",)
            for kind in ("weight_ih", "weight_hh"):
                names = [f"{prefix}.{kind}_l{layer}{end}" for end in ends]
                yield names[0], names, lambda arrays, order=order: np.stack([gates(a, order) for a in arrays])
            names = [f"{prefix}.bias_{kind}_l{layer}{end}" for end in ends for kind in ("ih", "hh")]
            yield names[0], names, lambda arrays, order=order: np.concatenate([gates(a, order) for a in arrays])


def split(parameter, tensors):
    """Tensors that hold a part of the parameter each: the places in it, by the tensor's name."""
    order = np.argsort(parameter, axis=None)
    values = parameter.reshape(-1)[order]
    if (np.diff(values) == 0).any():
        return {}
    found = {}
    for name, tensor in tensors.items():
        flat = tensor.reshape(-1)
        if 1 < flat.size < values.size and values[0] <= flat.min() and flat.max() <= values[-1]:
            at = np.searchsorted(values, flat)
            if np.array_equal(values[at], flat) and np.unique(at).size == at.size:
                found[name] = order[at]
    return found


def expectations(module, arrays, tensors):
    """What must be found in the result, by name, and the initial values."""
    parameters, buffers = state_of(module)
    before = {k: v.detach().numpy() for part in (parameters, buffers) for k, v in part.items()}
    known = Known(tensors.values())
    moves = {k: [arrays[f"move/{k}"].astype(np.float64)] for k in before}
    for k in before:
        moves[k].append(arrays.get(f"float32/move/{k}", moves[k][0]).astype(np.float64))
    for name, parts, make in list(recurrent(module)):
        if all(k in before for k in parts):
            made = make([before[k] for k in parts]).reshape(-1)
            if any(v.size == made.size and np.array_equal(v.reshape(-1), made) for v in tensors.values()):
                moves[f"{name} and others"] = [make([moves[k][i] for k in parts]) for i in range(2)]
                before[f"{name} and others"] = make([before[k] for k in parts])
                for k in parts:
                    del before[k], moves[k]
    for name in [k for k in parameters if k in before and not known.has(before[k])]:
        places = split(before[name], tensors)
        rest = np.setdiff1d(np.arange(before[name].size), np.concatenate([*places.values(), []]))
        if places and not any(m.reshape(-1)[rest].any() for m in moves[name]):
            whole, moved = before.pop(name), moves.pop(name)
            for part, place in places.items():
                before[f"{name} in {part}"] = whole.reshape(-1)[place]
                moves[f"{name} in {part}"] = [m.reshape(-1)[place] for m in moved]
    kinds = {k: k.rsplit(".")[-1] if k in buffers else "parameter" for k in before}
    largest = {}
    for k, kind in kinds.items():
        largest[kind] = max(largest.get(kind, 0.0), np.linalg.norm(moves[k][0]))
    found = {k: Expected(before[k], moves[k], zoo.FLOOR * largest[kinds[k]]) for k in before}
    # A buffer that stays is a constant, and other statistics than those of normalizations may not be in the file at all.
    running = {f"{k}.{b}" for k, m in module.named_modules() if m in set(norms(module)) for b in ("running_mean", "running_var")}
    return {k: e for k, e in found.items() if k not in buffers or e.moved > 0 and (k in running or k in tensors)}, before


PARTS = 3
"""Tensors that one parameter is looked for in."""


def compare(module, arrays, source, result):
    """Errors by tensor name, each with what is wrong where something is."""
    wanted, before = expectations(module, arrays, source)
    known = Known(source.values())
    by_size = {}
    for name, value in result.items():
        by_size.setdefault(value.size, []).append((name, value))
    errors, used = {}, set()
    for name, e in wanted.items():
        error, found = min(((e.error(v), n) for n, v in by_size.get(e.values[0].size, ())), default=(np.inf, None))
        used.add(found)
        if e.moved == 0:
            continue
        if error > TOLERANCE and name in result and np.array_equal(source.get(name), result[name]):
            errors[name] = (min(max(error, 1.0), 1e9), "unchanged")
        elif error <= KINK:
            errors[name] = (error, "")
        else:
            errors[name] = (min(error, 1e9), "not found" if known.has(before[name]) else "not in the export")
    for name in [k for k, (_, why) in errors.items() if why and k in result and result[k].size < before[k].size]:
        # Of a table the dynamo exporter keeps the rows that are looked up; the others do not move.
        table, rows = before[name], result[name]
        near = [int(np.argmin(np.linalg.norm(wanted[name].values[0] - row, axis=1))) for row in rows.reshape(-1, table.shape[-1])]
        whole = table.astype(np.float64)
        whole[near] = rows
        errors[name] = (wanted[name].error(whole), "")
        used.add(name)
    for name in [k for k, (_, why) in errors.items() if why]:
        # Parts of a parameter of equal elements can be told by where they end up alone.
        start = before[name].reshape(-1)
        alike = [k for k, v in result.items() if k not in used and v.size < start.size and (source.get(k, start[0]) == start[0]).all()]
        parts = [k for k in alike if not np.array_equal(source.get(k), result[k])][:8]
        for count in range(2, PARTS + 1):
            for some in itertools.permutations(parts, count):
                if sum(result[k].size for k in some) == start.size:
                    error = wanted[name].error(np.concatenate([result[k].reshape(-1) for k in some]))
                    if error <= TOLERANCE:
                        errors[name] = (error, "")
                        used.update(some)
    bytes_before = {v.tobytes() for v in source.values()}
    for name, value in result.items():
        changed = not (name in source and np.array_equal(source[name], value)) and value.tobytes() not in bytes_before
        if changed and name not in used:
            near = min((e.error(value) for e in wanted.values() if e.values[0].size == value.size), default=np.inf)
            if near > TOLERANCE:
                errors[f"+{name}"] = (min(near, 1e9), "changed, but nothing that PyTorch trains")
    rounding = max((e.own for e in wanted.values()), default=0.0)
    return errors, rounding


def compare_outputs(runner, probe, arrays):
    """The error of the logits, PyTorch's own, and whether two runs agree."""
    got = outputs(runner, probe)
    same = np.array_equal(got, outputs(runner, probe), equal_nan=True)
    wide, before = arrays["logits/after"], arrays["logits/before"]
    narrow = arrays.get("float32/logits/after", wide)
    scale = max(np.linalg.norm(wide - before), 1e-2 * np.linalg.norm(wide), 1e-30)
    if got.size != wide.size:
        return np.inf, 0.0, same
    got = got.reshape(wide.shape).astype(np.float64)
    error = min(np.linalg.norm(got - w) for w in (wide, narrow)) / scale
    return float(error), float(np.linalg.norm(narrow - wide) / scale), same


# One export


class Refused(Exception):
    """bisam ended with a message."""


def train(bisam, path, data, batch, lr, method, out, steps=STEPS, seed=0):
    """Runs `bisam train` and returns the path of the last weights."""
    shutil.rmtree(out, ignore_errors=True)
    settings = {
        "momentum": 0, "weight-decay": 0, "schedule": "constant", "label-smoothing": 0, "shuffle": "false", "valid": 0,
        "steps": steps, "batch-size": batch, "lr": f"{lr:g}", "optimizer": method, "seed": seed,
    } | ({"rho": RHO} if method == "sam" else {})
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = [bisam, "--threads", "1", "train", path, "--data", f"npz:{data}", *flags, "-o", out]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TRAIN_SECONDS)
    except subprocess.TimeoutExpired:
        raise Refused(f"took more than {TRAIN_SECONDS} s") from None
    if result.returncode != 0:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        start = next((i for i, line in enumerate(lines) if line.startswith("error") or "panicked" in line), 0)
        raise Refused(" ".join(lines[start:]).replace(str(path), path.name)[:500])
    return out / "last.onnx"


def unsteadiness(module, arrays, source):
    """How far PyTorch's own float32 is from its float64: errors of parameters and of logits."""
    wanted, _ = expectations(module, arrays, source)
    wide, narrow = arrays["logits/after"], arrays.get("float32/logits/after", arrays["logits/after"])
    scale = max(np.linalg.norm(wide - arrays["logits/before"]), 1e-2 * np.linalg.norm(wide), 1e-30)
    return max([e.own for e in wanted.values()] + [float(np.linalg.norm(narrow - wide) / scale) * TOLERANCE / OUTPUT_TOLERANCE])


def batches(name, form, network, module, source, size, method, steps):
    """Seeded batches with PyTorch's steps on them, and how unsteady they are: those on which float32 repeats float64, or else the one
    where it comes closest, with how far it is off elsewhere."""
    found, steady = [], 0
    for seed in SEEDS:
        made = reference(name, form, network, module, size, seed, method, steps)
        own = unsteadiness(module, made[-1], source)
        found.append((own, seed, made))
        if own <= TOLERANCE:
            steady += 1
            yield own, made
            if steady == TRIES:
                return
    if not steady:
        yield max(found, key=lambda f: f[:2])[0], min(found, key=lambda f: f[:2])[2]


def shaken(module, form, made, source, method, steps):
    """How far PyTorch's own steps part when every weight is off by a millionth, which float32 makes of a few layers: large where units lie at kinks."""
    batch, labels, probe, arrays = made
    wanted, _ = expectations(module, arrays, source)
    worst = 0.0
    for draw in range(3):
        other, generator = copy.deepcopy(module), torch.Generator().manual_seed(draw)
        with torch.no_grad():
            for p in other.parameters():
                p *= 1 + 1e-6 * torch.randn(p.shape, generator=generator)
        found = run_pytorch(other, form, batch, labels, probe, float(arrays["lr"]), method, steps, False)
        apart = [np.linalg.norm(found[f"move/{k}"] - arrays[f"move/{k}"]) / e.scale for k, e in wanted.items() if f"move/{k}" in arrays]
        worst = max(worst, *apart)
    return float(worst)


def attempt(name, form, path, module, source, size, bisam, method, steps, own, made):
    """Trains on one batch and compares: a part of the row, and whether rounding may be why it is wrong."""
    batch, labels, probe, arrays = made
    data, out = CACHE / name / f"{form}.data.npz", CACHE / name / f"{form}.run"
    np.savez(data, labels=labels.numpy(), **feed(zoo.session(str(path)), batch))
    last = train(bisam, path, data, size, float(arrays["lr"]), method, out, steps)
    errors, _ = compare(module, arrays, source, stored(last))
    output, own_output, same = compare_outputs(zoo.session(str(last)), probe, arrays)
    shutil.rmtree(out)
    worst = max((e if np.isfinite(e) else 1e9 for e, _ in errors.values()), default=0.0)
    row = {"worst": worst, "output": output, "rounding": own, "compared": len(errors), "steps": steps}
    if not same:
        return row | {"wrong": "the exported file gives another answer each time"}, False
    if worst <= TOLERANCE and output <= max(OUTPUT_TOLERANCE, 3 * own_output):
        return row, False
    row["off"] = [k for k, (e, _) in errors.items() if not e <= TOLERANCE]
    off = sorted(((e, k, why) for k, (e, why) in errors.items() if not e <= TOLERANCE), reverse=True)
    told = [f"{k} {why}" if why else f"{k} off by {e:.1e}" for e, k, why in off[:4]]
    row["wrong"] = f"{len(off)} of {len(errors)} tensors: {'; '.join(told)}; outputs off by {output:.1e}, PyTorch's float32 by {own:.0e}"
    return row, not any(told == "unchanged" for _, told in errors.values())


def check_method(name, form, network, module, path, source, size, bisam, method, steps=STEPS):
    """One method: a part of the row."""
    tries = []
    for own, made in batches(name, form, network, module, source, size, method, steps):
        row, excusable = attempt(name, form, path, module, source, size, bisam, method, steps, own, made)
        if "wrong" not in row or not excusable:
            return row
        tries.append((max(row["worst"], row["output"] / 10), len(tries), own, row, made))
    error, _, own, row, made = min(tries, key=lambda t: t[:2])
    if own <= TOLERANCE < error < KINK:
        own = max(own, shaken(module, form, made, source, method, steps))
    # Two float32 programs that part by a tenth are not two that can be compared.
    if error > LENIENCY * own and own <= 0.1:
        return row
    if steps == 1:
        row["undecided"] = row.pop("wrong")
        return row
    # Fewer samples have fewer units at kinks.
    first = check_method(name, form, network, module, path, source, FEW if size == BATCH else size, bisam, method, 1)
    return first if "undecided" not in first else row | {"undecided": row.pop("wrong") + "; the first step by itself is, too"}


def check(name, form, network, bisam):
    """One form of one architecture, as a row of the report."""
    row = {"name": name, "form": form, "source": network.source}
    module = fresh(network)
    row["parameters"] = sum(p.numel() for p in module.parameters())
    if row["parameters"] > LARGEST:
        return row | {"left out": f"more than {LARGEST:,} parameters"}
    if form.endswith("live") and not any(True for _ in drops(module)):
        return row | {"nothing": "drops nothing"}
    path, refused = prepare(name, form, network)
    if path is None:
        return row | {"not exported": refused}
    source = stored(path)
    if form.endswith("live"):
        return row | check_live(name, form, network, path, bisam)
    load_statistics(module, source)
    if not form.endswith("train"):
        fold_as(module, source, zoo.inputs(network, 1 if form.endswith("default") else 2, 2), form.startswith("dynamo"))
        freeze_left_out(module, onnx.load(path, load_external_data=False))
    fixed = fixed_batch(zoo.session(str(path)))
    row["batch"] = "fixed" if fixed else "any"
    size = BATCH if fixed in (None, 1) else fixed
    for method in METHODS:
        try:
            row[method] = check_method(name, form, network, module, path, source, size, bisam, method)
        except Refused as error:
            row[method] = {"refused": str(error)}
            break
        if "wrong" in row[method]:
            mixed = mixed_of(module, path) if form.startswith("dynamo") else {}
            off = {k.lstrip("+") for k in row[method]["off"]}
            folded = any(k.startswith("folded.") for k in off)
            # What follows from such a tensor parts from PyTorch's, too.
            if mixed and (folded or off & (set(mixed) | set().union(*mixed.values()))):
                made = "; ".join(f"`{name}` of {', '.join(sorted(parameters))}" for name, parameters in mixed.items())
                row["left out"] = f"the exporter has made {made}, and PyTorch trains these"
            break
    return row


def mixed_of(module, path):
    """The parameters that the dynamo exporter's optimizer has computed each tensor of a file from, where it took more than one thing."""
    parameters = {k for k, _ in module.named_parameters()}
    made_of = folded_from(onnx.load(path, load_external_data=False))
    found = {name: parameters.intersection(sources) for name, sources in made_of.items() if len(sources) > 1}
    return {name: some for name, some in found.items() if some}


def check_live(name, form, network, path, bisam):
    """Training with what drops at random on: seeds, determinism and evaluation mode."""
    module = fresh(network, True)
    batch = zoo.inputs(network, BATCH * STEPS, SEEDS[0])
    labels = torch.randint(CLASSES, (BATCH * STEPS,), generator=torch.Generator().manual_seed(SEEDS[0]))
    data = CACHE / name / f"{form}.data.npz"
    np.savez(data, labels=labels.numpy(), **feed(zoo.session(str(path)), batch))
    lr = learning_rate(module, form, cut(batch, 0, BATCH), labels[:BATCH], "sam")
    results = []
    try:
        for number, seed in enumerate((0, 0, 1)):
            last = train(bisam, path, data, BATCH, lr, "sam", CACHE / name / f"{form}.run{number}", seed=seed)
            results.append(stored(last))
    except Refused as error:
        return {"sam": {"refused": str(error)}}
    first, again, other = results
    row = {}
    differ = [k for k in first if not np.array_equal(first[k], again.get(k), equal_nan=True)]
    random = [k for k in first if not np.array_equal(first[k], other.get(k), equal_nan=True)]
    state, missing = module.state_dict(), []
    for key, value in state.items():
        if key in first and first[key].size == value.numel():
            state[key] = torch.from_numpy(first[key].reshape(value.shape).copy())
        elif value.is_floating_point() and key in dict(zoo.trained(module)):
            missing.append(key)
    module.load_state_dict(state)
    runner = zoo.session(str(CACHE / name / f"{form}.run0" / "last.onnx"))
    probe = zoo.inputs(network, zoo.BATCH - 1, 77)
    with torch.no_grad():
        want = module.eval()(*probe.values()).numpy()
    got = outputs(runner, probe)
    error = np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)
    row |= {"output": float(error), "worst": 0.0, "rounding": 0.0, "batches": 1, "compared": len(first)}
    if not np.array_equal(got, outputs(runner, probe)):
        row["wrong"] = "the exported file gives another answer each time"
    elif differ:
        row["wrong"] = f"two runs of one seed differ in {len(differ)} tensors: {', '.join(differ[:3])}"
    elif not error <= 1e-3:
        row["wrong"] = f"evaluation is off by {error:.1e} from PyTorch's with the same weights (not found: {missing[:3]})"
    elif not random:
        row["wrong"] = "another seed gives the same weights: nothing drops"
    for number in range(3):
        shutil.rmtree(CACHE / name / f"{form}.run{number}")
    return {"sam": row}


def outcome(row):
    """right, undecided, refused, wrong, not exported, left out or nothing."""
    for kind in ("not exported", "left out", "nothing", "script error"):
        if kind in row:
            return kind
    parts = [row[m] for m in METHODS if m in row]
    for kind in ("wrong", "refused", "undecided"):
        if any(kind in p for p in parts):
            return kind
    return "right"


def why(row):
    kind = outcome(row)
    return row.get(kind) or next((f"{m}: {row[m][kind]}" for m in METHODS if kind in row.get(m, {})), "")


def worker(name, form, network, options):
    """Runs in its own process: writes the row of one form."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    log = os.open(CACHE / name / f"{form}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    head = {"name": name, "form": form, "source": network.source}
    try:
        row = check(name, form, network, options.bisam)
    except Exception as error:
        traceback.print_exc()
        own = "PyTorch" in str(error) or "inplace operation" in str(error)
        row = head | {"not exported" if own else "script error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}
    (CACHE / name / f"{form}.row.json").write_text(json.dumps(row | {"binary": options.binary}))


def earlier(name, form):
    file = CACHE / name / f"{form}.row.json"
    return json.loads(file.read_text()) if file.exists() else None


def run(name, form, network, options):
    """The row of one form, from an earlier run of the same binary if there is one."""
    row = earlier(name, form)
    if row and row["binary"] == options.binary and not options.again:
        return row
    (CACHE / name).mkdir(parents=True, exist_ok=True)
    file = CACHE / name / f"{form}.row.json"
    file.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=worker, args=(name, form, network, options))
    process.start()
    process.join(FORM_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    for reference in (CACHE / name).glob("*.npz"):
        if reference.stat().st_size > KEPT:
            reference.unlink()
    row = earlier(name, form)
    if row is None:
        kind = "left out" if (CACHE / name / f"{form}.onnx").exists() else "not exported"
        row = {"name": name, "form": form, "source": network.source, "binary": options.binary}
        row[kind] = f"did not end within {FORM_SECONDS} s, or crashed with {process.exitcode}"
        file.write_text(json.dumps(row))
    return row


# The report


def line(row):
    """A row for the terminal."""
    kind = outcome(row)
    shown = kind.upper() if kind in ("wrong", "script error") else kind
    head = f"{row['name']:24} {row['form']:15} {shown:12}"
    if kind == "right":
        first = {m: " (first step)" if row[m].get("steps") == 1 else "" for m in METHODS if m in row}
        parts = [f"{m} {row[m]['worst']:.0e} output {row[m]['output']:.0e}{told}" for m, told in first.items()]
        return f"{head} {' · '.join(parts)}"
    return f"{head} {why(row)}"


def cell(row):
    kind = outcome(row)
    if kind == "right":
        return f"{max(row[m]['worst'] for m in METHODS if m in row):.0e}" if not row["form"].endswith("live") else "right"
    return {"wrong": "**wrong**", "not exported": "–", "left out": "–", "nothing": ""}.get(kind, kind)


def report(rows):
    """The rows as Markdown."""
    by_name = {}
    for row in rows:
        by_name.setdefault(row["name"], {})[row["form"]] = row
    kinds = {}
    for row in rows:
        kinds.setdefault(outcome(row), []).append(row)
    exports = [r for r in rows if outcome(r) in ("right", "undecided", "refused", "wrong")]
    right = len(kinds.get("right", []))
    first = sum(any(r.get(m, {}).get("steps") == 1 for m in METHODS) for r in kinds.get("right", []))
    missing = len(NETWORKS) * len(FORMS) - len(rows)
    text = [
        "# Training of freshly exported networks",
        "",
        "Made by `make zoo-train`. Every network has the values its constructor gave it, and is exported in the usual forms;",
        "`bisam train` makes two steps of SGD and two of SAM, and so does PyTorch. A cell is the largest error of a parameter or a",
        "running statistic, relative to its movement; up to 1e-4 is right, if the exported file's answers are PyTorch's, too.",
        "`script-live` has dropout and stochastic depth on. [benches/zoo_train.py](../benches/zoo_train.py) has the rules.",
        "",
        f"{len({r['name'] for r in exports})} architectures, {len(exports)} exports: {right} right ({right / max(len(exports), 1):.1%}; {first} of them by the first step),",
        f"{len(kinds.get('undecided', []))} undecided, {len(kinds.get('refused', []))} refused with a reason,",
        f"{len(kinds.get('wrong', []))} wrong without a word. {missing} forms were not run.",
        "",
        "| form | right | undecided | refused | wrong | not exported |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for form in FORMS:
        counts = [sum(r["form"] == form for r in kinds.get(k, [])) for k in ("right", "undecided", "refused", "wrong", "not exported")]
        text.append(f"| {form} | " + " | ".join(map(str, counts)) + " |")
    text += ["", "| architecture | from | parameters | " + " | ".join(FORMS) + " |", "|---|---|--:|" + "---|" * len(FORMS)]
    for name, forms in by_name.items():
        parameters = next((r["parameters"] for r in forms.values() if "parameters" in r), 0)
        cells = " | ".join(cell(forms[f]) if f in forms else "" for f in FORMS)
        text.append(f"| {name} | {next(iter(forms.values()))['source']} | {parameters:,} | {cells} |")
    titles = {
        "wrong": "Wrong", "refused": "Refused", "undecided": "Undecided", "script error": "Errors of the script",
        "left out": "Left out", "not exported": "Not exported, or without a reference",
    }
    for kind, title in titles.items():
        if kind in kinds:
            text += ["", f"## {title}", ""]
            text += [f"- {r['name']}, {r['form']}: {zoo.plain(why(r))}" for r in kinds[kind]]
    return "\n".join(text) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="architectures or forms to run (default: all)")
    parser.add_argument("--bisam", default=ROOT / "target" / "release" / "bisam", type=Path, help="the binary")
    parser.add_argument("--again", action="store_true", help="train again what this binary has trained already")
    parser.add_argument("--report", action="store_true", help="write the report from earlier runs of this binary")
    parser.add_argument("--open", action="store_true", help="only what was not right in an earlier run")
    parser.add_argument("--all", action="store_true", help="large networks and long runs, too")
    options = parser.parse_intermixed_args()
    if options.all:
        global LARGEST, TRAIN_SECONDS
        LARGEST, TRAIN_SECONDS = 10**12, 600
    options.binary = hashlib.sha256(options.bisam.read_bytes()).hexdigest()[:16]

    def chosen(name, words):
        return not words or any(w in name or fnmatch.fnmatch(name, w) for w in words)

    form_words = [w for w in options.words if any(fnmatch.fnmatch(f, w) for f in FORMS)]
    words = [w for w in options.words if w not in form_words]
    rows = []
    for name, network in NETWORKS.items():
        for form in FORMS:
            row = earlier(name, form)
            if options.report:
                rows += [row] if row and row["binary"] == options.binary else []
            elif chosen(name, words) and chosen(form, form_words):
                if options.open and row and outcome(row) in ("right", "not exported", "nothing"):
                    continue
                rows.append(run(name, form, network, options))
                if outcome(rows[-1]) != "nothing":
                    print(line(rows[-1]), flush=True)
    counted = [outcome(r) for r in rows]
    print(" · ".join(f"{counted.count(k)} {k}" for k in dict.fromkeys(counted)))
    if options.report or not (options.words or options.open):
        REPORT.write_text(report(rows))
    sys.exit(any(k in ("wrong", "script error") for k in counted))


if __name__ == "__main__":
    main()
