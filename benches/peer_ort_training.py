"""Times SGD steps of ONNX Runtime Training 1.19.2, the last release, on an exported model: a peer of the benchmarks.

    python benches/peer_ort_training.py resnet20.onnx --batch 128 --threads 2 --serve

Speaks as peer_pytorch.py does. Its Python needs onnxruntime-training-cpu==1.19.2, torch, onnx<1.18 and numpy<2, which exclude what the
other benchmarks need: an environment of its own, Python 3.11 at most. Its SGD has neither momentum nor weight decay, its loss no label
smoothing, so a step does a little less than ours.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.training import artifacts
from onnxruntime.training.api import CheckpointState, Module, Optimizer

TYPES = {1: np.float32, 7: np.int64}


class Trainer:
    """The artifacts of a model, loaded."""

    def __init__(self, path, threads):
        model = onnx.load(path)
        # Its gradient of LayerNormalization reads outputs that exporters leave out.
        for i, node in enumerate(n for n in model.graph.node if n.op_type == "LayerNormalization"):
            node.output.extend([f"bench/mean/{i}", f"bench/deviation/{i}"][len(node.output) - 1 :])
        names = [i.name for i in model.graph.initializer if i.data_type == 1]
        trained = [n for n in names if ".running_" not in n]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        onnxruntime.set_default_logger_severity(3)
        with tempfile.TemporaryDirectory() as folder:
            artifacts.generate_artifacts(
                model, requires_grad=trained, frozen_params=[n for n in names if n not in trained],
                loss=artifacts.LossType.CrossEntropyLoss, optimizer=artifacts.OptimType.SGD, artifact_directory=folder,
            )
            folder = Path(folder)
            self.state = CheckpointState.load_checkpoint(str(folder / "checkpoint"))
            # The model for evaluation is not valid: it keeps what BatchNormalization gives in training only.
            self.module = Module(str(folder / "training_model.onnx"), self.state, session_options=options)
            self.optimizer = Optimizer(str(folder / "optimizer_model.onnx"), self.module)
        self.order = self.module.input_names()
        self.module.train()

    def step(self, feeds):
        self.module(*[feeds[name] for name in self.order])
        self.optimizer.step()
        self.module.lazy_reset_grad()


def inputs(path, batch, length):
    """Seeded inputs for every input of the file, and labels."""
    rng = np.random.default_rng(1)
    feeds = {}
    for i in onnx.load(path, load_external_data=False).graph.input:
        tensor = i.type.tensor_type
        dims = [d.dim_value or (batch if k == 0 else length) for k, d in enumerate(tensor.shape.dim)]
        if TYPES[tensor.elem_type] == np.float32:
            feeds[i.name] = rng.standard_normal(dims, dtype=np.float32)
        else:
            feeds[i.name] = rng.integers(0, 2 if "input_ids" not in i.name else 1000, dims)
    feeds["labels"] = rng.integers(0, 2, batch)
    return feeds


def timed(trainer, feeds, steps):
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        trainer.step(feeds)
        times.append((time.perf_counter() - start) * 1e3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"step_ms": round(statistics.median(times), 3), "steps_ms": times, "peak_bytes": peak}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=64, help="of texts, in tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--serve", action="store_true", help="answer lines 'run K' on stdin")
    options = parser.parse_args()
    trainer = Trainer(options.model, options.threads)
    feeds = inputs(options.model, options.batch, options.length)
    timed(trainer, feeds, 2)
    if not options.serve:
        print(json.dumps(timed(trainer, feeds, options.steps)))
        return
    for line in sys.stdin:
        print(json.dumps(timed(trainer, feeds, int(line.split()[1]))), flush=True)


if __name__ == "__main__":
    main()
