"""What gpu.sh runs: parity with the CPU, and step times against PyTorch on the same device. See there."""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Gradients are compared to the norm of the CPU's, or to this share of the largest one, below which all is cancellation.
FLOOR = 1e-3
TOLERANCE = 1e-4
BATCHES = 4
PRESETS = ["sgd", "adamw", "sam", "bisam", "bisam-tanh", "asam", "a-bisam", "esam", "e-bisam", "msam", "gsam", "ksam", "looksam"]
# Model, batch, and the most that bisam may take of PyTorch eager's time.
MARKS = {"resnet56": 0.6, "wrn28-10": 1.0, "vit_b16": 1.0, "bert_base": 1.0}


class Run:
    """The settings, and what was found."""

    def __init__(self, options):
        self.options = options
        self.bisam = os.environ["BISAM"]
        self.device = "cpu" if options.dry_run else options.device
        self.text, self.found = [], {"dry_run": options.dry_run}

    def say(self, line=""):
        print(line, flush=True)
        self.text.append(line)

    def call(self, *arguments, device=None):
        """What bisam prints; its own error ends the script."""
        command = [self.bisam, "-q", *map(str, arguments)]
        device = device or self.device
        if device != "cpu":
            command += ["--device", device]
            if "ORT" in os.environ:
                command += ["--ort", os.environ["ORT"]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def bench(self, file, batch, optimizer, *more):
        """What `bisam bench` says of a step."""
        command = ["bench", file, "--batch", batch, "--optimizer", optimizer, "--json", "--steps", self.options.steps, *more]
        return json.loads(self.call(*command))


def machine(run):
    """Device, driver, clocks and versions."""
    run.say("## Machine\n")
    facts = {}
    query = ["name", "driver_version", "memory.total", "clocks.max.sm", "clocks.sm", "clocks.mem", "power.limit"]
    if shutil.which("nvidia-smi") and run.device != "cpu":
        command = ["nvidia-smi", f"--query-gpu={','.join(query)}", "--format=csv,noheader"]
        out = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        facts |= dict(zip(query, (v.strip() for v in (out.splitlines() or [""])[0].split(",")), strict=False))
    try:
        import torch

        facts |= {"torch": torch.__version__, "torch.cuda": torch.version.cuda, "torch.cudnn": torch.backends.cudnn.version()}
    except ImportError:
        facts["torch"] = "not installed: no benchmark"
    doctor = json.loads(run.call("doctor", "--json"))
    run.found["machine"] = facts | {"doctor": doctor}
    for name, value in facts.items():
        run.say(f"- {name}: {value}")
    run.say(f"- ONNX Runtime: {doctor.get('version')}")


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def worst(got, want):
    """The largest error of a tensor, relative to its norm, and whose it is."""
    largest = max((np.linalg.norm(v.astype(np.float64)) for v in want.values()), default=0.0)
    error = lambda k: np.linalg.norm(got[k].astype(np.float64) - want[k]) / max(np.linalg.norm(want[k]), FLOOR * largest, 1e-30)  # noqa: E731
    return max(((float(error(k)), k) for k in want), default=(0.0, "nothing"))


def gradients(run, folder):
    """Gradients of every model, device against CPU, for both kinds of kernels."""
    run.say("\n## Gradients against the CPU\n")
    run.say(f"Relative to each gradient's norm, TF32 off; at most {TOLERANCE} is right. In mode train, statistics are of four samples, and a number")
    run.say(f"that rounding moves across a kink of Relu or Clip moves many gradients by percents: there the best of {BATCHES} batches counts.\n")
    run.say("| model | mode | kernels | worst | of | batches | |\n|---|---|---|--:|---|--:|---|")
    rows = run.found["gradients"] = []
    models = sorted((ROOT / "models").glob("*.onnx"))
    for model in models[:: 5 if run.options.dry_run else 1]:
        for mode, kernels in ((m, k) for m in ("eval", "train") for k in ("fused", "plain")):
            error, name, tried = float("inf"), "", 0
            while error > TOLERANCE and tried < (BATCHES if mode == "train" else 1):
                given = batch(model, tried, folder)
                tried += 1
                grad = lambda out, kernels, device: run.call(  # noqa: E731
                    "grad", model, "--inputs", given, "--mode", mode, "--kernels", kernels, "-o", out, device=device
                )
                try:
                    grad(folder / "cpu.npz", "plain", "cpu")
                    grad(folder / "device.npz", kernels, run.device)
                    want = {k: v for k, v in arrays(folder / "cpu.npz").items() if k.startswith("grad/")}
                    error, name = min((error, name), worst(arrays(folder / "device.npz"), want))
                except RuntimeError as e:
                    name = str(e)
                    break
            right = error <= TOLERANCE
            rows.append({"model": model.stem, "mode": mode, "kernels": kernels, "error": error, "of": name, "batches": tried, "right": right})
            run.say(f"| {model.stem} | {mode} | {kernels} | {error:.1e} | {name} | {tried} | {'ok' if right else 'WRONG'} |")


def batch(model, number, folder):
    """A file with inputs and labels: those of the reference, and after that others with images drawn anew."""
    given = ROOT / "models" / "reference" / f"{model.stem}.npz"
    if number == 0:
        return given
    held = arrays(given)
    names = [n for n in held if "/" not in n]
    rng = np.random.default_rng(number)
    draw = lambda v: rng.standard_normal(v.shape, dtype=np.float32) if v.dtype == np.float32 else v  # noqa: E731
    np.savez(folder / "batch.npz", **{n: held[n] if n == "labels" else draw(held[n]) for n in names})
    return folder / "batch.npz"


def weights(file):
    """The parameters of a checkpoint (safetensors: a length, a header in JSON, the bytes)."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    read = lambda h: np.frombuffer(data[8 + length :][slice(*h["data_offsets"])], np.float32)  # noqa: E731
    return {name: read(h) for name, h in header.items() if h["dtype"] == "F32"}


def replays(run, folder):
    """Ten steps of every method, device against CPU."""
    run.say("\n## Ten steps against the CPU\n")
    run.say("Weights, running statistics and optimizer states, relative to their norms.\n")
    run.say("| method | model | worst | of | |\n|---|---|--:|---|---|")
    rows = run.found["replays"] = []
    rng = np.random.default_rng(0)
    data = folder / "data.npz"
    np.savez(data, x=rng.standard_normal((80, 3, 8, 8), dtype=np.float32), labels=rng.integers(0, 4, 80))
    presets = PRESETS[:3] if run.options.dry_run else PRESETS
    for preset in presets:
        for model in ("tiny_bn", "tiny_ln"):
            made = {}
            for name, device in (("cpu", "cpu"), ("device", run.device)):
                out = folder / f"{preset}-{model}-{name}"
                command = ["train", ROOT / "models" / f"{model}.onnx", "--data", f"npz:{data}", "--steps", 10, "--batch-size", 8]
                command += ["--shuffle", "false", "--optimizer", preset, "--lr", "0.05", "-o", out]
                run.call(*command, device=device)
                made[name] = weights(out / "checkpoint" / "state.safetensors")
            error, name = worst(made["device"], made["cpu"])
            right = error <= TOLERANCE
            rows.append({"method": preset, "model": model, "error": error, "of": name, "right": right})
            run.say(f"| {preset} | {model} | {error:.1e} | {name} | {'ok' if right else 'WRONG'} |")


def cifar(run, folder):
    """An epoch of ResNet-56 with BiSAM on CIFAR-10."""
    run.say("\n## An epoch of ResNet-56 on CIFAR-10\n")
    if not run.options.cifar:
        run.say("Left out: --cifar DIR names the folder of CIFAR-10's binary files.")
        return
    file = exports(run, folder, "resnet20" if run.options.dry_run else "resnet56")
    less = ["--train-samples", 1280] if run.options.dry_run else []
    rows = run.found["cifar"] = []
    for tf32 in ([], ["--tf32"]) if run.device != "cpu" else ([],):
        out = folder / f"cifar{len(rows)}"
        command = ["train", file, "--data", f"cifar10:{run.options.cifar}", "--epochs", 2, "--optimizer", "bisam", *less]
        run.call(*command, "--batch-size", 128, "--augment", "crop-flip", "-o", out, *tf32)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        epochs = [line for line in lines if "samples_per_second" in line]
        seconds = 50_000 / epochs[-1]["samples_per_second"]
        rows.append({"tf32": bool(tf32), "seconds": seconds, "loss": epochs[-1].get("loss")})
        run.say(f"- TF32 {'on' if tf32 else 'off'}: {seconds:.1f} s for 50,000 samples (second epoch), loss {epochs[-1].get('loss'):.3f}")
    run.say("- The paper: 23 to 30 s on an A100 (BiSAM, its Table 11).")


def exports(run, folder, *models):
    """The full-size exports, made once."""
    home = pathlib.Path(run.options.exports) if run.options.exports else folder
    missing = [m for m in models if not (home / f"{m}.onnx").exists()]
    if missing:
        home.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, ROOT / "models" / "make.py", "--full", home, *missing]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return home / f"{models[0]}.onnx"


def benchmark(run, folder):
    """Step times against PyTorch eager, compiled and as a CUDA graph, alternating."""
    run.say("\n## Step times\n")
    try:
        from peer_pytorch import BATCH
        from run import Peer
    except ImportError as e:
        run.say(f"Left out: {e}.")
        return
    names = ["resnet20"] if run.options.dry_run else list(MARKS)
    rounds = 2 if run.options.dry_run else run.options.rounds
    run.say(f"Medians over {rounds} rounds of a round's median of {run.options.steps} steps, contenders in turn.\n")
    run.say("| model | step | TF32 | eager ms | compiled | graph | bisam ms | over eager | over best | over sam | over sgd | no graph | plain | MB PyTorch / bisam | |")
    run.say("|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|")
    rows = run.found["steps"] = []
    for model in names:
        file, batch = exports(run, folder, model), 16 if run.options.dry_run else BATCH[model]
        for optimizer in ("sgd", "bisam"):
            for tf32 in ([], ["--tf32"]) if run.device != "cpu" else ([],):
                command = [sys.executable, ROOT / "benches" / "peer_pytorch.py", model, optimizer, "--batch", batch]
                command += ["--device", "cpu" if run.device == "cpu" else "cuda", *tf32]
                peers = {"eager": Peer(command)}
                if run.device != "cpu":
                    peers["channels_last"] = Peer([*command, "--memory-format", "channels_last"])
                    peers["compiled"] = Peer([*command, "--compile"])
                    peers["graph"] = Peer([*command, "--graph"])
                length = 64 if run.options.dry_run else 128
                own = {"bisam": [], "plain": ["--kernels", "plain"]}
                if run.device != "cpu":
                    own["no graph"] = ["--cuda-graph", "off"]
                times, peaks, failures = {}, {}, []
                for _ in range(rounds):
                    for name, peer in peers.items():
                        if result := peer.run(run.options.steps):
                            times.setdefault(name, []).append(result["step_ms"])
                            peaks["torch"] = result["peak_bytes"] if name == "eager" else peaks.get("torch", 0)
                    contenders = [(name, optimizer, more) for name, more in own.items()]
                    contenders += [(other, other, []) for other in ("sam", "sgd") if optimizer == "bisam"]
                    for name, method, more in contenders:
                        try:
                            result = run.bench(file, batch, method, "--dim", f"sequence={length}", *tf32, *more)
                        except RuntimeError as e:
                            failures.append(f"{name}: {e}")
                            continue
                        times.setdefault(name, []).append(result["step_ms"])
                        if name == "bisam":
                            peaks["bisam"] = result.get("device_bytes") or result["peak_bytes"]
                for peer in peers.values():
                    peer.close()
                median = {name: statistics.median(t) for name, t in times.items()}
                if "bisam" not in median or "eager" not in median:
                    run.say(f"| {model} | {optimizer} | FAILED: {'; '.join(failures)} |")
                    rows.append({"model": model, "optimizer": optimizer, "failures": failures})
                    continue
                # PyTorch eager is its better memory format.
                median["eager"] = min(median["eager"], median.get("channels_last", median["eager"]))
                best = min(median[n] for n in ("eager", "compiled", "graph") if n in median)
                over = lambda name: f"{median['bisam'] / median[name]:.3f}" if name in median else ""  # noqa: E731
                ms = lambda name: f"{median[name]:.2f}" if name in median else ""  # noqa: E731
                ratio = median["bisam"] / median["eager"]
                met = "" if run.device == "cpu" else ("met" if ratio <= MARKS[model] else f"above {MARKS[model]}")
                rows.append({"model": model, "optimizer": optimizer, "tf32": bool(tf32), "batch": batch, "median_ms": median,
                             "rounds_ms": times, "peak_bytes": peaks, "over_eager": ratio, "failures": failures})
                run.say(
                    f"| {model} | {optimizer} | {'on' if tf32 else 'off'} | {ms('eager')} | {ms('compiled')} | {ms('graph')} | {ms('bisam')} | "
                    f"{ratio:.3f} | {median['bisam'] / best:.3f} | {over('sam')} | {over('sgd')} | {ms('no graph')} | {ms('plain')} | "
                    f"{peaks.get('torch', 0) / 1e6:.0f} / {peaks.get('bisam', 0) / 1e6:.0f} | {met} |"
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="all of it on the CPU, with less of each")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--cifar", metavar="DIR", help="CIFAR-10's binary files")
    parser.add_argument("--exports", metavar="DIR", help="where full-size exports are, or are to be kept")
    parser.add_argument("--out", default="gpu-results", metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    if options.dry_run:
        options.steps = min(options.steps, 2)
    run = Run(options)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for part in (machine, lambda r: gradients(r, folder), lambda r: replays(r, folder), lambda r: cifar(r, folder), lambda r: benchmark(r, folder)):
            try:
                part(run)
            except RuntimeError as error:
                # What follows may work, and says more.
                run.say(f"\nFAILED: {error}")
                failed.append(str(error))
    wrong = [r for part in ("gradients", "replays") for r in run.found.get(part, []) if not r["right"]]
    run.found["failed"] = failed
    out = pathlib.Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.md").write_text("\n".join(run.text) + "\n", encoding="utf-8")
    (out / "gpu.json").write_text(json.dumps(run.found, indent=1, default=str), encoding="utf-8")
    print(f"\nwritten: {out / 'gpu.md'}, {out / 'gpu.json'}")
    sys.exit(f"error: {len(wrong)} comparisons are off, {len(failed)} parts failed" if wrong or failed else 0)


if __name__ == "__main__":
    main()
