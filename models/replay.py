"""Writes reference/replay_<model>_<method>.npz: ten training steps, to be replayed elsewhere on the same batches.

    python models/replay.py

Written from the papers' formulas for legibility, in float64, stored as float32. Arrays of a file:
    settings                      the run's settings: JSON in UTF-8, as bytes (uint8)
    <input name>, labels          the batches, [step, sample, ...]
    ascent_loss, descent_loss     per step; ascent_loss only where every step has an ascent pass
    step1/<initializer>, step10/<initializer>   weights and running statistics after that many steps
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn

import make
from reference import tensor

HERE = Path(__file__).resolve().parent
STEPS, BATCH, CLASSES = 10, 16, 10

SGD = {"base": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4}
ADAMW = {"base": "adamw", "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
BSAM = {
    "base": "bsam", "lr": 0.1, "beta1": 0.9, "beta2": 0.999, "damping": 0.1, "initial_precision": 1.0,
    "weight_decay": 8e-4, "ascent": "cross-entropy", "rho": 0.01, "adaptive": False,
}
SAM = {"ascent": "cross-entropy", "rho": 0.05, "adaptive": False}
NEG_LOG = {"ascent": "neg-log", "mu": 1.0, "rho": 0.05, "adaptive": False}
TANH = {"ascent": "tanh", "mu": 10.0, "alpha": 0.1, "rho": 0.05, "adaptive": False}

METHODS = {
    "sgd": SGD,
    "sgd-nesterov": SGD | {"nesterov": True},
    "sam": SGD | SAM,
    "bisam": SGD | NEG_LOG,
    "bisam-tanh": SGD | TANH,
    "a-bisam": SGD | NEG_LOG | {"adaptive": True, "rho": 0.5, "eta": 0.01},
    "adamw": ADAMW,
    "bisam-adamw": ADAMW | NEG_LOG,
    "asam-all": SGD | SAM | {"adaptive": True, "adaptive_all": True, "rho": 0.5, "eta": 0.01},
    "accumulate": SGD | {"micro_batch": 8},
    "msam": SGD | SAM | {"micro_batch": 6},
    "m-bisam": SGD | NEG_LOG | {"micro_batch": 8},
    "ksam": SGD | SAM | {"top_k": 6},
    "sds-bisam": SGD | NEG_LOG | {"sds_gamma": 0.5},
    "msam-sds": ADAMW | SAM | {"micro_batch": 8, "sds_gamma": 0.6},
    "gsam": SGD | SAM | {"gsam_alpha": 0.4},
    "gsam-bisam": ADAMW | TANH | {"gsam_alpha": 0.2},
    "looksam": SGD | SAM | {"period": 3, "look_alpha": 0.7},
    "swp": SGD | SAM | {"swp_beta": 0.6},
    "e-bisam": SGD | NEG_LOG | {"swp_beta": 0.6, "sds_gamma": 0.5},
    "rsam": SGD | SAM | {"start_sigma": 0.2},
    "rsam-bisam-micro": SGD | NEG_LOG | {"start_sigma": 0.1, "micro_batch": 8},
    "bsam": BSAM,
    "bsam-micro": BSAM | {"ascent": "neg-log", "mu": 1.0, "micro_batch": 8},
    "looksam-bisam": ADAMW | NEG_LOG | {"period": 4, "look_alpha": 0.5},
}


def smoothed_cross_entropy(logits, labels, smoothing):
    """Mean cross-entropy against 1 - s on the label and s / (K - 1) on every other class."""
    classes = logits.shape[1]
    target = torch.full_like(logits, smoothing / (classes - 1))
    target[torch.arange(len(labels)), labels] = 1 - smoothing
    return -(target * logits.log_softmax(1)).sum(1).mean()


def ascent_loss(logits, labels, settings):
    """What the perturbation climbs: the training loss for SAM, BiSAM's lower bound of the 0-1 loss otherwise.

    Q = mean over samples of 1/mu log sum_j exp(mu phi(f_j - f_y)), the label itself included in the sum, with
    phi(x) = 1 - log(1 + exp(gamma - x)), gamma = log(e - 1), or phi(x) = tanh(alpha x).
    """
    if settings["ascent"] == "cross-entropy":
        return smoothed_cross_entropy(logits, labels, settings["label_smoothing"])
    margin = logits - logits.gather(1, labels[:, None])
    if settings["ascent"] == "neg-log":
        phi = 1 - F.softplus(math.log(math.e - 1) - margin)
    else:
        phi = torch.tanh(settings["alpha"] * margin)
    return (torch.logsumexp(settings["mu"] * phi, 1) / settings["mu"]).mean()


def perturbation(parameters, settings):
    """rho g / |g|, or with the adaptive metric rho T^2 g / |T g|, T = |w| + eta on weights of rank 2 and more, or on all."""
    scale = [torch.ones_like(p) for p in parameters]
    if settings["adaptive"]:
        least = 0 if settings.get("adaptive_all") else 2
        scale = [p.detach().abs() + settings["eta"] if p.dim() >= least else t for p, t in zip(parameters, scale)]
    norm = torch.sqrt(sum(((t * p.grad) ** 2).sum() for p, t in zip(parameters, scale)))
    rho = settings["rho"] / settings.get("swp_beta", 1.0)
    return [rho * t**2 * p.grad / (norm + 1e-12) for p, t in zip(parameters, scale)]


def move_statistics(network, momentum):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


class Bsam:
    """Bayesian SAM, Moellenhoff & Khan 2023, algorithm 1 with the damping of its authors' code; gradients of both passes come
    from outside: the descent's as p.grad, the mean absolute ascent gradient as `sizes`."""

    def __init__(self, parameters, settings):
        self.parameters, self.settings = list(parameters), settings
        self.mean = [torch.zeros_like(p) for p in self.parameters]
        self.precision = [torch.full_like(p, settings["initial_precision"]) for p in self.parameters]
        self.sizes = None

    @torch.no_grad()
    def step(self):
        s = self.settings
        for p, m, precision, size in zip(self.parameters, self.mean, self.precision, self.sizes):
            m.mul_(s["beta1"]).add_((1 - s["beta1"]) * (p.grad + s["weight_decay"] * p))
            p -= s["lr"] * m / precision
            new = precision.sqrt() * size + s["damping"] + s["weight_decay"]
            precision.mul_(s["beta2"]).add_((1 - s["beta2"]) * new)


DATA_SIZE = 50_000


def start(network, optimizer, settings, noise):
    """Offsets of the place where the ascent starts: bSAM's sample of its posterior, or R-SAM's noise in the scale of each filter.

    `noise` is standard normal, by parameter name. A filter is a slice along the first axis of a weight of rank 2 and more, any
    other parameter as a whole.
    """
    for index, (name, p) in enumerate(network.named_parameters()):
        n = noise[name].to(p.dtype)
        if settings["base"] == "bsam":
            yield n / (DATA_SIZE * optimizer.precision[index]).sqrt()
        else:
            filters = p.detach().reshape(p.shape[0] if p.dim() > 1 else 1, -1)
            scale = settings["start_sigma"] * filters.square().mean(1, keepdim=True).sqrt()
            yield (n.reshape(filters.shape) * scale).reshape(p.shape)


def base_optimizer(parameters, settings):
    if settings["base"] == "bsam":
        return Bsam(parameters, settings)
    if settings["base"] == "sgd":
        names = ("lr", "momentum", "nesterov", "weight_decay")
        return torch.optim.SGD(parameters, **{k: settings[k] for k in names})
    betas = settings["beta1"], settings["beta2"]
    return torch.optim.AdamW(parameters, settings["lr"], betas, settings["eps"], settings["weight_decay"])


def scores(network, x, labels):
    """Unsmoothed cross-entropy of every sample, in training mode, without moving running statistics."""
    move_statistics(network, 0.0)
    with torch.no_grad():
        result = F.cross_entropy(network(x), labels, reduction="none")
    move_statistics(network, 0.1)
    return result


def highest(values, count):
    """Places of the highest values, in order; of equal ones the first."""
    order = sorted(range(len(values)), key=lambda i: (-values[i].item(), i))
    return torch.tensor(sorted(order[:count]))


def gradients(parameters, loss):
    return torch.autograd.grad(loss, parameters)


def passes(network, optimizer, x, labels, settings, climbs, chosen_names, noise):
    """Losses of the passes on a micro-batch, and their gradients: (losses, ascent's or None, descent's).

    ESAM's stochastic weight perturbation moves the parameters of these names only, by rho / beta.
    """
    parameters = list(network.parameters())
    kept = [p.detach().clone() for p in parameters]
    losses, up = [], None
    if "top_k" in settings:
        chosen = highest(scores(network, x, labels), min(settings["top_k"], len(x)))
        x, labels = x[chosen], labels[chosen]
    if climbs:
        before = scores(network, x, labels)
        if noise is not None:
            offsets = list(start(network, optimizer, settings, noise))
            with torch.no_grad():
                for p, offset in zip(parameters, offsets):
                    p += offset
        loss = ascent_loss(network(x), labels, settings)
        losses.append(loss.item())
        up = gradients(parameters, loss)
        with torch.no_grad():
            for p, w in zip(parameters, kept):
                p.copy_(w)
        for (name, p), g in zip(network.named_parameters(), up):
            p.grad = g if chosen_names is None or name in chosen_names else torch.zeros_like(g)
        with torch.no_grad():
            if settings["base"] == "bsam":
                climb = [settings["rho"] * p.grad / s for p, s in zip(parameters, optimizer.precision)]
            else:
                climb = perturbation(parameters, settings)
            for p, e in zip(parameters, climb):
                p += e
        if settings.get("sds_gamma", 1.0) < 1:
            rise = scores(network, x, labels) - before
            chosen = highest(rise, max(1, int(settings["sds_gamma"] * len(x) + 1e-6)))
            x, labels = x[chosen], labels[chosen]
        move_statistics(network, 0.0)
    loss = smoothed_cross_entropy(network(x), labels, settings["label_smoothing"])
    losses.append(loss.item())
    down = gradients(parameters, loss)
    move_statistics(network, 0.1)
    with torch.no_grad():
        for p, w in zip(parameters, kept):
            p.copy_(w)
    return losses, up, down


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def across(x, axis):
    """x without its part along the axis."""
    return x - (x @ axis) / (axis @ axis) * axis


def step(network, optimizer, x, labels, settings, memory, chosen_names, noise):
    """One training step; returns the losses of its passes, in order. LookSAM's direction is kept in `memory`."""
    parameters = list(network.parameters())
    count = memory.setdefault("steps", 0)
    climbs = "ascent" in settings and count % settings.get("period", 1) == 0
    size = settings.get("micro_batch", len(x))
    total, losses, sizes = 0.0, 0.0, 0.0
    for number, first in enumerate(range(0, len(x), size)):
        part = slice(first, first + size)
        here = None if noise is None else {name: values[number] for name, values in noise.items()}
        found, up, down = passes(network, optimizer, x[part], labels[part], settings, climbs, chosen_names, here)
        share = len(x[part]) / len(x)
        if settings["base"] == "bsam":
            sizes = sizes + share * flat(up).abs()
        total = total + share * flat(down)
        losses = losses + share * np.array(found)
    if settings.get("gsam_alpha"):
        # Zhuang et al. 2022: the part of the ascent's gradient across the descent's lowers the surrogate gap.
        total = total - settings["gsam_alpha"] * across(flat(up), total)
    if settings.get("period", 1) > 1:
        # Liu et al. 2022: the part of SAM's gradient across the plain one changes slowly.
        if climbs:
            memory["direction"] = across(total, flat(up))
        else:
            direction = memory["direction"]
            total = total + settings["look_alpha"] * total.norm() / direction.norm() * direction
    lengths = [p.numel() for p in parameters]
    for p, g in zip(parameters, total.split(lengths)):
        p.grad = g.reshape(p.shape)
    if settings["base"] == "bsam":
        optimizer.sizes = [g.reshape(p.shape) for p, g in zip(parameters, sizes.split(lengths))]
    optimizer.step()
    memory["steps"] = count + 1
    return list(losses)


def batches(model, seed):
    """Random batches in sixteenths, which float32 holds exactly and compression likes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(STEPS, BATCH, *model.sample, generator=generator).mul(16).round().div(16)
    return x, torch.randint(CLASSES, (STEPS, BATCH), generator=generator)


def replay(name, settings, x, labels, dtype=torch.float64):
    """Ten steps from the weights of the file; returns the arrays to store."""
    network = make.build(make.MODELS[name]).to(dtype).train()
    graph = onnx.load(HERE / f"{name}.onnx").graph
    missing = network.load_state_dict({i.name: tensor(i) for i in graph.initializer}, strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
    optimizer = base_optimizer(network.parameters(), settings)
    arrays, losses, memory = {}, [], {}
    choices = [None] * STEPS
    if "swp_beta" in settings:
        # The random choices of the run to compare with, as parameter names.
        choices = [set(line.split()) for line in (HERE / "reference" / f"choices_{name}.txt").read_text().splitlines()]
    noise = None
    if settings["base"] == "bsam" or "start_sigma" in settings:
        # The noise of the run to compare with: [step, micro-batch, ...] by parameter name.
        noise = {k: torch.from_numpy(v) for k, v in np.load(HERE / "reference" / f"noise_{name}.npz").items()}
    for index in range(STEPS):
        here = noise and {name: values[index] for name, values in noise.items()}
        batch = x[index].to(dtype), labels[index]
        losses.append(step(network, optimizer, *batch, settings, memory, choices[index], here))
        if index + 1 in (1, STEPS):
            state = network.state_dict()
            arrays |= {f"step{index + 1}/{i.name}": state[i.name].float().numpy().copy() for i in graph.initializer}
    arrays["descent_loss"] = np.array([found[-1] for found in losses], np.float32)
    if len(losses[-1]) > 1:
        arrays["ascent_loss"] = np.array([found[0] for found in losses], np.float32)
    return arrays


def gap(a, b):
    """Largest relative difference, in norm, between the arrays of two runs."""
    return max(float(np.linalg.norm(a[k] - b[k]) / np.linalg.norm(b[k])) for k in b)


def main():
    torch.set_num_threads(1)
    seeds = {"tiny_bn": 200, "tiny_ln": 200}
    for name in sys.argv[1:] or seeds:
        x, labels = batches(make.MODELS[name], seeds[name])
        for method, settings in METHODS.items():
            settings = settings | {"label_smoothing": 0.1}
            arrays = replay(name, settings, x, labels)
            single = gap(replay(name, settings, x, labels, torch.float32), arrays)
            text = np.frombuffer(json.dumps(settings).encode(), np.uint8)
            path = HERE / "reference" / f"replay_{name}_{method}.npz"
            np.savez_compressed(path, settings=text, x=x.numpy(), labels=labels.numpy(), **arrays)
            losses = arrays["descent_loss"]
            print(f"{path.name:32} loss {losses[0]:.4f} -> {losses[-1]:.4f}, float32 differs by {single:.0e}")


if __name__ == "__main__":
    main()
