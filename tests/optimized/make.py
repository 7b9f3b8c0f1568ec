"""Writes the models of tests/optimized: python tests/optimized/make.py (needs what models/requirements.txt lists, and onnxruntime).

A small BERT as PyTorch exports it, and the same after ONNX Runtime's optimizer for transformers, which writes it in operators of
com.microsoft.
"""

import pathlib
import sys

import numpy as np
import onnx
import torch
from onnxruntime.transformers import optimizer

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "models"))
import architectures as arch  # noqa: E402

HEADS, HIDDEN, VOCABULARY, LENGTH, BATCH = 2, 16, 40, 10, 3


def export():
    torch.manual_seed(0)
    network = arch.Bert(HIDDEN, 2, HEADS, VOCABULARY, LENGTH + 2, 3).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    generator = np.random.default_rng(0)
    tokens = {
        "input_ids": generator.integers(0, VOCABULARY, (BATCH, LENGTH)),
        "attention_mask": (np.arange(LENGTH) < np.array([[10], [7], [4]])).astype(np.int64),
        "token_type_ids": (np.arange(LENGTH)[None].repeat(BATCH, 0) >= 5).astype(np.int64),
    }
    np.savez(HERE / "inputs.npz", labels=np.array([0, 2, 1]), **tokens)
    names = list(tokens)
    dims = {name: {0: "batch", 1: "sequence"} for name in names}
    file = HERE / "bert.onnx"
    torch.onnx.export(
        network,
        tuple(torch.from_numpy(t) for t in tokens.values()),
        str(file),
        input_names=names,
        output_names=["logits"],
        dynamic_axes=dims | {"logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    model = onnx.load(file)
    # Weights that the exporter transposed get the names of their layers.
    initializers = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name.startswith("onnx::MatMul"):
                initializers[name].name = node.input[i] = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
    onnx.save(model, file)
    return file


def optimize(file):
    model = optimizer.optimize_model(str(file), model_type="bert", num_heads=HEADS, hidden_size=HIDDEN, opt_level=0)
    model.save_model_to_file(str(HERE / "bert_optimized.onnx"))


if __name__ == "__main__":
    optimize(export())
