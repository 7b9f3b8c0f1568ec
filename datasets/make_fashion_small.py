"""Writes fashion-mnist-small/: a class-balanced part of Fashion-MNIST in its own file format.

    apt-get install dataset-fashion-mnist
    python datasets/make_fashion_small.py [DIR of the complete data set]

5,000 of the 60,000 training images and 1,000 of the 10,000 test images, a seeded choice, in their original order.
Needs only Python itself.
"""

import gzip
import random
import struct
import sys
from pathlib import Path

SOURCE = Path("/usr/share/datasets/fashion-mnist")
TARGET = Path(__file__).resolve().parent / "fashion-mnist-small"
CLASSES, SIDE = 10, 28


def read(folder, prefix):
    """Images and labels of one split, as bytes."""
    images = gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    magic, count, rows, columns = struct.unpack(">IIII", images[:16])
    assert (magic, rows, columns) == (0x803, SIDE, SIDE)
    assert struct.unpack(">II", labels[:8]) == (0x801, count)
    size = SIDE * SIDE
    return [images[16 + i * size : 16 + (i + 1) * size] for i in range(count)], labels[8:]


def choose(labels, per_class, seed):
    """Indices of `per_class` samples of each class, ascending."""
    generator = random.Random(seed)
    chosen = []
    for label in range(CLASSES):
        chosen += generator.sample([i for i, own in enumerate(labels) if own == label], per_class)
    return sorted(chosen)


def write(path, header, body):
    path.write_bytes(gzip.compress(header + body, 9, mtime=0))


def main():
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE
    TARGET.mkdir(exist_ok=True)
    for prefix, per_class in (("train", 500), ("t10k", 100)):
        images, labels = read(source, prefix)
        chosen = choose(labels, per_class, seed=0)
        header = struct.pack(">IIII", 0x803, len(chosen), SIDE, SIDE)
        write(TARGET / f"{prefix}-images-idx3-ubyte.gz", header, b"".join(images[i] for i in chosen))
        header = struct.pack(">II", 0x801, len(chosen))
        write(TARGET / f"{prefix}-labels-idx1-ubyte.gz", header, bytes(labels[i] for i in chosen))


if __name__ == "__main__":
    main()
