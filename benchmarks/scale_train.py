"""A machine killed while a cluster trains: do the others go on, and how much is made twice?

`python benchmarks/scale_train.py SOURCE [--backbone NAME] [--rows N]`, once for each line of
the page that `scale.py write` makes. The cluster has a head without
CPUs and two machines of one CPU, all processes of this machine that listen on loopback alone. One of the two is killed
at a third of the steps; the same training runs on one process for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scale import raylets

from tagsmith.config import Config
from tagsmith.events import Event


class Course:
    """What a training says of its steps, and when; at a step a machine dies."""

    def __init__(self, kill_at: int | None = None, kill: Any = None) -> None:
        self.steps, self.notes = list[tuple[float, int, int]](), list[str]()
        self._at, self._kill, self.killed_at = kill_at, kill, 0.0

    def __call__(self, event: Event) -> None:
        """Hear an event."""
        now = time.perf_counter()
        if event.name == "note":
            self.notes.append(str(event.values["text"]))
        if event.name != "step" or event.step is None:
            return
        self.steps.append((now, event.step, event.total or 0))
        if self._at is not None and event.step >= self._at and not self.killed_at:
            self._kill()
            self.killed_at = time.perf_counter()

    def told(self) -> dict[str, Any]:
        """Steps, those made twice, and the seconds without any."""
        numbers = [number for _, number, _ in self.steps]
        back = next((i for i in range(1, len(numbers)) if numbers[i] <= numbers[i - 1]), None)
        found = {"steps": max(numbers), "missing": len(set(range(1, max(numbers) + 1)) - set(numbers))}
        found["killed_at"] = self._at
        if back is not None:
            found |= {
                "made_twice": numbers[back - 1] - numbers[back] + 1,
                "seconds_of_these": round(
                    self.steps[back - 1][0]
                    - next(when for when, number, _ in self.steps if number == numbers[back]), 1
                ),
                "seconds_without_steps": round(self.steps[back][0] - self.killed_at, 1),
            }  # fmt: skip
        return found


def main() -> None:
    """Run it, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--backbone", default="minilm-l6")
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--checkpoint-s", type=float, default=5.0)
    parser.add_argument("--sharding", choices=["none", "fully"], default="none")
    parser.add_argument("--results", type=Path, default=Path("build/scale"))
    given = parser.parse_args()
    tuning = {"method": "full", "epochs": 2, "patience": 99, "precision": "fp32", "checkpoint_s": given.checkpoint_s}
    tuning["sharding"] = given.sharding
    config = Config.of(
        {
            "data": {"split": "hash"},
            "model": {"backbone": given.backbone},
            "tuning": tuning | {"most_rows": given.rows},
            "evaluation": {"audit": False, "robustness_rows": 0},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        found = measured(given.source, config, Path(folder))
    found["sharding"] = given.sharding
    print(json.dumps(found, indent=1))
    keep(found, given)


def keep(found: dict[str, Any], given: argparse.Namespace) -> None:
    """Add a run to those before."""
    path = given.results / "training.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = json.loads(path.read_text())["found"]["trainings"] if path.is_file() else []
    command = f"python benchmarks/scale_train.py {given.source} --backbone {given.backbone} --rows {given.rows}"
    command += f" --checkpoint-s {given.checkpoint_s:g}"
    where = f"{os.cpu_count()} cores ({platform.machine()}), {datetime.now(UTC):%Y-%m-%d}"
    told = {"found": {"trainings": [*runs, found]}, "command": command, "where": where}
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def measured(source: str, config: Config, folder: Path) -> dict[str, Any]:
    """Both trainings, and how far apart they end."""
    from tagsmith.pipeline import train
    from tagsmith.scale.train import train as train_on

    steps_per_epoch = -(-config.tuning.most_rows // config.tuning.batch_size)
    with raylets(2) as made:
        course = Course(2 * steps_per_epoch // 3, lambda: made.remove_node(made.machines[-1], allow_graceful=False))
        began = time.perf_counter()
        train_on(source, workers=(1, 2), config=config, out=folder / "many", listen=course)
        seconds = time.perf_counter() - began
    alone, began = Course(), time.perf_counter()
    train(source, config=config, out=folder / "one", listen=alone)
    reports = {name: json.loads((folder / name / "report.json").read_text()) for name in ("one", "many")}
    return {
        "on_cluster": {"seconds": round(seconds, 1), **course.told()},
        "one_process": {"seconds": round(time.perf_counter() - began, 1), **alone.told()},
        "workers": [note for note in course.notes if "worker" in note],
        "test_accuracy": {name: each["test"]["accuracy"]["value"] for name, each in reports.items()},
        "test_log_loss": {name: each["test"]["log_loss"]["value"] for name, each in reports.items()},
    }


if __name__ == "__main__":
    main()
