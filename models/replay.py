"""Writes reference/replay_<model>_<method>.npz: ten training steps, to be replayed elsewhere on the same batches.

    python models/replay.py

Written from the papers' formulas for legibility, in float64, stored as float32. Arrays of a file:
    settings                      the run's settings: JSON in UTF-8, as bytes (uint8)
    <input name>, labels          the batches, [step, sample, ...]
    ascent_loss, descent_loss     per step; for sgd and adamw only descent_loss, the loss of their single pass
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
    """rho g / |g|, or with the adaptive metric rho T^2 g / |T g|, T = |w| + eta on weights of rank 2 and more."""
    scale = [torch.ones_like(p) for p in parameters]
    if settings["adaptive"]:
        scale = [p.detach().abs() + settings["eta"] if p.dim() >= 2 else t for p, t in zip(parameters, scale)]
    norm = torch.sqrt(sum(((t * p.grad) ** 2).sum() for p, t in zip(parameters, scale)))
    return [settings["rho"] * t**2 * p.grad / (norm + 1e-12) for p, t in zip(parameters, scale)]


def move_statistics(network, momentum):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


def base_optimizer(parameters, settings):
    if settings["base"] == "sgd":
        names = ("lr", "momentum", "nesterov", "weight_decay")
        return torch.optim.SGD(parameters, **{k: settings[k] for k in names})
    betas = settings["beta1"], settings["beta2"]
    return torch.optim.AdamW(parameters, settings["lr"], betas, settings["eps"], settings["weight_decay"])


def step(network, optimizer, x, labels, settings):
    """One training step; returns the losses of its passes, in order."""
    parameters = list(network.parameters())
    losses, shift = [], None
    if "ascent" in settings:
        optimizer.zero_grad()
        loss = ascent_loss(network(x), labels, settings)
        loss.backward()
        losses.append(loss.item())
        shift = perturbation(parameters, settings)
        kept = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, e in zip(parameters, shift):
                p += e
        move_statistics(network, 0.0)
    optimizer.zero_grad()
    loss = smoothed_cross_entropy(network(x), labels, settings["label_smoothing"])
    loss.backward()
    losses.append(loss.item())
    if shift is not None:
        with torch.no_grad():
            for p, w in zip(parameters, kept):
                p.copy_(w)
        move_statistics(network, 0.1)
    optimizer.step()
    return losses


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
    arrays, losses = {}, []
    for index in range(STEPS):
        losses.append(step(network, optimizer, x[index].to(dtype), labels[index], settings))
        if index + 1 in (1, STEPS):
            state = network.state_dict()
            arrays |= {f"step{index + 1}/{i.name}": state[i.name].float().numpy().copy() for i in graph.initializer}
    names = ("ascent_loss", "descent_loss") if "ascent" in settings else ("descent_loss",)
    arrays |= {key: np.array(column, np.float32) for key, column in zip(names, zip(*losses))}
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
