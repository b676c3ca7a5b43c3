"""Stage 1 measured: counts on known files, near duplicates against brute force, and a million rows against peers.

The million rows are made from the shared data sets with planted exact and near duplicates, the same at each run, and
are written to a temporary CSV. Each size and each peer runs in a process of its own, one after another. The peer does
the same with pandas and datasketch: read, fold, MinHash of 128 permutations over character 5-grams, LSH at 0.8, the
Jaccard of each candidate checked, union-find, and a split of whole groups, stratified by label.

    python benchmarks/data.py --write docs/benchmarks/data.md
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
SEED = 123
SOURCES = (
    *("ag_news_10k/train", "banking77/train", "clinc150/train", "davidson_hate/all", "emotion/train"),
    *("goemotions/train", "goemotions/test", "hate/train", "mpqa/all", "sst2/train", "trec6/train"),
    *("ag_news_10k/test", "xlmt_sentiment/train", "xlmt_sentiment/test"),
)
SIZES, PEER_ROWS = (10_000, 100_000, 1_000_000), 100_000
QUICK_SIZES, QUICK_PEER_ROWS = (10_000, 30_000, 100_000), 5_000
NEAR = 0.8


def main() -> None:
    """Run the cells and print the page."""
    arguments = _arguments()
    if arguments.cell:
        print(json.dumps(CELLS[arguments.cell](arguments)))
        return
    if not DATA.is_dir():
        sys.exit(f"The data sets are not at {DATA}: this benchmark needs them.")
    page = _page(_measured(arguments), arguments)
    print(page)
    if arguments.write:
        arguments.write.write_text(page, encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 100,000 rows, the peer on 5,000: under a minute")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--cell", choices=sorted(CELLS), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measured(arguments: argparse.Namespace) -> dict:
    sizes, peer_rows = (QUICK_SIZES, QUICK_PEER_ROWS) if arguments.quick else (SIZES, PEER_ROWS)
    cells = {"counts": _run("counts"), "recall": _run("recall"), "check": [_run("check") for _ in range(3)]}
    with tempfile.TemporaryDirectory(prefix="tagsmith-benchmark-") as folder:
        for rows in sorted({*sizes, peer_rows}):
            _run("make", file=Path(folder) / f"{rows}.csv", rows=rows)
        cells["tagsmith"] = {rows: _run("tagsmith", file=Path(folder) / f"{rows}.csv") for rows in sizes}
        cells["beside"] = _run("tagsmith", file=Path(folder) / f"{peer_rows}.csv")
        cells["peer"] = _run("peer", file=Path(folder) / f"{peer_rows}.csv")
    return cells


def _run(cell: str, *, file: Path | None = None, rows: int | None = None) -> dict:
    words = [sys.executable, __file__, "--cell", cell]
    words += ["--file", str(file)] if file else []
    words += ["--rows", str(rows)] if rows else []
    finished = subprocess.run(words, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(f"The cell {cell} failed:\n{finished.stderr[-3000:]}")
    values = json.loads(finished.stdout.strip().splitlines()[-1])
    print(f"{cell} {file.name if file else ''}: {json.dumps(values)}", file=sys.stderr, flush=True)
    return values


# ---- the million rows


def _make(arguments: argparse.Namespace) -> dict:
    """A CSV of `rows` rows: four in five of their own, one in ten an exact copy, one in ten a near copy of another."""
    import csv

    originals = _originals(arguments.rows)
    chance = random.Random(SEED)
    kept: list[tuple[str, str]] = []
    with arguments.file.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(arguments.rows):
            text, label = _row(originals, kept, chance)
            if len(kept) < 100_000:
                kept.append((text, label))
            else:
                kept[chance.randrange(100_000)] = (text, label)
            writer.writerow([text, label])
    return {"bytes": arguments.file.stat().st_size}


def _row(originals: Iterator[str], kept: list[tuple[str, str]], chance: random.Random) -> tuple[str, str]:
    kind = chance.random()
    if kept and kind < 0.1:
        text, label = chance.choice(kept)
        return (text.upper() if chance.random() < 0.5 else f" {text}  "), label
    if kept and kind < 0.2:
        text, label = chance.choice(kept)
        at = chance.randrange(len(text))
        return text[:at] + chance.choice("abcdefgh") + text[at + 1 :], label
    return next(originals), f"label {min(int(chance.expovariate(0.5)), 9)}"


def _originals(most: int) -> Iterator[str]:
    """Short texts of the shared data sets, each once, and then pieces of 8 to 16 words of the long ones."""
    import polars as pl

    chance = random.Random(SEED)
    texts = [
        text
        for name in SOURCES
        for text in pl.read_parquet(DATA / f"{name}.parquet")["text"].drop_nulls().unique(maintain_order=True)
        if text.strip()
    ]
    chance.shuffle(texts)
    yield from texts
    for name in ("imdb/train", "imdb/test", "hyperpartisan/all"):
        for text in pl.read_parquet(DATA / f"{name}.parquet")["text"].drop_nulls():
            words = text.split()
            while words:
                count = chance.randint(8, 16)
                yield " ".join(words[:count])
                words = words[count:]
    sys.exit(f"The shared data sets hold too few texts for {most} rows.")


# ---- cells


def _tagsmith(arguments: argparse.Namespace) -> dict:
    from tagsmith.config import DataConfig
    from tagsmith.data.column_cleaning import clean_table
    from tagsmith.data.duplicates import group_duplicates
    from tagsmith.data.readers import read
    from tagsmith.data.splitting import split

    clock = _Clock()
    table = read(arguments.file, text="text", label="label")
    clock.lap("read")
    table = clean_table(table, ("invisible", "nfc", "spaces"))
    clock.lap("clean")
    grouped = group_duplicates(table, near=NEAR)
    clock.lap("group")
    config = DataConfig()
    splits = split(grouped.table, validation_share=config.validation_share, test_share=config.test_share, seed=SEED)
    clock.lap("split")
    return clock.values | {
        "rows": len(table),
        "exact_rows": grouped.exact_rows,
        "near_rows": grouped.near_rows,
        "largest": grouped.largest,
        "threshold": grouped.threshold,
        "test": len(splits.test),
    }


class _Clock:
    """Wall and CPU seconds of each lap, and the most memory so far."""

    def __init__(self) -> None:
        self.values: dict = {"seconds": 0.0, "cpu": 0.0, "laps": {}}
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.values["laps"][name] = wall - self.wall
        self.values["seconds"] += wall - self.wall
        self.values["cpu"] += cpu - self.cpu
        self.values["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self.wall, self.cpu = wall, cpu


def _peer(arguments: argparse.Namespace) -> dict:
    import numpy as np
    import pandas as pd
    from datasketch import MinHash, MinHashLSH
    from sklearn.model_selection import StratifiedGroupKFold

    clock = _Clock()
    frame = pd.read_csv(arguments.file, dtype=str, keep_default_na=False)
    clock.lap("read")
    frame["text"] = frame["text"].str.normalize("NFC").str.replace(r"\s+", " ", regex=True).str.strip()
    frame["folded"] = frame["text"].str.lower()
    clock.lap("clean")
    unique = frame["folded"].unique().tolist()
    lsh, parents = MinHashLSH(threshold=NEAR, num_perm=128), list(range(len(unique)))
    sets = [{text[i : i + 5] for i in range(len(text) - 4)} for text in unique]

    def root(one: int) -> int:
        while parents[one] != one:
            parents[one] = parents[parents[one]]
            one = parents[one]
        return one

    for i, shingles in enumerate(sets):
        if not shingles:
            continue
        sketch = MinHash(num_perm=128, seed=1)
        sketch.update_batch([shingle.encode() for shingle in shingles])
        for j in lsh.query(sketch):
            if root(i) != root(j) and len(shingles & sets[j]) >= NEAR * len(shingles | sets[j]):
                parents[root(i)] = root(j)
        lsh.insert(i, sketch)
    numbers = {text: root(i) for i, text in enumerate(unique)}
    frame["group"] = frame["folded"].map(numbers)
    clock.lap("group")
    folds = StratifiedGroupKFold(n_splits=5, shuffle=True, random_state=SEED)
    test = next(folds.split(frame["text"], frame["label"], frame["group"]))[1]
    clock.lap("split")
    return clock.values | {
        "rows": len(frame),
        "exact_rows": len(frame) - len(unique),
        "largest": int(frame["group"].value_counts().max()),
        "test": int(np.size(test)),
    }


def _counts(arguments: argparse.Namespace) -> dict:
    import numpy as np

    from tagsmith.data.duplicates import group_duplicates, leak
    from tagsmith.data.readers import read

    sms = read(DATA / "sms_spam" / "SMSSpamCollection.tsv")
    train, test = (read(DATA / "sms_spam" / "book_split" / f"{name}.csv") for name in ("train", "test"))
    book = leak(train.frame["text"], test.frame["text"], near=NEAR)
    exact = {}
    for name in ("hate", "chnsenticorp"):
        parts = [read(DATA / name / f"{part}.parquet").frame["text"] for part in ("train", "test")]
        exact[name] = leak(*parts, near=NEAR).exact_rows
    mpqa = group_duplicates(read(DATA / "mpqa" / "all.parquet"), near=NEAR)
    return {
        "sms": [len(sms), *sorted(Counter(sms.labels).values(), reverse=True)],
        "book": [book.exact_rows, book.near_rows, np.asarray(test.labels)[book.near].tolist().count("1"), len(test)],
        **exact,
        "mpqa": mpqa.conflicting_texts,
        "mpqa_empty": _empty_conflicts(),
    }


def _empty_conflicts() -> int:
    """How many labels the empty text of mpqa carries: rows without text are dropped on reading, and count nowhere."""
    import polars as pl

    frame = pl.read_parquet(DATA / "mpqa" / "all.parquet")
    return frame.filter(pl.col("text").fill_null("").str.strip_chars() == "")["label"].n_unique()


def _recall(arguments: argparse.Namespace) -> dict:
    """Pairs found against all pairs, on the distinct texts of the first 5,000 rows of the million and of SMS Spam."""
    from tagsmith.data.readers import read

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "5000.csv"
        _make(argparse.Namespace(file=file, rows=5000))
        planted = read(file, text="text", label="label").frame["text"]
    sms = read(DATA / "sms_spam" / "SMSSpamCollection.tsv").frame["text"][:5000]
    return {"planted": _recall_on(planted), "sms": _recall_on(sms)}


def _recall_on(texts: object) -> dict:
    import numpy as np

    from tagsmith.data.folding import distinct, fold_all
    from tagsmith.data.near_twins import Components, sketched

    unique = distinct(fold_all(texts))[0]
    result = {}
    for near in (0.8, 0.85):
        truth = _pairs_above(unique.to_list(), near)
        with sketched(unique, near=near) as sketches:
            parts = [
                sketches.near_twins(pairs, near=near)
                for pairs in sketches.candidates(Components(len(unique)), near=near)
            ]
            components = sketches.links(near=near)
        found = {(min(pair), max(pair)) for part in parts for pair in part.tolist()}
        ends = np.array(sorted(truth)).reshape(-1, 2)
        result[str(near)] = {
            "pairs": len(truth),
            "recall": len(found & truth) / max(1, len(truth)),
            "precision": len(found & truth) / max(1, len(found)),
            "separated": int((components[ends[:, 0]] != components[ends[:, 1]]).sum()),
        }
    return result


def _pairs_above(texts: list[str], near: float) -> set[tuple[int, int]]:
    """All pairs of texts whose 5-grams have a Jaccard of at least `near`, all compared with all."""
    import numpy as np
    from scipy.sparse import csr_array

    numbers: dict[str, int] = {}
    rows, columns = [], []
    for i, text in enumerate(texts):
        for shingle in {text[k : k + 5] for k in range(len(text) - 4)}:
            rows.append(i)
            columns.append(numbers.setdefault(shingle, len(numbers)))
    sets = csr_array((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=(len(texts), len(numbers)))
    sizes = np.diff(sets.indptr)
    shared = (sets @ sets.T).tocoo()
    above = shared.data >= near * (sizes[shared.row] + sizes[shared.col] - shared.data) - 1e-9
    return {(int(i), int(j)) for i, j in zip(shared.row[above], shared.col[above], strict=True) if i < j}


def _check(arguments: argparse.Namespace) -> dict:
    """CPU seconds of importing what `tagsmith check` needs, and then of checking banking77."""
    from tagsmith.config import Config
    from tagsmith.pipeline import check

    imports = time.process_time()
    check(str(DATA / "banking77" / "train.parquet"), config=Config())
    return {"imports": imports, "cpu": time.process_time() - imports}


CELLS = {
    "check": _check,
    "counts": _counts,
    "make": _make,
    "peer": _peer,
    "recall": _recall,
    "tagsmith": _tagsmith,
}

# ---- the page


def _page(cells: dict, arguments: argparse.Namespace) -> str:
    sms, book, counts = cells["counts"]["sms"], cells["counts"]["book"], cells["counts"]
    lines = [
        "# Data preparation: counts, near duplicates, a million rows",
        "",
        f"Command: `python benchmarks/data.py{' --quick' if arguments.quick else ''}`. Machine: {_machine()}.",
        f"Date: {datetime.now(UTC):%Y-%m-%d}. Seed: {SEED}. One run of each; each size and each peer has a process of",
        "its own, and no time includes imports. Texts are folded to lower case, with runs of white space as one space.",
        "",
        "## Known files",
        "",
        "| what | expected | found |",
        "|---|---|---|",
        f"| sms_spam: rows (ham / spam) | 5,574 (4,827 / 747) | {sms[0]:,} ({sms[1]:,} / {sms[2]:,}) |",
        f"| book_split: of {book[3]} test rows word for word in train | 40 | {book[0]} |",
        f"| book_split: with a twin of Jaccard >= {NEAR} in train (spam) | 58 (54) | {book[1]} ({book[2]}) |",
        f"| hate: test texts word for word in train | 236 | {counts['hate']} |",
        f"| chnsenticorp: test texts word for word in train | 331 | {counts['chnsenticorp']} |",
        f"| mpqa: texts with both labels | 99 | {_mpqa(counts)} |",
        "",
        "## Near duplicates against brute force",
        "",
        "All pairs of distinct folded texts, compared with all; 5,000 rows each.",
        "",
        "| rows | Jaccard >= | pairs | found | of those found, true | pairs left in two groups |",
        "|---|---|---|---|---|---|",
        *_recall_lines(cells["recall"]),
        "",
        "## A million rows",
        "",
        "Short texts of the shared data sets and pieces of the long ones; one row in ten repeats another with other",
        "case or spaces, one in ten with one character changed. Read CSV, clean (invisible characters, NFC, spaces),",
        "group near duplicates at 0.8, split whole groups by label.",
        "",
        "| rows | seconds | CPU seconds | read / clean / group / split | peak GiB | repeated | with a near twin |",
        "|---|---|---|---|---|---|---|",
        *(_size_line(rows, cell) for rows, cell in cells["tagsmith"].items()),
        "",
        *_growth_lines(cells["tagsmith"]),
        "",
        *_peer_lines(cells),
        "",
        _check_line(cells["check"]),
        "",
    ]
    return "\n".join(lines)


def _mpqa(counts: dict) -> str:
    if counts["mpqa_empty"] < 2:
        return str(counts["mpqa"])
    return f"{counts['mpqa']}, and the empty text, whose rows are dropped on reading"


def _recall_lines(recall: dict) -> list[str]:
    names = {"planted": "the first 5,000 of the million", "sms": "sms_spam"}
    return [
        f"| {names[name]} | {near} | {cell['pairs']:,} | {cell['recall']:.2%} | {cell['precision']:.2%} "
        f"| {cell['separated']} |"
        for name, cells in recall.items()
        for near, cell in cells.items()
    ]


def _size_line(rows: int, cell: dict) -> str:
    laps = " / ".join(f"{seconds:.1f}" for seconds in cell["laps"].values())
    return (
        f"| {rows:,} | {cell['seconds']:.1f} | {cell['cpu']:.1f} | {laps} | {cell['peak_gib']:.2f} "
        f"| {cell['exact_rows']:,} | {cell['near_rows']:,} |"
    )


def _growth_lines(cells: dict) -> list[str]:
    """Between two sizes, the exponent of the time, beside that of n log n."""
    sizes = sorted(cells)
    lines = ["| from | to | exponent of the CPU time | of the time | of n log n |", "|---|---|---|---|---|"]
    for small, large in itertools.pairwise(sizes):
        step = math.log(large / small)
        cpu, wall = (math.log(cells[large][key] / cells[small][key]) / step for key in ("cpu", "seconds"))
        law = math.log(large * math.log(large) / (small * math.log(small))) / step
        lines.append(f"| {small:,} | {large:,} | {cpu:.2f} | {wall:.2f} | {law:.2f} |")
    return lines


def _peer_lines(cells: dict) -> list[str]:
    peer, beside = cells["peer"], cells["beside"]
    largest = max(cells["tagsmith"])
    scaled = {key: peer[key] * largest / peer["rows"] for key in ("seconds", "cpu")}
    here = cells["tagsmith"][largest]
    name = f"the peer scaled to {largest:,} rows, by Tagsmith's there"
    ratios = [peer["seconds"] / beside["seconds"], peer["cpu"] / beside["cpu"]]
    grouping = peer["laps"]["group"] / beside["laps"]["group"]
    return [
        f"Side by side on {peer['rows']:,} rows, one after the other:",
        "",
        "| | seconds | CPU seconds | read / clean / group / split | peak GiB | largest group |",
        "|---|---|---|---|---|---|",
        _side_line("Tagsmith", beside),
        _side_line("pandas, datasketch, scikit-learn", peer),
        f"| **ratio** | **{ratios[0]:.1f}** | **{ratios[1]:.1f}** | grouping alone: {grouping:.1f} | | |",
        f"| {name} | {scaled['seconds'] / here['seconds']:.1f} | {scaled['cpu'] / here['cpu']:.1f} | | | |",
    ]


def _side_line(name: str, cell: dict) -> str:
    laps = " / ".join(f"{seconds:.1f}" for seconds in cell["laps"].values())
    return (
        f"| {name} | {cell['seconds']:.1f} | {cell['cpu']:.1f} | {laps} | {cell['peak_gib']:.2f} | {cell['largest']} |"
    )


def _check_line(runs: list[dict]) -> str:
    cpu, imports = (statistics.median(run[key] for run in runs) for key in ("cpu", "imports"))
    return (
        f"`tagsmith check` on banking77 (10,003 rows): {cpu:.2f} s of CPU after {imports:.2f} s of imports, the "
        f"median of {len(runs)} (aim: under 2 s)."
    )


def _machine() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    python = f"Python {platform.python_version()}"
    return f"{name or platform.processor()}, {os.cpu_count()} cores, {platform.system()}, {python}"


if __name__ == "__main__":
    main()
