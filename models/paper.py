"""Exports the architectures of the BiSAM paper (Xie et al., ICML 2024) and of the recipes, with fresh weights or pretrained ones.

    python models/paper.py                          the CIFAR networks, into models/paper/
    python models/paper.py wrn28-10_100 densenet121_10
    python models/paper.py vit_b16_102 bert_base_2  fetch pretrained weights (timm, transformers)

`NAME_N` is the network NAME with N classes. Every file has live BatchNormalization, a dynamic batch axis and the parameters'
PyTorch names. Runs draw fresh weights of their own by seed where the recipe says `fresh = true`.
"""

import argparse
import warnings
from pathlib import Path

import torch

import architectures as arch

VGG19 = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)

# Table 1 and 2 of the paper, and what the recipes for a CPU train.
CIFAR = {
    "densenet121": lambda classes: arch.DenseNet(32, (6, 12, 24, 16), classes),
    "resnet56": lambda classes: arch.ResNet(56, classes=classes),
    "vgg19bn": lambda classes: arch.Vgg(VGG19, classes),
    "wrn28-2": lambda classes: arch.WideResNet(28, 2, classes),
    "wrn28-10": lambda classes: arch.WideResNet(28, 10, classes),
    "wrn16-1": lambda classes: arch.WideResNet(16, 1, classes),
}


def resnet50(classes):
    """ResNet-50 of torchvision, for ImageNet (Table 3)."""
    import torchvision

    return torchvision.models.resnet50(num_classes=classes)


def vit_b16(classes):
    """ViT-B/16, pretrained on ImageNet-21k (Table 6)."""
    import timm

    return timm.create_model("vit_base_patch16_224.augreg_in21k", pretrained=True, num_classes=classes)


class BertBase(torch.nn.Module):
    """BERT-base, uncased, pretrained, with a new head (Table 7)."""

    def __init__(self, classes):
        super().__init__()
        from transformers import BertForSequenceClassification

        name = "bert-base-uncased"
        self.bert = BertForSequenceClassification.from_pretrained(name, num_labels=classes, attn_implementation="eager")

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits


LARGE = {"resnet50": resnet50, "vit_b16": vit_b16, "bert_base": BertBase}
DEFAULT = [f"{name}_{classes}" for name in CIFAR for classes in (10, 100)]


def example(name):
    """Inputs to trace with, by name."""
    if name == "bert_base":
        ones = torch.ones(2, 16, dtype=torch.int64)
        return {"input_ids": 2 * ones, "attention_mask": ones, "token_type_ids": 0 * ones}
    return {"x": torch.randn(2, 3, 32, 32) if name in CIFAR else torch.randn(2, 3, 224, 224)}


def export(name, path):
    """Writes one model; returns its number of parameters."""
    base, _, classes = name.rpartition("_")
    if base not in CIFAR | LARGE or not classes.isdecimal():
        raise SystemExit(f"{name}: give NAME_CLASSES with one of {', '.join(CIFAR | LARGE)}")
    torch.manual_seed(0)
    network = (CIFAR | LARGE)[base](int(classes)).train()
    inputs = example(base)
    axes = {n: {0: "batch", 1: "sequence"} if base == "bert_base" else {0: "batch"} for n in inputs}
    torch.onnx.export(
        network, tuple(inputs.values()), str(path), dynamo=False, training=torch.onnx.TrainingMode.TRAINING,
        do_constant_folding=False, input_names=list(inputs), output_names=["logits"],
        dynamic_axes={**axes, "logits": {0: "batch"}}, opset_version=17,
    )
    return sum(p.numel() for p in network.parameters())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=DEFAULT, metavar="NAME_CLASSES")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).resolve().parent / "paper", metavar="DIR")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        path = options.output / f"{name}.onnx"
        print(f"{path}  {export(name, path):,} parameters", flush=True)


if __name__ == "__main__":
    main()
