"""Trains the demo in PyTorch: models/resnet8_28.onnx's network on datasets/fashion-mnist-small with BiSAM.

    python benches/demo_pytorch.py --epochs 22 --seed 0

SGD with momentum 0.9, lr 0.1 on a cosine per epoch, weight decay 5e-4, batch 128 (an epoch's remainder is dropped), rho 0.05,
smoothing 0.1; random crop with 2 pixels of padding and flip; 10 % of the training images held out, the best epoch on them is
tested. Progress goes to stderr, one JSON line to stdout.
"""

import argparse
import gzip
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

from peer_pytorch import Trainer, make

ROOT = Path(__file__).resolve().parent.parent
BATCH, PADDING = 128, 2


def read(folder, prefix):
    """Images in [0, 1], [N, 1, 28, 28], and labels."""
    images = gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    classes = np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
    return torch.from_numpy(pixels / np.float32(255)), torch.from_numpy(classes)


def augment(x, generator):
    """A random crop after zero padding, and a flip of every second image, drawn per image."""
    count, _, height, width = x.shape
    padded = torch.nn.functional.pad(x, [PADDING] * 4)
    top, left = torch.randint(2 * PADDING + 1, (2, count), generator=generator)
    columns = left[:, None] + torch.arange(width)
    flip = torch.rand(count, generator=generator) < 0.5
    columns[flip] = columns[flip].flip(1)
    rows = top[:, None] + torch.arange(height)
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


@torch.no_grad()
def accuracy(network, x, labels):
    network.eval()
    correct = sum(int((network(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), labels.split(500)))
    network.train()
    return correct / len(labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "datasets" / "fashion-mnist-small")
    parser.add_argument("--optimizer", choices=("sgd", "bisam"), default="bisam")
    parser.add_argument("--epochs", type=int, default=22)
    parser.add_argument("--lr", type=float, default=0.1, help="0.3 suits a run this short better")
    parser.add_argument("--seed", type=int, default=0, help="of order, augmentation and split; the weights are the file's")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(options.seed)

    x, labels = read(options.data, "train")
    order = torch.randperm(len(x), generator=generator)
    held_out, kept = order[: len(x) // 10], order[len(x) // 10 :]
    mean, std = x[kept].mean(), x[kept].std()
    valid_x, valid_labels = (x[held_out] - mean) / std, labels[held_out]
    x, labels = x[kept], labels[kept]

    network = make.build(make.MODELS["resnet8_28"]).train()
    trainer = Trainer(network, options.optimizer, lr=options.lr)
    best, weights, start = -1.0, None, time.perf_counter()
    for epoch in range(options.epochs):
        trainer.sgd.param_groups[0]["lr"] = options.lr * 0.5 * (1 + math.cos(math.pi * epoch / options.epochs))
        order = torch.randperm(len(x), generator=generator)
        for index in order[: len(x) // BATCH * BATCH].split(BATCH):
            trainer.step([(augment(x[index], generator) - mean) / std], labels[index])
        valid = accuracy(network, valid_x, valid_labels)
        if valid > best:
            best, weights = valid, {k: v.clone() for k, v in network.state_dict().items()}
        print(f"epoch {epoch + 1:3}  validation {valid:.4f}  {time.perf_counter() - start:.0f} s", file=sys.stderr)
    seconds = time.perf_counter() - start

    network.load_state_dict(weights)
    test_x, test_labels = read(options.data, "t10k")
    test = accuracy(network, (test_x - mean) / std, test_labels)
    settings = {key: getattr(options, key) for key in ("optimizer", "lr", "epochs", "seed", "threads")}
    result = {"valid": best, "test": test, "seconds": round(seconds, 1), "torch": torch.__version__}
    print(json.dumps(settings | result))


if __name__ == "__main__":
    main()
