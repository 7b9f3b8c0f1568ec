"""Times training steps of bisam against PyTorch on the same machine, alternating, at equal threads.

    python benches/run.py [--bisam target/release/bisam] [--threads 2] [--rounds 4] [--steps 3] [--models resnet20 vit ...]
        [--optimizers sgd bisam] [--kernels fused] [--compile] [--ort-training PYTHON] [--exports DIR]

Needs the packages of models/requirements.txt, and torchvision for mobilenet_v2. PyTorch runs eagerly, in the best memory format of
contiguous and channels_last; with --compile also compiled (torch.compile), in the same formats. With --ort-training, the interpreter of
an environment as peer_ort_training.py needs it, ONNX Runtime Training runs the same files, with SGD only. Each round runs some steps
of every contender in turn; the figure is the median over rounds of a round's median step. Prints a Markdown table and writes the
numbers as JSON with --json FILE. Peak memory is the process's; PyTorch's includes Python and torch themselves.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

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


def bisam(options, file, model, optimizer):
    """One process of `bisam bench`; two steps before the timed ones are not counted."""
    command = [options.bisam, "bench", file, "--batch", str(BATCH[model]), "--optimizer", optimizer]
    command += ["--steps", str(options.steps), "--kernels", options.kernels]
    command += ["--threads", str(options.threads), "--json", "--dim", f"sequence={SEQUENCE}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(options, folder, model, optimizer):
    """One row: median step times and peaks of PyTorch's better format and of bisam."""
    formats = ["contiguous"] if model in TEXT or model == "vit" else ["contiguous", "channels_last"]
    peers = {f: pytorch(options, model, optimizer, f, False) for f in formats}
    if options.compile:
        peers |= {f"compiled {f}": pytorch(options, model, optimizer, f, True) for f in formats}
    if options.ort_training and optimizer == "sgd":
        peers["ort training"] = ort_training(options, folder / f"{model}.onnx", model)
    times = {name: [] for name in [*peers, "bisam", "sam"]}
    peaks, startup = {}, []
    for _ in range(options.rounds):
        for name, peer in peers.items():
            result = peer.run(options.steps)
            if result:
                times[name].append(result["step_ms"])
                peaks[name] = result["peak_bytes"]
        result = bisam(options, folder / f"{model}.onnx", model, optimizer)
        times["bisam"].append(result["step_ms"])
        peaks["bisam"] = max(peaks.get("bisam", 0), result["peak_bytes"])
        startup.append(result["startup_s"])
        if optimizer == "bisam":
            result = bisam(options, folder / f"{model}.onnx", model, "sam")
            times["sam"].append(result["step_ms"])
    for peer in peers.values():
        peer.close()
    median = {name: statistics.median(t) for name, t in times.items() if t}
    best = min(formats, key=median.get)
    compiled = min((median[name] for name in median if name.startswith("compiled")), default=None)
    training = median.get("ort training")
    return {
        "model": model,
        "optimizer": optimizer,
        "pytorch_ms": median[best],
        "pytorch_format": best,
        "bisam_ms": median["bisam"],
        "ratio": median["bisam"] / median[best],
        "compiled_ms": compiled,
        "over_compiled": compiled and median["bisam"] / compiled,
        "ort_training_ms": training,
        "over_ort_training": training and median["bisam"] / training,
        "over_sam": median["bisam"] / median["sam"] if "sam" in median else None,
        "pytorch_peak": peaks[best],
        "bisam_peak": peaks["bisam"],
        "startup_s": statistics.median(startup),
        "rounds_ms": times,
    }


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
    parser.add_argument("--compile", action="store_true", help="torch.compile as another peer")
    parser.add_argument("--ort-training", metavar="PYTHON", help="ONNX Runtime Training as another peer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.exports or Path(temporary)
        missing = [m for m in options.models if not (folder / f"{m}.onnx").exists()]
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, HERE.parent / "models" / "make.py", "--full", folder, *missing]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print("| model | step | PyTorch ms | bisam ms | ratio | over compiled | over ORT Training | over sam | peak MB PyTorch / bisam | start s |")
        print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
        for model in options.models:
            for optimizer in options.optimizers:
                r = compare(options, folder, model, optimizer)
                rows.append(r)
                over = f"{r['over_sam']:.3f}" if r["over_sam"] else ""
                compiled, training = (f"{r[k]:.2f}" if r[k] else "" for k in ("over_compiled", "over_ort_training"))
                print(
                    f"| {model} | {optimizer} | {r['pytorch_ms']:.0f} ({r['pytorch_format']}) | {r['bisam_ms']:.0f} | "
                    f"{r['ratio']:.2f} | {compiled} | {training} | {over} | {r['pytorch_peak'] / 1e6:.0f} / {r['bisam_peak'] / 1e6:.0f} | "
                    f"{r['startup_s']:.2f} |",
                    flush=True,
                )
    for optimizer in options.optimizers:
        ratios = [r["ratio"] for r in rows if r["optimizer"] == optimizer]
        print(f"\n{optimizer}: geometric mean of the ratios {statistics.geometric_mean(ratios):.2f}, greatest {max(ratios):.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
