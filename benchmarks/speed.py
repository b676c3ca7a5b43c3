"""Speed and memory of tuning, against Hugging Face's Trainer, peft and the book's loop, side by side in one run.

Each cell runs in a process of its own (cells.py), the cells of a round one after another, so that a slow minute of the
machine meets them all; ratios are taken within a round, and medians over rounds are reported. Tagsmith's time runs from
the start of reading to the saved bundle with its report; imports come before. A peer's time is its training alone: its
steady steps, times the steps of all epochs; one is run in full, with `--full` all. Finished cells are kept under
build/benchmarks and reused; `--fresh` forgets them. Where a processor has no bf16 of its own it is emulated, and the
rows under bf16 say little: those in fp32 are to be read there.

    python benchmarks/speed.py --rounds 3 --splits 10 --write docs/benchmarks/speed.md
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import peers
from cells import answered, cell, machine, peak_gib

BOOK_STEPS = 655
"""Steps of the book's recipe: five epochs of 1,045 rows, 8 at a time."""

TREC = {"layers": 16, "seed": 123, "steps": 40}


def main() -> None:
    """Run the cells that were not run yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--splits", type=int, default=10, help="splits for the comparison of depths; 0 leaves it out")
    parser.add_argument("--large", action="store_true", help="memory at 1,000,000 and 10,000,000 tokens too")
    parser.add_argument("--full", action="store_true", help="train the peers in fp32 to their end too, half an hour")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    rounds = [_round(123 + i) for i in range(arguments.rounds)]
    full = {"Trainer, bf16 autocast": _cell("trainer", bf16=True, seed=123, steps=-1)}
    if arguments.full:
        full["Trainer, fp32"] = _cell("trainer", bf16=False, seed=123, steps=-1)
        full["the book's loop, fp32, padded to 120"] = _cell("book_loop", seed=123, steps=-1)
    depths = [
        {layers: _cell("split", seed=seed, layers=layers) for layers in ("all", "auto")}
        for seed in range(1, arguments.splits + 1)
    ]
    large = {name: _cell("large", **size) for name, size in LARGE.items() if arguments.large}
    page = "\n".join([*_head(arguments), *_book_table(rounds, full), *_depth_table(depths), *_trec_table(rounds)])
    page += "\n".join(["", *_large_table(large), ""])
    print(page)
    if arguments.write:
        arguments.write.write_text(page, encoding="utf-8")


def _cell(name: str, **arguments: Any) -> dict[str, Any]:
    return cell(__file__, name, **arguments)


def _round(seed: int) -> dict[str, dict[str, Any]]:
    ours = {
        "all": _cell("book", seed=seed, layers="all"),
        "auto": _cell("book", seed=seed, layers="auto"),
        "seeds": _cell("book", seed=seed, layers="all", seeds=3),
        "reference": _cell("book_reference", seed=seed),
        "floor": _cell("floor", seed=seed),
    }
    theirs = {
        "bf16": _cell("trainer", bf16=True, seed=seed, steps=40),
        "fp32": _cell("trainer", bf16=False, seed=seed, steps=30),
        "loop": _cell("book_loop", seed=seed, steps=30),
    }
    trec = {}
    for method in ("full", "lora"):
        trec[f"trec_{method}"] = _cell("trec", **{**TREC, "seed": seed}, method=method)
        trec[f"trec_{method}_trainer"] = _cell("trainer_trec", **{**TREC, "seed": seed}, method=method)
    return ours | theirs | trec


# ---- the page


def _head(arguments: argparse.Namespace) -> list[str]:
    options = f"--rounds {arguments.rounds} --splits {arguments.splits}"
    options += "".join(f" --{name}" for name in ("large", "full") if getattr(arguments, name))
    return [
        "# Speed and memory of tuning",
        "",
        f"Command: `python benchmarks/speed.py {options}`.",
        f"Machine: {machine()}. Date: {datetime.now(UTC):%Y-%m-%d}. First seed: 123.",
        "Medians over rounds, smallest and largest in brackets; times in seconds; imports are not counted on any side.",
        "",
    ]


def _spread(values: Sequence[float], digits: int = 2) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _book_table(rounds: list[dict[str, dict[str, Any]]], full: Mapping[str, Mapping[str, float]]) -> list[str]:
    def each(value: Callable[[dict[str, Any]], float]) -> str:
        return _spread([value(cells) for cells in rounds])

    def peer(name: str) -> Callable[[dict[str, Any]], float]:
        return lambda cells: cells[name]["seconds_per_step"] * BOOK_STEPS

    lines = [
        "## The book's recipe",
        "",
        "SmolLM2-135M on the book's SMS split (1,045 / 149 / 300 rows): last block, final norm and head learn, five",
        "epochs, 8 rows a step. The Trainer pads each batch to its longest text; it keeps dropout (none here).",
        "",
        "| what | seconds | Tagsmith is faster by | with the depth chosen by probes |",
        "|---|---|---|---|",
    ]
    for name, title in (
        ("bf16", "Trainer, bf16 autocast"),
        ("fp32", "Trainer, fp32"),
        ("loop", "the book's loop, fp32, padded to 120"),
    ):
        ratios = [each(lambda c, n=name, o=ours: peer(n)(c) / c[o]["seconds"]) for ours in ("all", "auto")]
        lines.append(f"| {title}, {BOOK_STEPS} steps | {each(peer(name))} | {ratios[0]} | {ratios[1]} |")
    lines += [
        f"| Tagsmith, 30 blocks | {each(lambda c: c['all']['seconds'])} | | |",
        f"| Tagsmith, `layers=auto` | {each(lambda c: c['auto']['seconds'])} | | |",
        "",
        "| what | value |",
        "|---|---|",
        f"| 30 blocks, in reference passes | {each(lambda c: c['all']['seconds'] / c['reference']['seconds'])} |",
        f"| a further seed, share of the first run | {each(_further_seed)} |",
        f"| test accuracy, %, 30 blocks | {each(lambda c: 100 * c['all']['accuracy'])} |",
        f"| test accuracy, %, depth chosen | {each(lambda c: 100 * c['auto']['accuracy'])} |",
        f"| blocks chosen | {', '.join(str(c['auto']['layers']) for c in rounds)} |",
        f"| TF-IDF, % | {each(lambda c: 100 * c['all']['tfidf'])} |",
        f"| peak memory, GiB | {each(lambda c: c['all']['peak_gib'])} |",
        *(
            [f"| padding computed, % | {each(lambda c: 100 * c['all']['padding'])} |"]
            if all(np.isfinite(c["all"]["padding"]) for c in rounds)
            else []
        ),
        "",
        f"Stages with 30 blocks: {_stages(rounds, 'all')}; with the depth chosen: {_stages(rounds, 'auto')}.",
        "",
        *_floor_lines(rounds, each),
        "Peers run in full, once: "
        + "; ".join(
            f"{name} {values['seconds']:.0f} s, test accuracy {100 * values['accuracy']:.2f} %"
            for name, values in full.items()
        )
        + ".",
        "",
    ]
    return lines


def _floor_lines(rounds: list[dict[str, dict[str, Any]]], each: Callable[..., str]) -> list[str]:
    """What no run on this machine can be faster than, and how many times faster than the peers that would be."""
    told = {name: statistics.median([cells["floor"][name] for cells in rounds]) for name in rounds[0]["floor"]}
    ratios = {
        title: each(lambda c, n=name: c[n]["seconds_per_step"] * BOOK_STEPS / c["floor"]["seconds"])
        for name, title in (("bf16", "Trainer, bf16 autocast"), ("fp32", "Trainer, fp32"), ("loop", "the book's loop"))
    }
    seconds = each(lambda c: c["floor"]["seconds"])
    rates = [f"{told[name] / 1e9:,.0f}" for name in ("bf16", "fp32", "bytes")]
    return [
        "The floor: if nothing took time but the products of the frozen pass in the faster arithmetic, those of the",
        "test rows in fp32 (both at the rate of one large product) and the memory that a step must read and write",
        f"(at that of a large copy), 30 blocks would take {seconds} s: {told['frozen']:.1f} for the pass",
        f"(bf16 {rates[0]} GFLOP/s, 0 where there is none; fp32 {rates[1]}), {told['test']:.1f} for the test rows,",
        f"{told['steps']:.1f} for the steps",
        f"({rates[2]} GB/s).",
        "That would be " + ", ".join(f"{ratio} times faster than {title}" for title, ratio in ratios.items()) + ".",
        "",
    ]


def _further_seed(cells: Mapping[str, Mapping[str, Any]]) -> float:
    return (cells["seeds"]["seconds"] - cells["all"]["seconds"]) / 2 / cells["all"]["seconds"]


def _stages(rounds: list[dict[str, dict[str, Any]]], name: str) -> str:
    timings = [cells[name]["timing"] for cells in rounds]
    return ", ".join(f"{stage} {statistics.median([t[stage] for t in timings]):.1f}" for stage in timings[0])


def _depth_table(depths: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    if len(depths) < 2:
        return []
    from scipy.stats import t

    lost = np.array([100 * (each["auto"]["accuracy"] - each["all"]["accuracy"]) for each in depths])
    error = t.ppf(0.95, len(lost) - 1) * lost.std(ddof=1) / np.sqrt(len(lost))
    return [
        "## Is the chosen depth as good?",
        "",
        f"The same rows in {len(depths)} splits that keep near duplicates together; test accuracy in %.",
        "",
        "| seed | 30 blocks | depth chosen | blocks |",
        "|---|---|---|---|",
        *(
            f"| {seed} | {100 * each['all']['accuracy']:.2f} | {100 * each['auto']['accuracy']:.2f} "
            f"| {each['auto']['layers']} |"
            for seed, each in enumerate(depths, start=1)
        ),
        "",
        f"Mean difference {lost.mean():+.2f} points, lower one-sided 95 % bound (paired t) {lost.mean() - error:+.2f}.",
        "",
    ]


def _trec_table(rounds: list[dict[str, dict[str, Any]]]) -> list[str]:
    lines = [
        "## All blocks learn",
        "",
        "TREC-6, the lowest 16 blocks of SmolLM2-135M, 16 rows a step, bf16, embeddings frozen on both sides; tokens",
        "of texts (padding does not count) per second over steady steps.",
        "",
        "| method | Tagsmith | Trainer | ratio |",
        "|---|---|---|---|",
    ]
    for method, title in (("full", "all weights of the blocks"), ("lora", "LoRA, rank 16, all linear layers")):
        ours, theirs = (
            [c[name]["tokens_per_second"] for c in rounds] for name in (f"trec_{method}", f"trec_{method}_trainer")
        )
        trained = {c[name]["trained"] for c in rounds for name in (f"trec_{method}", f"trec_{method}_trainer")}
        ratio = _spread([a / b for a, b in zip(ours, theirs, strict=True)])
        lines.append(
            f"| {title} ({' / '.join(f'{n:,}' for n in sorted(trained))} weights) "
            f"| {_spread(ours, 0)} | {_spread(theirs, 0)} | **{ratio}** |"
        )
    return [*lines, ""]


def _large_table(large: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not large:
        return []
    return [
        "## Memory",
        "",
        "| what | tokens | peak memory, GiB | disk for states, GiB | seconds |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {each['tokens']:,} | {each['peak_gib']:.2f} | {each['disk_gib']:.2f} | {each['seconds']:.0f} |"
            for name, each in large.items()
        ),
    ]


# ---- cells


def _book(*, seed: int, layers: str, seeds: int = 1) -> dict[str, Any]:
    from tagsmith.config import Config, settings_of

    changes = {
        "data": {"text": "Text", "label": "Label", "split": "group"},
        "model": {"backbone": peers.BACKBONE, "layers": layers},
        "tuning": {"seeds": seeds},
        "seed": seed,
    }
    config = Config.of(settings_of("book")).with_settings(changes)
    folder = peers.DATA / "sms_spam" / "book_split"
    train, validation, test = (folder / f"{part}.csv" for part in ("train", "validation", "test"))
    return _trained(config, train, validation=validation, test=test)


def _split(*, seed: int, layers: str) -> dict[str, Any]:
    from tagsmith.config import Config, settings_of

    rows = [row for part in ("train", "validation", "test") for row in peers.book_rows(part)]
    changes = {
        "data": {"split": "group"},
        "model": {"backbone": peers.BACKBONE, "layers": layers},
        "evaluation": {"audit": False, "robustness_rows": 0},  # only accuracy is asked of it
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rows.jsonl"
        table.write_text("".join(json.dumps({"text": text, "label": str(label)}) + "\n" for text, label in rows))
        return _trained(Config.of(settings_of("book")).with_settings(changes), table)


def _trained(config: Any, source: Path, *, validation: Path | None = None, test: Path | None = None) -> dict[str, Any]:
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
        "layers": report["model"]["layers"],
        "accuracy": report["test"]["accuracy"]["value"],
        "tfidf": report["baselines"]["tfidf"]["accuracy"]["value"],
        "padding": report["data"]["padding"]["share"],
        "peak_gib": peak_gib(),
    }


def _book_reference(*, seed: int) -> dict[str, Any]:
    del seed  # a pass draws nothing; the number names the round
    return peers.reference_pass([text for part in ("train", "validation", "test") for text, _ in peers.book_rows(part)])


def _trec(*, layers: int, method: str, seed: int, steps: int) -> dict[str, Any]:
    """Steady steps of Tagsmith's loop on the rows, blocks and weights of the Trainer's cell."""
    from tagsmith.config import Config
    from tagsmith.data.batching import training_steps
    from tagsmith.labels import Labels
    from tagsmith.model.classifier import build
    from tagsmith.model.packing import keep_freed_memory
    from tagsmith.tuning.learner import Part
    from tagsmith.tuning.loop import Loop

    keep_freed_memory()
    tuning = {"epochs": 1, "batch_size": 16, "learning_rate": 2e-4, "head_learning_rate": None, "cache_gib": 0}
    tuning |= {"method": "lora"} if method == "lora" else {"method": "last_layers", "blocks": layers}
    config = Config.of({"model": {"layers": layers}, "tuning": tuning, "seed": seed})
    rows = peers.trec_rows("train")
    labels = Labels.of([str(label) for label in range(6)])
    classifier = build(peers.folder_of(), config.model, labels=labels, layers=layers, seed=seed)
    tokens, truth = classifier.encoder.encode([text for text, _ in rows]), np.array([label for _, label in rows])
    parts = {"train": Part(tokens, truth), "validation": Part(tokens.of_texts(np.arange(8)), truth[:8])}
    loop = Loop(classifier, parts, config, metric=lambda *_: 0.0)
    planned = training_steps(tokens.sizes, rows_per_step=16, seed=seed, epoch=0)
    counts, times = [int(tokens.sizes[rows].sum()) for rows in planned], []
    for event in loop.events():
        if event.name == "step":
            times.append(time.perf_counter())
        if len(times) == steps:
            break
    return {
        "tokens_per_second": sum(counts[6:steps]) / (times[-1] - times[5]),
        "seconds_per_step": float(np.diff(times[5:]).mean()),
        "trained": sum(weight.numel() for weight in classifier.parameters() if weight.requires_grad),
        "peak_gib": peak_gib(),
    }


LARGE = {
    "8 blocks, the last two learn": {"millions": 1, "layers": 8, "blocks": 2},
    "2 blocks, the last one learns": {"millions": 10, "layers": 2, "blocks": 1},
}


def _large(*, millions: int, layers: int, blocks: int) -> dict[str, Any]:
    """One epoch over texts of random tokens, 128 each."""
    from tagsmith.config import Config
    from tagsmith.data.encoding import Tokens
    from tagsmith.labels import Labels
    from tagsmith.model.classifier import build
    from tagsmith.model.packing import keep_freed_memory
    from tagsmith.tuning.learner import Part
    from tagsmith.tuning.loop import tune

    keep_freed_memory()
    tuning = {"method": "last_layers", "blocks": blocks, "epochs": 1, "evaluations_per_epoch": 1, "cache_gib": 0}
    config = Config.of({"model": {"layers": layers}, "tuning": tuning})
    classifier = build(peers.folder_of(), config.model, labels=Labels.of(["a", "b"]), layers=layers, seed=1)
    random, length = np.random.default_rng(1), 128
    count = millions * 1_000_000 // length

    def part(texts: int) -> Part:
        ids = random.integers(20, 40_000, size=texts * length, dtype=np.int32)
        tokens = Tokens(
            ids=ids,
            offsets=np.arange(texts + 1, dtype=np.int64) * length,
            rows=np.arange(texts),
            truncated=np.zeros(texts, dtype=bool),
        )
        return Part(tokens, (ids.reshape(texts, length)[:, -1] % 2).astype(np.int64))

    parts, started = {"train": part(count), "validation": part(200)}, time.perf_counter()
    tuned = tune(classifier, parts, config, metric=lambda *_: 0.0)
    return {
        "tokens": count * length,
        "seconds": time.perf_counter() - started,
        "peak_gib": peak_gib(),
        "disk_gib": tuned.states["train"].hidden_TD.numel() * tuned.states["train"].hidden_TD.itemsize / 2**30,
    }


CELLS = {
    "book": _book,
    "split": _split,
    "book_reference": _book_reference,
    "floor": peers.floor,
    "trec": _trec,
    "large": _large,
    "trainer": peers.trainer_on_book,
    "book_loop": peers.book_loop,
    "trainer_trec": peers.trainer_on_trec,
}

if __name__ == "__main__" and not answered(CELLS):
    sys.exit(main())
