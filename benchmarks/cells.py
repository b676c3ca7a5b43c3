"""Cells of a benchmark: each runs in a process of its own, and a finished one is kept and reused.

A cell is a function of a script, named in its table `CELLS`, that takes keyword arguments and returns plain data. It is
kept under its script, name, arguments and machine; `--fresh` on the script's command line forgets all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

KEPT = Path(__file__).parents[1] / "build" / "benchmarks"


def cell(script: str, name: str, /, **arguments: Any) -> dict[str, Any]:
    """What a cell of a script gives, from an earlier run where it finished, else from a process of its own."""
    script = Path(script).resolve().as_posix()
    described = json.dumps([name, arguments, machine()], sort_keys=True)
    kept = KEPT / Path(script).stem / f"{name}-{hashlib.sha256(described.encode()).hexdigest()[:12]}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))["result"]
    words = [sys.executable, script, "--cell", name, json.dumps(arguments)]
    finished = subprocess.run(words, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(f"The cell {name} {arguments} failed:\n{finished.stderr[-3000:]}")
    result = json.loads(finished.stdout.strip().splitlines()[-1])
    kept.parent.mkdir(parents=True, exist_ok=True)
    aside = kept.with_suffix(".new")
    aside.write_text(json.dumps({"name": name, "arguments": arguments, "result": result}, indent=1), encoding="utf-8")
    aside.replace(kept)
    print(f"{name} {arguments}: {json.dumps(result)}"[:1000], file=sys.stderr, flush=True)
    return result


def answered(cells: Mapping[str, Callable[..., dict[str, Any]]]) -> bool:
    """Run the one cell that the command line asks for, if it asks for one; `--fresh` forgets what was kept."""
    if "--fresh" in sys.argv:
        sys.argv.remove("--fresh")
        shutil.rmtree(KEPT / Path(sys.argv[0]).stem, ignore_errors=True)
    if len(sys.argv) < 4 or sys.argv[1] != "--cell":
        return False
    print(json.dumps(cells[sys.argv[2]](**json.loads(sys.argv[3]))))
    return True


def peak_gib() -> float:
    """The most memory that this process held at any time, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def machine() -> str:
    """The processor, its cores and the version of torch."""
    from importlib.metadata import version

    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return f"{name or platform.processor()}, {os.cpu_count()} cores, {platform.system()}, torch {version('torch')}"
