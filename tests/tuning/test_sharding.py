"""Two processes that divide the weights of a tuning learn what one alone does, which holds them all.

Run as a script this file is what both are forked from.
"""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from tagsmith.config import Config
from tagsmith.errors import SettingError
from tagsmith.tuning.dividing import DIVIDED, FP32, HELD_WHOLE, chosen
from tagsmith.tuning.parallel import Ranks

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

CPU = torch.device("cpu")
PLANS = {
    "ema": {"average": "ema"},
    "recomputing": {"gradient_checkpointing": True},
    "bf16": {"precision": "bf16"},
}

FAMILIES = {"resumed": "bert", "altered": "bert", "alone": "llama"}
"""Whose tuning is stopped after three steps, by what becomes of it; BERT has dropout, so that only the same draws the
same."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the processes left behind."""
    words = [sys.executable, __file__, str(tmp_path_factory.mktemp("divided"))]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    finished = subprocess.run(words, capture_output=True, text=True, check=False, env=alone, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize("plan", PLANS)
def test_divided_weights_learn_what_whole_ones_do(plan, found):
    tolerance = 1e-2 if plan == "bf16" else 1e-5
    assert found[plan]["weights"] < tolerance
    assert found[plan]["losses"] < tolerance
    assert found[plan]["moved"] > 1e-3, "nothing was learnt"


def test_each_of_two_processes_holds_half_of_what_learns(found):
    for held in found["held"]:
        assert held["weights"] == pytest.approx(0.5, abs=0.01)
        assert held["optimizer"] == pytest.approx(0.5, abs=0.01)
        assert held["best"] == pytest.approx(0.5, abs=0.01)


def test_a_stopped_tuning_goes_on_from_its_pieces_to_the_same_weights(found):
    assert found["resumed"]["stopped"] == [True, True]
    assert found["resumed"]["begins_at"] == 4, "three steps lay in the checkpoint"
    assert found["resumed"]["weights"] == 0.0


def test_one_process_goes_on_from_the_pieces_of_two(found):
    assert found["alone"]["begins_at"] == 4
    assert found["alone"]["weights"] < 1e-5


def test_an_altered_piece_is_never_read(found):
    assert "starting anew" in found["altered"]["told"]
    assert found["altered"]["begins_at"] == 1


def test_a_checkpoint_holds_no_pickle_and_replaces_the_one_before(found):
    assert found["files"] == [
        "seed-7.shards/step-00000003/shard-00001-model-00001-of-00001.safetensors",
        "seed-7.shards/step-00000003/shard-00002-model-00001-of-00001.safetensors",
        "seed-7.shards/step-00000003/state.json",
    ]


# ---- Which it is


def config(**tuning):
    return Config.of({"tuning": {"method": "full"} | tuning})


class Two(Ranks):
    """Two processes that find the same."""

    def added(self, values):
        return values * 2


def test_weights_that_one_worker_can_hold_are_not_divided():
    assert not chosen(config(), 1000, CPU, Two(0, 2)).is_divided


def test_weights_that_no_worker_can_hold_are_divided_with_a_word(monkeypatch):
    monkeypatch.setattr("tagsmith.tuning.dividing.free_beside_others", lambda device: 2**30)
    weights = 2**30 // ((HELD_WHOLE + DIVIDED) * FP32) + 1
    choice = chosen(config(), weights, CPU, Two(0, 2))
    assert choice.is_divided
    assert "need 1.0 GiB on each worker, where the first has 1.0 GiB free: they are divided among 2" in choice.told
    assert not chosen(config(), weights, CPU, Ranks()).is_divided, "one process has nobody to divide with"
    assert not chosen(config(sharding="none"), weights, CPU, Two(0, 2)).is_divided
    assert not chosen(config(method="last_layers"), weights, CPU, Two(0, 2)).is_divided


def test_who_goes_on_from_pieces_divides_again():
    assert chosen(config(), 1000, CPU, Ranks(), was_divided=True).is_divided


def test_what_does_not_go_with_divided_weights_is_refused_in_one_paragraph():
    asked = config(sharding="fully", method="last_layers", seeds=2, precision="fp16")
    with pytest.raises(SettingError) as refused:
        chosen(asked, 1000, CPU, Two(0, 2))
    told = str(refused.value)
    assert "tuning.method = 'last_layers' (expected 'full'), tuning.seeds = 2 (expected 1)" in told
    assert "tuning.precision = 'fp16' (expected 'fp32')" in told
    assert "tuning.sharding = 'none'" in told
    assert "\n" not in told


@pytest.mark.slow
def test_what_no_worker_can_hold_is_divided_unasked_and_written_as_the_same_bundle(toy_csv, quick_config, tmp_path):
    """The whole pipeline by two processes that find a kilobyte of free memory."""
    from safetensors.torch import load_file

    from tagsmith.pipeline import train

    plan = {"method": "full", "start": "random", "epochs": 1}
    config = quick_config(tuning=plan, evaluation={"calibrate": False, "audit": False})
    alone = train(toy_csv, out=tmp_path / "alone", config=config)
    settings = tmp_path / "settings.json"
    settings.write_text(config.model_dump_json(), encoding="utf-8")
    words = [sys.executable, __file__, str(tmp_path / "together"), str(toy_csv), str(settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    finished = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "are divided among 2 (tuning.sharding)" in finished.stdout
    one, two = (load_file(folder / "model.safetensors") for folder in (alone.folder, tmp_path / "together"))
    assert max(float((one[name].float() - two[name].float()).abs().max()) for name in one) < 1e-4
    recipe = json.loads((tmp_path / "together" / "tagsmith.json").read_text())
    assert recipe["config"]["tuning"]["sharding"] == "fully"
    assert not list(tmp_path.glob("together.*")), "no piece is left"


# ---- The scripts


def tell(event):
    sys.stdout.write(f"{event.values.get('text', '')}\n")
    sys.stdout.flush()


def train_together(out, source, settings):
    """Two processes run the pipeline, as a launcher would start them."""
    from test_parallel import PROCESSES, fork

    from tagsmith.pipeline import train
    from tagsmith.tuning import dividing

    def work(number):
        dividing.free_beside_others = lambda device: 1000
        meeting = f"file://{out.with_name('meeting')}"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=number, world_size=PROCESSES)
        config = Config.model_validate_json(settings.read_text())
        train(source, out=out, config=config, listen=tell)

    children = [fork(work, number) for number in range(PROCESSES)]
    assert not any(os.waitpid(child, 0)[1] for child in children), "a process failed"


def work(template, number):
    from test_parallel import PROCESSES

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{template.folder}/meeting", rank=number, world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    left = {name: template.tune(divided(plan)) for name, plan in PLANS.items()}
    left["held"] = held(template)
    left["bert"] = template.tune(divided({}), family="bert")[0]
    for name, family in FAMILIES.items():
        left["stopped"] = template.stopped(divided({}), number, family=family, checkpoint=template.folder / name)
    if number == 0:
        spoil(template.folder / "altered")
    for name in ("resumed", "altered"):
        template.told.clear()
        options = {"family": FAMILIES[name], "checkpoint": template.folder / name}
        tuned = template.tune(divided({}), resume=True, **options)
        left[name] = (tuned[0], *said(template.told))
    torch.distributed.destroy_process_group()
    torch.save(left, template.folder / f"left-{number}.pt")


def divided(plan):
    return {"method": "full", "sharding": "fully", **plan}


def said(events):
    """The first step that was made, and what was said beside the steps."""
    first = next(event.step for event in events if event.name == "step")
    return first, " ".join(str(event.values.get("text")) for event in events if event.name == "note")


def spoil(folder):
    path = next(folder.glob("*/*/shard-00002*"))
    written = bytearray(path.read_bytes())
    written[-1] ^= 1
    path.write_bytes(written)


def held(template):
    """The share of all numbers that this process holds, after a step."""
    import copy

    classifier = copy.deepcopy(template.classifiers["llama"])
    total = sum(weight.numel() for weight in classifier.parameters())
    parts = {name: template.parts["llama", name] for name in ("train", "validation")}
    loop = template.loop.Loop(classifier, parts, template.config(divided({"epochs": 1})), metric=template.metric)
    template.listened(loop.events(), lambda event: None)
    states = loop.optimizer.state.values()
    share = lambda values: sum(value.to_local().numel() for value in values) / total  # noqa: E731
    return {
        "weights": share(weight for _, weight in loop.weights),
        "optimizer": share(state["exp_avg"] for state in states),
        "best": share(loop.best.best.weights.values()),
    }


def main(folder):
    from test_parallel import PROCESSES, Template, farthest, fork

    template = Template(folder)
    whole = {name: template.tune({"method": "full", **plan}) for name, plan in PLANS.items()}
    children = [fork(lambda number: work(template, number), number) for number in range(PROCESSES)]
    assert not any(os.waitpid(child, 0)[1] for child in children), "a process failed"
    first, second = (torch.load(folder / f"left-{number}.pt") for number in range(PROCESSES))
    told = {
        name: {
            "weights": farthest(first[name][0], whole[name][0]),
            "losses": max(abs(a - b) for a, b in zip(first[name][1], whole[name][1], strict=True)),
            "moved": farthest(first[name][0], template.classifiers["llama"].state_dict()),
        }
        for name in PLANS
    }
    told["held"] = [first["held"], second["held"]]
    told["files"] = sorted(
        str(path.relative_to(folder / "alone")) for path in (folder / "alone").rglob("*.*") if path.is_file()
    )
    weights, begins_at, _ = first["resumed"]
    told["resumed"] = {
        "stopped": [first["stopped"], second["stopped"]],
        "weights": farthest(weights, first["bert"]),
        "begins_at": begins_at,
    }
    told["altered"] = dict(zip(("begins_at", "told"), first["altered"][1:], strict=True))
    template.told.clear()
    plan = divided({"elastic": True})
    weights = template.tune(plan, resume=True, checkpoint=folder / "alone")[0]
    told["alone"] = {"weights": farthest(weights, whole["recomputing"][0]), "begins_at": said(template.told)[0]}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) == 2 else train_together(*(Path(word) for word in sys.argv[1:]))
