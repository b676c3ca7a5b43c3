"""The training loop: a generator of events. It never prints, never sees a test row, and can stop after any step.

Axes: N texts, C labels, D width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagsmith.assets import cache_folder
from tagsmith.config import Config
from tagsmith.data.batching import training_steps
from tagsmith.errors import SettingError, TagsmithError
from tagsmith.events import Event, Listener, listened, silent
from tagsmith.model.activations import FrozenBlocks, States, frozen_states
from tagsmith.model.adapters import Adapter, adapted_layers, attach, detach
from tagsmith.model.classifier import Classifier, Scorer, finish_states
from tagsmith.model.device import arithmetic, choose_device, device_of, put_random_states, random_states
from tagsmith.model.heads import LinearHead
from tagsmith.model.products import learning_products
from tagsmith.model.quantized import quantize
from tagsmith.model.state_cache import StateCache
from tagsmith.tuning.averaging import Best
from tagsmith.tuning.checkpoints import Checkpoint, CheckpointFile, origin_of, pack_optimizer, unpack_optimizer
from tagsmith.tuning.contrastive import contrast
from tagsmith.tuning.dividing import require_shardable
from tagsmith.tuning.learner import Learner, Part
from tagsmith.tuning.losses import held_out_accuracy, held_out_loss
from tagsmith.tuning.methods import first_tuned_block, trainable
from tagsmith.tuning.optimizers import build_optimizer, set_rates
from tagsmith.tuning.parallel import divided_states, own_states, ranks_here
from tagsmith.tuning.probes import EARLY_STEPS, MOST_STEPS, fit_head, seen_by_head
from tagsmith.tuning.sharded_checkpoints import SHARDED, ShardedCheckpoint
from tagsmith.tuning.sharding import Shards

Metric = Callable[[np.ndarray, np.ndarray], float]
"""From truth `(N,)` and probabilities `(N, C)` to a score; larger is better."""


class StoppedError(TagsmithError):
    """Tuning was asked to stop and wrote a checkpoint from which it can go on."""

    exit_code = 130


@dataclass
class Tuned:
    """What tuning leaves behind beside the tuned weights.

    `curves` has one entry per evaluation; `average` says how the average of weights did against the best step, where
    one was wanted; `states` are the kept activations by part; `start` is the first tuned block, `adapter` what `lora`
    learnt and merged.
    """

    curves: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    steps: int = 0
    average: dict[str, Any] | None = None
    states: dict[str, States] = field(default_factory=dict)
    start: int | None = None
    adapter: Adapter | None = None

    @property
    def validated(self) -> dict[str, float]:
        """`validation_loss` and `validation_accuracy` of the weights that remain; nothing where none was scored."""
        points = [self.average] if self.average and self.average["kept"] else self.curves
        best = next((point for point in points if point.get("step", self.best_step) == self.best_step), {})
        return {name: best[name] for name in ("validation_loss", "validation_accuracy") if name in best}


def state_cache(config: Config) -> StateCache | None:
    """Where states are kept from run to run; None where the settings give no room."""
    if not config.tuning.cache_gib:
        return None
    return StateCache(cache_folder() / "states", int(config.tuning.cache_gib * 2**30))


def tune(
    classifier: Classifier,
    parts: Mapping[str, Part],
    config: Config,
    *,
    metric: Metric,
    class_weights: np.ndarray | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    states: Mapping[str, States] | None = None,
    listen: Listener = silent,
) -> Tuned:
    """Tune a classifier in place; `parts` has `train`, `validation`, and maybe `calibration`.

    Args:
        metric: scores validation rows; its best step is restored at the end, or an average that is better.
        class_weights: weight of each label `(C,)` in the loss; with several labels a row, of its positive rows.
        checkpoint: folder for what `resume` needs, a file for each seed; None keeps none.
        stop: asked after each step; when it says so, a checkpoint is written and `StoppedError` raised.
        states: what enters the first tuned block, by part, where an earlier pass has kept it.
    """
    loop = Loop(classifier, parts, config, metric=metric, class_weights=class_weights, checkpoint=checkpoint, stop=stop)
    loop.tuned.states = dict(states or {})
    listened(loop.events(resume=resume), listen)
    return loop.tuned


class Loop:
    """The state of one tuning: weights, optimizer, position, best so far."""

    def __init__(
        self,
        classifier: Classifier,
        parts: Mapping[str, Part],
        config: Config,
        *,
        metric: Metric,
        class_weights: np.ndarray | None = None,
        checkpoint: Path | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.classifier, self.parts, self.config = classifier, parts, config
        self.metric, self.stop = metric, stop
        self.ranks = ranks_here()
        self.shards = self._shards() if config.tuning.sharding == "fully" else None
        self.device = device_of(classifier) if self.shards is None else self.shards.device
        self.dtype = arithmetic(config.tuning.precision, self.device)
        self.class_weights_C = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        if self._is_probe and config.tuning.average != "none":
            raise SettingError(
                f"tuning.average is '{config.tuning.average}', but a linear head alone is fitted at once: there are no "
                "steps to average. Take 'none', or another tuning.method."
            )
        self.tuned = Tuned(start=first_tuned_block(config.tuning, classifier.backbone.depth))
        self.step, self.stale, self.is_finished = 0, 0, False
        self.file = None if checkpoint is None else self._file_in(checkpoint)
        if self.shards is not None:
            self.classifier = self.shards.classifier
        self._seconds_per_step: float | None = None
        self._diverged = False
        self._recent: list[
            tuple[float, int, int]
        ] = []  # loss, right answers and rows of the steps since the last evaluation

    def _shards(self) -> Shards:
        device = choose_device(self.config.tuning.device)
        require_shardable(self.config, device)
        return Shards(self.classifier, device, self.ranks)

    def events(self, *, resume: bool = False) -> Generator[Event, None, None]:
        """Tune, saying what happens."""
        yield from self._keep_activations()
        adapted = self.config.tuning.method == "lora"
        if adapted and self.config.tuning.lora_bits == 4:
            names = adapted_layers(self.classifier.backbone, self.config.tuning.lora_targets)
            quantize(self.classifier.backbone.trunk, names, dtype=self.dtype)
        if adapted:
            attach(self.classifier.backbone, **self._adapter_settings, seed=self.config.seed)
        self.weights = list(trainable(self.classifier, self.config.tuning))
        self.classifier.requires_grad_(False)
        for _, weight in self.weights:
            weight.requires_grad_(True)
        self.classifier.backbone.recomputes = self.config.tuning.gradient_checkpointing
        if self.config.tuning.compile:
            for block in self.classifier.backbone.blocks[self.tuned.start or 0 :]:
                block.compile(dynamic=True)  # copies that score are plain again
        self.optimizer = build_optimizer(self.weights, self.config.tuning)
        self.learner = Learner(
            self.classifier,
            self.parts["train"],
            self.config.tuning,
            weights=[weight for _, weight in self.weights],
            optimizer=self.optimizer,
            class_weights_C=self.class_weights_C,
            states=self.tuned.states.get("train"),
            start=self.tuned.start,
            shards=self.shards,
        )
        self.best = Best(self.weights, self.config.tuning)
        torch.manual_seed(self.config.seed + self.ranks.number)  # dropout differs from process to process
        if resume:
            yield from self._go_on()
        if not self.is_finished:
            own = self.classifier.backbone.blocks[self.tuned.start or 0 :]
            with learning_products(own, apply=self._multiplies_by_onednn):
                yield from self._learn_all()
        if adapted:
            self.tuned.adapter = detach(self.classifier.backbone, **self._adapter_settings)
        self._leave()
        if self.learner.skipped:
            text = f"{self.learner.skipped} steps moved nothing: gradients overflowed in fp16; their scale was lowered."
            yield Event("tuning", "note", values={"text": text})
        yield Event("tuning", "done", self.step, self.total_steps, {"best_step": self.tuned.best_step})

    def _leave(self) -> None:
        """Hand over the classifier, and states of all rows or none: whoever looks back computes what is not there."""
        if self.shards is not None:
            self.classifier = self.shards.gather()
        self.classifier.requires_grad_(False).eval()
        self.classifier.backbone.recomputes = False
        self.tuned.steps = self.step
        if self.learner.has_own_states:
            del self.tuned.states["train"]

    def _learn_all(self) -> Iterator[Event]:
        """From the start, or where a checkpoint left off, to the weights that remain."""
        if self.config.tuning.method == "contrastive":
            yield from self._contrast()
        if not self.step and (self._is_probe or self.config.tuning.start == "probe"):
            yield self._fit_probe()
            yield self._evaluate(epoch=0)  # what tuning has to beat: without a better step the probe remains
        if not self._is_probe:
            self.classifier.train()  # its trunk came in another mode: dropout must not wait for the first evaluation
            yield from self._epochs()
        self.best.put(self.best.best.weights)
        yield from self._compete()
        self.is_finished = True
        tuning = self.config.tuning
        if self.file and (tuning.seeds * tuning.soup > 1 or self.ranks.agreed(self._is_due)[0]):
            self._save()

    def _contrast(self) -> Iterator[Event]:
        """Move the backbone by pairs of texts; it takes seconds, so a run that was stopped begins with it again."""
        if self.ranks.count > 1:
            raise SettingError(
                "tuning.method is 'contrastive', which is for a few rows and one process. Start one, or take another "
                "method."
            )
        weights = [weight for name, weight in self.weights if not name.startswith("head.")]
        settings = {"dtype": self.dtype, "seed": self.config.seed}
        pairs = contrast(self.classifier, self.parts["train"], weights, self.optimizer, self.config.tuning, **settings)
        for step, total, loss in pairs:
            yield Event("tuning", "contrast", step, total, {"loss": loss})

    def _compete(self) -> Iterator[Event]:
        """Let an average of weights take the place of the best step, where it reads the validation rows better."""
        average = self.best.average()
        if average is None:
            return
        weights, name = average
        self.best.put(weights)
        values = self.validated()
        is_kept = values["score"] > self.best.best.score
        if not is_kept:
            self.best.put(self.best.best.weights)
        self.tuned.average = {"of": name, "kept": is_kept, **values}
        told = "better, and is kept" if is_kept else "no better, and is dropped"
        text = f"Of the weights {name} was tried: on the validation rows it is {told} (step {self.tuned.best_step})."
        yield Event("tuning", "note", values={"text": text})

    @property
    def _multiplies_by_onednn(self) -> bool:
        is_plain = not (self.config.tuning.method == "lora" or self.config.tuning.compile)
        return is_plain and self.shards is None and self.device.type == "cpu" and self.learner.dtype is torch.float32

    @property
    def _adapter_settings(self) -> dict[str, Any]:
        tuning = self.config.tuning
        return {
            "rank": tuning.lora_rank,
            "alpha": tuning.lora_alpha,
            "targets": tuning.lora_targets,
            "dora": tuning.lora_dora,
        }

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the training rows."""
        return -(-len(self.parts["train"].truth) // self.config.tuning.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole plan, without early stopping."""
        return self.steps_per_epoch * self.config.tuning.epochs

    @property
    def _is_probe(self) -> bool:
        """Whether a linear head alone learns: then its best weights are computed rather than approached in steps."""
        method = self.config.tuning.method
        return method == "contrastive" or (method == "head" and isinstance(self.classifier.head, LinearHead))

    def _fit_probe(self) -> Event:
        """Set the head to a probe of what it will see, its penalty chosen by cross-validation (STATISTICS.md 23)."""
        part, states = self.parts["train"], self.tuned.states.get("train")
        pooled_ND = seen_by_head(self.classifier, part, states, start=self.tuned.start, dtype=self.dtype)
        if self.learner.has_own_states:
            rows = self.ranks.owned(np.arange(len(part.truth)))
            pooled_ND = torch.from_numpy(self.ranks.collected(pooled_ND.numpy(), rows, total=len(part.truth)))
        # A start for tuning stops early: a probe that fits all rows leaves no loss to move the features with.
        steps = MOST_STEPS if self._is_probe else EARLY_STEPS
        weights_C, seed = self.class_weights_C, self.config.seed
        probe = fit_head(self.classifier.head, pooled_ND, part, seed=seed, steps=steps, class_weights_C=weights_C)
        self.best.begin()
        probs = self.classifier.calibration.probabilities(probe.logits(pooled_ND).numpy())
        right = round(held_out_accuracy(part.truth, probs) * len(part.truth))
        self._recent.append((held_out_loss(part.truth, probs), right, len(part.truth)))
        return Event("tuning", "probe", values={"strength": probe.strength, "rows": len(part.truth)})

    def _keep_activations(self) -> Generator[Event, None, None]:
        start = self.tuned.start
        if not start:  # nothing is frozen: every epoch begins at the tokens
            return
        total, done = sum(len(part.tokens.rows) for part in self.parts.values()), 0
        if set(self.tuned.states) == set(self.parts):
            return
        frozen = FrozenBlocks(self.classifier.backbone, stop=start, dtype=self.dtype)
        for name, part in self.parts.items():
            if name in self.tuned.states:
                continue
            counted: dict[str, int] = {"done": done, "total": total}
            if (
                self.ranks.count > 1
                and self.config.tuning.shard_states
                and name == "train"
                and len(part.tokens) >= self.ranks.count
            ):
                cache = state_cache(self.config)
                states = yield from own_states(frozen, part.tokens, self.ranks, cache=cache, **counted)
            elif self.ranks.count > 1:
                states = yield from divided_states(frozen, part.tokens, self.ranks, **counted)
            else:
                states = yield from frozen_states(frozen, part.tokens, cache=state_cache(self.config), **counted)
            self.tuned.states[name] = states
            done += len(part.tokens.rows)

    def _epochs(self) -> Iterator[Event]:
        tuning = self.config.tuning
        sizes = self.parts["train"].tokens.sizes
        checks = _evaluation_steps(self.steps_per_epoch, tuning.evaluations_per_epoch)
        for epoch in range(self.step // self.steps_per_epoch, tuning.epochs):
            steps = training_steps(sizes, rows_per_step=tuning.batch_size, seed=self.config.seed, epoch=epoch)
            for i in range(self.step - epoch * self.steps_per_epoch, len(steps)):
                yield self._learn(steps[i], epoch=epoch)
                while self.learner.notes:
                    yield Event("tuning", "note", values={"text": self.learner.notes.pop()})
                if self._diverged:
                    yield self._stop_diverged(steps[i])
                    return
                if i + 1 in checks:
                    yield self._evaluate(epoch=epoch + (i + 1) / self.steps_per_epoch)
                    if self.stale >= tuning.patience:
                        yield Event(
                            "tuning",
                            "note",
                            values={
                                "text": f"Stopped early: no better validation score in {tuning.patience} evaluations."
                            },
                        )
                        return
                is_stopped, is_due = self.ranks.agreed(self.stop(), self._is_due)
                if is_stopped:
                    self._stop_here()
                if is_due:
                    self._save()

    def _learn(self, rows: np.ndarray, *, epoch: int) -> Event:
        started = time.perf_counter()
        rate = set_rates(self.optimizer, step=self.step, total=self.total_steps, config=self.config.tuning)
        loss, right = self.learner.step(rows)
        self.step += 1
        self._diverged = not math.isfinite(loss)
        if not self._diverged:
            self.best.move()
        self._recent.append((loss, right, len(rows)))
        values = {
            "loss": loss,
            "accuracy": right / len(rows),
            "learning_rate": rate,
            "epoch": epoch + 1,
            "seconds_left": self._seconds_left(time.perf_counter() - started),
        }
        return Event("tuning", "step", self.step, self.total_steps, values)

    def _stop_diverged(self, rows: np.ndarray) -> Event:
        """Say where the loss left the numbers; the best weights so far are what remains."""
        some = ", ".join(str(row) for row in rows[:8].tolist()) + (" ..." if len(rows) > 8 else "")
        found = f"The loss of step {self.step} (training texts {some}) is not a number"
        if self.tuned.best_step == 0:
            raise SettingError(
                f"{found}, before any validation score. Expected a finite one; lower tuning.learning_rate "
                f"({self.config.tuning.learning_rate:g}), or take tuning.precision = 'fp32'."
            )
        text = f"{found}: tuning stopped, and the weights of step {self.tuned.best_step} are kept."
        return Event("tuning", "note", values={"text": text})

    def _seconds_left(self, seconds: float) -> float:
        before = self._seconds_per_step
        self._seconds_per_step = seconds if before is None else 0.95 * before + 0.05 * seconds
        return self._seconds_per_step * (self.total_steps - self.step)

    def _evaluate(self, *, epoch: float) -> Event:
        rows = sum(seen for _, _, seen in self._recent)
        values: dict[str, Any] = {
            "epoch": round(epoch, 3),
            "step": self.step,
            "train_loss": sum(loss * seen for loss, _, seen in self._recent) / rows,
            "train_accuracy": sum(right for _, right, _ in self._recent) / rows,
            **self.validated(),
        }
        self._recent.clear()
        self.tuned.curves.append(values)
        if self.best.score(values["score"], step=self.step):
            self.stale, self.tuned.best_step = 0, self.step
        else:
            self.stale += 1
        return Event("tuning", "evaluated", self.step, self.total_steps, values)

    @property
    def score(self) -> float:
        """The validation score of the weights that remain."""
        average = self.tuned.average
        if average and average["kept"]:
            return average["score"]
        return max((each["score"] for each in self.tuned.curves), default=-math.inf)

    def validated(self) -> dict[str, float]:
        """What the validation rows say of the weights of this moment."""
        truth, probs = self.parts["validation"].truth, self.probabilities("validation")
        return {
            "validation_loss": held_out_loss(truth, probs),
            "validation_accuracy": held_out_accuracy(truth, probs),
            "score": self.metric(truth, probs),
        }

    def probabilities(self, name: str) -> np.ndarray:
        """Uncalibrated probabilities `(N, C)` of a part, under the weights of this moment, in fp32."""
        self.classifier.eval()
        rows = np.arange(len(self.parts[name].truth))
        if self.shards is not None:
            own = self.ranks.share(rows)
            logits = self.shards.logits(self.parts[name].tokens, own)
            logits_NC = self.ranks.collected(logits, own, total=len(rows))
        elif len(rows) < self.ranks.count or self.ranks.count == 1:
            logits_NC = self._logits(name)
        else:
            own = self.ranks.share(rows)
            logits_NC = self.ranks.collected(self._logits(name, own), own, total=len(rows))
        return self.classifier.calibration.probabilities(logits_NC)

    def _logits(self, name: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Logits `(N, C)` of some rows of a part; None: of all of them."""
        if self.tuned.start:
            states = self.tuned.states[name]
            own = states if rows is None else states.of_texts(rows)
            return finish_states(self.classifier, own, start=self.tuned.start)
        tokens = self.parts[name].tokens
        return Scorer(self.classifier).logits(tokens if rows is None else tokens.of_texts(rows))

    # ---- Checkpoints

    @property
    def _is_due(self) -> bool:
        return self.file is not None and self.file.is_due

    def _file_in(self, folder: Path) -> CheckpointFile:
        origin = origin_of(self.classifier, self.parts, self.config, class_weights_C=self.class_weights_C)
        path, apart = folder / f"seed-{self.config.seed}.safetensors", self.config.tuning.checkpoint_s
        if self.shards is None:
            return CheckpointFile(path, origin, seconds_apart=apart)
        own = path.with_suffix(SHARDED)
        return ShardedCheckpoint(own, origin, seconds_apart=apart, mesh=self.shards.mesh, ranks=self.ranks)

    def _stop_here(self) -> None:
        if self.file is None:
            raise StoppedError(f"Stopped after step {self.step} of {self.total_steps}, without a checkpoint.")
        self._save()
        raise StoppedError(
            f"Stopped after step {self.step} of {self.total_steps}. A checkpoint is in '{self.file.path.parent}'."
        )

    def _save(self) -> None:
        """Write what going on needs; of a tuning that has ended, what it leaves behind."""
        assert self.file is not None, "callers ask first"
        tensors = {f"weight.{name}": weight for name, weight in self.weights}
        if not self.is_finished:
            tensors |= self.best.tensors() | pack_optimizer(self.optimizer)
            tensors |= {name: self.ranks.stacked(state) for name, state in random_states(self.device).items()}
        state = {
            "step": self.step,
            "stale": self.stale,
            "best_step": self.tuned.best_step,
            "curves": self.tuned.curves,
            "average": self.tuned.average,
            "recent": self._recent,
            "is_finished": self.is_finished,
            "scale": self.learner.scaler.state_dict(),
            "tokens_per_batch": self.learner.tokens_per_batch,
            **self.best.state(),
        }
        if self.ranks.is_first or self.shards is not None:
            self.file.write(Checkpoint(tensors, state))
        self.ranks.wait()  # whoever goes on, in this process or another, finds it

    def _go_on(self) -> Iterator[Event]:
        assert self.file is not None, "resume needs a folder"
        found = self.file.read()
        if found is None:
            text = f"No checkpoint in '{self.file.path.parent}': starting anew."
            yield Event("tuning", "note", values={"text": text})
            return
        self.best.put({name: found.tensors[f"weight.{name}"] for name, _ in self.weights})
        state = found.state
        self.step, self.stale, self.is_finished = state["step"], state["stale"], state["is_finished"]
        self.tuned.best_step, self.tuned.curves = state["best_step"], list(state["curves"])
        self.tuned.average, self._recent = state["average"], [tuple(values) for values in state["recent"]]
        if not self.is_finished:
            self.best.load(found.tensors, state)
            unpack_optimizer(self.optimizer, found.tensors)
            self.learner.scaler.load_state_dict(state["scale"])
            self.learner.tokens_per_batch = state["tokens_per_batch"]
            yield from self._draw_on(found)
        yield Event("tuning", "note", values={"text": f"Going on after step {self.step} of {self.total_steps}."})

    def _draw_on(self, found: Checkpoint) -> Iterator[Event]:
        """Let generators go on where they were; of another number of processes each begins a course of its own."""
        processes = len(found.tensors["random_state"])
        if processes == self.ranks.count:
            own = {name: found.tensors[name][self.ranks.number] for name in random_states(self.device)}
            put_random_states(own, self.device)
            return
        torch.manual_seed(self.config.seed + self.ranks.number + (self.step << 20))
        text = f"Going on with {self.ranks.count} processes where there were {processes}: the same within rounding."
        yield Event("tuning", "note", values={"text": text})


def _evaluation_steps(steps: int, evaluations: int) -> set[int]:
    return {max(1, round(steps * (i + 1) / evaluations)) for i in range(evaluations)}
