"""Times a step of every method on one model, side by side (the paper's Table 11 by step).

    python benches/methods.py [MODEL] [--bisam target/release/bisam] [--batch 128] [--threads 2] [--rounds 5] [--steps 3]

Each round runs some steps of every method in turn; the figure is the median over rounds of a round's median step. Prints a
Markdown table: milliseconds, and the ratio to sgd and to sam.
"""

import argparse
import json
import os
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METHODS = {
    "sgd": [],
    "sam": [],
    "bisam": [],
    "bisam-tanh": [],
    "asam": [],
    "a-bisam": [],
    "esam": [],
    "e-bisam": [],
    "esam, SWP alone": ["--optimizer", "esam", "--sds-gamma", "1"],
    "esam, SDS alone": ["--optimizer", "esam", "--swp-beta", "1"],
    "msam": [],
    "m-bisam": [],
    "ksam": [],
    "gsam": [],
    "looksam": [],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("model", nargs="?", type=Path, default=ROOT / "models" / "resnet20.onnx")
    parser.add_argument("--bisam", type=Path, default=target / "release" / "bisam")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="a multiple of LookSAM's period, 5")
    options = parser.parse_args()
    times = {name: [] for name in METHODS}
    peaks = {}
    for _ in range(options.rounds):
        for name, flags in METHODS.items():
            command = [options.bisam, "-q", "--threads", str(options.threads), "bench", options.model, "--json"]
            command += ["--batch", str(options.batch), "--steps", str(options.steps), *(flags or ["--optimizer", name])]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            # LookSAM's steps are not alike: their mean counts.
            times[name].append(statistics.mean(result["steps_ms"]) if name == "looksam" else result["step_ms"])
            peaks[name] = result["peak_bytes"]
    median = {name: statistics.median(t) for name, t in times.items()}
    print("| method | step ms | × sgd | × sam | peak MB |")
    print("|---|--:|--:|--:|--:|")
    for name, ms in median.items():
        print(f"| {name} | {ms:.1f} | {ms / median['sgd']:.2f} | {ms / median['sam']:.3f} | {peaks[name] / 1e6:.0f} |")


if __name__ == "__main__":
    main()
