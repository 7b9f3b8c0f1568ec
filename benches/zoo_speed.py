"""Times a training step of real exports against PyTorch eager on the same machine, alternating, at equal threads.

    python benches/zoo_speed.py                    every architecture, and the report docs/zoo-speed.md
    python benches/zoo_speed.py resnet18 swin      these only; prints only
    python benches/zoo_speed.py --report           the report from the rows of earlier runs

One export of every architecture of zoo_networks.py, the training one where there is, at a batch of 16 (4 where the file fixes it):
one step of SGD with momentum, weight decay and label smoothing, by `bisam bench --optimizer sgd` and by PyTorch in its better
memory format. Each round runs some steps of either in turn; the figure is the median over rounds of a round's median step.
Files are those of zoo.py, in .zoo/.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import time
import warnings
from pathlib import Path

import torch

import zoo
from peer_pytorch import Trainer
from zoo_networks import CLASSES, NETWORKS

REPORT = zoo.ROOT / "docs" / "zoo-speed.md"
ORDER = ("script-train", "dynamo-train", "script-eval", "dynamo-eval")
BATCH = 16
SECONDS = 300


class PyTorch:
    """A network in a memory format, warmed up, and its labels."""

    def __init__(self, network, batch, channels_last):
        module = zoo.build(network).train()
        self.values = list(zoo.inputs(network, batch, 3).values())
        if channels_last:
            module = module.to(memory_format=torch.channels_last)
            self.values = [v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v for v in self.values]
        self.labels = torch.randint(CLASSES, (batch,), generator=torch.Generator().manual_seed(2))
        self.trainer = Trainer(module, "sgd", lr=1e-3)
        self.trainer.parameters = [p for p in self.trainer.parameters if p.requires_grad]
        self.run(2)

    def run(self, steps):
        """Milliseconds of the median step."""
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            self.trainer.step(self.values, self.labels)
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)


def bisam(options, path, batch, steps):
    """What `bisam bench` says; two steps before the timed ones are not counted."""
    command = [options.bisam, "-q", "--threads", str(options.threads), "bench", path, "--batch", str(batch)]
    command += ["--optimizer", "sgd", "--steps", str(steps), "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(" ".join(result.stderr.split()).replace(str(path), path.name)[:300])
    return json.loads(result.stdout)


def measure(name, network, options):
    """One row of the table."""
    row = {"name": name, "source": network.source}
    for form in ORDER:
        if (zoo.CACHE / name / f"{form}.batch").exists():
            break
    else:
        return row | {"left": "no export"}
    size = int((zoo.CACHE / name / f"{form}.batch").read_text().split()[0])
    batch = BATCH if size == zoo.BATCH else zoo.TRACED_BATCH
    path = zoo.CACHE / name / f"{form}.onnx"
    row |= {"form": form, "batch": batch}
    images = any(v.dim() == 4 for v in zoo.inputs(network, 1, 3).values())
    try:
        peers = {f: PyTorch(network, batch, f == "channels_last") for f in ["contiguous", "channels_last"][: 1 + images]}
    except Exception as error:
        return row | {"left": f"PyTorch: {str(error).splitlines()[0][:150]}"}
    # Rounds of about a quarter of a second.
    steps = {f: max(1, min(20, int(250 / p.run(1)))) for f, p in peers.items()}
    times = {f: [] for f in [*peers, "bisam"]}
    try:
        for _ in range(options.rounds):
            for f, peer in peers.items():
                times[f].append(peer.run(steps[f]))
            result = bisam(options, path, batch, max(3, *steps.values()))
            times["bisam"].append(result["step_ms"])
    except RuntimeError as error:
        return row | {"failed": str(error)}
    median = {f: statistics.median(t) for f, t in times.items()}
    best = min(peers, key=median.get)
    row |= {"pytorch_ms": median[best], "format": best, "bisam_ms": median["bisam"]}
    return row | {"ratio": median["bisam"] / median[best], "startup_s": result["startup_s"]}


def worker(name, network, options):
    """Runs in its own process: writes the row."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    log = os.open(zoo.CACHE / name / "speed.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    (zoo.CACHE / name / "speed.row.json").write_text(json.dumps(measure(name, network, options)))


def run(name, network, options):
    """The row of one architecture."""
    file = zoo.CACHE / name / "speed.row.json"
    file.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=worker, args=(name, network, options))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    if file.exists():
        return json.loads(file.read_text())
    return {"name": name, "source": network.source, "failed": f"did not end within {SECONDS} s, or crashed with {process.exitcode}"}


def line(row):
    """A row as Markdown."""
    head = f"| {row['name']} | {row['source']} |"
    if "ratio" not in row:
        return f"{head} {row.get('form', '')} | {row.get('batch', '')} | | | {zoo.plain(row.get('left') or row.get('failed'))} | |"
    time = f"{row['pytorch_ms']:.1f} ({row['format']}) | {row['bisam_ms']:.1f} | {row['ratio']:.2f} | {row['startup_s']:.2f}"
    return f"{head} {row['form']} | {row['batch']} | {time} |"


HEAD = ["| architecture | from | export | batch | PyTorch ms | bisam ms | ratio | start s |", "|---|---|---|--:|--:|--:|--:|--:|"]


def report(rows, options):
    """The rows as Markdown."""
    timed = sorted((r for r in rows if "ratio" in r), key=lambda r: -r["ratio"])
    ratios = [r["ratio"] for r in timed]
    above = sum(r > 2 for r in ratios)
    text = [
        "# Training steps of real exports",
        "",
        f"Made by `make zoo-speed`: a step of SGD against PyTorch {torch.__version__.split('+')[0]} eager in its better memory format, alternating,",
        f"{options.threads} thread(s) each, medians of {options.rounds} rounds. \"Start\" is from import to the end of the first step. These networks are small: where",
        "PyTorch takes a few milliseconds, most of them are its overhead per operator.",
        "",
        f"{len(timed)} architectures; ratio bisam to PyTorch: geometric mean {statistics.geometric_mean(ratios):.2f}, median {statistics.median(ratios):.2f},",
        f"worst {max(ratios):.2f}; {above} above 2.",
        "",
        *HEAD,
        *map(line, timed),
    ]
    left = [r for r in rows if "ratio" not in r]
    if left:
        text += ["", "Not timed:", ""]
        text += [f"- {r['name']}: {zoo.plain(r.get('left') or r.get('failed'))}" for r in left]
    return "\n".join(text) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="architectures to time (default: all)")
    parser.add_argument("--bisam", default=zoo.ROOT / "target" / "release" / "bisam", type=Path, help="the binary")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="write the report from the rows of earlier runs")
    options = parser.parse_args()
    rows = []
    print("\n".join(HEAD))
    for name, network in NETWORKS.items():
        file = zoo.CACHE / name / "speed.row.json"
        if options.report:
            rows += [json.loads(file.read_text())] if file.exists() else []
        elif (not options.words or name in options.words) and file.parent.exists():
            rows.append(run(name, network, options))
            print(line(rows[-1]), flush=True)
    if not options.words:
        REPORT.write_text(report(rows, options))


if __name__ == "__main__":
    main()
