"""Fetches NVIDIA's run-time compiler, NVRTC, into .onnxruntime/nvrtc: tests compile the kernels for CUDA with it, without a device.

It comes out of the package on PyPI that `nvrtc.txt` pins; nothing is installed into Python. Elsewhere than on Linux there is none, and
nothing is done. Usage:
    python3 scripts/fetch_nvrtc.py
"""

import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / ".onnxruntime" / "nvrtc"
PLATFORMS = {"x86_64": "manylinux_2_12_x86_64", "aarch64": "manylinux_2_17_aarch64"}


def main():
    tag = PLATFORMS.get(platform.machine()) if platform.system() == "Linux" else None
    if tag is None:
        print("there is no NVRTC for this system; its test is left out")
        return
    if TARGET.is_dir():
        print(f"NVRTC is at {TARGET}")
        return
    TARGET.parent.mkdir(exist_ok=True)
    # Beside the target, so that the rename stays on one file system.
    with tempfile.TemporaryDirectory(dir=TARGET.parent, prefix="fetch-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--platform", tag, "--require-hashes", "--dest", folder]
        if subprocess.run([*command, "-r", ROOT / "scripts" / "nvrtc.txt"], check=False).returncode != 0:
            sys.exit("error: pip could not download NVRTC\nhint: check the connection and pip's index")
        fresh = pathlib.Path(folder) / "nvrtc"
        fresh.mkdir()
        with zipfile.ZipFile(next(pathlib.Path(folder).glob("*.whl"))) as archive:
            for name in archive.namelist():
                if "/lib/libnvrtc" in name or "/licenses/" in name:
                    (fresh / pathlib.PurePath(name).name).write_bytes(archive.read(name))
        os.rename(fresh, TARGET)
    print(f"NVRTC is at {TARGET}")


if __name__ == "__main__":
    main()
