"""A tuning that is killed at any moment leaves a whole checkpoint, and ends with the bytes of one that was not.

Run as a script this file is the template of the processes that are killed: it imports and builds once, then forks.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

import pytest

SEED, SEEDS = 7, 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("kills", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_tuning_killed_at_any_moment_has_a_whole_checkpoint_and_ends_with_the_same_bytes(kills, tmp_path):
    words = [sys.executable, __file__, str(tmp_path), str(kills)]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    finished = subprocess.run(words, capture_output=True, text=True, check=False, env=alone)
    assert finished.returncode == 0, finished.stderr[-3000:]
    found = json.loads(finished.stdout.splitlines()[-1])
    assert found["kills"] >= kills
    assert found["broken"] == [], "a checkpoint was not whole, or had gone, or went back"
    assert set(found["digests"]) == {found["unstopped"]}
    assert found["moved"] >= kills / 5, "most kills came before the first step of their process"


class Template:
    """What every process is forked from, and what they have left behind."""

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from conftest import save_tiny, toy_sentences

        from tagsmith.config import Config
        from tagsmith.labels import Labels
        from tagsmith.model.classifier import build
        from tagsmith.tuning import checkpoints
        from tagsmith.tuning.checkpoints import drop_checkpoint, load_checkpoint
        from tagsmith.tuning.learner import Part
        from tagsmith.tuning.losses import held_out_loss
        from tagsmith.tuning.methods import copies, put, trainable
        from tagsmith.tuning.seeds import tune_seeds

        checkpoints.SECONDS_APART, checkpoints.MOST_SHARE = 0.0, float("inf")  # one after each step
        self.load, self.drop, self.tune_seeds, self.put = load_checkpoint, drop_checkpoint, tune_seeds, put
        self.folder, self.result = folder / "c", folder / "result"
        plan = {"method": "full", "epochs": 2, "precision": "fp32", "seeds": SEEDS, "average": "best", "average_of": 2}
        self.config = Config.of({"tuning": plan, "model": {"max_tokens": 32}, "seed": SEED})
        labels = Labels.of(["complaint", "praise"])
        with tempfile.TemporaryDirectory() as model:
            # It has dropout: the random state matters. Its many words make writing take long enough to be killed in.
            tiny = save_tiny(Path(model), "bert", vocab_size=3000)
            self.classifier = build(tiny, self.config.model, labels=labels, layers=1, seed=SEED)
        self.untuned = copies(trainable(self.classifier, self.config.tuning))
        self.metric = lambda truth, probs: -held_out_loss(truth, probs)
        self.parts = {}
        for name, count in (("train", 48), ("validation", 16)):
            texts, names = zip(*toy_sentences(count, seed=count), strict=True)
            self.parts[name] = Part(self.classifier.encoder.encode(texts), labels.encode(names))

    def tune_unstopped(self) -> str:
        """The hash of all weights without any kill; what is done once only is done by then, and forks begin at once."""
        self._tune(None)
        self.put(self.classifier, self.untuned)
        return self.result.read_text()

    def tune_to_the_end(self, found: dict) -> float:
        """How many seconds it takes from what there is, with a checkpoint after each step; its hash is kept."""
        started = time.monotonic()
        _, end = os.waitpid(self.fork(checkpoint=self.folder), 0)
        assert end == 0, "a process failed by itself"
        found["digests"].append(self.result.read_text())
        self.drop(self.folder)
        return time.monotonic() - started

    def fork(self, *, checkpoint: Path | None) -> int:
        """The number of a new process that tunes, resumed where it can, and writes a hash of all weights."""
        number = os.fork()
        if number:
            return number
        try:
            self._tune(checkpoint)
            os._exit(0)
        except Exception:  # noqa: BLE001 - this process must not go on as its parent would
            traceback.print_exc()
            os._exit(1)

    def _tune(self, checkpoint: Path | None) -> None:
        runs = self.tune_seeds(
            self.classifier,
            self.parts,
            self.config,
            untuned=self.untuned,
            metric=self.metric,
            checkpoint=checkpoint,
            resume=checkpoint is not None,
        )
        digest = hashlib.sha256(json.dumps([run.tuned.curves for run in runs]).encode())
        for run in runs:
            for name, weight in sorted(run.weights.items()):
                digest.update(name.encode() + weight.numpy().tobytes())
        aside = self.result.with_suffix(f".{os.getpid()}")
        aside.write_text(digest.hexdigest())
        aside.replace(self.result)

    def wait_for_writing(self, *, seconds: float) -> None:
        """Until a process writes a checkpoint: at a moment drawn blindly, few do."""
        before, until = self._files(), time.monotonic() + seconds
        while self._files() == before and time.monotonic() < until:
            time.sleep(0.0002)

    def _files(self) -> set[tuple[str, int, int]]:
        found = set()
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.folder):
                about = entry.stat()
                found.add((entry.name, about.st_size, about.st_mtime_ns))
        return found

    def steps_kept(self) -> list[int | None]:
        """The steps of each seed's checkpoint: 0 where there is none yet, None where there is one that is not whole."""
        found: list[int | None] = []
        for seed in range(SEED, SEED + SEEDS):
            file = self.folder / f"seed-{seed}.safetensors"
            kept = self.load(file) if file.exists() else None
            found.append(kept.state["step"] if kept else None if file.exists() else 0)
        return found


def killed_again_and_again(folder: Path, kills: int) -> dict:
    """Kill so many tunings, each of which goes on where the one before it was killed."""
    template, moments = Template(folder), random.Random(5)
    unstopped = template.tune_unstopped()
    found = {"unstopped": unstopped, "digests": [], "broken": [], "kills": 0, "moved": 0}
    seconds = found["seconds"] = template.tune_to_the_end(found)
    before: list[int | None] = [0] * SEEDS
    while found["kills"] < kills:
        template.result.unlink(missing_ok=True)
        rivals = 2 if moments.random() < 0.3 else 1  # two processes of one --out
        numbers = [template.fork(checkpoint=template.folder) for _ in range(rivals)]
        time.sleep(moments.uniform(0.0, seconds / 2))
        if moments.random() < 0.5:
            template.wait_for_writing(seconds=seconds / 4)
        for number in numbers:
            os.kill(number, signal.SIGKILL)
        ends = [os.waitpid(number, 0)[1] for number in numbers]
        assert not any(map(os.WEXITSTATUS, ends)), "a process failed by itself"
        found["kills"] += sum(os.WIFSIGNALED(end) for end in ends)
        now = template.steps_kept()
        if not all(map(partial(_is_sound, alone=rivals == 1), before, now)):
            found["broken"].append([before, now])
        found["moved"] += now != before
        before = now
        if template.result.exists():  # it came to its end first: the next one starts anew
            found["digests"].append(template.result.read_text())
            template.drop(template.folder)
            before = [0] * SEEDS
    template.tune_to_the_end(found)
    return found


def _is_sound(was: int | None, now: int | None, *, alone: bool) -> bool:
    """A rival may put an older checkpoint in place, but a whole one."""
    return now is not None and (now >= (was or 0) if alone else bool(now) >= bool(was))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(killed_again_and_again(Path(sys.argv[1]), int(sys.argv[2]))))
