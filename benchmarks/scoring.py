"""Batch scoring of the book's 300 test messages: Tagsmith's engines against `transformers.pipeline`, rows per second.

`python benchmarks/scoring.py [--bundle DIR] [--openvino DIR] [--onnx DIR] [--write FILE]`. The bundle is
SmolLM2 cut to 16 blocks; it is trained on SMS Spam where none is given, and exported where no export is given. Each
system lives in a process of its own and is asked in turn, so that what else the machine does falls on all of them
alike; a figure is the median of its rounds, a ratio the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
from cells import machine

TEXTS = Path(__file__).parents[1] / ".." / "shared" / "data" / "sms_spam" / "book_split" / "test.csv"
THREADS, ROUNDS, BATCH = 2, 5, 32


def main() -> None:
    """Ask all systems in turn and print a table."""
    parser = argparse.ArgumentParser()
    for name in ("--bundle", "--openvino", "--onnx", "--write"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--worker", nargs=2)
    asked = parser.parse_args()
    if asked.worker:
        answer_rounds(*asked.worker)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folders = prepared(asked, Path(scratch))
        table = page(measured(folders, rounds=asked.rounds))
    print(table)
    if asked.write:
        asked.write.write_text(table, encoding="utf-8")


def prepared(asked: argparse.Namespace, scratch: Path) -> dict[str, tuple[str, Path]]:
    """Each system's kind and folder."""
    from tagsmith.deployment.exporters import export
    from tagsmith.pipeline import train

    bundle = asked.bundle or train("sms-spam", out=scratch / "bundle").folder
    onnx = asked.onnx or export(bundle, to="onnx", out=scratch / "onnx").folder
    openvino = asked.openvino or export(bundle, to="openvino", out=scratch / "openvino").folder
    return {
        "pipeline, all 30 blocks": ("pipeline", whole(scratch / "whole")),
        "pipeline, 16 blocks": ("pipeline", bundle),
        "torch-fp32": ("torch-fp32", bundle),
        **passed("torch-bf16", bundle),
        "onnxruntime": ("onnxruntime", onnx),
        "openvino": ("openvino", openvino),
        **passed("openvino-bf16", openvino),
    }


def passed(engine: str, folder: Path) -> dict[str, tuple[str, Path]]:
    """An engine of fewer bits, where its gate was passed: else it does not answer, and has no speed."""
    from tagsmith.deployment.choosing import why_not
    from tagsmith.deployment.recipe import read_settings

    why = why_not(engine, folder, read_settings(folder))
    if why:
        print(f"{engine} is left out: {why}", file=sys.stderr)
    return {} if why else {engine: (engine, folder)}


def whole(folder: Path) -> Path:
    """All 30 blocks of SmolLM2 with a head that was not trained: the time is the same."""
    from tagsmith.assets import backbone_folder
    from tagsmith.config import ModelConfig
    from tagsmith.deployment.weights import write_classifier
    from tagsmith.labels import Labels
    from tagsmith.model.classifier import build
    from tagsmith.model.gguf import ready_folder

    folder.mkdir()
    weights = ready_folder(backbone_folder("smollm2-135m-instruct-q4"))
    classifier = build(weights, ModelConfig(pooling="last"), labels=Labels.of(["ham", "spam"]), layers=None, seed=0)
    write_classifier(folder, classifier, recipe={})
    return folder


def measured(folders: dict[str, tuple[str, Path]], *, rounds: int) -> dict[str, dict]:
    """Seconds of each round and the labels of each system."""
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--worker", kind, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, (kind, folder) in folders.items()
    }
    found: dict[str, dict] = {name: {"seconds": []} for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            answer = asked(worker)
            found[name]["labels"] = answer["labels"]
            found[name]["seconds"].append(answer["seconds"])
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return found


def asked(worker: subprocess.Popen) -> dict:
    """One round of a worker."""
    worker.stdin.write("go\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        sys.exit("a worker ended; what it said stands above")
    return json.loads(line)


def answer_rounds(kind: str, folder: str) -> None:
    """A worker: label all texts for each line of standard input, and say how long it took."""
    with TEXTS.open(encoding="utf-8", newline="") as file:
        texts = [row["Text"] for row in csv.DictReader(file)]
    label = of_pipeline(folder) if kind == "pipeline" else of_engine(folder, kind)
    label(texts[: 2 * BATCH])  # warms up: kernels are made for the shapes that come
    for _ in sys.stdin:
        start = time.perf_counter()
        labels = label(texts)
        print(json.dumps({"seconds": time.perf_counter() - start, "labels": labels}), flush=True)


def of_pipeline(folder: str) -> Callable[[list[str]], list[str]]:
    """What users write: Hugging Face's pipeline in fp32, in batches of 32."""
    import torch
    from transformers import pipeline

    torch.set_num_threads(THREADS)
    classify = pipeline("text-classification", model=folder, device="cpu", dtype=torch.float32)
    return lambda texts: [answer["label"] for answer in classify(texts, batch_size=BATCH, truncation=True)]


def of_engine(folder: str, name: str) -> Callable[[list[str]], list[str]]:
    """An engine of Tagsmith by its name."""
    from tagsmith.deployment.engine import open_engine

    engine = open_engine(folder, name, threads=THREADS)
    return lambda texts: [str(answer.label) for answer in engine.answer(texts)]


def page(found: dict[str, dict]) -> str:
    """The table, and what was asked how."""
    names = list(found)
    seconds = {name: np.array(each["seconds"]) for name, each in found.items()}
    reference = found["torch-fp32"]["labels"]
    lines = [
        "# Batch scoring",
        "",
        "Command: `python benchmarks/scoring.py --write docs/benchmarks/scoring.md`.",
        f"Machine: {machine()}. Date: {date.today().isoformat()}.",
        "300 test messages of the book's split of SMS Spam; SmolLM2-135M cut to 16 blocks; two threads each.",
        f"`transformers.pipeline` in fp32, in batches of {BATCH}. Times include cleaning and tokens.",
        f"{len(seconds[names[0]])} rounds in turn through all systems; figures are medians, ratios medians in a round.",
        "",
        "| system | rows/s | slowest to fastest | times the pipeline on 16 blocks | on all 30 | labels changed |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        rates = len(reference) / seconds[name]
        ratios = [np.median(seconds[f"pipeline, {base}"] / seconds[name]) for base in ("16 blocks", "all 30 blocks")]
        changed = sum(a != b for a, b in zip(found[name]["labels"], reference, strict=True))
        told = "-" if name.endswith("30 blocks") else f"{changed} of {len(reference)}"
        lines.append(
            f"| {name} | {np.median(rates):.1f} | {rates.min():.1f} to {rates.max():.1f} | {ratios[0]:.2f} | "
            f"{ratios[1]:.2f} | {told} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
