"""Time and memory that reading large models takes.

    python benches/large.py [--bisam target/release/bisam] [--folder .zoo/large]

Exports networks of full size with random weights, and one of more than 10,000 nodes. For each: `bisam inspect` (seconds on the
clock, most memory of the process, and that as a multiple of the file's size), and `bisam build` (import, tracing,
differentiation and writing the stages) at a batch of 2. Needs the packages of benches/zoo-requirements.txt. Prints a Markdown table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import onnx
import torch
import torchvision
import transformers
from torch import nn

ROOT = Path(__file__).resolve().parent.parent


class Text(nn.Module):
    """A sequence classifier of transformers that returns its logits."""

    def __init__(self, config):
        super().__init__()
        config._attn_implementation = "eager"
        self.model = transformers.AutoModelForSequenceClassification.from_config(config)

    def forward(self, ids, mask):
        return self.model(input_ids=ids, attention_mask=mask).logits


class Deep(nn.Module):
    """Three thousand residual blocks of a normalization, a linear layer and an activation."""

    def __init__(self, width=16, depth=3000):
        super().__init__()
        block = lambda: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())  # noqa: E731
        self.blocks, self.head = nn.ModuleList(block() for _ in range(depth)), nn.Linear(width, 10)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def image(size=224):
    return (torch.randn(2, 3, size, size),)


def tokens():
    ids = torch.randint(5, 1000, (2, 64))
    return ids, torch.ones_like(ids)


NETWORKS = {
    "resnet50": (lambda: torchvision.models.resnet50(), image),
    "densenet201": (lambda: torchvision.models.densenet201(), image),
    "convnext_base": (lambda: torchvision.models.convnext_base(), image),
    "vit_b_16": (lambda: torchvision.models.vit_b_16(), image),
    "swin_v2_b": (lambda: torchvision.models.swin_v2_b(), lambda: image(256)),
    "vgg16": (lambda: torchvision.models.vgg16(), image),
    "bert_base": (lambda: Text(transformers.BertConfig()), tokens),
    "deberta_v3_base": (
        lambda: Text(transformers.DebertaV2Config(
            hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, relative_attention=True,
            pos_att_type=["p2c", "c2p"], position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True, type_vocab_size=0,
        )),
        tokens,
    ),
    "deep_3000": (Deep, lambda: (torch.randn(2, 16),)),
}


def export(name, path):
    """Writes the TorchScript export in training mode, with a dynamic batch."""
    build, inputs = NETWORKS[name]
    torch.manual_seed(0)
    batch = inputs()
    names = [f"x{i}" for i in range(len(batch))]
    torch.onnx.export(
        build(), batch, str(path), dynamo=False, training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False,
        input_names=names, output_names=["logits"], dynamic_axes={n: {0: "batch"} for n in (*names, "logits")},
    )


# Run in a small process of its own: a process starts with the memory of the one that starts it.
MEASURE = """
import json, resource, subprocess, sys, time
begin = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps([time.perf_counter() - begin, peak, code == 0]))
"""


def measure(command):
    """Seconds on the clock and most memory in bytes of a command, and whether it ended well."""
    result = subprocess.run([sys.executable, "-S", "-c", MEASURE, *map(str, command)], capture_output=True, text=True)
    return json.loads(result.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="networks (default: all)")
    parser.add_argument("--bisam", type=Path, default=ROOT / "target" / "release" / "bisam")
    parser.add_argument("--folder", type=Path, default=ROOT / ".zoo" / "large", help="where exports are kept")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    options.folder.mkdir(parents=True, exist_ok=True)
    print("| network | nodes | file MB | inspect s | memory MB | × file | build s | memory MB | × file |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name in options.words or NETWORKS:
        path = options.folder / f"{name}.onnx"
        if not path.exists():
            export(name, path)
        nodes = len(onnx.load(path, load_external_data=False).graph.node)
        size = path.stat().st_size
        cells = []
        with tempfile.TemporaryDirectory(dir=options.folder) as out:
            for command in (["inspect", path], ["build", path, "--batch", 2, "-o", out]):
                seconds, memory, ok = measure([options.bisam, "-q", *command])
                cells += [f"{seconds:.2f}" + ("" if ok else " (failed)"), f"{memory / 1e6:.0f}", f"{memory / size:.1f}"]
        print(f"| {name} | {nodes:,} | {size / 1e6:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
