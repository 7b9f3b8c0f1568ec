"""Times training steps of bisam against PyTorch on the same machine, alternating, at equal threads.

    python benches/run.py [--bisam target/release/bisam] [--threads 2] [--rounds 4] [--steps 3] [--models resnet20 vit ...]
        [--optimizers sgd bisam] [--kernels fused] [--plain] [--compile] [--ort-training PYTHON] [--exports DIR]

Needs the packages of models/requirements.txt, and torchvision for mobilenet_v2. PyTorch runs eagerly, in the best memory format of
contiguous and channels_last; with --compile also compiled (torch.compile), in the same formats. With --ort-training, the interpreter of
an environment as peer_ort_training.py needs it, ONNX Runtime Training runs the same files, with SGD only. Each round runs some steps
of every contender in turn; the figure is the median over rounds of a round's median step. With --plain, bisam's plain operators run as
well; beside a step of bisam's, those of SAM and SGD. The share of the GEMM peak is what the step's convolutions and matrix products,
counted as direct ones (`bisam inspect`), make of the rate of PyTorch's product of 2048 × 2048 matrices, measured in every round.
Prints a Markdown table and writes the numbers as JSON with --json FILE. Peak memory is the process's; PyTorch's includes Python and
torch themselves.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peer_pytorch import BATCH

HERE = Path(__file__).resolve().parent
TEXT = ("bert", "minilm")
DEFAULT = ("resnet20", "resnet56", "vit", "bert")
SEQUENCE = 64


class Peer:
    """A serving process."""

    def __init__(self, command):
        self.process = subprocess.Popen(
            [str(c) for c in command] + ["--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )

    def run(self, steps):
        """What it says after some steps; none if it has died."""
        try:
            print(f"run {steps}", file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def close(self):
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.wait()


def pytorch(options, model, optimizer, memory_format, compiled):
    """PyTorch in one memory format."""
    command = [sys.executable, HERE / "peer_pytorch.py", model, optimizer, "--threads", options.threads]
    command += ["--batch", BATCH[model], "--memory-format", memory_format]
    return Peer(command + ["--compile"] * compiled)


def ort_training(options, file, model):
    """ONNX Runtime Training on the file that bisam reads."""
    command = [options.ort_training, HERE / "peer_ort_training.py", file, "--batch", BATCH[model]]
    return Peer(command + ["--threads", options.threads, "--length", SEQUENCE])


def bisam(options, file, model, optimizer, kernels):
    """One process of `bisam bench`; two steps before the timed ones are not counted."""
    command = [options.bisam, "bench", file, "--batch", str(BATCH[model]), "--optimizer", optimizer]
    command += ["--steps", str(options.steps), "--kernels", kernels]
    command += ["--threads", str(options.threads), "--json", "--dim", f"sequence={SEQUENCE}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def flops(options, file, model, optimizer):
    """Floating point operations of a step's convolutions and matrix products."""
    command = [options.bisam, "inspect", file, "--batch", str(BATCH[model]), "--json", "--dim", f"sequence={SEQUENCE}"]
    cost = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["cost"]
    return cost["gradient_flops" if optimizer == "sgd" else "step_flops"]


def gemm_peak(n=2048, runs=5):
    """Floating point operations a second of the best of some products of square matrices."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    best = math.inf
    for _ in range(runs):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def compare(options, folder, model, optimizer):
    """One row: median step times and peaks of PyTorch's better format and of bisam."""
    file = folder / f"{model}.onnx"
    formats = ["contiguous"] if model in TEXT or model == "vit" else ["contiguous", "channels_last"]
    peers = {f: pytorch(options, model, optimizer, f, False) for f in formats}
    if options.compile:
        peers |= {f"compiled {f}": pytorch(options, model, optimizer, f, True) for f in formats}
    if options.ort_training and optimizer == "sgd":
        peers["ort training"] = ort_training(options, file, model)
    # Of bisam: name, optimizer, kernels.
    own = [("bisam", optimizer, options.kernels)]
    own += [("plain", optimizer, "plain")] if options.plain else []
    own += [(other, other, options.kernels) for other in ("sam", "sgd")] if optimizer == "bisam" else []
    times, peaks, startup, peak = {}, {}, [], []
    for _ in range(options.rounds):
        peak.append(gemm_peak())
        for name, peer in peers.items():
            result = peer.run(options.steps)
            if result:
                times.setdefault(name, []).append(result["step_ms"])
                peaks[name] = result["peak_bytes"]
        for name, method, kernels in own:
            result = bisam(options, file, model, method, kernels)
            times.setdefault(name, []).append(result["step_ms"])
            peaks[name] = max(peaks.get(name, 0), result["peak_bytes"])
            if name == "bisam":
                startup.append(result["startup_s"])
    for peer in peers.values():
        peer.close()
    median = {name: statistics.median(t) for name, t in times.items()}
    best = min(formats, key=median.get)
    compiled = min((median[name] for name in median if name.startswith("compiled")), default=None)
    step = median["bisam"]
    return {
        "model": model,
        "optimizer": optimizer,
        "pytorch_ms": median[best],
        "pytorch_format": best,
        "bisam_ms": step,
        "ratio": step / median[best],
        "plain": "plain" in median and median["plain"] / median[best],
        "over_compiled": compiled and step / compiled,
        "over_ort_training": "ort training" in median and step / median["ort training"],
        "over_sam": "sam" in median and step / median["sam"],
        "over_sgd": "sgd" in median and step / median["sgd"],
        "share": flops(options, file, model, optimizer) / (step / 1e3) / statistics.median(peak),
        "pytorch_peak": peaks[best],
        "bisam_peak": peaks["bisam"],
        "startup_s": statistics.median(startup),
        "rounds_ms": times,
    }


COLUMNS = (
    "model | step | PyTorch ms | bisam ms | ratio | plain | over compiled | over ORT Training | over sam | over sgd | of GEMM peak"
    " | peak MB PyTorch / bisam | ratio | start s"
)


def row(r):
    """A line of the table."""
    ratio = lambda name, digits=2: f"{r[name]:.{digits}f}" if r[name] else ""  # noqa: E731
    cells = [r["model"], r["optimizer"], f"{r['pytorch_ms']:.0f} ({r['pytorch_format']})", f"{r['bisam_ms']:.0f}", ratio("ratio")]
    cells += [ratio("plain"), ratio("over_compiled"), ratio("over_ort_training"), ratio("over_sam", 3), ratio("over_sgd", 3)]
    peaks = r["pytorch_peak"] / 1e6, r["bisam_peak"] / 1e6
    cells += [f"{100 * r['share']:.0f} %", f"{peaks[0]:.0f} / {peaks[1]:.0f}", f"{peaks[1] / peaks[0]:.2f}", f"{r['startup_s']:.2f}"]
    return f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
    parser.add_argument("--bisam", type=Path, default=target / "release" / "bisam")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=BATCH, default=DEFAULT)
    parser.add_argument("--optimizers", nargs="+", choices=["sgd", "bisam"], default=["sgd", "bisam"])
    parser.add_argument("--exports", type=Path, help="keeps the exported models there and finds them again")
    parser.add_argument("--kernels", choices=["fused", "plain"], default="fused")
    parser.add_argument("--plain", action="store_true", help="bisam's plain operators as another peer")
    parser.add_argument("--compile", action="store_true", help="torch.compile as another peer")
    parser.add_argument("--ort-training", metavar="PYTHON", help="ONNX Runtime Training as another peer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.exports or Path(temporary)
        missing = [m for m in options.models if not (folder / f"{m}.onnx").exists()]
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, HERE.parent / "models" / "make.py", "--full", folder, *missing]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"| {COLUMNS} |\n|---|---|{'--:|' * (COLUMNS.count('|') - 1)}")
        for model in options.models:
            for optimizer in options.optimizers:
                rows.append(compare(options, folder, model, optimizer))
                print(row(rows[-1]), flush=True)
    for optimizer in options.optimizers:
        ratios = [r["ratio"] for r in rows if r["optimizer"] == optimizer]
        print(f"\n{optimizer}: geometric mean of the ratios {statistics.geometric_mean(ratios):.2f}, greatest {max(ratios):.2f}")
        for name in ("plain", "over_compiled", "over_ort_training", "over_sam", "over_sgd"):
            ratios = [r[name] for r in rows if r["optimizer"] == optimizer and r[name]]
            if ratios:
                print(f"  {name}: geometric mean {statistics.geometric_mean(ratios):.3f}, greatest {max(ratios):.3f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
