"""Exports the models of this folder: seeded, so that the same versions write the same bytes.

    python models/make.py                 every model, into this folder
    python models/make.py resnet20 vit    some of them
    python models/make.py --full DIR      the full-size models that the benchmarks use

BN models are exported in training mode without constant folding, so that BatchNormalization stays in the graph.
"""

import argparse
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import onnx
import onnxruntime
import torch

import architectures as arch
from paper import CIFAR

HERE = Path(__file__).resolve().parent


@dataclass
class Model:
    """One file: how to build the network, which exporter writes it, and the shape of one input sample."""

    build: Callable[[], torch.nn.Module]
    exporter: str  # "train" and "eval" are the TorchScript exporter's modes, "dynamo" the other one
    sample: tuple = (3, 32, 32)
    perturb: bool = False
    opset: int | None = None
    seed: int = 0
    tokens: dict = field(default_factory=dict)  # vocabulary and length, for models that read text


MNIST = (1, 28, 28)
TEXT = {"vocabulary": 1000, "length": 16}

MODELS = {
    "mlp": Model(arch.Mlp, "eval", MNIST),
    "lenet": Model(arch.LeNet, "eval", MNIST),
    "resnet20": Model(lambda: arch.ResNet(20), "train", perturb=True),
    "resnet56": Model(lambda: arch.ResNet(56, width=6), "train", perturb=True),
    "resnet8_28": Model(lambda: arch.ResNet(8, width=8, channels=1), "train", MNIST),
    "resnet20_eval": Model(lambda: arch.ResNet(20, width=8), "eval", perturb=True),
    "mobilenet": Model(arch.MobileNetV2, "train", perturb=True),
    "densenet": Model(arch.DenseNet, "train", perturb=True),
    "vgg": Model(arch.Vgg, "train", perturb=True),
    "vit": Model(arch.VisionTransformer, "eval", opset=17),
    "vit_dynamo": Model(arch.VisionTransformer, "dynamo"),
    "bert": Model(arch.Bert, "eval", opset=17, tokens=TEXT),
    "bert_dynamo": Model(arch.Bert, "dynamo", tokens=TEXT),
    "tiny_bn": Model(arch.TinyBn, "train", (3, 8, 8), perturb=True),
    "tiny_ln": Model(arch.TinyLn, "train", (3, 8, 8), perturb=True),
}

BERT_MINI = {"hidden": 256, "layers": 4, "heads": 4, "vocabulary": 30522, "positions": 64}
PAPER = ("resnet56", "wrn28-2", "wrn28-10", "densenet121", "vgg19bn")
BERT_BASE = {"hidden": 768, "layers": 12, "heads": 12, "vocabulary": 30522, "positions": 512}
VIT_B16 = {"image": 224, "patch": 16, "dim": 768, "depth": 12, "heads": 12, "classes": 1000}
MINILM = {"hidden": 384, "layers": 3, "heads": 12, "vocabulary": 30522, "positions": 512}


def mobilenet_v2():
    """MobileNetV2 of torchvision, without its dropout."""
    import torchvision

    return torchvision.models.mobilenet_v2(num_classes=10, dropout=0.0)


FULL = {
    "resnet20": Model(lambda: arch.ResNet(20), "train"),
    "resnet110": Model(lambda: arch.ResNet(110), "train"),
    **{name: Model(lambda name=name: CIFAR[name](10), "train") for name in PAPER},
    "mobilenet_v2": Model(mobilenet_v2, "train", (3, 64, 64)),
    "vit": Model(lambda: arch.VisionTransformer(dim=192, depth=6, heads=3), "eval", opset=17),
    "bert": Model(lambda: arch.Bert(**BERT_MINI), "eval", opset=17, tokens={"vocabulary": 30522, "length": 64}),
    "minilm": Model(lambda: arch.Bert(**MINILM), "eval", opset=17, tokens={"vocabulary": 30522, "length": 64}),
    "vit_b16": Model(lambda: arch.VisionTransformer(**VIT_B16), "eval", (3, 224, 224), opset=17),
    "bert_base": Model(lambda: arch.Bert(**BERT_BASE), "eval", opset=17, tokens={"vocabulary": 30522, "length": 128}),
}


def build(model):
    """The network in its exported state."""
    torch.manual_seed(model.seed)
    network = model.build()
    if model.perturb:
        generator = torch.Generator().manual_seed(model.seed + 1)
        example = torch.randn(32, *model.sample, generator=generator)
        arch.perturb_normalizations(network, example, generator)
    return network.train(model.exporter == "train")


def inputs(model, batch, seed, length=None):
    """Seeded random inputs, by the names of the ONNX model's inputs; `length` is that of a text, in tokens."""
    generator = torch.Generator().manual_seed(seed)
    if not model.tokens:
        return {"x": torch.randn(batch, *model.sample, generator=generator)}
    length = length or model.tokens["length"]
    lengths = torch.arange(batch) % 4 * (length // 5)
    second = torch.arange(length) >= length // 2
    return {
        "input_ids": torch.randint(model.tokens["vocabulary"], (batch, length), generator=generator),
        "attention_mask": (torch.arange(length) < length - lengths[:, None]).long(),
        "token_type_ids": second.long().expand(batch, length).contiguous(),
    }


def export(model, path):
    """Writes one model with a dynamic batch axis, and a dynamic sequence axis for text."""
    network = build(model)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    example = inputs(model, 2, model.seed + 2)
    axes = {name: {0: "batch", 1: "sequence"} if model.tokens else {0: "batch"} for name in example}
    common = {"input_names": list(example), "output_names": ["logits"], "opset_version": model.opset}
    if model.exporter == "dynamo":
        torch.onnx.export(
            network, tuple(example.values()), str(path), dynamo=True, external_data=False, verbose=False,
            dynamic_shapes={name: {a: torch.export.Dim(n) for a, n in dims.items()} for name, dims in axes.items()},
            **common,
        )
        strip_stack_traces(path)
    else:
        training = model.exporter == "train"
        mode = torch.onnx.TrainingMode.TRAINING if training else torch.onnx.TrainingMode.EVAL
        torch.onnx.export(
            network, tuple(example.values()), str(path), dynamo=False, training=mode,
            do_constant_folding=not training, dynamic_axes={**axes, "logits": {0: "batch"}}, **common,
        )
    check(network, state, model, path)


def strip_stack_traces(path):
    """Removes the Python stack traces that the dynamo exporter writes, which hold paths of the machine."""
    proto = onnx.load(path)
    for node in proto.graph.node:
        kept = [p for p in node.metadata_props if p.key != "pkg.torch.onnx.stack_trace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(proto, path)


def check(network, state, model, path):
    """The file is valid and, at two batch sizes and text lengths, computes in ONNX Runtime what the network computes."""
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    stored = {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in proto.graph.initializer}
    for name in stored.keys() & state.keys():
        # Tracing in training mode runs the network, which moves the running statistics that are stored.
        moved = model.exporter == "train" and ".running_" in name
        assert moved or torch.equal(stored[name], state[name]), f"{path.name}: the export changed {name}"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch, length in ((3, None), (5, 11)):
        network.load_state_dict(state)
        feed = inputs(model, batch, model.seed + 3, length)
        with torch.no_grad():
            expected = network(*feed.values())
        got = session.run(["logits"], {name: value.numpy() for name, value in feed.items()})[0]
        torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-4)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models to write (default: all)")
    parser.add_argument("--full", type=Path, metavar="DIR", help="write full-size benchmark models there instead")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    models, folder = (FULL, options.full) if options.full else (MODELS, HERE)
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.names or models:
        path = folder / f"{name}.onnx"
        export(models[name], path)
        proto = onnx.load(path)
        count = sum(p.numel() for p in build(models[name]).parameters())
        opset = proto.opset_import[0].version
        print(f"{path.name:20} {count:9,} parameters  opset {opset}  {path.stat().st_size / 1e6:6.3f} MB", flush=True)


if __name__ == "__main__":
    main()
