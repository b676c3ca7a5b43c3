r"""Deaths of a server under load: signals, killed engines, reloads. One after another, on this machine alone.

    python benchmarks/serving_lives.py BUNDLE --signals 50 --kills 50 --reloads 100 --flips 1000 --cuts 100 \
        --cases 10000 --bodies 100000 --compositions 10000

A tiny bundle serves (tests/conftest.py builds some), with the TF-IDF engine where what is tested knows no model. What
was found is kept under build/benchmarks for the page that benchmarks/serving.py draws.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError
from urllib.request import urlopen

import serving_faults
from cells import machine
from load import LOST, Found, requests_of, waiting_clients

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build" / "benchmarks" / "serving"
SEED = 123
REQUESTS = requests_of([f"the room {number} was lovely" for number in range(50)], path="/predict")


def main() -> None:
    """Run what was asked for, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    for name in ("signals", "kills", "reloads", "flips", "cuts", "cases", "bodies", "compositions"):
        parser.add_argument(f"--{name}", type=int, default=0)
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for run in (_signals, _kills, _reloads, _corruptions, _schemas, _bodies, _compositions):
        row = run(chosen)
        if row is not None:
            rows.append(row)
            print(json.dumps(row), flush=True)
            _keep(rows)


def _keep(rows: list[dict[str, Any]]) -> None:
    kept = {
        "command": f"python benchmarks/serving_lives.py {' '.join(['BUNDLE', *sys.argv[2:]])}",
        "machine": machine(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "seed": SEED,
        "rows": rows,
    }
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / "faults.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")


class Server:
    """`tagsmith serve` in a process of its own; its log is read as it comes."""

    def __init__(self, bundle: Path, *, engine: str = "tfidf") -> None:
        command = [sys.executable, "-m", "tagsmith", "serve", str(bundle), "--port", "0", "--name", "toy"]
        self.process = subprocess.Popen(
            [*command, "--engine", engine],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.events: Counter[str] = Counter()
        self.last: dict[str, dict[str, Any]] = {}
        assert self.process.stdout is not None
        found = re.search(r":(\d+);", self.process.stdout.readline())
        assert found, "the server did not start"
        self.port = int(found[1])
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            event = json.loads(line)
            self.last[event["event"]] = event
            self.events[event["event"]] += 1

    def status(self, path: str) -> int:
        """The status of a GET; LOST where nobody answers."""
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as reply:
                return reply.status
        except HTTPError as error:
            return error.code
        except OSError:
            return LOST

    def wait(self, done: Callable[[], bool], *, seconds: float = 120.0) -> None:
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                raise SystemExit(f"waited {seconds} s in vain; events: {dict(self.events)}")
            time.sleep(0.01)

    @property
    def engine_pid(self) -> int:
        """The number of the engine's process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[-1])


class Load:
    """Eight waiting clients in a thread, until the block ends."""

    def __init__(self, port: int) -> None:
        self.found = Found()
        self._seconds = 3600.0
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        asking = asyncio.create_task(waiting_clients(self._port, REQUESTS, clients=8, seconds=0.2))
        while True:
            found = await asking
            self.found.statuses.update(found.statuses)
            if self._stop.is_set():
                return
            asking = asyncio.create_task(waiting_clients(self._port, REQUESTS, clients=8, seconds=0.2))


def _signals(chosen: argparse.Namespace) -> dict[str, Any] | None:
    """SIGTERM under load: how many requests were accepted and never answered?"""
    if not chosen.signals:
        return None
    total: Counter[int] = Counter()
    left = unclean = 0
    slowest = 0.0
    for _ in range(chosen.signals):
        with Server(chosen.bundle) as server:
            outcome: list[Found] = []
            load = threading.Thread(target=lambda port=server.port, o=outcome: o.append(_until_refused(port)))
            load.start()
            time.sleep(0.5)
            begun = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            unclean += server.process.wait(40) != 0
            slowest = max(slowest, time.monotonic() - begun)
            load.join()
            total.update(outcome[0].statuses)
            left += int(server.last.get("drained", {}).get("left", 1))
    found = f"{total[200]} answered, {total[503]} told to go elsewhere, {total[LOST]} cut off, {left} left unanswered, "
    found += f"{unclean} exits other than 0, slowest end {slowest:.1f} s"
    return _row("SIGTERM under load", chosen.signals, found, "no accepted request lost, exit 0")


def _until_refused(port: int) -> Found:
    """Eight clients, until nobody listens. A request that was cut off on a new connection counts as lost."""

    async def run() -> Found:
        found = Found()

        async def ask(number: int) -> None:
            from load import Connection

            connection = Connection(port)
            while True:
                status = await connection.ask(REQUESTS[number])
                if status == LOST and not serving_faults.is_open(port):
                    found.statuses[-1] += connection.refused
                    found.statuses[LOST] += not connection.refused
                    return
                found.statuses[status] += 1

        await asyncio.gather(*(ask(number) for number in range(8)))
        return found

    return asyncio.run(run())


def _kills(chosen: argparse.Namespace) -> dict[str, Any] | None:
    """`kill -9` of the engine under load: is it back, and did the front ever die?"""
    if not chosen.kills:
        return None
    back: list[float] = []
    with Server(chosen.bundle) as server, Load(server.port) as load:
        for number in range(1, chosen.kills + 1):
            time.sleep(0.3)
            os.kill(server.engine_pid, signal.SIGKILL)
            begun = time.monotonic()
            server.wait(lambda number=number: server.events["engine_restarted"] >= number)
            server.wait(lambda: server.status("/ready") == 200)
            back.append(time.monotonic() - begun)
        alive = server.process.poll() is None
    statuses = {str(status): count for status, count in sorted(load.found.statuses.items())}
    back.sort()
    found = f"back after {back[len(back) // 2]:.1f} s in the median, {back[-1]:.1f} s at most; the front "
    found += f"{'lived' if alive else 'DIED'}; statuses {statuses}"
    return _row("kill -9 of the engine under load", chosen.kills, found, "back within load time + 5 s, front lives")


def _reloads(chosen: argparse.Namespace) -> dict[str, Any] | None:
    """SIGHUP with another version each time, under load: did any request fail?"""
    if not chosen.reloads:
        return None
    with tempfile.TemporaryDirectory() as folder:
        versions = [_version(chosen.bundle, Path(folder) / name) for name in ("one", "two")]
        link = Path(folder) / "current"
        link.symlink_to(versions[0])
        with Server(link) as server, Load(server.port) as load:
            for number in range(1, chosen.reloads + 1):
                aside = Path(folder) / "aside"
                aside.symlink_to(versions[number % 2])
                aside.replace(link)
                server.process.send_signal(signal.SIGHUP)
                server.wait(lambda number=number: server.events["model_open"] >= number + 1)
    statuses = {str(status): count for status, count in sorted(load.found.statuses.items())}
    found = f"{server.events['model_open'] - 1} versions taken up; statuses {statuses}"
    return _row("Reloads under load", chosen.reloads, found, "no failed request")


def _version(bundle: Path, target: Path) -> Path:
    """A valid copy of a bundle that is another version."""
    from tagsmith.deployment.manifest import staging

    with staging(target, force=False) as aside:
        shutil.copytree(bundle, aside, dirs_exist_ok=True)
        (aside / "MANIFEST.json").unlink()
        settings = json.loads((aside / "tagsmith.json").read_text(encoding="utf-8"))
        (aside / "tagsmith.json").write_text(json.dumps(settings | {"note": target.name}), encoding="utf-8")
    return target


def _corruptions(chosen: argparse.Namespace) -> dict[str, Any] | None:
    if not chosen.flips:
        return None
    with tempfile.TemporaryDirectory() as folder:
        found = serving_faults.corruptions(chosen.bundle, Path(folder), flips=chosen.flips, cuts=chosen.cuts, seed=SEED)
    told = f"{found['tried']} changes to {found['files']} files; {len(found['loaded'])} loaded all the same"
    return _row("Bits flipped, and each file cut at each 1 %", f"{chosen.flips} and {chosen.cuts}", told, "all refused")


def _schemas(chosen: argparse.Namespace) -> dict[str, Any] | None:
    if not chosen.cases:
        return None
    with Server(chosen.bundle) as server:
        found = serving_faults.schemas(f"http://127.0.0.1:{server.port}", cases=chosen.cases)
        found["faults"] = server.events["failed"]
    told = f"statuses {found['statuses']}; {len(found['undeclared'])} undeclared, {found['faults']} faults in the log"
    return _row("Cases of schemathesis", found["cases"], told, "no undeclared 5xx, no hang")


def _bodies(chosen: argparse.Namespace) -> dict[str, Any] | None:
    if not chosen.bodies:
        return None
    with Server(chosen.bundle) as server:
        found = serving_faults.fuzz(server.port, bodies=chosen.bodies, seed=SEED)
        found["faults"] = server.events["failed"]
    told = f"statuses {found['statuses']}; {len(found['undeclared'])} undeclared, {found['faults']} faults in the log"
    return _row("Fuzzed bodies", chosen.bodies, told, "no undeclared 5xx, no hang")


def _compositions(chosen: argparse.Namespace) -> dict[str, Any] | None:
    """Texts in random company through the server with torch in fp32, against each alone in this process."""
    if not chosen.compositions:
        return None
    from tagsmith.deployment.bundle import load

    with Server(chosen.bundle, engine="torch-fp32") as server:
        found = serving_faults.compositions(
            server.port, load(chosen.bundle), compositions=chosen.compositions, seed=SEED
        )
    told = f"{found['texts']} answers: {found['labels_changed']} labels changed, largest difference of a probability "
    told += f"{found['largest_difference']:.1e}"
    return _row("Random compositions of requests, torch fp32", chosen.compositions, told, "same labels, within 1e-5")


def _row(what: str, count: object, found: str, aim: str) -> dict[str, Any]:
    return {"what": what, "count": count, "found": found, "aim": aim}


if __name__ == "__main__":
    main()
