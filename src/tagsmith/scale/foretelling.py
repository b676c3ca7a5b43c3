"""`tagsmith forecast` of a stage on many machines: by published figures, or by what a source showed here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import psutil

from tagsmith.errors import SettingError
from tagsmith.scale.capacity import FIGURES, STAGES, Capacity, Job, capacity, machines, measured_here

if TYPE_CHECKING:
    from tagsmith.tuning.forecast import Foretold


@dataclass(frozen=True)
class Asked:
    """What is asked: a stage, `count` machines of a kind; what is None is measured, or the default of a job."""

    stage: str | None
    rows: float | None = None
    machine: str | None = None
    count: int = 1
    price: float | None = None
    given: Mapping[str, float | None] = field(default_factory=dict)


def foretold(asked: Asked, here: Foretold | None = None) -> Capacity:
    """The answer; with `here` rows are like those of its source, and machines like this one unless another is named."""
    if asked.stage not in STAGES:
        raise SettingError(f"There is no stage '{asked.stage}' to forecast. Expected one of {', '.join(STAGES)}.")
    changes: dict[str, Any] = {name: value for name, value in asked.given.items() if value is not None}
    if "weights" in changes:
        changes.setdefault("learning", changes["weights"])
    figures, known, job = FIGURES, machines(), Job("score", asked.rows or 1)
    if here is not None:
        figures, own, job = _of_source(here)
        known = {own.name: own, **known}
    name = asked.machine or next(iter(known))
    if name not in known:
        raise SettingError(f"There is no machine '{name}'. Expected one of {', '.join(known)}.")
    job = replace(job, stage=asked.stage, rows=job.rows if asked.rows is None else asked.rows, **changes)
    return capacity(job, known[name], count=asked.count, figures=figures, price=asked.price)


def _of_source(here: Foretold) -> tuple[Any, Any, Job]:
    plan = here.forecast.plan
    figures, machine, job = measured_here(
        rows=here.rows,
        prepare_s=here.data_s,
        row_bytes=here.row_bytes,
        tokens=here.tokens,
        weights=plan.depth * plan.weights.block,
        learning=min(plan.depth * plan.weights.block, plan.blocks_above * plan.weights.block),
        score_flops=here.score_flops,
        train_flops=here.train_flops,
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        disk_bytes=shutil.disk_usage(".").free,
    )
    tuning = plan.config.tuning
    job = replace(job, epochs=tuning.epochs, rows_per_step=tuning.batch_size, width=plan.width, blocks=plan.depth)
    return figures, machine, job
