"""The book's recipe and the demo against Hugging Face's Trainer and a reference pass, side by side in one run.

Each cell runs in a process of its own, the cells of a round one after another, so that a slow minute of the machine
meets them all; ratios are taken within a round, and the median over rounds is reported. Tagsmith's time runs from the
start of reading to the saved bundle with its report; imports come before. The reference pass is transformers' own
trunk with all blocks, bf16, SDPA, inference mode, length-sorted batches of 2,048 tokens, over all texts. The Trainer's
time is its training alone: 40 steps, of which the steady ones count, times the steps of five epochs; `--full` runs all
of them once. It is measured under bf16 autocast and in fp32. Where the processor has no bf16 the former is emulated and
many times slower: there both it and the reference pass are measured on fewer steps and batches, and scaled, and they
and the demo in the first round only.

    python benchmarks/speed.py --rounds 3 --write docs/benchmarks/speed.md
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from tagsmith.config import Config

ROOT = Path(__file__).parents[1]
BOOK = ROOT.parent / "shared" / "data" / "sms_spam" / "book_split"
BACKBONE = "smollm2-135m-instruct-q4"
EPOCHS, BATCH, STEADY, EMULATED = 5, 8, 40, 12
SOME_BATCHES = 4
"""How many batches of the reference pass are run where bf16 is emulated, evenly spread over the lengths."""


def main() -> None:
    """Run the cells and print the table."""
    arguments = _arguments()
    if arguments.cell:
        print(json.dumps(CELLS[arguments.cell](arguments)))
        return
    rounds: list[dict[str, dict]] = []
    for i in range(arguments.rounds):
        rounds.append(_round(arguments, seed=123 + i, first=rounds[0] if rounds else None))
    page = _page(rounds, arguments)
    print(page)
    if arguments.write:
        arguments.write.write_text(page, encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="train the Trainer's five epochs in full, once")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--cell", choices=sorted(CELLS), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=123, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=STEADY, help=argparse.SUPPRESS)
    parser.add_argument("--emulated", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _round(arguments: argparse.Namespace, *, seed: int, first: dict[str, dict] | None) -> dict[str, dict]:
    from tagsmith.model.packing import processor_has_bf16

    emulated = not processor_has_bf16()
    cells = {name: _run(name, seed=seed) for name in ("book", "trainer_fp32")}
    if first is not None and emulated:
        cells = {**first, **cells}
    else:
        cells["trainer"] = _run("trainer", seed=seed, steps=EMULATED if emulated else STEADY)
        cells |= {
            name: _run(name, seed=seed, emulated=emulated) for name in ("book_reference", "demo_reference", "demo")
        }
    if arguments.full and seed == 123:
        cells["trainer_full"] = _run("trainer_fp32" if emulated else "trainer", seed=seed, steps=-1)
    for name, values in cells.items():
        print(f"seed {seed}, {name}: {json.dumps(values)}", file=sys.stderr, flush=True)
    return cells


def _run(cell: str, *, seed: int, steps: int = STEADY, emulated: bool = False) -> dict:
    words = [sys.executable, __file__, "--cell", cell, "--seed", str(seed), "--steps", str(steps)]
    words += ["--emulated"] if emulated else []
    finished = subprocess.run(words, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(f"The cell {cell} failed:\n{finished.stderr[-3000:]}")
    return json.loads(finished.stdout.strip().splitlines()[-1])


def _page(rounds: list[dict[str, dict]], arguments: argparse.Namespace) -> str:
    def median(values: list[float]) -> str:
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    steps = -(-len(_rows("train")) // BATCH) * EPOCHS
    trainer, plain = (
        [cells[name]["seconds_per_step"] * steps for cells in rounds] for name in ("trainer", "trainer_fp32")
    )
    ours = [cells["book"]["seconds"] for cells in rounds]
    lines = [
        "# Speed: the book's recipe and the demo",
        "",
        f"Command: `python benchmarks/speed.py --rounds {arguments.rounds}{' --full' if arguments.full else ''}`.",
        f"Machine: {_machine()}. Date: {datetime.now(UTC):%Y-%m-%d}. Seeds: {123} to {122 + len(rounds)}.",
        "Medians over rounds, smallest and largest in brackets; times in seconds. Imports are not counted on any side.",
        *_emulation(),
        "",
        "| what | value |",
        "|---|---|",
        f"| Hugging Face's Trainer, bf16 autocast, {steps} steps (training alone) | {median(trainer)} |",
        f"| the same in fp32 | {median(plain)} |",
        *(_full_line(cells["trainer_full"]) for cells in rounds if "trainer_full" in cells),
        f"| Tagsmith, from reading to saved bundle with report | {median(ours)} |",
        f"| **ratio** to bf16 autocast | {median([t / s for t, s in zip(trainer, ours, strict=True)])} |",
        f"| ratio to fp32 | {median([t / s for t, s in zip(plain, ours, strict=True)])} |",
        f"| test accuracy, % | {median([100 * c['book']['accuracy'] for c in rounds])} |",
        f"| its mean over seeds, % | {statistics.mean([100 * c['book']['accuracy'] for c in rounds]):.2f} |",
        f"| TF-IDF on the same rows, % | {median([100 * c['book']['tfidf'] for c in rounds])} |",
        f"| in reference passes | {median([_passes(c, 'book') for c in rounds])} |",
        f"| peak memory, GiB | {median([c['book']['peak_gib'] for c in rounds])} |",
        "| | |",
        f"| `make demo`, from reading to saved bundle with report | {median([c['demo']['seconds'] for c in rounds])} |",
        f"| reference pass over its texts | {median([c['demo_reference']['seconds'] for c in rounds])} |",
        f"| **in reference passes** | {median([_passes(c, 'demo') for c in rounds])} |",
        f"| test accuracy, % | {median([100 * c['demo']['accuracy'] for c in rounds])} |",
        f"| TF-IDF on the same rows, % | {median([100 * c['demo']['tfidf'] for c in rounds])} |",
        f"| peak memory, GiB | {median([c['demo']['peak_gib'] for c in rounds])} |",
        "",
        f"Stages of the book's recipe, seconds: {_stages(rounds, 'book')}.",
        f"Stages of the demo, seconds: {_stages(rounds, 'demo')}.",
        "",
    ]
    return "\n".join(lines)


def _emulation() -> list[str]:
    from tagsmith.model.packing import processor_has_bf16

    if processor_has_bf16():
        return []
    return [
        "This processor has no bf16 of its own: the Trainer under bf16 autocast and the reference pass are emulated",
        f"and many times slower. They are scaled from {EMULATED} steps and {SOME_BATCHES} batches, and with the demo",
        "they were measured once. The ratio to fp32 is the one that says something here.",
    ]


def _passes(cells: dict[str, dict], name: str) -> float:
    return cells[name]["seconds"] / cells[f"{name}_reference"]["seconds"]


def _full_line(cell: dict) -> str:
    return f"| the same, run in full (seed 123) | {cell['seconds']:.1f}; test accuracy {100 * cell['accuracy']:.2f} % |"


def _stages(rounds: list[dict[str, dict]], cell: str) -> str:
    timings = [cells[cell]["timing"] for cells in rounds]
    return ", ".join(f"{stage} {statistics.median([t[stage] for t in timings]):.1f}" for stage in timings[0])


def _machine() -> str:
    import torch

    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return f"{name or platform.processor()}, {os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}"


# ---- cells


def _book(arguments: argparse.Namespace) -> dict:
    from tagsmith.config import Config, settings_of

    changes = {"data": {"text": "Text", "label": "Label", "split": "group"}, "model": {"backbone": BACKBONE}}
    config = Config.of(settings_of("book")).with_settings(changes | {"seed": arguments.seed})
    train, validation, test = (BOOK / f"{part}.csv" for part in ("train", "validation", "test"))
    return _tagsmith(config, train, validation=validation, test=test)


def _demo(arguments: argparse.Namespace) -> dict:
    from tagsmith.config import Config

    return _tagsmith(Config(seed=arguments.seed), "sms-spam")


def _tagsmith(config: Config, source: str | Path, *, validation: Path | None = None, test: Path | None = None) -> dict:
    import tagsmith
    from tagsmith.assets import cache_folder

    shutil.rmtree(cache_folder() / "states", ignore_errors=True)  # each run is a first run
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        started = time.perf_counter()
        report = tagsmith.train(source, validation=validation, test=test, out=out, config=config).report
        seconds = time.perf_counter() - started
        timing = json.loads((out / "run.json").read_text(encoding="utf-8"))["timing"]
    return {
        "seconds": seconds - timing["imports"],
        "timing": timing,
        "accuracy": report["test"]["accuracy"]["value"],
        "tfidf": report["baselines"]["tfidf"]["accuracy"]["value"],
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def _book_reference(arguments: argparse.Namespace) -> dict:
    texts = [row["Text"] for part in ("train", "validation", "test") for row in _rows(part)]
    return _reference(texts, emulated=arguments.emulated)


def _demo_reference(arguments: argparse.Namespace) -> dict:
    from tagsmith.assets import dataset_file
    from tagsmith.data.readers import read

    return _reference(read(dataset_file("sms-spam").path).texts, emulated=arguments.emulated)


def _reference(texts: list[str], *, emulated: bool) -> dict:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = _folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trunk = AutoModel.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    ids = sorted((tokenizer(text)["input_ids"] for text in texts), key=len)
    batches = _batches(ids, budget=2048)
    apart = max(1, len(batches) // SOME_BATCHES)
    some = batches[apart // 2 :: apart] if emulated else batches
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in some:
            padded = torch.zeros(len(batch), len(batch[-1]), dtype=torch.long)
            mask = torch.zeros_like(padded)
            for i, row in enumerate(batch):
                padded[i, : len(row)] = torch.tensor(row)
                mask[i, : len(row)] = 1
            trunk(input_ids=padded, attention_mask=mask, use_cache=False)
    tokens, computed = (sum(len(row) for batch in each for row in batch) for each in (batches, some))
    return {"seconds": (time.perf_counter() - started) * tokens / computed, "tokens": tokens}


def _batches(ids: list[list[int]], *, budget: int) -> list[list[list[int]]]:
    batches: list[list[list[int]]] = [[]]
    for row in ids:
        if batches[-1] and (len(batches[-1]) + 1) * len(row) > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def _trainer_fp32(arguments: argparse.Namespace) -> dict:
    return _trainer(arguments, bf16=False)


def _trainer(arguments: argparse.Namespace, *, bf16: bool = True) -> dict:
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    folder = _folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    model.requires_grad_(False)
    for part in (model.model.layers[-1], model.model.norm, model.score):
        part.requires_grad_(True)

    def encoded(part: str) -> list[dict]:
        return [
            {**tokenizer(row["Text"], truncation=True, max_length=120), "labels": int(row["Label"])}
            for row in _rows(part)
        ]

    class Clock(TrainerCallback):
        times: ClassVar[list[float]] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out:
        settings = TrainingArguments(
            out,
            max_steps=arguments.steps,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            learning_rate=5e-5,
            weight_decay=0.1,
            lr_scheduler_type="constant",
            bf16=bf16,
            use_cpu=True,
            seed=arguments.seed,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model,
            settings,
            train_dataset=encoded("train"),
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[Clock()],
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        result = {"seconds": seconds, "seconds_per_step": _mean_gap(Clock.times[5:])}
        if arguments.steps < 0:
            answers = trainer.predict(encoded("test"))
            result["accuracy"] = float((answers.predictions.argmax(1) == answers.label_ids).mean())
    return result


def _mean_gap(times: list[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1)


def _folder() -> Path:
    from tagsmith.assets import backbone_folder
    from tagsmith.model.gguf import ready_folder

    return ready_folder(backbone_folder(BACKBONE))


def _rows(part: str) -> list[dict[str, str]]:
    if not BOOK.exists():
        sys.exit(f"The book's split is not at {BOOK}: this benchmark needs its three files.")
    with (BOOK / f"{part}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


CELLS = {
    "book": _book,
    "book_reference": _book_reference,
    "demo": _demo,
    "demo_reference": _demo_reference,
    "trainer": _trainer,
    "trainer_fp32": _trainer_fp32,
}

if __name__ == "__main__":
    main()
