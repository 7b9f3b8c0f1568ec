"""How the time of a training step grows with the batch and with the depth: figures as SVG, numbers as JSON.

    python benches/growth.py --threads 2 --out docs/figures

Needs the packages of models/requirements.txt and matplotlib. Batches of 16 to 512 on ResNet-20, depths of 20 to 110 at batch 128, SGD;
every point is the median of some rounds, which run through all points in turn. Each figure has a straight line fitted to relative errors.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "models"))
import architectures as arch  # noqa: E402
import make  # noqa: E402

BATCHES = (16, 32, 64, 128, 256, 512)
DEPTHS = (20, 32, 44, 56, 80, 110)


def step_ms(options, file, batch):
    command = [options.bisam, "bench", file, "--batch", str(batch), "--optimizer", "sgd", "--json"]
    command += ["--steps", str(options.steps), "--threads", str(options.threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["step_ms"]


def fit(x, y):
    """Intercept and slope of least relative squares, and the greatest relative distance of a point from the line."""
    x, y = np.array(x, float), np.array(y, float)
    (a, b), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], 1), np.ones_like(y), rcond=None)
    return a, b, float(np.max(np.abs((a + b * x) / y - 1)))


def draw(path, x, y, label):
    a, b, off = fit(x, y)
    figure, axes = plt.subplots(figsize=(5, 3.4))
    axes.plot([0, max(x)], [a, a + b * max(x)], color="0.6", lw=1, label=f"{a:.1f} ms + {b:.2f} ms · {label}")
    axes.plot(x, y, "o", color="tab:blue", label=f"measured; {100 * off:.0f} % off the line at most")
    axes.set(xlabel=label, ylabel="step, ms", xlim=0, ylim=0)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    return {"x": list(x), "step_ms": y, "intercept": a, "slope": b, "off": off}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
    parser.add_argument("--bisam", type=Path, default=target / "release" / "bisam")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("."))
    options = parser.parse_args()
    matplotlib.rcParams["svg.hashsalt"] = "bisam"
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for depth in DEPTHS:
            files[depth] = Path(folder) / f"resnet{depth}.onnx"
            make.export(make.Model(lambda depth=depth: arch.ResNet(depth), "train"), files[depth])
        points = {("batch", b): (files[20], b) for b in BATCHES} | {("depth", d): (files[d], 128) for d in DEPTHS}
        times = {key: [] for key in points}
        for _ in range(options.rounds):
            for key, (file, batch) in points.items():
                times[key].append(step_ms(options, file, batch))
    median = {key: statistics.median(t) for key, t in times.items()}
    result = {}
    for kind, values in [("batch", BATCHES), ("depth", DEPTHS)]:
        result[kind] = draw(options.out / f"growth-{kind}.svg", values, [median[kind, v] for v in values], kind)
        print(kind, ", ".join(f"{v}: {median[kind, v]:.1f} ms" for v in values))
        print(f"  {result[kind]['intercept']:.2f} ms + {result[kind]['slope']:.3f} ms · {kind}, at most {100 * result[kind]['off']:.1f} % off")
    (options.out / "growth.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
