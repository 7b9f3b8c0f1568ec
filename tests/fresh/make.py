"""Exports freshly constructed networks and records what PyTorch makes of them in two steps.

    pip install torch onnx && python tests/fresh/make.py

Each NAME.onnx has a NAME.npz: `x` and `labels` (two batches of 16). NAME.after.npz has, after a step of SGD (lr 0.1) on each batch in float64, the logits of all samples in evaluation
mode, `out`, those before, `before`, and every parameter and running statistic, `after/<name>`. Exporters merge tensors of equal value: untouched gains, biases and running
statistics come out as one.
"""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn as nn
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
warnings.filterwarnings("ignore")


class Merged(nn.Module):
    """Gains, biases and statistics of a normalization, of which none has been touched."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x))))


class Before(nn.Module):
    """Normalization before convolution: nothing is folded."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm1, self.norm2, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x.view(-1, 2, 4, 4))
        x = x + self.conv(torch.relu(self.norm1(x)))
        return self.last(torch.relu(self.norm2(x)).mean((2, 3)))


class Again(nn.Module):
    """One layer three times: its bias of zeros and its gain of ones are one parameter each, and so are another layer's."""

    def __init__(self):
        super().__init__()
        self.first, self.layer, self.norm, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.other = nn.LayerNorm(8)
        nn.init.constant_(self.layer.bias, 0.25)
        nn.init.constant_(self.first.bias, 0.25)

    def forward(self, x):
        h = self.first(x)
        for _ in range(3):
            h = self.norm(h + torch.tanh(self.layer(h)))
        return self.last(self.other(h * h))


class Copies(nn.Module):
    """The layers of nn.TransformerEncoder are deep copies of one: equal at first, but not tied."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        # The dynamo exporter leaves biases of zeros out.
        nn.init.constant_(layer.self_attn.out_proj.bias, 0.1)
        self.first, self.layers, self.last = nn.Linear(4, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.layers(self.first(x.view(-1, 3, 4))).mean(1))


class Standardised(nn.Module):
    """A convolution whose weight is standardised before use, as in BiT and NF-Net."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 6, 3), nn.Linear(6, 3)

    def forward(self, x):
        w = self.conv.weight
        w = F.batch_norm(w.reshape(1, 6, -1), None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(w)
        return self.last(torch.relu(F.conv2d(x.view(-1, 2, 4, 4), w, self.conv.bias)).mean((2, 3)))


class Numbers(nn.Module):
    """Learned numbers: gates that start at zero, a temperature, the exponent of a mean."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.gate1, self.gate2 = nn.Parameter(torch.full((1,), 0.5)), nn.Parameter(torch.full((1,), 0.5))
        self.exponent, self.temperature = nn.Parameter(torch.full((1,), 3.0)), nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        h = self.first(x)
        h = h + self.gate1 * torch.tanh(self.a(h))
        h = h + self.gate2 * torch.tanh(self.b(h))
        h = (h.abs() + 0.1).pow(self.exponent).view(-1, 8, 1).mean(2).pow(1.0 / self.exponent)
        return self.last(h) * self.temperature


class Branches(nn.Module):
    """One normalization in two branches: its statistics move at each application, in order."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(16, 3)

    def forward(self, x):
        a, b = self.norm(self.first(x)), self.norm(self.first(2.0 * x.flip(1) + 1.0))
        return self.last(torch.cat([torch.relu(a), torch.relu(b)], 1))


class Average(Merged):
    """momentum=None: running statistics are averages of all batches. The exporter writes a momentum of 1."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8, momentum=None)


class Fixed(nn.Module):
    """A training export in which one of two normalizations is fixed."""

    def __init__(self):
        super().__init__()
        self.first, self.norm1, self.second, self.norm2, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        with torch.no_grad():
            for norm in (self.norm1, self.norm2):
                norm.running_mean.uniform_(-0.5, 0.5), norm.running_var.uniform_(0.5, 1.5), norm.weight.uniform_(0.5, 1.5)

    def train(self, mode=True):
        super().train(mode)
        self.norm1.eval()
        return self

    def forward(self, x):
        return self.last(torch.relu(self.norm2(self.second(torch.relu(self.norm1(self.first(x)))))))


class Placeholders(nn.Module):
    """Normalizations without gain and bias beside one with: the exporter's own ones and zeros are not trained."""

    def __init__(self):
        super().__init__()
        self.first, self.plain, self.norm, self.group, self.last = nn.Linear(6, 8), nn.LayerNorm(8, elementwise_affine=False), nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.Linear(8, 3)
        self.register_buffer("table", torch.stack([torch.sin(torch.arange(8) * 0.3), torch.cos(torch.arange(8) * 0.3)])[0])

    def forward(self, x):
        h = self.norm(self.plain(self.first(x)) * 2.0)
        return self.last(self.group(torch.tanh(h) + self.table))


class Masks(nn.Module):
    """Stochastic depth as torchvision writes it, and dropout: random in training, off in evaluation."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        h = torch.relu(self.first(x))
        g = self.second(h)
        if self.training:
            noise = torch.empty([g.shape[0], 1]).bernoulli_(0.7).div_(0.7)
            g = g * noise
        h = F.dropout(h + g, 0.3, self.training)
        return self.last(h)


class Gain(nn.Module):
    """1 + gain behind an embedding with a row of zeros, as in Gemma: the exporter folds the sum into ones without a name."""

    def __init__(self):
        super().__init__()
        self.table, self.gain, self.last = nn.Embedding(6, 8), nn.Parameter(torch.zeros(8)), nn.Linear(8, 3)
        nn.init.zeros_(self.table.weight[0])

    def forward(self, x):
        h = self.table((x.abs() * 2).long().clamp(max=5))
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + self.gain)
        return self.last(torch.tanh(h).mean(1))


class Mixture(nn.Module):
    """Shares that start as a ramp, as in RWKV: values like those of a table of positions, but learned."""

    def __init__(self):
        super().__init__()
        self.first, self.share, self.last = nn.Linear(6, 8), nn.Parameter(torch.arange(8) / 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.first(x)
        return self.last(torch.tanh(h * self.share + h.roll(1, 1) * (1 - self.share)))


class Computed(nn.Module):
    """A grid that the program makes, and the exporter's optimizer folds."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        steps = torch.linspace(-1, 1, 4, dtype=x.dtype)
        grid = torch.stack([steps, torch.ones_like(steps)], 1).flatten() + 0.5
        return self.last(torch.tanh(self.first(x) * grid))


class Rows(nn.Module):
    """Tables that are looked up at constant places, as BERT's token types: the dynamo exporter keeps what is found there."""

    def __init__(self):
        super().__init__()
        self.first, self.types, self.last = nn.Linear(2, 8), nn.Embedding(2, 8), nn.Linear(8, 3)
        self.register_buffer("ids", torch.zeros(1, 3, dtype=torch.long))

    def forward(self, x):
        h = self.first(x.view(-1, 3, 2)) + self.types(self.ids)
        return self.last(torch.tanh(h + self.types(self.ids + 1).transpose(1, 2).flip(2).transpose(1, 2)).mean(1))


class Parallel(nn.Module):
    """Layers whose first values are equal, on one input: the dynamo exporter computes them once. A reader that transposes like another does not
    make two layers of one."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 8)
        self.norms = nn.ModuleList([nn.LayerNorm(8) for _ in range(3)])
        self.mixes = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.condition = nn.Linear(6, 8)
        self.modulations = nn.ModuleList([nn.Linear(8, 24, bias=False) for _ in range(3)])
        for layer in self.modulations:
            nn.init.zeros_(layer.weight)
        self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        condition = F.silu(self.condition(x))
        h = self.first(x.view(-1, 3, 2))
        h = h + self.mixes[0](self.norms[0](h)) + torch.tanh(self.mixes[1](self.norms[1](h)))
        for modulation, block in zip(self.modulations, self.blocks):
            shift, scale, gate = modulation(condition).chunk(3, dim=1)
            h = h + (1 + gate.unsqueeze(1)) * block(h * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1))
        h = self.norms[2](h)
        h = h + torch.tanh(h.transpose(1, 2)).transpose(1, 2) + torch.sin(h.transpose(1, 2)).transpose(1, 2)
        return self.last(h.mean(1))


class Sines(nn.Module):
    """A position table that is a parameter for PyTorch, but not trained."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 8)
        angles = torch.arange(3)[:, None] * 10.0 ** -torch.arange(0, 4)[None]
        self.positions = nn.Parameter(torch.cat([torch.sin(angles), torch.cos(angles)], 1), requires_grad=False)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x.view(-1, 3, 2)) + self.positions).mean(1))


def export(network, form, path):
    x = torch.randn(4, 32 if needs_image(network) else (12 if isinstance(network, Copies) else 6))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if form == "dynamo":
            network.eval()
            torch.onnx.export(network, (x,), str(path), input_names=["x"], output_names=["y"], dynamo=True, verbose=False,
                              external_data=False, dynamic_shapes=({0: torch.export.Dim("N")},))
        else:
            train = form == "train"
            network.train(train)
            mode = torch.onnx.TrainingMode.PRESERVE if train else torch.onnx.TrainingMode.EVAL
            torch.onnx.export(network, (x,), str(path), input_names=["x"], output_names=["y"], dynamo=False, training=mode,
                              do_constant_folding=not train, dynamic_axes={"x": {0: "N"}, "y": {0: "N"}})
    return x.shape[1]


def needs_image(network):
    return isinstance(network, (Before, Standardised))


def record(network, width, path, steps=True):
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(32, width, generator=generator) * 2 + 0.5).float()
    labels = torch.randint(3, (32,), generator=generator)
    network = network.double()
    network.eval()
    np.savez_compressed(path, x=x.numpy(), labels=labels.numpy())
    arrays = {"before": network(x.double()).detach().numpy()}
    if steps:
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for i in range(2):
            optimizer.zero_grad()
            F.cross_entropy(network(x[16 * i:16 * i + 16].double()), labels[16 * i:16 * i + 16]).backward()
            optimizer.step()
        network.eval()
        arrays["out"] = network(x.double()).detach().numpy()
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                arrays[f"after/{name}"] = value.numpy()
    np.savez_compressed(path.with_suffix(".after.npz"), **arrays)


CASES = {
    "merged": (Merged, ("script", "train")),
    "before": (Before, ("script", "dynamo")),
    "again": (Again, ("script", "dynamo", "train")),
    "copies": (Copies, ("script", "dynamo")),
    "standardised": (Standardised, ("script", "train")),
    "numbers": (Numbers, ("script", "train")),
    "branches": (Branches, ("script", "train")),
    "average": (Average, ("script",)),
    "fixed": (Fixed, ("train",)),
    "placeholders": (Placeholders, ("script", "dynamo", "train")),
    "masks": (Masks, ("train",)),
    "gain": (Gain, ("script",)),
    "mixture": (Mixture, ("train",)),
    "computed": (Computed, ("dynamo",)),
    "rows": (Rows, ("dynamo",)),
    "parallel": (Parallel, ("script", "dynamo")),
    "sines": (Sines, ("script", "dynamo")),
}

if __name__ == "__main__":
    for name, (build, forms) in CASES.items():
        for form in forms:
            torch.manual_seed(0)
            network = build()
            state = {k: v.clone() for k, v in network.state_dict().items()}
            path = HERE / f"{name}_{form}.onnx"
            width = export(network, form, path)
            if form == "train":
                # Tracing in training mode has moved the statistics that the file holds.
                stored = {i.name: torch.tensor(onnx.numpy_helper.to_array(i)) for i in onnx.load(path).graph.initializer}
                state |= {k: stored[k] for k in state if "running" in k and k in stored}
            network.load_state_dict(state)
            record(network, width, path.with_suffix(".npz"), steps=name != "masks")
            print(path.name, path.stat().st_size)
