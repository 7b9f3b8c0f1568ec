"""Times training steps of bisam against PyTorch eager on the same machine, alternating, at equal threads.

    python benches/run.py [--bisam target/release/bisam] [--threads 2] [--rounds 4] [--steps 3] [--models resnet20 vit ...]
        [--kernels fused]

Needs the packages of models/requirements.txt. PyTorch runs in its best memory format of contiguous and channels_last. Each round
runs some steps of every contender in turn; the figure is the median over rounds of a round's median step. Prints a Markdown table
and writes the numbers as JSON with --json FILE. Peak memory is the process's; PyTorch's includes Python and torch themselves.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
BATCH = {"resnet20": 128, "resnet56": 128, "vit": 64, "bert": 32}
SEQUENCE = 64


class PyTorch:
    """A serving PyTorch process."""

    def __init__(self, model, optimizer, memory_format, threads):
        command = [sys.executable, HERE / "peer_pytorch.py", model, optimizer, "--serve", "--threads", str(threads)]
        command += ["--batch", str(BATCH[model]), "--memory-format", memory_format]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, steps):
        print(f"run {steps}", file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def bisam(options, file, model, optimizer):
    """One process of `bisam bench`; two steps before the timed ones are not counted."""
    command = [options.bisam, "bench", file, "--batch", str(BATCH[model]), "--optimizer", optimizer]
    command += ["--steps", str(options.steps), "--kernels", options.kernels]
    command += ["--threads", str(options.threads), "--json", "--dim", f"sequence={SEQUENCE}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(options, folder, model, optimizer):
    """One row: median step times and peaks of PyTorch's better format and of bisam."""
    formats = ["contiguous", "channels_last"] if model.startswith("resnet") else ["contiguous"]
    peers = {f: PyTorch(model, optimizer, f, options.threads) for f in formats}
    times = {name: [] for name in [*formats, "bisam", "sam"]}
    peaks, startup = {}, []
    for _ in range(options.rounds):
        for name, peer in peers.items():
            result = peer.run(options.steps)
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
    return {
        "model": model,
        "optimizer": optimizer,
        "pytorch_ms": median[best],
        "pytorch_format": best,
        "bisam_ms": median["bisam"],
        "ratio": median["bisam"] / median[best],
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
    parser.add_argument("--models", nargs="+", choices=BATCH, default=list(BATCH))
    parser.add_argument("--kernels", choices=["fused", "plain"], default="fused")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, HERE.parent / "models" / "make.py", "--full", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print("| model | step | PyTorch ms | bisam ms | ratio | over sam | peak MB PyTorch / bisam | start s |")
        print("|---|---|---|---|---|---|---|---|")
        for model in options.models:
            for optimizer in ["sgd", "bisam"]:
                r = compare(options, Path(folder), model, optimizer)
                rows.append(r)
                over = f"{r['over_sam']:.3f}" if r["over_sam"] else ""
                print(
                    f"| {model} | {optimizer} | {r['pytorch_ms']:.0f} ({r['pytorch_format']}) | {r['bisam_ms']:.0f} | "
                    f"{r['ratio']:.2f} | {over} | {r['pytorch_peak'] / 1e6:.0f} / {r['bisam_peak'] / 1e6:.0f} | "
                    f"{r['startup_s']:.2f} |",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
