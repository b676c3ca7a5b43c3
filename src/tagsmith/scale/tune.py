"""`auto` on a cluster: Ray Tune tries candidates side by side, each on one CPU, all from one cache of states.

What enters the tuned blocks was computed once; it lies in the cluster's object store, which all trials of a machine
read without a copy. What a trial comes to does not depend on what is tried beside it.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagsmith.errors import ResourceError
from tagsmith.scale.cluster import first_line
from tagsmith.scale.nodes import Need, Node, workers_that_fit

if TYPE_CHECKING:
    from tagsmith.model.activations import States
    from tagsmith.tuning.search import Trial
    from tagsmith.tuning.trials import Judged

FAILURES = 2
"""How often a trial is begun anew whose process was lost."""


class SideBySide:
    """Tries so many recipes at a time; what they share is put into the object store once."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._shared: dict[Any, Any] = {}

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> SideBySide:
        """As many as the cluster has CPUs; ResourceError where it has none."""
        cpus = int(sum(node.cpus for node in nodes))
        return cls(workers_that_fit(Need("Searching", max(1, cpus)), nodes))

    def __call__(self, trials: Sequence[Trial]) -> Sequence[Judged]:
        """What each of them comes to; ResourceError where the process of one was lost again and again."""
        import ray

        if not trials:
            return []
        box: Any = ray.remote(Verdicts).options(num_cpus=0).remote()
        tasks = [self._task(trial) for trial in trials]
        try:
            errors = _tried(tasks, box, lanes=self.lanes)
            verdicts: dict[int, Judged] = ray.get(box.all.remote())
        finally:
            ray.kill(box)
        lost = [place for place in range(len(trials)) if place not in verdicts]
        if lost:
            raise ResourceError(
                f"{len(lost)} of {len(trials)} candidates could not be tried on the cluster: "
                f"{errors.get(lost[0], 'their process was lost.')} Expected enough memory for {self.lanes} at a time; "
                "name fewer backbones, or give the cluster fewer CPUs or more memory."
            )
        return [verdicts[place] for place in range(len(trials))]

    def _task(self, trial: Trial) -> dict[str, Any]:
        look = trial.look
        states = {
            start: self._ref((look.entrant.name, start), lambda own=own: _as_arrays(own))
            for start, own in look.entering(trial.recipe, trial.config).items()
        }
        about = self._ref(look.entrant.name, lambda: (look.entrant.classifier, look.part))
        return {"about": about, "states": states, "trial": (trial.recipe, trial.sample, trial.config, trial.share)}

    def _ref(self, key: Any, make: Any) -> Any:
        import ray

        if key not in self._shared:
            self._shared[key] = ray.put(make())
        return self._shared[key]


class Verdicts:
    """A box for what trials come to, to be an actor: rows of numbers are no metrics of Ray Tune's."""

    def __init__(self) -> None:
        self._found: dict[int, Judged] = {}

    def put(self, place: int, judged: Judged) -> None:
        """Keep what a trial came to."""
        self._found[place] = judged

    def all(self) -> dict[int, Judged]:
        """All of them, by the place of the trial."""
        return self._found


def _tried(tasks: Sequence[dict[str, Any]], box: Any, *, lanes: int) -> dict[int, str]:
    """Run all trials, at most so many at a time; what went wrong, by the place of the trial."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # else it draws tables between the lines that a command prints
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    folder = Path(tempfile.mkdtemp(prefix="tagsmith-search-"))
    try:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_try, tasks=tasks, box=box), {"cpu": 1}),
            param_space={"place": tune.grid_search(list(range(len(tasks))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=lanes, reuse_actors=True),
            run_config=tune.RunConfig(
                name="search", storage_path=str(folder), verbose=0,
                failure_config=tune.FailureConfig(max_failures=FAILURES),
            ),
        )  # fmt: skip
        results = tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    errors = ((result.config or {}, result.error) for result in results)
    return {config.get("place", -1): first_line(error) for config, error in errors if error is not None}


def _try(config: dict[str, Any], *, tasks: Sequence[dict[str, Any]], box: Any) -> None:
    """One trial, in a process of its own."""
    import ray
    import torch
    from ray import tune

    from tagsmith.model.attention import use_attention
    from tagsmith.tuning.trials import try_recipe

    torch.set_num_threads(1)
    task = tasks[config["place"]]
    classifier, part = ray.get(task["about"])
    use_attention(classifier.backbone.config)  # it is known to a process once something was built there
    states = {start: _as_states(ray.get(ref)) for start, ref in task["states"].items()}
    recipe, sample, own, share = task["trial"]
    epochs = recipe.short_epochs(own)
    judged = try_recipe(recipe, classifier, part, states, sample, own, epochs=epochs, share=share)
    ray.get(box.put.remote(config["place"], judged))
    tune.report({"loss": judged.loss})


def _as_arrays(states: States) -> Any:
    """States as the object store shares them: as bytes in an array."""
    import torch

    return states.hidden_TD.contiguous().view(torch.uint8).numpy(), states.hidden_TD.dtype, states.tokens


def _as_states(arrays: Any) -> States:
    import warnings

    import torch

    from tagsmith.model.activations import States

    raw, dtype, tokens = arrays
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the array cannot be written to, and nobody will
        return States(torch.from_numpy(raw).view(dtype), tokens)
