"""The same on a Ray cluster as on one machine: rows lost or doubled by kills, splits, answers, overhead, what is sent.

`python benchmarks/scale.py PIECE [--bundle DIR] ...`, each piece by itself, then `write FILE`. Results lie in
`--results` (build/scale) as JSON until they are written.

    splits    prepare on a cluster and here: the same rows in the same parts, on banking77 and on 200,000 made ones
    traffic   what the search for near twins sends for a text, at 10^4, 10^5 and 10^6 rows
    answers   label banking77 and 200,000 made rows on a cluster and here: the same bytes
    kills     a machine of the cluster killed at work, and the command killed and resumed, three times each
    overhead  one process against a cluster with one worker, and with two

The cluster has a head without CPUs and two machines of one CPU, all processes of this machine that listen on loopback
alone. Everything is bounded in rows, and random by `--seed`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil

from tagsmith.config import Config
from tagsmith.data.hands import OWN
from tagsmith.data.near_twins import sketched
from tagsmith.deployment.bundle import load
from tagsmith.deployment.journal import NAME, folder_of
from tagsmith.deployment.scoring import score
from tagsmith.events import Event
from tagsmith.pipeline import prepare_rows
from tagsmith.scale.cluster import Place, _prepare_environment
from tagsmith.scale.nodes import living
from tagsmith.scale.prepare import Cluster as Hands
from tagsmith.scale.score import score_on

DATA = Path(__file__).parents[2] / "shared" / "data"


@contextmanager
def raylets(count: int) -> Iterator[Any]:
    """A cluster of so many machines of one CPU; gives what adds and kills them."""
    _prepare_environment(Place())
    import ray
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 200 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    made.machines = [made.add_node(num_cpus=1, **small) for _ in range(count)]
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def made_rows(count: int, *, seed: int) -> pl.DataFrame:
    """Texts of 5 to 25 words of Zipf's frequencies, five labels; one in twenty is a near twin of an earlier one."""
    random = np.random.default_rng(seed)
    words = np.array([f"{'aeioubdk'[i % 8]}{np.base_repr(i * 7919 + 11, 36).lower()}" for i in range(20_000)])
    lengths = random.integers(5, 26, size=count)
    drawn = words[np.minimum(random.zipf(1.2, size=int(lengths.sum())) - 1, len(words) - 1)]
    texts = [" ".join(each) for each in np.split(drawn, np.cumsum(lengths)[:-1])]
    for i in np.flatnonzero(random.random(count) < 0.05):
        if i:
            texts[i] = f"{texts[int(random.integers(0, i))]} {words[int(random.integers(0, 20_000))]}"
    labels = [f"label {number}" for number in random.integers(0, 5, size=count)]
    return pl.DataFrame({"id": np.arange(count), "text": texts, "label": labels})


def in_files(frame: pl.DataFrame, folder: Path, *, files: int = 8) -> str:
    """The rows in several Parquet files; gives their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(frame) // files)
    for number in range(files):
        frame[number * size : (number + 1) * size].write_parquet(folder / f"{number:03d}.parquet")
    return str(folder / "*.parquet")


def banking77(folder: Path) -> str:
    """Its training rows in several files."""
    return in_files(pl.read_parquet(DATA / "banking77" / "train.parquet"), folder)


# ---- pieces


def splits(given: argparse.Namespace) -> dict[str, Any]:
    """Rows by part, prepared by one process and by a cluster."""
    config = Config.of({"data": {"split": "hash", "clean": ["html", "invisible", "spaces"]}})
    sources = {
        "banking77": banking77(given.work / "banking77"),
        f"made rows ({given.rows:,})": in_files(made_rows(given.rows, seed=given.seed), given.work / "made"),
    }
    found = {}
    with raylets(2):
        for name, source in sources.items():
            ways, seconds = [], []
            for hands in (OWN, Hands().hands()):
                began = time.perf_counter()
                ways.append(prepare_rows(source, config=config, hands=hands).prepared)
                seconds.append(round(time.perf_counter() - began, 1))
            one, many = ({part: table.frame for part, table in way.splits.items()} for way in ways)
            found[name] = {
                "rows": {part: len(frame) for part, frame in one.items()},
                "same_rows": all(many[part].equals(frame) for part, frame in one.items()),
                "same_history": ways[0].history == ways[1].history,
                "near_rows": ways[0].duplicates["near_rows"],
                "seconds_here_and_on_cluster": seconds,
            }
    return found


def traffic(given: argparse.Namespace) -> dict[str, Any]:
    """Bytes that are sent for a text while near twins are sought, and whether the groups are those of one process."""
    found = {}
    with raylets(2):
        for count in given.counts:
            texts = made_rows(count, seed=given.seed)["text"].unique(maintain_order=True)
            hands, began = Hands(), time.perf_counter()
            with hands.hands().sketched(texts, near=0.8) as sketches:
                groups = sketches.links(near=0.8)
            seconds = time.perf_counter() - began
            found[f"{count:,}"] = {
                "texts": len(texts),
                "bytes_per_text": round(hands.traffic.bytes_per_text, 1),
                "keys_per_text": round(hands.traffic.keys / len(texts), 1),
                "seconds": round(seconds, 1),
            }
            if count <= given.rows:
                with sketched(texts, near=0.8) as sketches:
                    found[f"{count:,}"]["same_groups"] = bool((sketches.links(near=0.8) == groups).all())
    return found


def answers(given: argparse.Namespace) -> dict[str, Any]:
    """Whether a cluster writes the bytes that one process writes."""
    sources = {
        "banking77": banking77(given.work / "banking77"),
        f"made rows ({given.rows:,})": in_files(made_rows(given.rows, seed=given.seed), given.work / "made"),
    }
    found = {}
    with raylets(2):
        for name, source in sources.items():
            here, there = given.work / "here.csv", given.work / "there.csv"
            rows = score(load(given.bundle, engine=given.engine), source, out=here, text="text", force=True)
            score_on("ray", given.bundle, source, out=there, text="text", engine=given.engine, force=True)
            found[name] = {"rows": rows, "same_bytes": here.read_bytes() == there.read_bytes()}
    return found


def kills(given: argparse.Namespace) -> dict[str, Any]:
    """Rows lost and doubled after kills at random moments."""
    random = np.random.default_rng(given.seed)
    source, found = in_files(made_rows(given.rows, seed=given.seed), given.work / "made"), []
    whole, out = given.work / "whole.csv", given.work / "killed.csv"
    score(load(given.bundle, engine=given.engine), source, out=whole, text="text", force=True)
    for what, kill in (("machine", _machine_killed), ("command", _command_killed)):
        # A cluster each: a command joins the first machine at its address, and here all have the same.
        with raylets(2) as cluster:
            for _ in range(given.times):
                began, share = time.perf_counter(), float(random.uniform(0.2, 0.7))
                told = {"seed": given.seed} | kill(cluster, source, out, share, given)
                told |= _checked(out, given.rows, whole) | {"seconds": round(time.perf_counter() - began, 1)}
                found.append({"killed": what, "at_share": round(share, 2), **told})
                print(found[-1], file=sys.stderr)
    return {"rows": given.rows, "kills": found}


def _machine_killed(cluster: Any, source: str, out: Path, share: float, given: argparse.Namespace) -> dict[str, Any]:
    victim, killed_at = cluster.machines[-1], []

    def on(event: Event) -> None:
        if event.name == "progress" and not killed_at and (event.step or 0) >= share * given.rows:
            cluster.remove_node(victim, allow_graceful=False)
            killed_at.append(event.step)

    score_on("ray", given.bundle, source, out=out, text="text", engine=given.engine, force=True, listen=on)
    while len(living()) > 2:  # until the cluster knows
        time.sleep(0.5)
    cluster.machines[-1] = cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)
    return {"rows_done_then": killed_at[0], "was_alive": True}


def _command_killed(cluster: Any, source: str, out: Path, share: float, given: argparse.Namespace) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "tagsmith", "predict", str(given.bundle), "--file", source, "--out", str(out), "--text",
        "text", "--engine", given.engine, "--on", f"ray://{cluster.address}",
    ]  # fmt: skip
    out.unlink(missing_ok=True)
    process = subprocess.Popen([*command, "--force"], stdout=subprocess.DEVNULL)
    journal = folder_of(out) / NAME
    parts = share * given.rows / 1024
    while process.poll() is None and (not journal.is_file() or journal.read_bytes().count(b"\n") < parts):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    was_alive = process.wait() == -signal.SIGKILL
    done = journal.read_bytes().count(b"\n") - 1
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return {"rows_done_then": done * 1024, "was_alive": was_alive}


def _checked(out: Path, rows: int, whole: Path) -> dict[str, Any]:
    ids = pl.read_csv(out, infer_schema=False)["id"].cast(pl.Int64)
    return {
        "lost": rows - ids.n_unique(),
        "doubled": len(ids) - ids.n_unique(),
        "same_bytes": out.read_bytes() == whole.read_bytes(),
    }


def overhead(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of work, and of the start before it, of one process on one thread and of one and two workers."""
    import torch

    torch.set_num_threads(1)
    source = in_files(made_rows(given.rows, seed=given.seed), given.work / "made")
    moments: list[Moment] = []

    def on(event: Event) -> None:
        is_ready = event.name == "note" and "engine" in str(event.values["text"])
        if is_ready or (event.name == "progress" and event.step == given.rows):
            moments.append(Moment.now())

    def on_cluster(workers: int) -> Callable[[Path], None]:
        return lambda out: score_on(
            "ray", given.bundle, source, out=out, text="text", engine=given.engine, workers=workers, listen=on
        )

    def here(out: Path) -> None:
        bundle = load(given.bundle, engine=given.engine)
        moments.append(Moment.now())
        score(bundle, source, out=out, text="text", listen=on)

    found: dict[str, Any] = {"rows": given.rows}
    for name, run in (("one process", here), ("one worker", on_cluster(1)), ("two workers", on_cluster(2))):
        if name not in given.only:
            continue
        moments.clear()
        out, began = given.work / "overhead.csv", time.perf_counter()
        out.unlink(missing_ok=True)
        run(out)
        ready, end = moments
        cpu = {f"{who} CPU s": round(end.cpu_s[who] - ready.cpu_s[who], 1) for who in WHO}
        found[name] = {"start_s": round(ready.at - began, 1), "work_s": round(end.at - ready.at, 1), **cpu}
        print(name, found[name], file=sys.stderr)
    return found


WHO = ("command", "workers", "rest of Ray")


@dataclass(frozen=True)
class Moment:
    """When it is, and the CPU seconds that each group of processes has spent by then."""

    at: float
    cpu_s: dict[str, float]

    @classmethod
    def now(cls) -> Moment:
        """Of this process and all that it started."""
        spent = dict.fromkeys(WHO, 0.0)
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            try:
                used, name = process.cpu_times(), " ".join(process.cmdline())
            except psutil.Error:  # it has just ended
                continue
            who = "command" if process == own else "workers" if name.startswith("ray::_Actor") else "rest of Ray"
            spent[who] += used.user + used.system
        return cls(time.perf_counter(), spent)


PIECES = {"splits": splits, "traffic": traffic, "answers": answers, "kills": kills, "overhead": overhead}


# ---- the page

CARE = """\
Other programs ran on the same two cores, so that seconds say little; what is lost, doubled or different does not
depend on them. Keys are 8 bytes for each of 25 bands, whatever the number of rows. What comes back are 16 bytes of
marks a text, and 16 for each band in which a text meets another: near twins, and the few that meet by chance, which
grow slowly with the rows.

Of the processor's time the command with Ray spends some 30 microseconds a row, which it reads, hands out and writes
down; all other processes of Ray some 30 ms a second, whether there is work or none (a cluster at rest spent 31).

In the trainings a machine of two was killed at a third of the steps, and the other one went on. It takes Ray over a
minute to be sure that a machine is gone, which dominates the seconds without steps. "Made twice" are the steps since
the last checkpoint, by what was heard of them. A checkpoint is due after 5 seconds, or after twenty times what writing
one takes: of divided weights (`fully`) that is more. MiniLM has dropout, which each worker draws for itself, so that
log losses differ by more than rounding; without dropout they do not (tests/scale/test_train.py).
"""


def write(given: argparse.Namespace) -> None:
    """All results as a page."""
    lines = [
        "# On a Ray cluster",
        "",
        "What `--on ray` keeps and what it costs, by `benchmarks/scale.py`. The cluster is a head without CPUs and two",
        "machines of one CPU each (`ray.cluster_utils`), all on one computer; `overhead` uses a cluster as `--on ray`",
        "starts it. Start-up stands apart from work. Bundles answer by TF-IDF unless the command says otherwise.",
    ]
    for name in [*PIECES, "training"]:
        path = given.results / f"{name}.json"
        if path.is_file():
            told = json.loads(path.read_text())
            lines += [
                "",
                f"## {name.capitalize()}",
                "",
                *_tables(told["found"]),
                "",
                f"`{told['command']}`, {told['where']}.",
            ]
    lines += ["", "## Read with care", "", CARE.rstrip()]
    Path(given.file).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _tables(found: dict[str, Any]) -> list[str]:
    if "trainings" in found:
        lines = [_training(run) for run in found["trainings"]]
        return _table(["#", *lines[0]], [[i, *each.values()] for i, each in enumerate(lines, start=1)])
    if "kills" in found:
        return _table(
            ["#", *found["kills"][0]], [[i, *each.values()] for i, each in enumerate(found["kills"], start=1)]
        )
    rows = {name: values for name, values in found.items() if isinstance(values, dict)}
    said = [f"{name}: {values:,}." for name, values in found.items() if not isinstance(values, dict)]
    columns = list(dict.fromkeys(key for values in rows.values() for key in values))
    told = _table(["", *columns], [[name, *(each.get(key, "") for key in columns)] for name, each in rows.items()])
    if "one process" in rows:
        alone = rows["one process"]["work_s"]
        one, two = (rows.get(name, {}).get("work_s") for name in ("one worker", "two workers"))
        said += [f"Overhead of one worker: {one / alone - 1:+.1%} of the work's time."] if one else []
        said += [f"Two workers against one: {one / two:.2f} times the throughput."] if one and two else []
        spent = [sum(values for name, values in rows[way].items() if "CPU" in name) for way in rows]
        said += [
            f"CPU seconds against those of one process: {', '.join(f'{each / spent[0]:.3f}' for each in spent[1:])}."
        ]
    return told + (["", " ".join(said)] if said else [])


def _training(run: dict[str, Any]) -> dict[str, Any]:
    """A machine lost in a training, as a line."""
    many, log_loss = run["on_cluster"], run["test_log_loss"]
    return {
        "sharding": run["sharding"],
        "killed at step": many["killed_at"],
        "of steps": many["steps"],
        "steps lost": many["missing"],
        "made twice": many.get("made_twice", 0),
        "seconds of these": many.get("seconds_of_these", 0.0),
        "seconds without steps": many.get("seconds_without_steps", ""),
        "workers then": run["workers"][-1].split("checkpoint: ")[-1].split(",")[0],
        "log loss, one process": f"{log_loss['many']:.6f}, {log_loss['one']:.6f}",
    }


def _table(head: list[Any], rows: list[list[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("_", " ") for cell in line) + " |" for line in lines]


def main() -> None:
    """Run a piece, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=[*PIECES, "write"])
    parser.add_argument("file", nargs="?", default="docs/benchmarks/scale.md")
    parser.add_argument("--bundle", type=Path, default=Path("demo/sms-spam-tagsmith"))
    parser.add_argument("--engine", default="tfidf")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["one process", "one worker", "two workers"])
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--results", type=Path, default=Path("build/scale"))
    given = parser.parse_args()
    if given.piece == "write":
        write(given)
        return
    given.work = given.results.absolute() / f"work-{given.piece}"
    given.work.mkdir(parents=True, exist_ok=True)
    found = PIECES[given.piece](given)
    path = given.results / f"{given.piece}.json"
    before = json.loads(path.read_text())["found"] if path.is_file() else {}
    if given.piece == "overhead" and before.get("rows") == given.rows:
        found = before | found
    if given.piece == "kills" and before.get("rows") == given.rows:
        found["kills"] = before["kills"] + found["kills"]
    where = f"{os.cpu_count()} cores ({platform.machine()}), seed {given.seed}, {datetime.now(UTC):%Y-%m-%d}"
    command = f"python benchmarks/scale.py {given.piece} --rows {given.rows} --bundle {given.bundle.name}"
    command += f" --engine {given.engine}"
    path.write_text(json.dumps({"found": found, "command": command, "where": where}, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
