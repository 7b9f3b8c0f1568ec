"""Times a step of every method on one model, side by side (the paper's Table 11 by step).

    python benches/methods.py [MODEL] [--bisam target/release/bisam] [--batch 128] [--threads 2] [--rounds 5] [--steps 3]

Each round runs some steps of every method in turn; the figure is the median over rounds of a round's median step. Prints a
Markdown table: milliseconds, and the ratio to sgd and to sam.

    python benches/methods.py --losses [--classes 100]      what an ascent loss costs beside cross-entropy (Table 12)

The model then is its logits alone, made with the package `onnx`. A pass of SAM computes cross-entropy and its gradient, one of
BiSAM these and the bound's, so the bound costs the difference.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
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
    "rsam": [],
    "bsam": [],
}


def bench(options, model, flags, steps):
    """What `bisam bench` reports."""
    command = [options.bisam, "-q", "--threads", str(options.threads), "bench", model, "--json"]
    command += ["--batch", str(options.batch), "--steps", str(steps), *flags]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def losses(options):
    """Microseconds of a pass over logits alone, with and without a bound."""
    import numpy
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rows = ["N", options.classes]
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, rows) for name in ("x", "logits")}
    bias = numpy_helper.from_array(numpy.linspace(-1, 1, options.classes, dtype=numpy.float32), "bias")
    node = helper.make_node("Add", ["x", "bias"], ["logits"])
    graph = helper.make_graph([node], "logits", [values["x"]], [values["logits"]], [bias])
    passes = {"sgd": 1, "sam": 2, "bisam": 2, "bisam-tanh": 2}
    times = {name: [] for name in passes}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "logits.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
        for _ in range(options.rounds):
            for name, count in passes.items():
                result = bench(options, model, ["--optimizer", name], 1000)
                times[name].append(1e3 * result["step_ms"] / count)
    median = {name: statistics.median(t) for name, t in times.items()}
    print("| loss | µs | × cross-entropy |")
    print("|---|--:|--:|")
    print(f"| cross-entropy (a pass of sam) | {median['sam']:.0f} | 1.00 |")
    for name in ("bisam", "bisam-tanh"):
        added = median[name] - median["sam"]
        print(f"| the bound of {name}, in addition | {added:.0f} | {added / median['sam']:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("model", nargs="?", type=Path, default=ROOT / "models" / "resnet20.onnx")
    parser.add_argument("--bisam", type=Path, default=target / "release" / "bisam")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="a multiple of LookSAM's period, 5")
    parser.add_argument("--losses", action="store_true", help="the losses alone")
    parser.add_argument("--classes", type=int, default=100)
    options = parser.parse_args()
    if options.losses:
        return losses(options)
    times = {name: [] for name in METHODS}
    peaks = {}
    for _ in range(options.rounds):
        for name, flags in METHODS.items():
            result = bench(options, options.model, flags or ["--optimizer", name], options.steps)
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
