"""Runs training steps on ONNX Runtime's CUDA provider without a device.

    python3 scripts/fake_cuda.py [--bisam target/release/bisam] [MODEL ...]

ONNX Runtime's real CUDA provider is fetched (onnxruntime-gpu, 255 MB, into .onnxruntime/gpu) and loaded over a fake of CUDA's libraries,
made here with the C compiler: memory is the host's, and the provider's kernels do nothing. So numbers mean nothing, but everything
else is as on a device: which nodes the provider takes, what is bound, whether a stage is captured as a CUDA graph, and how often the host
waits. For every model (default: all of models/) and several methods it checks that

- every node of a pass runs on the device, and none is a copy;
- every stage is captured once for each pair of buffers, and replayed from then on;
- how often a replayed step waits for the device, which is where its losses are read.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOME = ROOT / ".onnxruntime" / "gpu"
PACKAGE = "onnxruntime-gpu==1.31.1"
LIBRARIES = ["libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcufft.so.12", "libcuda.so.1"]
LIBRARIES += ["libcudnn.so.9", "libnvrtc.so.13"]
METHODS = ["sgd", "bisam", "asam", "gsam"]


def fetch():
    """The provider's libraries, out of their package."""
    capi = HOME / "onnxruntime" / "capi"
    if not capi.is_dir():
        HOME.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=HOME.parent, prefix="fetch-") as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder]
            command += ["--python-version", "3.12", "--platform", "manylinux_2_28_x86_64", "--implementation", "cp", PACKAGE]
            if subprocess.run(command, check=False).returncode != 0:
                sys.exit(f"error: pip could not download {PACKAGE}\nhint: check the connection and pip's index")
            fresh = pathlib.Path(folder) / "gpu"
            with zipfile.ZipFile(next(pathlib.Path(folder).glob("*.whl"))) as archive:
                for name in archive.namelist():
                    if re.search(r"capi/libonnxruntime(_providers_(cuda|shared))?\.so", name) or "LICENSE" in name:
                        archive.extract(name, fresh)
            os.rename(fresh, HOME)
    return capi


def imported(provider):
    """Names of CUDA's functions that the provider links to, or looks up when it runs."""
    linked = subprocess.run(["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1].split("@")[0] for line in linked.splitlines()}
    names |= {m.decode() for m in re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", provider.read_bytes())}
    return {n for n in names if re.match(r"(__)?(cuda|cublas|curand|cufft|cudnn|cu)[A-Z]", n)}


def make_fake(capi, folder):
    """Builds the fake libraries into `folder`."""
    stubs = folder / "stubs.c"
    names = sorted(imported(capi / "libonnxruntime_providers_cuda.so"))
    # Where fake_cuda.c has a function of the name, that is taken.
    stubs.write_text("".join(f"__attribute__((weak)) int {n}() {{ return 0; }}\n" for n in names))
    compiler = [os.environ.get("CC", "cc"), "-O1", "-w", "-fPIC"]
    objects = [folder / "fake.o", folder / "stubs.o"]
    subprocess.run([*compiler, "-std=gnu11", "-c", ROOT / "scripts" / "fake_cuda.c", "-o", objects[0]], check=True)
    subprocess.run([*compiler, "-std=gnu89", "-c", stubs, "-o", objects[1]], check=True)
    for name in LIBRARIES:
        # The provider's imports carry the library's name as their version.
        version = folder / f"{name}.map"
        version.write_text(f"{name} {{ global: *; }};\n")
        link = [*compiler, "-shared", "-Wl,-Bsymbolic", f"-Wl,-soname,{name}", f"-Wl,--version-script={version}"]
        subprocess.run([*link, "-o", folder / name, *objects, "-lm", "-ldl"], check=True)


def run(bisam, capi, folder, *arguments):
    """What `bisam bench` says, and the fake's counts."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "FAKE_SKIP": "1"}
    command = [bisam, "bench", *arguments, "--json", "--device", "cuda", "--ort", capi]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    counts = [0, 0, 0, 0]
    for line in re.findall(r"fake cuda: (\d+) graphs, (\d+) launches, (\d+) copies, (\d+) waits", done.stderr):
        counts = [a + int(b) for a, b in zip(counts, line, strict=True)]
    return json.loads(done.stdout), dict(zip(["graphs", "launches", "copies", "waits"], counts, strict=True))


def check(bisam, capi, folder, model, method):
    """A line about a model, and what is wrong."""
    arguments = [model, "--batch", "8", "--optimizer", method]
    short = run(bisam, capi, folder, *arguments, "--steps", "2")
    long = run(bisam, capi, folder, *arguments, "--steps", "12")
    nodes = run(bisam, capi, folder, *arguments, "--steps", "2", "--profile")[0]["nodes"]
    more = {k: (long[1][k] - short[1][k]) / 10 for k in long[1]}
    wrong = [f"{n['op']} `{n['name']}` ran on {n['provider']}" for n in nodes if n["provider"] != "CUDA" or "Memcpy" in n["op"]]
    if long[1]["graphs"] == 0 or more["graphs"] != 0:
        wrong.append(f"{short[1]['graphs']} graphs after 4 steps, {long[1]['graphs']} after 14")
    line = f"{model.stem:16} {method:6} {len(nodes):4} nodes, {long[1]['graphs']:2} graphs; a step: {more['launches']:.1f} launches, "
    return line + f"{more['copies']:.1f} copies, {more['waits']:.1f} waits, {long[0]['step_ms']:.3f} ms of the host's time", wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--bisam", type=pathlib.Path, default=target / "release" / "bisam")
    parser.add_argument("models", nargs="*", type=pathlib.Path)
    options = parser.parse_args()
    capi = fetch()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        make_fake(capi, folder)
        for model in options.models or sorted((ROOT / "models").glob("*.onnx")):
            for method in METHODS:
                try:
                    line, wrong = check(options.bisam, capi, folder, model, method)
                except RuntimeError as error:
                    line, wrong = f"{model.stem:16} {method:6} failed", [str(error)]
                failed += bool(wrong)
                print(line, *[f"\n    {w}" for w in wrong[:10]], flush=True)
    sys.exit(f"error: {failed} of these leave the device" if failed else 0)


if __name__ == "__main__":
    main()
