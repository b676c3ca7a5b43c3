"""Two processes that tune together learn what one alone does.

Run as a script this file is the template of both: it imports and builds once, tunes alone, then forks.
"""

import copy
import json
import os
import subprocess
import sys
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from tagsmith.errors import SettingError, TagsmithError
from tagsmith.tuning.parallel import Ranks, _buckets, join, launched

SEED, PROCESSES = 7, 2
ROWS = 49  # the last step of an epoch has one row, and the second process none
PLANS = {
    "last_layers": {"method": "last_layers", "blocks": 1, "start": "probe"},
    "full": {"method": "full", "average": "ema"},
    "lora": {"method": "lora", "lora_rank": 4},
    "fp16": {"method": "full", "precision": "fp16"},
    "own_states": {"method": "last_layers", "blocks": 1, "start": "probe", "shard_states": True},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the processes left behind, by plan."""
    words = [sys.executable, __file__, str(tmp_path_factory.mktemp("together"))]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    finished = subprocess.run(words, capture_output=True, text=True, check=False, env=alone, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize("plan", PLANS)
def test_two_processes_learn_what_one_does(plan, found):
    tolerance = 1e-2 if plan == "fp16" else 1e-5
    assert found[plan]["weights"] < tolerance
    assert found[plan]["losses"] < tolerance
    assert found[plan]["moved"] > 1e-3, "nothing was learnt"


@pytest.mark.parametrize("plan", PLANS)
def test_both_hold_the_same_bits(plan, found):
    assert found[plan]["same_bits"]


def test_a_stopped_tuning_of_two_goes_on_to_the_same_bits(found):
    """With dropout: each process draws its own, and goes on where it was."""
    assert found["resumed"] == {"stopped": [True, True], "same_bits": True, "files": ["seed-7.safetensors"]}


def test_a_stopped_tuning_of_two_goes_on_alone_to_the_same_weights_within_rounding(found):
    assert found["elastic"]["refused"], "without tuning.elastic it asks for as many processes"
    assert found["elastic"]["weights"] < 1e-5
    assert "with 1 processes where there were 2" in found["elastic"]["told"]


def test_each_of_two_keeps_the_states_of_its_own_rows_alone(found):
    assert found["own_states"]["kept"] == [-(-ROWS // 2), ROWS // 2]


def test_further_seeds_are_divided_and_each_is_what_one_process_makes_of_it(found):
    assert found["seeds"]["same_bits"], "by both, and as alone"
    assert found["seeds"]["curves"]
    assert found["seeds"]["told"] == [["Seed 8, 2 of 4.", "Seed 10, 4 of 4."], ["Seed 9, 3 of 4."]]


def test_a_process_alone_waits_for_nobody():
    alone, values = Ranks(), np.array([1.0, 2.0])
    assert launched() == alone == join("auto")
    assert alone.added(values) is values
    assert alone.agreed(True, False) == [True, False]
    assert alone.share(np.arange(3)).tolist() == [0, 1, 2]


def test_rows_are_divided_without_rest():
    shares = [Ranks(number, 3).share(np.arange(7)).tolist() for number in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]


def test_buckets_hold_all_in_order(monkeypatch):
    monkeypatch.setattr("tagsmith.tuning.parallel.BUCKET", 5)
    tensors = [torch.zeros(n) for n in (2, 2, 2, 9, 1)]
    assert [[len(t) for t in bucket] for bucket in _buckets(tensors)] == [[2, 2, 2], [9], [1]]


def test_two_processes_cannot_share_one_named_device(monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match="'cuda:1', one device, but torchrun started 2 processes"):
        join("cuda:1")


@pytest.mark.slow
def test_torchrun_writes_one_bundle_like_that_of_one_process(toy_csv, quick_config, tmp_path):
    """The command line as users have it, from rows to a bundle."""
    from safetensors.torch import load_file

    from tagsmith.pipeline import train

    settings = {"tuning": {"epochs": 1, "device": "cpu"}, "evaluation": {"calibrate": False}}
    config = quick_config(**settings)
    alone = train(toy_csv, out=tmp_path / "alone", config=config)
    file, folder = tmp_path / "settings.toml", tmp_path / "together"
    lines = [f"[{name}]\n" + "\n".join(_toml(section)) for name, section in _changed(config).items()]
    file.write_text("\n".join(lines), encoding="utf-8")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["-m", "tagsmith", "train", str(toy_csv), "--out", str(folder), "--config", str(file)]
    words += ["--track", f"jsonl={tmp_path / 'events.jsonl'}"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "TAGSMITH_CACHE": str(tmp_path / "cache")}
    finished = subprocess.run(words, capture_output=True, text=True, check=False, env=env, timeout=400)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.splitlines() == [str(folder)]
    assert sorted(path.name for path in tmp_path.glob("together*")) == ["together"]
    one, other = (load_file(path / "model.safetensors") for path in (alone.folder, folder))
    assert max(float((one[name].float() - other[name].float()).abs().max()) for name in one) < 1e-5
    reports = [json.loads((path / "report.json").read_text()) for path in (alone.folder, folder)]
    assert reports[0]["test"]["accuracy"] == reports[1]["test"]["accuracy"]
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    steps = [event["step"] for event in events if event["name"] == "step"]
    assert steps == list(range(1, len(steps) + 1)), "one process speaks"


def _changed(config):
    sections = {"model": ("backbone", "layers", "max_tokens"), "evaluation": ("resamples", "calibrate")}
    sections["tuning"] = ("epochs", "learning_rate", "head_learning_rate", "precision", "device")
    plain = config.model_dump(mode="json")
    return {name: {key: plain[name][key] for key in keys} for name, keys in sections.items()}


def _toml(section):
    return [f"{key} = {json.dumps(value)}" for key, value in section.items()]


# ---- The script


class Template:
    """What both processes are forked from."""

    def __init__(self, folder):
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from conftest import save_tiny, toy_sentences

        from tagsmith.config import Config
        from tagsmith.events import listened
        from tagsmith.labels import Labels
        from tagsmith.model.classifier import build
        from tagsmith.tuning import checkpoints, loop
        from tagsmith.tuning.learner import Part
        from tagsmith.tuning.losses import held_out_loss

        checkpoints.SECONDS_APART, checkpoints.MOST_SHARE = 0.0, float("inf")  # one after each step
        self.loop, self.folder, self.of, self.listened, self.told = loop, folder, Config.of, listened, []
        labels = Labels.of(["complaint", "praise"])
        self.classifiers = {}
        for family in ("llama", "bert"):
            with tempfile.TemporaryDirectory() as model:
                tiny = save_tiny(Path(model), family)
                built = build(tiny, self.config({}).model, labels=labels, layers=2, seed=SEED)
                self.classifiers[family] = built
        self.metric = lambda truth, probs: -held_out_loss(truth, probs)
        self.parts = {}
        for family, classifier in self.classifiers.items():
            for name, count in (("train", ROWS), ("validation", 15)):
                texts, names = zip(*toy_sentences(count, seed=count), strict=True)
                self.parts[family, name] = Part(classifier.encoder.encode(texts), labels.encode(names))

    def config(self, plan):
        common = {"epochs": 2, "precision": "fp32", "learning_rate": 1e-3, "tokens_per_batch": 64, "cache_gib": 0}
        return self.of({"tuning": common | plan, "model": {"max_tokens": 32}, "seed": SEED})

    def tune(self, plan, *, family="llama", resume=False, **options):
        """The weights that a tuning ends with, its validation losses, and how many texts' states it learnt from."""
        classifier = copy.deepcopy(self.classifiers[family])
        parts = {name: self.parts[family, name] for name in ("train", "validation")}
        loop = self.loop.Loop(classifier, parts, self.config(plan), metric=self.metric, **options)
        self.listened(loop.events(resume=resume), self.told.append)
        losses = [point["validation_loss"] for point in loop.tuned.curves]
        states = loop.learner.states
        return classifier.state_dict(), losses, 0 if states is None else len(states.tokens)

    def tune_seeds(self):
        """The further seeds of four: their weights and curves, and which of them were tuned here."""
        from tagsmith.tuning.methods import copies, trainable
        from tagsmith.tuning.seeds import tune_seeds

        classifier = copy.deepcopy(self.classifiers["llama"])
        config = self.config({"method": "last_layers", "blocks": 1, "seeds": 4})
        parts = {name: self.parts["llama", name] for name in ("train", "validation")}
        self.told.clear()
        untuned = copies(trainable(classifier, config.tuning))
        runs = tune_seeds(classifier, parts, config, untuned=untuned, metric=self.metric, listen=self.told.append)
        told = [str(event.values["text"]) for event in self.told if event.name == "note"]
        further = [(run.seed, dict(run.weights), run.tuned.curves) for run in runs[1:]]
        return further, [text for text in told if text.startswith("Seed ")]

    def work(self, number):
        """What each of the two does: all plans, then one that stops and goes on."""
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{self.folder}/meeting",
            rank=number,
            world_size=PROCESSES,
            timeout=timedelta(seconds=60),
        )
        left = {name: self.tune(plan) for name, plan in PLANS.items()}
        left["seeds"] = self.tune_seeds()
        left["whole"] = self.tune({"method": "full"}, family="bert")[0]
        left["half"] = self.stopped({"method": "full"}, number, checkpoint=self.folder / "e")
        options = {"family": "bert", "checkpoint": self.folder / "c"}
        left["stopped"] = self.stopped({"method": "full"}, number, **options)
        left["resumed"] = self.tune({"method": "full"}, resume=True, **options)[0]
        torch.distributed.destroy_process_group()
        torch.save(left, self.folder / f"left-{number}.pt")

    def stopped(self, plan, number, **options):
        """Whether it stopped after its third step, as the first process was asked to."""
        asked = []
        try:
            self.tune(plan, stop=lambda: asked.append(0) or (number == 0 and len(asked) == 3), **options)
        except self.loop.StoppedError:
            return True
        return False

    def going_on_alone(self):
        """What a process alone makes of the checkpoint of two; first it is refused."""
        try:
            self.tune({"method": "full"}, resume=True, checkpoint=self.folder / "e")
        except TagsmithError as error:
            refused = "number of processes was 2 and is now 1" in str(error)
        weights = self.tune({"method": "full", "elastic": True}, resume=True, checkpoint=self.folder / "e")[0]
        told = " ".join(str(event.values.get("text")) for event in self.told)
        return {"refused": refused, "weights": farthest(weights, self.tune({"method": "full"})[0]), "told": told}


def farthest(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def same_bits(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def fork(function, number):
    child = os.fork()
    if not child:
        code = 1
        try:
            function(number)
            code = 0
        except BaseException:  # noqa: BLE001 - a fork must never return
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def main(folder):
    template = Template(folder)
    alone = {name: template.tune(plan) for name, plan in PLANS.items()}
    torch.set_num_threads(1)
    seeds, _ = template.tune_seeds()
    children = [fork(template.work, number) for number in range(PROCESSES)]
    codes = [os.waitpid(child, 0)[1] for child in children]
    assert not any(codes), "a process failed"
    first, second = (torch.load(folder / f"left-{number}.pt") for number in range(PROCESSES))
    told = {
        name: {
            "weights": farthest(first[name][0], alone[name][0]),
            "losses": float(np.abs(np.subtract(first[name][1], alone[name][1])).max()),
            "moved": farthest(first[name][0], template.classifiers["llama"].state_dict()),
            "same_bits": same_bits(first[name][0], second[name][0]),
        }
        for name in PLANS
    }
    runs = [seeds, first["seeds"][0], second["seeds"][0]]
    told["seeds"] = {
        "same_bits": all(same_bits(one[1], run[1]) for some in runs for one, run in zip(seeds, some, strict=True)),
        "curves": all(one[::2] == run[::2] for some in runs for one, run in zip(seeds, some, strict=True)),
        "told": [first["seeds"][1], second["seeds"][1]],
    }
    told["own_states"]["kept"] = [first["own_states"][2], second["own_states"][2]]
    told["elastic"] = template.going_on_alone()
    told["resumed"] = {
        "stopped": [first.get("stopped", False), second.get("stopped", False)],
        "same_bits": same_bits(first["resumed"], first["whole"]) and same_bits(first["resumed"], second["resumed"]),
        "files": sorted(path.name for path in (folder / "c").iterdir()),
    }
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
