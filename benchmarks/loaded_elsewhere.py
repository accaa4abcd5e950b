r"""Does an exported classifier decide the same in transformers.js, optimum and onnxruntime as here?

    npm install --ignore-scripts --prefix elsewhere/node @huggingface/transformers
    python -m venv elsewhere/optimum && elsewhere/optimum/bin/pip install "optimum-onnx[onnxruntime]"
    python benchmarks/loaded_elsewhere.py models/sst2 data/glue/SST-2/dev.tsv --column sentence \
        --node elsewhere/node --optimum elsewhere/optimum/bin/python

The folder is one of `distil-jax export --format hf onnx onnx-int8`. optimum needs an older transformers, hence an
environment of its own. Prints the share of equal labels of each loader and file; ends with status 1 where a float32
file decides otherwise.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
from pathlib import Path

from interleaved import exit_status

from distil_jax import load_predictor
from distil_jax.errors import FaultError

_NODE = """
import {env, pipeline} from '@huggingface/transformers';
import fs from 'node:fs';
const {folder, dtype, texts} = JSON.parse(fs.readFileSync(0, 'utf8'));
env.allowRemoteModels = false;
env.localModelPath = folder.slice(0, folder.lastIndexOf('/') + 1);
const classify = await pipeline('text-classification', folder.slice(folder.lastIndexOf('/') + 1), {dtype});
const labels = [];
for (const text of texts) labels.push((await classify(text))[0].label);
console.log(JSON.stringify(labels));
"""

_OPTIMUM = """
import json, sys
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline
given = json.load(sys.stdin)
model = ORTModelForSequenceClassification.from_pretrained(given["folder"], subfolder="onnx", file_name=given["file"])
classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(given["folder"]))
print(json.dumps([row["label"] for row in classify(given["texts"], truncation=True)]))
"""

FILES = {"model.onnx": "fp32", "model_quantized.onnx": "q8"}  # as transformers.js names their types


def labels_of(command: list[str], given: dict[str, object], where: Path | None = None) -> list[str]:
    """What a loader's process answers to `given` on its standard input: one label a text.

    Raises:
        FaultError: it ended with an error, the last line of which is in the message.
    """
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, cwd=where, check=False)
    if done.returncode:
        raise FaultError(f"{command[0]}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(model: Path, texts: list[str], node: Path | None, optimum: str | None) -> bool:
    """Prints the share of equal labels of each loader and file. True where all float32 files agree in full."""
    wanted = [row["label"] for row in load_predictor(model)([{"text": text} for text in texts])]
    equal = True
    for file, dtype in FILES.items():
        if not (model / "onnx" / file).exists():
            continue
        given = {"folder": str(model.resolve()), "texts": texts, "file": file, "dtype": dtype}
        loaders = {}
        if node is not None:
            loaders["transformers.js"] = labels_of(["node", "--input-type=module", "-e", _NODE], given, node)
        if optimum is not None:
            loaders["optimum"] = labels_of([optimum, "-c", _OPTIMUM], given)
        for name, found in loaders.items():
            share = sum(one == other for one, other in zip(found, wanted, strict=True)) / len(texts)
            print(f"{name}, onnx/{file}: {share:.2%} of {len(texts):,} labels equal")
            equal &= share == 1 or dtype != "fp32"
    return equal


def main() -> int:
    """What the command line asks for, see the top of the file. 0 where all float32 files agree, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="an exported folder with a classifier")
    parser.add_argument("table", type=Path, help="a TSV file")
    parser.add_argument("--column", default="sentence", help="the column of the texts")
    parser.add_argument("--rows", type=int, default=0, help="so many of them; 0: all")
    parser.add_argument("--node", type=Path, help="a folder with node_modules")
    parser.add_argument("--optimum", help="the Python of an environment with optimum-onnx")
    given = parser.parse_args()
    with given.table.open(encoding="utf-8", newline="") as file:
        texts = [row[given.column] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    return int(not compare(given.model, texts[: given.rows or None], given.node, given.optimum))


if __name__ == "__main__":
    raise SystemExit(exit_status("loaded_elsewhere", main))
