"""How fast a server answers, against other ways to serve the same model; what it does under too much; a long soak.

Everything runs on this machine: the server, its engine, and the load. Parts are run one by one and kept under
build/benchmarks; the page is drawn from what was kept.

    python benchmarks/serving.py compare BUNDLE        # 32 clients; each server in turn, three rounds
    python benchmarks/serving.py calm BUNDLE           # a tenth of the load, against the engine alone
    python benchmarks/serving.py overload BUNDLE --minutes 10
    python benchmarks/serving.py soak BUNDLE --minutes 30
    python benchmarks/serving.py write docs/benchmarks/serving.md

Each part ends with its verdict against the aim. `compare --rounds 1 --seconds 6`, `calm --seconds 6`, `overload
--minutes 0.5 --seconds 6` and `soak --minutes 1` are the short forms; a part that was cut off is run again by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from cells import machine
from load import arrivals, requests_of, waiting_clients

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build" / "benchmarks" / "serving"
TEXTS = ROOT.parent / "shared" / "data" / "sms_spam" / "book_split" / "test.csv"
SEED = 123
CLIENTS = 32


def main() -> None:
    """Run one part, or draw the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["compare", "calm", "overload", "soak", "write"])
    parser.add_argument("target", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--remark", default="", help="what a reader of the page must know of this run")
    parser.add_argument("--weights", type=Path, help="the bundle with torch's weights, where BUNDLE is an export")
    chosen = parser.parse_args()
    if chosen.part == "write":
        earlier = chosen.target.read_text(encoding="utf-8") if chosen.target.is_file() else ""
        chosen.target.write_text(_page(earlier), encoding="utf-8")
        return
    run, judge = _PARTS[chosen.part]
    kept = _keep(chosen.part, run(chosen) | {"remark": chosen.remark})
    print(json.dumps(kept, indent=1))
    for aim, found, met in judge(kept):
        print(f"{'MET   ' if met else 'MISSED'} {aim}: {found}")


def _keep(part: str, found: dict[str, Any]) -> dict[str, Any]:
    """Write down what a part found, with how it was found."""
    kept = {
        "command": f"python benchmarks/serving.py {' '.join([part, 'BUNDLE', *sys.argv[3:]])}",
        "machine": machine(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "seed": SEED,
        "busy": os.getloadavg()[0],
        **found,
    }
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{part}.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    return kept


def _texts() -> list[str]:
    with TEXTS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    name = next(key for key in rows[0] if key.lower() == "text")
    return [row[name] for row in rows if row[name].strip()]


# ---- Servers


class Running:
    """A server in a process of its own, with its children."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def everyone(self) -> list[psutil.Process]:
        """The server and its engine."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def ask(self, path: str) -> str:
        """The body of a GET."""
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as reply:
            return reply.read().decode()


@contextlib.contextmanager
def _ours(bundle: Path, engine: str, *options: str) -> Iterator[Running]:
    command = [sys.executable, "-m", "tagsmith", "serve", str(bundle), "--port", "0", "--engine", engine, *options]
    log = (KEPT / "server.log").open("w") if KEPT.is_dir() else subprocess.DEVNULL
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r":(\d+);", process.stdout.readline())
            assert found, "the server did not start"
            yield Running(process, int(found[1]))
        finally:
            process.terminate()


@contextlib.contextmanager
def _peer(name: str, bundle: Path) -> Iterator[Running]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("serving_peers.py")), name, str(bundle), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True) as process:
        running = Running(process, port)
        try:
            _wait_for(port, timeout=120)
            yield running
        finally:
            for each in reversed(running.everyone()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()


def _wait_for(port: int, *, timeout: float) -> None:
    """Wait until a text is answered."""
    end = time.monotonic() + timeout
    request = requests_of(["a first text"], path="/predict")
    while time.monotonic() < end:
        found = asyncio.run(waiting_clients(port, request, clients=1, seconds=0.2))
        if found.statuses[200]:
            return
    raise SystemExit("The server did not answer in time.")


# ---- Parts


def _compare(chosen: argparse.Namespace) -> dict[str, Any]:
    """Goodput with 32 clients: ours with the engine that it chooses and with the same one as the others, and others."""
    requests, weights = requests_of(_texts(), path="/predict"), chosen.weights or chosen.target
    systems = {
        "ours": lambda: _ours(chosen.target, chosen.engine),
        "ours, torch fp32": lambda: _ours(weights, "torch-fp32"),
        "LitServe, torch fp32, batches of 32": lambda: _peer("litserve", weights),
        "FastAPI and pipeline, torch fp32": lambda: _peer("fastapi", weights),
    }
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    for _ in range(chosen.rounds):
        for name, start in systems.items():
            with start() as server:
                asyncio.run(waiting_clients(server.port, requests, clients=CLIENTS, seconds=3))
                found = asyncio.run(waiting_clients(server.port, requests, clients=CLIENTS, seconds=chosen.seconds))
                engine = json.loads(server.ask("/info"))["engine"] if name.startswith("ours") else "torch-fp32"
                rounds[name].append(found.plain() | {"engine": engine, "load": os.getloadavg()[0]})
            print(name, rounds[name][-1], flush=True)
            _keep("compare", {"rounds": rounds})
    return {"rounds": rounds}


def _calm(chosen: argparse.Namespace) -> dict[str, Any]:
    """A tenth of the saturating rate, against the engine that answers the same texts one by one in this process."""
    from tagsmith.deployment.engine import open_engine

    texts = _texts()
    with _ours(chosen.target, chosen.engine) as server:
        requests = requests_of(texts, path="/predict")
        full = asyncio.run(waiting_clients(server.port, requests, clients=CLIENTS, seconds=chosen.seconds))
        name = json.loads(server.ask("/info"))["engine"]
        engine = open_engine(chosen.target, name)
        alone = _alone(engine, texts)
        rate = 0.1 * full.goodput
        calm = asyncio.run(arrivals(server.port, requests, rate=rate, seconds=min(90.0, 300 / rate), seed=SEED))
        again = _alone(engine, texts)
    both = np.concatenate([alone, again])
    return {
        "engine": name,
        "saturation": full.goodput,
        "rate": rate,
        "calm": calm.plain(),
        "alone": {"p50_ms": 1000 * float(np.percentile(both, 50)), "p99_ms": 1000 * float(np.percentile(both, 99))},
        "load": os.getloadavg()[0],
    }


def _alone(engine: Any, texts: list[str]) -> np.ndarray:
    engine.answer(texts[:32])
    spent = []
    for text in texts:
        start = time.perf_counter()
        engine.answer([text])
        spent.append(time.perf_counter() - start)
    return np.array(spent)


def _overload(chosen: argparse.Namespace) -> dict[str, Any]:
    """Twice the saturating rate for so many minutes; saturation is measured before and after it."""
    requests = requests_of(_texts(), path="/predict")
    with _ours(chosen.target, chosen.engine) as server:
        before = asyncio.run(waiting_clients(server.port, requests, clients=CLIENTS, seconds=chosen.seconds))
        rate = 2 * before.goodput
        found = asyncio.run(arrivals(server.port, requests, rate=rate, seconds=60 * chosen.minutes, seed=SEED))
        after = asyncio.run(waiting_clients(server.port, requests, clients=CLIENTS, seconds=chosen.seconds))
        info = json.loads(server.ask("/info"))
    # A full queue, or a quarter of a request's time where that is less, and then the batch of its own.
    limits = info["limits"]
    bound = min(limits["queue_texts"] / min(before.goodput, after.goodput), 0.25 * limits["timeout_s"])
    return {
        "engine": info["engine"],
        "before": before.plain(),
        "rate": rate,
        "overload": found.plain(),
        "after": after.plain(),
        "bound_s": bound + limits["timeout_s"] / 30,
        "nice": os.nice(0),
    }


def _soak(chosen: argparse.Namespace) -> dict[str, Any]:
    """Half of the saturating rate for so many minutes, texts of mixed lengths: memory, threads and open files."""
    texts = _texts()
    long = [" ".join(texts[i : i + 1 + i % 12]) for i in range(len(texts) - 12)]
    requests = requests_of([text for pair in zip(texts, long, strict=False) for text in pair], path="/predict")
    samples: list[dict[str, float]] = []

    async def soak(server: Running, rate: float) -> Any:
        watching = asyncio.create_task(_watch(server, samples))
        try:
            return await arrivals(server.port, requests, rate=rate, seconds=60 * chosen.minutes, seed=SEED)
        finally:
            watching.cancel()

    with _ours(chosen.target, chosen.engine) as server:
        before = asyncio.run(waiting_clients(server.port, requests, clients=8, seconds=chosen.seconds))
        found = asyncio.run(soak(server, 0.5 * before.goodput))
        engine = json.loads(server.ask("/info"))["engine"]
    return {
        "engine": engine,
        "rate": 0.5 * before.goodput,
        "soak": found.plain(),
        "samples": samples,
        "growth": _growth(samples),
        "nice": os.nice(0),
    }


async def _watch(server: Running, samples: list[dict[str, float]]) -> None:
    start = time.monotonic()
    while True:
        people = server.everyone()
        samples.append(
            {
                "minutes": round((time.monotonic() - start) / 60, 2),
                "mib": round(sum(each.memory_info().rss for each in people) / 2**20, 1),
                "threads": sum(each.num_threads() for each in people),
                "files": sum(each.num_fds() for each in people),
            }
        )
        await asyncio.sleep(10)


def _growth(samples: list[dict[str, float]]) -> float:
    """How much more memory the last tenth of the soak held than the tenth after its first third."""
    tenth = max(1, len(samples) // 10)
    third = len(samples) // 3
    warm = median(each["mib"] for each in samples[third : third + tenth])
    return median(each["mib"] for each in samples[-tenth:]) / warm - 1


# ---- Verdicts

Verdict = tuple[str, str, bool]
"""The aim, what was found, and whether that is it."""


def _judge_compare(kept: dict[str, Any]) -> list[Verdict]:
    rates = {name: median(each["goodput"] for each in rounds) for name, rounds in kept["rounds"].items()}
    told = []
    for own in (name for name in rates if name.startswith("ours")):
        engine = kept["rounds"][own][0]["engine"]
        for other in (name for name in rates if not name.startswith("ours")):
            ratio = rates[own] / rates[other] if rates[other] else float("inf")
            told.append((f"{own} ({engine}) at least 2 times {other}", f"{ratio:.2f}", ratio >= 2))
    return told


def _judge_calm(kept: dict[str, Any]) -> list[Verdict]:
    ratio = kept["calm"]["p99_ms"] / kept["alone"]["p99_ms"]
    return [("p99 at most 1.5 times the engine's alone", f"{ratio:.2f}", ratio <= 1.5)]


def _judge_overload(kept: dict[str, Any]) -> list[Verdict]:
    found = kept["overload"]
    saturation = (kept["before"]["goodput"] + kept["after"]["goodput"]) / 2
    others = {status: count for status, count in found["statuses"].items() if count and status not in ("200", "429")}
    share, late = found["goodput"] / saturation, found["p99_ms"] / 1000
    return [
        ("only 200 and 429", f"others: {others or 'none'}", not others),
        ("goodput at least 90 % of saturation", f"{share:.0%}", share >= 0.9),
        (f"p99 of what was answered within {kept['bound_s']:.1f} s", f"{late:.2f} s", late <= kept["bound_s"]),
    ]


def _judge_soak(kept: dict[str, Any]) -> list[Verdict]:
    return [("memory growth under 5 %", f"{kept['growth']:+.1%}", kept["growth"] < 0.05)]


_PARTS = {
    "compare": (_compare, _judge_compare),
    "calm": (_calm, _judge_calm),
    "overload": (_overload, _judge_overload),
    "soak": (_soak, _judge_soak),
}


# ---- The page


def _page(earlier: str) -> str:
    """The page of all parts that were kept; of the others what the earlier page said of them."""
    lines = ["# Serving", "", "Load, server and engine share one machine. Texts: the 300 of the book's test split.", ""]
    told = {part.partition("\n")[0]: part.rstrip() for part in earlier.split("\n## ")[1:]}
    draw = {
        "compare": _draw_compare,
        "calm": _draw_calm,
        "overload": _draw_overload,
        "soak": _draw_soak,
        "faults": _draw_faults,
    }
    for name, title in _TITLES.items():
        path = KEPT / f"{name}.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            lines += [*_head(name, kept), *draw[name](kept), ""]
        elif title in told:
            lines += [f"## {told[title]}", ""]
    return "\n".join(lines)


_TITLES = {
    "compare": "32 clients at once",
    "calm": "One tenth of what it can do",
    "overload": "Twice what it can do",
    "soak": "A long soak",
    "faults": "Faults",
}


def _head(name: str, kept: dict[str, Any]) -> list[str]:
    busy = f" Load average at the end: {kept['busy']:.0f}." if "busy" in kept else ""
    told = f"`{kept['command']}`. Machine: {kept['machine']}. Date: {kept['date']}. Seed: {kept['seed']}.{busy}"
    remark = [kept["remark"], ""] if kept.get("remark") else []
    return [f"## {_TITLES[name]}", "", told, "", *remark]


def _draw_compare(kept: dict[str, Any]) -> list[str]:
    lines = ["| server | engine | answers a second (each round) | median | p99 ms |", "|---|---|---|---|---|"]
    medians = {}
    for name, rounds in kept["rounds"].items():
        medians[name] = median(each["goodput"] for each in rounds)
        each_round = ", ".join(f"{each['goodput']:.1f}" for each in rounds)
        late = median(each["p99_ms"] for each in rounds)
        lines.append(f"| {name} | {rounds[0]['engine']} | {each_round} | {medians[name]:.1f} | {late:.0f} |")
    lines += ["", "Aim: ours at least 2 times either of the others. Ratios of medians:", ""]
    ours = [name for name in medians if name.startswith("ours")]
    for name in [name for name in medians if name not in ours]:
        told = ", ".join(f"{medians[own] / medians[name]:.2f} ({own})" for own in ours)
        lines.append(f"- to {name}: {told}")
    return lines


def _draw_calm(kept: dict[str, Any]) -> list[str]:
    calm, alone = kept["calm"], kept["alone"]
    return [
        f"Engine {kept['engine']}, {kept['rate']:.1f} of {kept['saturation']:.1f} requests a second, at random times.",
        "",
        "| | p50 ms | p99 ms |",
        "|---|---|---|",
        f"| the server | {calm['p50_ms']:.1f} | {calm['p99_ms']:.1f} |",
        f"| the engine alone, the same texts one by one | {alone['p50_ms']:.1f} | {alone['p99_ms']:.1f} |",
        "",
        f"Aim: p99 at most 1.5 times the engine's alone; found {calm['p99_ms'] / alone['p99_ms']:.2f}.",
    ]


def _draw_overload(kept: dict[str, Any]) -> list[str]:
    found, before, after = kept["overload"], kept["before"], kept["after"]
    saturation = (before["goodput"] + after["goodput"]) / 2
    share = found["goodput"] / saturation
    told = (
        f"Engine {kept['engine']}, priority nice {kept['nice']}. Saturation before and after: {before['goodput']:.1f} "
        f"and {after['goodput']:.1f} answers a second; load: {kept['rate']:.1f} requests a second for "
        f"{found['seconds'] / 60:.1f} minutes."
    )
    late, bound = found["p99_ms"] / 1000, kept["bound_s"]
    return [
        told,
        "",
        f"- statuses (aim: only 200 and 429): {_statuses(found)}",
        f"- goodput (aim: 90 % of saturation): {found['goodput']:.1f}, which is {share:.0%} of the mean of both",
        f"- p99 of what was answered: {late:.2f} s (bound, of the queue and a batch: {bound:.1f} s)",
    ]


def _statuses(found: dict[str, Any]) -> str:
    named = {"0": "no answer"}
    return ", ".join(f"{named.get(status, status)}: {count}" for status, count in found["statuses"].items() if count)


def _draw_soak(kept: dict[str, Any]) -> list[str]:
    samples = kept["samples"]
    marks = samples[:: max(1, len(samples) // 8)]
    rows = [f"| {s['minutes']:.1f} | {s['mib']:.0f} | {s['threads']} | {s['files']} |" for s in marks]
    told = (
        f"Engine {kept['engine']}, priority nice {kept['nice']}, {kept['rate']:.1f} requests a second for "
        f"{samples[-1]['minutes']:.0f} minutes, texts of mixed lengths. Statuses: {_statuses(kept['soak'])}."
    )
    return [
        told,
        "",
        f"Memory growth after the warm-up (aim: under 5 %): {kept['growth']:+.1%}.",
        "",
        "| minutes | MiB of server and engine | threads | open files |",
        "|---|---|---|---|",
        *rows,
    ]


def _draw_faults(kept: dict[str, Any]) -> list[str]:
    lines = ["| what | how often | found | aim |", "|---|---|---|---|"]
    return lines + [f"| {row['what']} | {row['count']} | {row['found']} | {row['aim']} |" for row in kept["rows"]]


if __name__ == "__main__":
    main()
