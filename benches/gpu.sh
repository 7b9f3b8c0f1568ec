#!/usr/bin/env bash
# Everything that needs a GPU, in one command, for whoever has one:
#
#     benches/gpu.sh [--dry-run] [--cifar DIR] [--out DIR]
#
# It asks `bisam doctor`, compares gradients and ten steps of every method with the CPU's, trains an epoch of ResNet-56 on CIFAR-10
# (where --cifar names the folder of its binary files), and times steps against PyTorch on the same device. Results are written to
# OUT/gpu.md and OUT/gpu.json (default: gpu-results), ready for docs/gpu.md. --dry-run does all of it on the CPU, with less of each.
#
# It needs no network once these lie beside it: the binary (BISAM, default target/release/bisam), ONNX Runtime's GPU library with CUDA's
# packages (ORT, default the Python package onnxruntime), and for the benchmark PyTorch and the packages of models/requirements.txt in the
# interpreter PYTHON (default python3). To get them: cargo build --release; pip install "onnxruntime-gpu[cuda,cudnn]" and
# pip install -r models/requirements.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
export BISAM="${BISAM:-${CARGO_TARGET_DIR:-target}/release/bisam}"
[ -x "$BISAM" ] || { echo "error: no binary at $BISAM; hint: cargo build --release, or set BISAM" >&2; exit 1; }
exec "$PYTHON" benches/gpu.py "$@"
