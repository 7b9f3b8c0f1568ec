#!/usr/bin/env python3
"""Fetches the pinned ONNX Runtime into .onnxruntime/lib, where `bisam` looks for it.

The library comes out of the wheel on PyPI; nothing is installed into Python. `scripts/onnxruntime.txt` pins the
version and the hash of each platform's wheel. Run again, it does nothing; an interrupted run leaves nothing half done.
"""

import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PIN = ROOT / "scripts" / "onnxruntime.txt"
HOME = ROOT / ".onnxruntime"
TARGET = HOME / "lib"
LICENCES = ["LICENSE", "ThirdPartyNotices.txt"]
# (system, machine) to the wheel's platform and the library's name in it.
PLATFORMS = {
    ("Linux", "x86_64"): ("manylinux_2_28_x86_64", "libonnxruntime.so.{}"),
    ("Linux", "aarch64"): ("manylinux_2_28_aarch64", "libonnxruntime.so.{}"),
    ("Darwin", "arm64"): ("macosx_14_0_arm64", "libonnxruntime.{}.dylib"),
}


def fail(cause, hint):
    sys.exit(f"error: {cause}\nhint: {hint}")


def pinned_version():
    found = re.search(r"^onnxruntime==(\S+)", PIN.read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        fail(f"{PIN}: no line `onnxruntime==VERSION`", "restore the file from the repository")
    return found.group(1)


def download(tag, folder):
    """Downloads the wheel for platform `tag` into `folder`; pip checks its hash."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", "3.12", "--abi", "cp312", "--implementation", "cp"]
    command += ["--platform", tag, "--require-hashes", "--dest", str(folder), "-r", str(PIN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()
        if "No module named pip" in words:
            hint = "install it, for example with `python3 -m ensurepip` or `apt-get install python3-pip`"
            fail(f"{sys.executable} has no pip", hint)
        fail(
            f"pip could not download ONNX Runtime for {tag}:\n{words}",
            "check the connection and pip's index; or use a library you have with `--ort PATH` or ORT_DYLIB_PATH",
        )
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        fail(f"pip downloaded {len(wheels)} wheels instead of one", f"see {PIN}")
    return wheels[0]


def unpack(wheel, library, folder):
    """Copies the library and the licence files out of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for name in [f"capi/{library}", *LICENCES]:
            try:
                source = archive.open(f"onnxruntime/{name}")
            except KeyError:
                fail(f"{wheel.name}: no onnxruntime/{name} in it", f"the pin in {PIN} does not fit this script")
            with source, open(folder / pathlib.PurePath(name).name, "wb") as out:
                shutil.copyfileobj(source, out)
    (folder / library).chmod(0o755)


def main():
    version = pinned_version()
    system, machine = platform.system(), platform.machine()
    if (system, machine) not in PLATFORMS:
        fail(
            f"no ONNX Runtime is pinned for {system} {machine}",
            "install an ONNX Runtime of 1.23 or newer and name its library with `--ort PATH` or ORT_DYLIB_PATH",
        )
    tag, name = PLATFORMS[system, machine]
    library = name.format(version)
    if all((TARGET / file).is_file() for file in [library, *LICENCES]):
        print(f"ONNX Runtime {version} is at {TARGET / library}")
        return
    print(f"fetching ONNX Runtime {version} for {tag}", flush=True)
    HOME.mkdir(exist_ok=True)
    # Beside the target, so that the rename stays on one file system.
    with tempfile.TemporaryDirectory(dir=HOME, prefix="fetch-") as temporary:
        temporary = pathlib.Path(temporary)
        fresh = temporary / "lib"
        fresh.mkdir()
        unpack(download(tag, temporary), library, fresh)
        if TARGET.exists():
            TARGET.rename(temporary / "old")
        os.rename(fresh, TARGET)
    print(f"ONNX Runtime {version} is at {TARGET / library}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        fail(str(error), f"make sure that {ROOT} can be written to and has 100 MB of space")
    except KeyboardInterrupt:
        sys.exit(130)
