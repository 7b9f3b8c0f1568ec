"""Times training steps of PyTorch (eager, compiled, or a captured CUDA graph), the peer that the benchmarks compare with.

    python benches/peer_pytorch.py resnet20 bisam --threads 2 --memory-format channels_last --steps 10
    python benches/peer_pytorch.py resnet20 bisam --threads 2 --serve
    python benches/peer_pytorch.py resnet56 bisam --device cuda --graph --tf32

Prints one JSON line: step_ms (median), steps_ms, peak_bytes (most memory that the process ever held; on CUDA most that its tensors
held there), torch (version).
With --serve it reads lines `run K` from stdin and answers each with such a line, after K steps, until stdin ends: so a
driver can alternate between peers within one run. Before all, --warmup steps run untimed.
The networks are those that `models/make.py --full DIR` exports.
"""

import argparse
import functools
import json
import math
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "models"))
import make  # noqa: E402

BATCH = {
    "resnet20": 128, "resnet56": 128, "resnet110": 128, "wrn28-2": 128, "densenet121": 64, "vgg19bn": 128, "mobilenet_v2": 64,
    "vit": 64, "bert": 32, "minilm": 32, "wrn28-10": 128, "vit_b16": 64, "bert_base": 32,
}
GAMMA = math.log(math.e - 1)


def cross_entropy(logits, labels, smoothing=0.1):
    """Cross-entropy with the smoothing spread over the other classes: PyTorch's own, which includes the label, rescaled."""
    classes = logits.shape[1]
    return F.cross_entropy(logits, labels, label_smoothing=smoothing * classes / (classes - 1))


def neg_log_bound(logits, labels):
    """BiSAM's lower bound of the 0-1 loss, the -log variant with mu = 1."""
    margin = logits - logits.gather(1, labels[:, None])
    return torch.logsumexp(1 - F.softplus(GAMMA - margin), 1).mean()


class Trainer:
    """A network with its SGD optimizer; `step` is one training step of sgd or bisam."""

    def __init__(self, network, method, lr=0.1, momentum=0.9, weight_decay=5e-4, rho=0.05, compiled=False):
        self.network, self.method, self.rho = network, method, rho
        self.compiled = torch.compile(network) if compiled else network
        self.parameters = list(network.parameters())
        self.norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        self.sgd = torch.optim.SGD(self.parameters, lr, momentum, weight_decay=weight_decay, foreach=True)

    def step(self, inputs, labels):
        if self.method == "sgd":
            self.descend(inputs, labels)
        else:
            kept = self.climb(inputs, labels)
            self.set_momentum(0.0)
            self.descend(inputs, labels, kept)
            self.set_momentum(0.1)

    def climb(self, inputs, labels):
        """Moves the weights by rho g / |g| and returns the old ones."""
        gradients = torch.autograd.grad(neg_log_bound(self.compiled(*inputs), labels), self.parameters)
        with torch.no_grad():
            kept = [p.clone() for p in self.parameters]
            norm = torch.stack(torch._foreach_norm(gradients)).norm()
            torch._foreach_add_(self.parameters, torch._foreach_mul(gradients, self.rho / (norm + 1e-12)))
        return kept

    def descend(self, inputs, labels, kept=None):
        """A gradient at the present weights, applied at the kept ones."""
        self.sgd.zero_grad()
        cross_entropy(self.compiled(*inputs), labels).backward()
        if kept is not None:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, kept)
        self.sgd.step()

    def set_momentum(self, momentum):
        """Running statistics move on the first pass of a step only."""
        for norm in self.norms:
            norm.momentum = momentum


def captured(step):
    """The whole step as one CUDA graph, after the warm-up on a stream of its own that PyTorch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def timed(step, steps, device):
    """Runs the steps; returns what the JSON line says."""
    times = []
    on_device = device != "cpu"
    for _ in range(steps):
        start = time.perf_counter()
        step()
        if on_device:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "step_ms": round(statistics.median(times), 3),
        "steps_ms": [round(t, 3) for t in times],
        "peak_bytes": torch.cuda.max_memory_reserved() if on_device else peak,
        "torch": torch.__version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=BATCH)
    parser.add_argument("optimizer", choices=("sgd", "bisam"))
    parser.add_argument("--batch", type=int, help="default: that of the benchmark")
    parser.add_argument("--memory-format", choices=("contiguous", "channels_last"), default="contiguous")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--graph", action="store_true", help="capture the step as a CUDA graph")
    parser.add_argument("--tf32", action="store_true", help="let convolutions and matrix products use TF32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--serve", action="store_true", help="answer lines 'run K' on stdin")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    torch.backends.cudnn.benchmark = True
    model = make.FULL[options.model]
    network = make.build(model).train().to(options.device)
    batch = options.batch or BATCH[options.model]
    inputs = list(make.inputs(model, batch, seed=1).values())
    if options.memory_format == "channels_last":
        network = network.to(memory_format=torch.channels_last)
        inputs = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
    inputs = [x.to(options.device) for x in inputs]
    labels = torch.randint(2 if model.tokens else 10, (batch,), generator=torch.Generator().manual_seed(2)).to(options.device)
    trainer = Trainer(network, options.optimizer, compiled=options.compile)
    step = functools.partial(trainer.step, inputs, labels)
    if options.graph:
        step = captured(step)
    for _ in range(options.warmup):
        step()
    if not options.serve:
        print(json.dumps(timed(step, options.steps, options.device)))
        return
    for line in sys.stdin:
        command, count = line.split()
        assert command == "run", f"expected 'run K', read {line!r}"
        print(json.dumps(timed(step, int(count), options.device)), flush=True)


if __name__ == "__main__":
    main()
