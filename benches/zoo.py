"""Gradients of many real exports against PyTorch's autograd.

    python benches/zoo.py                     every architecture, and the report docs/zoo.md
    python benches/zoo.py resnet 'dynamo-*'   architectures and forms whose names hold or match a word; prints only
    python benches/zoo.py --again swin        exports anew what is there already

Each architecture of zoo_networks.py is exported in up to four forms: by the TorchScript exporter in evaluation mode
(`script-eval`) and in training mode without folding (`script-train`), and by the dynamo exporter in evaluation mode, optimized
(`dynamo-eval`), and not optimized (`dynamo-train`), which keeps BatchNormalization. `bisam grad` then differentiates the file in
the form's mode, and every gradient is checked one of two ways:

- An initializer that holds a parameter of the network, up to its layout, a factor per channel (a folded BatchNormalization) or
  a split into several, is compared with autograd's gradient of that parameter: ‖a − b‖ ≤ 1e-3 max(‖b‖, 1e-3 largest ‖b‖), b computed in float64 or in float32.
  Where units lie at a kink, rounding decides which side counts: up to six batches are tried, and one that agrees is enough.
  If none does and PyTorch's own float32 gradient is off from its float64 one by a third of the error or more, the form is
  undecided, which is neither pass nor failure.
- Any other float initializer is compared with central differences of ONNX Runtime's loss along a direction: within a tenth, at one of
  five steps along one of two directions; a gradient below 2 % of the largest is compared with that.

Exports, inputs and references stay in .zoo/ and are used again.
"""

import argparse
import copy
import fnmatch
import itertools
import json
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import traceback
import warnings
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import numpy_helper

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = ROOT / ".zoo"
REPORT = ROOT / "docs" / "zoo.md"

FORMS = ("script-eval", "script-train", "dynamo-eval", "dynamo-train")
TRACED_BATCH, BATCH = 4, 5
TOLERANCE = 1e-3
# An error below this may come from units at the kink of a Relu; then another batch, of another seed, decides.
KINK = 0.5
SEEDS = (3, 4, 5, 6, 7, 8)
DIFFERENCE_TOLERANCE = 0.1
# Gradients below this share of the largest are compared with it instead: a bias before a normalization has a gradient of zero.
FLOOR = 1e-3
EXPORT_SECONDS, GRAD_SECONDS = 420, 120


# Building and exporting


def build(network):
    """The network with seeded weights, no two tensors or elements the same by rule, and running statistics of a batch.

    Nothing in it draws random numbers.
    """
    torch.manual_seed(0)
    module = network.build()
    seen = set()
    for name, parameter in trained(module):
        values = parameter.detach().numpy().tobytes()
        even = parameter.min() == parameter.max()
        symmetric = parameter.dim() == 2 and parameter.shape[0] > 1 and torch.equal(parameter, parameter.T)
        if even or symmetric or values in seen or "parametrizations" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
        seen.add(values)
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for m in module.modules():
        drops = "drop" in type(m).__name__.lower() or "Depth" in type(m).__name__
        for name in ("drop_prob", "p") if drops else ("drop_rate",):
            if isinstance(getattr(m, name, None), float):
                setattr(m, name, 0.0)
    kept = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 1.0
    with torch.no_grad():
        module.train()(*inputs(network, 8, 1).values())
    for m, momentum in zip(norms, kept):
        m.momentum = momentum
    return module


def inputs(network, batch, seed):
    """Seeded inputs by name."""
    return network.inputs(batch, torch.Generator().manual_seed(seed))


def export(module, batch, form, path):
    """Writes the file, with a dynamic batch axis where the exporter can."""
    exporter, mode = form.split("-")
    module.train(mode == "train")
    names = {"input_names": list(batch), "output_names": ["logits"]}
    failed = None
    for dynamic in (True, False):
        try:
            if exporter == "script":
                training = torch.onnx.TrainingMode.TRAINING if mode == "train" else torch.onnx.TrainingMode.EVAL
                axes = {name: {0: "batch"} for name in (*batch, "logits")} if dynamic else None
                torch.onnx.export(
                    module, tuple(batch.values()), str(path), dynamo=False, training=training,
                    do_constant_folding=mode == "eval", dynamic_axes=axes, **names,
                )
            else:
                # A graph captured in training mode moves the running statistics, which the exporter refuses.
                module.eval()
                axes = tuple({0: torch.export.Dim("batch")} for _ in batch) if dynamic else None
                torch.onnx.export(
                    module, tuple(batch.values()), str(path), dynamo=True, dynamic_shapes=axes, verbose=False,
                    external_data=False, optimize=mode == "eval", **names,
                )
            return
        except Exception as error:
            traceback.print_exc()
            failed = error
    raise failed


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def trained(module):
    """Parameters that the network itself does not freeze, by name."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def gradients(module, batch, labels, mode, wide):
    """Loss, logits and gradients by autograd, in float64 or in float32."""
    module.train(mode == "train")
    kept = copy.deepcopy(module.state_dict())
    module = module.double() if wide else module.float()
    try:
        names, parameters = zip(*trained(module))
        logits = module(*(v.double() if wide and v.is_floating_point() else v for v in batch.values()))
        assert logits.dtype == (torch.float64 if wide else torch.float32)
        loss = F.cross_entropy(logits, labels)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        module.float().load_state_dict(kept)
    found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]
    arrays = {f"grad/{name}": g.numpy().astype(np.float32) for name, g in zip(names, found)}
    return {"loss": loss.detach().numpy().astype(np.float32), "logits": logits.detach().numpy().astype(np.float32), **arrays}


def reference(module, batch, labels, mode):
    """Gradients in float64, and how far PyTorch's own in float32 are from them; some networks run in float32 only."""
    narrow = gradients(module, batch, labels, mode, False)
    try:
        wide = gradients(module, batch, labels, mode, True)
    except Exception:
        wide = narrow
    # What is finite in float32 only, such as a mask of float32's lowest number added to another, has no reference in float64.
    if not all(np.isfinite(v).all() for v in wide.values()):
        wide = narrow
    largest = largest_norm(wide)
    keys = [k for k in wide if k.startswith("grad/")]
    rounding = np.float64(max((relative(narrow[k], wide[k], largest) for k in keys), default=0.0))
    apart = {f"float32/{k}": v for k, v in narrow.items()} if rounding > 1e-4 else {}
    return wide | apart | {"rounding": rounding}


def largest_norm(arrays):
    return max(np.linalg.norm(v) for k, v in arrays.items() if k.startswith("grad/"))


def relative(a, b, largest):
    """The error of gradient `a` against `b` where the largest gradient has norm `largest`."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), FLOOR * largest, 1e-30))


# Which initializer holds which parameter


def layouts(parameter):
    """The ways an exporter lays a parameter out: (array, how to lay a gradient back)."""
    shape = parameter.shape
    for order in itertools.permutations(range(len(shape))) if len(shape) <= 4 else [range(len(shape))]:
        back = np.argsort(order)
        yield parameter.transpose(order), lambda g, back=back: g.transpose(back)
    if len(shape) > 2:
        flat = parameter.reshape(shape[0], -1)
        yield flat, lambda g: g.reshape(shape)
        yield flat.T, lambda g: g.T.reshape(shape)


def factor(value, laid, scales, plain):
    """What `laid` was multiplied by to give `value`: 1, one number, or one of `scales` along an axis; None when nothing fits.

    Any other factor per channel, and every factor of a parameter that is not `plain`, is computed from the parameter itself.
    """
    if np.array_equal(value, laid):
        return 1.0
    if laid.ndim < 2 or laid.size < 16:
        return None
    place = np.unravel_index(np.abs(laid).argmax(), laid.shape)
    one = value[place] / laid[place]
    axes = ((laid.shape[a], tuple(-1 if i == a else 1 for i in range(laid.ndim))) for a in {0, laid.ndim - 1})
    several = (s.reshape(shape) for size, shape in axes for s in scales.get(size, ()))
    for tried in ((one, *several) if plain else ()):
        if np.abs(value - laid * tried).max() <= 1e-5 * np.abs(value).max():
            return tried
    return None


def match(module, proto):
    """For every parameter the initializers that hold it: (initializer, layout, factor)."""
    stored = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    stored = {k: v for k, v in stored.items() if v.dtype == np.float32 and v.size}
    parameters = {k: p.detach().numpy() for k, p in trained(module)}
    found = {}
    for name, value in stored.items():
        if name in parameters and np.array_equal(value, parameters[name]):
            found.setdefault(name, []).append((name, lambda g: g, 1.0))
    left = [k for k in stored if k not in {i for group in found.values() for i, _, _ in group}]
    # A parameter found under its own name may also stand elsewhere, laid out otherwise.
    by_size = {}
    for key, parameter in parameters.items():
        by_size.setdefault(parameter.size, []).append((key, parameter))
    shifts, scales = {}, {}
    for prefix, scale, shift in folded_norms(module):
        shifts[f"{prefix}.bias"] = shift
        scales.setdefault(scale.size, []).append(scale)
    for name in left:
        value = stored[name]
        if value.size < 2:
            continue
        candidates = (
            (key, back, scale)
            for key, parameter in by_size.get(value.size, ())
            for laid, back in layouts(parameter)
            if laid.shape == value.shape and (scale := factor(value, laid, scales, "parametrizations" not in key)) is not None
        )
        hit = next(candidates, None)
        if hit is None and value.ndim == 1:
            close = (k for k, s in shifts.items() if s.shape == value.shape and np.allclose(s, value, rtol=1e-4, atol=1e-5))
            hit = next(((k, lambda g: g, 1.0) for k in close), None)
        if hit is not None:
            found.setdefault(hit[0], []).append((name, *hit[1:]))
    return found


def folded_norms(module):
    """Of every BatchNormalization its name, and the factor and bias that a convolution before it gets when it is folded in."""
    for prefix, m in module.named_modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.affine and m.track_running_stats:
            scale = m.weight / torch.sqrt(m.running_var + m.eps)
            yield prefix, scale.detach().numpy(), (m.bias - m.running_mean * scale).detach().numpy()


# Comparing


def compare(module, proto, expected, got):
    """Relative errors by parameter, and the initializers that no parameter was found in."""
    largest = largest_norm(expected)
    errors, seen = {}, set()
    for parameter, held in match(module, proto).items():
        held = [h for h in held if f"grad/{h[0]}" in got]
        if not held:
            continue
        have = sum(back(got[f"grad/{name}"].astype(np.float64) * scale) for name, back, scale in held)
        wanted = [expected[k] for k in (f"grad/{parameter}", f"float32/grad/{parameter}") if k in expected]
        errors[parameter] = min(relative(have, want, largest) for want in wanted)
        seen |= {name for name, _, _ in held}
    rest = [k[5:] for k in got if k.startswith("grad/") and k[5:] not in seen]
    return errors, rest


def cross_entropy(logits, labels):
    logits = logits.astype(np.float64).reshape(len(labels), -1)
    top = logits.max(1, keepdims=True)
    logs = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
    return float((logs - logits[np.arange(len(labels)), labels]).mean())


def differences(proto, names, batch, labels, got):
    """Errors of gradients against central differences of the loss, by initializer; those too small to be seen are left out."""
    for node in [n for n in proto.graph.node if n.op_type == "Constant" and n.output[0] in names]:
        value = numpy_helper.from_array(numpy_helper.to_array(node.attribute[0].t), node.output[0])
        proto.graph.initializer.append(value)
        proto.graph.node.remove(node)
    stored = {i.name: i for i in proto.graph.initializer}
    names = [name for name in names if name in stored]
    known = {i.name for i in proto.graph.input}
    for name in names:
        if name not in known:
            i = stored[name]
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, i.data_type, list(i.dims)))
    runner = session(proto.SerializeToString())
    feed = {k: v.numpy() for k, v in batch.items() if k in known}
    random = np.random.default_rng(0)
    # Terms that cancel leave rounding behind, such as those of a mask times -1e6 before a Softmax.
    floor = 0.02 * largest_norm(got)
    scale = max(float(got["loss"]), 1.0)
    errors = {}
    for name in names:
        value = numpy_helper.to_array(stored[name])
        gradient = got[f"grad/{name}"].astype(np.float64)
        if value.size == 0 or not np.isfinite(value).all() or np.abs(value).max() > 1e4:
            continue
        norm = np.linalg.norm(gradient)
        reach = 0.05 * max(np.linalg.norm(value), 1e-3)
        tries = []
        # Kinks disturb large steps and rounding small ones: one of several that agrees is enough.
        for _, share in itertools.product(range(2), (1.0, 0.3, 0.1, 0.03, 0.01)):
            if share == 1.0:
                noise = np.asarray(random.standard_normal(value.shape))
                direction = noise / np.linalg.norm(noise) + (gradient / norm if norm > 0 else 0)
                slope = float((gradient * direction).sum())
            step = share * min(1e-2 * scale / max(abs(slope), 1e-12), reach)
            ends = [
                cross_entropy(runner.run(None, feed | {name: np.asarray(value + s * direction, value.dtype)})[0], labels)
                for s in (step, -step)
            ]
            if not np.isfinite(ends).all():
                break
            real = (ends[0] - ends[1]) / (2 * step)
            blur = 3e-6 * scale / step
            tries.append(max(abs(real - slope) - blur, 0.0) / max(abs(real), abs(slope), floor))
            if tries[-1] <= DIFFERENCE_TOLERANCE:
                break
        # A power of negative numbers is there at whole exponents only: nothing to compare with on both sides.
        if tries:
            errors[name] = min(tries)
    return errors


# One architecture


def runs_at(runner, module, network, form):
    """The largest batch of the two at which ONNX Runtime computes what the network computes."""
    # The dynamo exporter's BatchNormalization has no training mode.
    module.train(form == "script-train")
    state = copy.deepcopy(module.state_dict())
    for size in (BATCH, TRACED_BATCH):
        batch = inputs(network, size, 3)
        with torch.no_grad():
            want = module(*batch.values()).numpy()
        module.load_state_dict(state)
        try:
            got = runner.run(None, {i.name: batch[i.name].numpy() for i in runner.get_inputs()})[0]
        except Exception as error:
            problem = str(error).splitlines()[0]
            continue
        if np.allclose(got, want, rtol=1e-2, atol=2e-2 * want.std()):
            return size
        problem = "it does not compute what the network does"
    raise RuntimeError(f"the export is wrong: {problem}")


def prepare(name, form, network, again):
    """Exports, unless the file is there; returns the network and its batch size, or why there is no file."""
    path, refused, sizes = (CACHE / name / f"{form}.{kind}" for kind in ("onnx", "refused", "batch"))
    if refused.exists() and not again:
        return None, refused.read_text()
    module = build(network)
    weights = zlib.crc32(b"".join(p.detach().numpy().tobytes() for p in module.parameters()))
    if sizes.exists() and not again:
        size, exported = map(int, sizes.read_text().split())
        if exported == weights:
            return module, size
    for old in (CACHE / name).glob(f"{form}.*"):
        if old.suffix != ".log":
            old.unlink()
    try:
        state = copy.deepcopy(module.state_dict())
        export(module, inputs(network, TRACED_BATCH, 2), form, path)
        module.load_state_dict(state)
        size = runs_at(session(str(path)), module, network, form)
        module.load_state_dict(state)
        sizes.write_text(f"{size} {weights}")
        return module, size
    except Exception as error:
        traceback.print_exc()
        path.unlink(missing_ok=True)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        refused.write_text(f"{type(error).__name__}: {lines[0][:200]}".replace(str(path), path.name))
        return None, refused.read_text()


def batch_of(name, form, network, module, size, seed, used):
    """A batch with its labels and autograd's gradients for it, from the cache if they are there."""
    batch = inputs(network, size, seed)
    batch = {k: v for k, v in batch.items() if k in used} | {k: v for k, v in batch.items() if k not in used}
    labels = torch.randint(CLASSES, (size,), generator=torch.Generator().manual_seed(seed))
    given = CACHE / name / f"{form}.{seed}.inputs.npz"
    done = CACHE / name / f"{form}.{seed}.reference.npz"
    if not done.exists():
        expected = reference(module, inputs(network, size, seed), labels, form.split("-")[1])
        np.savez(given, labels=labels.numpy(), **{k: v.numpy() for k, v in batch.items() if k in used})
        np.savez(done, **expected)
    return {k: v for k, v in batch.items() if k in used}, labels.numpy(), dict(np.load(done)), given


def cpu_of_children():
    """Processor seconds of the commands that this process ran; unlike the time on the clock, other work does not change it."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def gradients_of_bisam(bisam, path, given, mode):
    """Runs `bisam grad`: arrays and processor seconds. Raises a RuntimeError with what it says."""
    out = given.with_suffix(".out.npz")
    command = [bisam, "-q", "--threads", "1", "grad", path, "--inputs", given, "--mode", mode, "-o", out]
    begin = cpu_of_children()
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=GRAD_SECONDS)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took more than {GRAD_SECONDS} s") from None
    seconds = cpu_of_children() - begin
    if result.returncode != 0:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        raise RuntimeError(" ".join(lines).replace(str(path), path.name)[:400])
    got = dict(np.load(out))
    out.unlink()
    return got, seconds


def first(errors):
    """The largest error and whose it is; what is not a number is larger than any number."""
    return max(((float(e), name) for name, e in errors.items()), key=lambda e: e[0] if np.isfinite(e[0]) else np.inf, default=(0.0, ""))


def check(name, form, network, bisam, again):
    """One form of one architecture, as a row of the report."""
    row = {"name": name, "form": form, "source": network.source}
    module, size = prepare(name, form, network, again)
    if module is None:
        return row | {"refused": size}
    path = CACHE / name / f"{form}.onnx"
    proto = onnx.load(path)
    row |= {"nodes": len(proto.graph.node), "parameters": sum(p.numel() for p in module.parameters())}
    row["batch"] = "any" if size == BATCH else "fixed"
    used = {i.name for i in proto.graph.input}
    statistics = {name for n in proto.graph.node if n.op_type == "BatchNormalization" for name in n.input[3:5]}
    mode = form.split("-")[1]
    # Near the kink of a Relu one gradient is as good as the other, and rounding chooses: another batch decides.
    for seed in SEEDS:
        try:
            batch, labels, expected, given = batch_of(name, form, network, module, size, seed, used)
        except RuntimeError as error:
            return row | {"refused": f"PyTorch cannot differentiate it: {str(error).splitlines()[0][:150]}"}
        try:
            got, row["seconds"] = gradients_of_bisam(bisam, path, given, mode)
        except RuntimeError as error:
            return row | {"failed": str(error)}
        if not all(np.isfinite(v).all() for v in expected.values()):
            return row | {"refused": "PyTorch's own gradient is not a number"}
        errors, rest = compare(module, proto, expected, got)
        rest = [name for name in rest if mode == "eval" or name not in statistics]
        worst, whose = first(errors)
        row |= {"batches": seed - SEEDS[0] + 1, "compared": len(errors), "worst": worst, "worst_name": whose}
        row["loss"] = abs(float(got["loss"]) - float(expected["loss"])) / abs(float(expected["loss"]))
        row["rounding"] = float(expected["rounding"])
        if worst <= TOLERANCE or not worst < KINK:
            break
    # A file that runs in another mode than asked for says nothing about the gradients in that mode.
    bare = form == "dynamo-train" and any(n.op_type == "BatchNormalization" for n in proto.graph.node)
    slopes = {} if bare else differences(proto, rest, batch, labels, got)
    slope, whose = first(slopes)
    row |= {"differenced": len(slopes), "unchecked": len(rest) - len(slopes)}
    row |= {"worst_difference": slope, "worst_difference_name": whose}
    if not row["loss"] <= 1e-4:
        row["failed"] = f"the loss is off by {row['loss']:.1e}"
    elif TOLERANCE < worst <= min(3 * row["rounding"], 0.1):
        row["undecided"] = f"off by {worst:.1e}, PyTorch's own float32 gradient by {row['rounding']:.1e}, in {row['batches']} batches"
    elif not worst <= TOLERANCE:
        row["failed"] = f"the gradient of {row['worst_name']} is off by {worst:.1e} (rounding {expected['rounding']:.0e})"
    elif not slope <= DIFFERENCE_TOLERANCE:
        row["failed"] = f"{whose} is off by {slope:.1e} against differences"
    return row


def worker(name, form, network, options):
    """Runs in its own process: writes the row of one form."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    log = os.open(CACHE / name / f"{form}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        row = check(name, form, network, options.bisam, options.again)
    except Exception as error:
        traceback.print_exc()
        row = {"name": name, "form": form, "source": network.source, "failed": f"this script: {error!r}"[:300]}
    (CACHE / name / f"{form}.row.json").write_text(json.dumps(row))


def run(name, forms, network, options):
    """The rows of one architecture; a form that takes too long counts as refused by its exporter."""
    (CACHE / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for form in forms:
        file = CACHE / name / f"{form}.row.json"
        file.unlink(missing_ok=True)
        process = multiprocessing.get_context("fork").Process(target=worker, args=(name, form, network, options))
        process.start()
        process.join(EXPORT_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        if file.exists():
            rows.append(json.loads(file.read_text()))
        else:
            why = f"did not end within {EXPORT_SECONDS} s, or crashed with {process.exitcode}"
            (CACHE / name / f"{form}.refused").write_text(why)
            rows.append({"name": name, "form": form, "source": network.source, "refused": why})
    return rows


def passed(name, form):
    """Whether the last run of a form passed."""
    file = CACHE / name / f"{form}.row.json"
    row = json.loads(file.read_text()) if file.exists() else {"failed": "not run"}
    return not {"failed", "undecided", "refused"} & row.keys()


# The report


def line(row):
    """A row for the terminal."""
    head = f"{row['name']:24} {row['form']:13}"
    if "refused" in row:
        return f"{head} refused  {row['refused'][:120]}"
    head += f" {row['nodes'] if 'nodes' in row else '?':>5} nodes"
    if "worst" in row:
        head += f" {row['compared']:4} {row['worst']:.0e} {row['differenced']:4} {row['worst_difference']:.0e} {row['unchecked']:3}"
    head += f" {row.get('seconds', 0):5.1f} s {row['batch'] if row.get('batch') == 'fixed' else ''}"
    return head + "".join(f"  {k.upper()} {row[k]}" for k in ("failed", "undecided") if k in row)


def cell(row):
    if "refused" in row:
        return "–"
    if "worst" not in row:
        return "fails"
    mark = "**" if "failed" in row else "≈" if "undecided" in row else ""
    return f"{mark}{row['worst']:.0e}{mark} · {row['nodes']} · {row['seconds']:.1f} s"


def plain(message):
    """A message without a terminal's colours, paths and what Markdown would take for a table."""
    message = re.sub(r"\x1b\[\d+m", "", message).replace(f"{ROOT}/", "")
    return message.replace("|", "/")


def report(rows):
    """The rows as Markdown."""
    by_name = {}
    for row in rows:
        by_name.setdefault(row["name"], {})[row["form"]] = row
    counted = [r for r in rows if "refused" not in r]
    failing = [r for r in counted if "failed" in r]
    undecided = [r for r in counted if "undecided" in r]
    right = len(counted) - len(failing) - len(undecided)
    retried = [r for r in counted if r.get("batches", 1) > 1 and "failed" not in r and "undecided" not in r]
    missing = len(NETWORKS) * len(FORMS) - len(rows)
    text = [
        "# Gradients of real exports",
        "",
        "Made by `make zoo`. Each cell: worst relative error of a parameter's gradient against PyTorch's autograd · nodes of the file",
        "· processor seconds of `bisam grad` (import, differentiation and one run). A dash is a form that is not counted.",
        "[zoo-train.md](zoo-train.md) has training steps of the same architectures.",
        "",
        f"{len({r['name'] for r in counted})} architectures, {len(counted)} exports: {right} pass ({len(retried)} of them not with",
        f"the first batch), {len(undecided)} undecided, {len(failing)} fail. {missing} forms of the table were not run.",
        f"Of their initializers {sum(r.get('compared', 0) for r in counted):,} are compared with autograd,",
        f"{sum(r.get('differenced', 0) for r in counted):,} with central differences.",
        "",
        "| architecture | from | parameters | " + " | ".join(FORMS) + " |",
        "|---|---|--:|" + "---|" * len(FORMS),
    ]
    for name, forms in by_name.items():
        parameters = next((r["parameters"] for r in forms.values() if "parameters" in r), 0)
        cells = " | ".join(cell(forms[f]) if f in forms else "" for f in FORMS)
        text.append(f"| {name} | {next(iter(forms.values()))['source']} | {parameters:,} | {cells} |")
    for title, key in (("Failures", "failed"), ("Undecided", "undecided"), ("Not counted: no file, or no reference", "refused")):
        text += ["", f"## {title}", ""]
        text += [f"- {r['name']}, {r['form']}: {plain(r[key])}" for r in rows if key in r] or ["None."]
    return "\n".join(text) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="architectures or forms to run (default: all)")
    parser.add_argument("--bisam", default=ROOT / "target" / "release" / "bisam", type=Path, help="the binary")
    parser.add_argument("--again", action="store_true", help="export anew")
    parser.add_argument("--report", action="store_true", help="write the report from the rows of earlier runs")
    parser.add_argument("--open", action="store_true", help="only what has not passed in an earlier run")
    options = parser.parse_intermixed_args()

    def chosen(name, words):
        return not words or any(w in name or fnmatch.fnmatch(name, w) for w in words)

    form_words = [w for w in options.words if any(fnmatch.fnmatch(f, w) for f in FORMS)]
    words = [w for w in options.words if w not in form_words]
    forms = [f for f in FORMS if chosen(f, form_words)]
    rows = []
    for name, network in NETWORKS.items():
        if options.report:
            files = [CACHE / name / f"{form}.row.json" for form in FORMS]
            rows += [json.loads(f.read_text()) for f in files if f.exists()]
        elif chosen(name, words):
            open_forms = [f for f in forms if not (options.open and passed(name, f))]
            for row in run(name, open_forms, network, options):
                rows.append(row)
                print(line(row), flush=True)
    counted = [r for r in rows if "refused" not in r]
    failed = [r for r in counted if "failed" in r]
    print(f"{len({r['name'] for r in counted})} architectures, {len(counted)} exports, {len(failed)} fail")
    if not options.words:
        REPORT.write_text(report(rows))
    sys.exit(bool(failed))


sys.path.insert(0, str(HERE))
from zoo_networks import CLASSES, NETWORKS  # noqa: E402

if __name__ == "__main__":
    main()
