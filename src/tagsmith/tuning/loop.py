"""The training loop: a generator of events. It never prints, never sees a test row, and can stop after any step.

Axes: B texts of a micro-batch, P their pieces (more than one where a long text is read in windows), C labels.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tagsmith.assets import cache_folder
from tagsmith.config import Config
from tagsmith.data.batching import packed, training_steps
from tagsmith.data.encoding import Tokens
from tagsmith.errors import SettingError, TagsmithError
from tagsmith.events import Event, Listener, listened, silent
from tagsmith.model.activations import FrozenBlocks, States, frozen_states
from tagsmith.model.adapters import Adapter, attach, detach
from tagsmith.model.classifier import Classifier, Scorer, finish_states, pool_states
from tagsmith.model.heads import LinearHead
from tagsmith.model.packing import processor_has_bf16
from tagsmith.model.state_cache import StateCache
from tagsmith.tuning.checkpoints import Checkpoint, load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from tagsmith.tuning.losses import held_out_accuracy, held_out_loss, right_rows, summed_loss
from tagsmith.tuning.methods import first_tuned_block, trainable
from tagsmith.tuning.optimizers import build_optimizer, set_rates
from tagsmith.tuning.probes import EARLY_STEPS, MOST_STEPS, choose_strength, fit_probe

SECONDS_BETWEEN_CHECKPOINTS = 30
"""At the end of an epoch a checkpoint is written when the last one is this old: what a crash may cost, about."""

LENGTHS_APART = 8
"""Batches are padded to a multiple of so many tokens. For every new shape oneDNN makes, and keeps, new kernels: without
this, two tuned blocks grew the process by 1.2 GiB."""

Metric = Callable[[np.ndarray, np.ndarray], float]
"""From truth `(N,)` and probabilities `(N, C)` to a score; larger is better."""


class StoppedError(TagsmithError):
    """Tuning was asked to stop and wrote a checkpoint from which it can go on."""

    exit_code = 130


@dataclass(frozen=True)
class Part:
    """Tokenised texts of one split with their label ids `(N,)`, or `(N, C)` bool where a text may have several.

    `groups (N,)` says which of them are duplicates; None where each is its own.
    """

    tokens: Tokens
    truth: np.ndarray
    groups: np.ndarray | None = None


@dataclass
class Tuned:
    """What tuning leaves behind beside the tuned weights.

    `curves` has one entry per evaluation; `states` are the kept activations by part; `start` is the first tuned block,
    `adapter` what `lora` learnt and merged.
    """

    curves: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    steps: int = 0
    states: dict[str, States] = field(default_factory=dict)
    start: int | None = None
    adapter: Adapter | None = None


def arithmetic(config: Config) -> torch.dtype:
    """The dtype of frozen blocks: bf16 where the processor has it, unless the settings say otherwise."""
    wanted = config.tuning.precision
    return torch.bfloat16 if wanted == "bf16" or (wanted == "auto" and processor_has_bf16()) else torch.float32


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
        metric: scores validation rows; its best step is restored at the end.
        class_weights: weight of each label `(C,)` in the loss; with several labels a row, of its positive rows.
        checkpoint: folder for what `resume` needs; None keeps none.
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
        self.metric, self.checkpoint, self.stop = metric, checkpoint, stop
        self.class_weights_C = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        self.tuned = Tuned(start=first_tuned_block(config.tuning, classifier.backbone.depth))
        self.step, self.stale, self.best_score = 0, 0, -np.inf
        sums = [weight.detach().sum(dtype=torch.float64) for weight in classifier.parameters()]
        self._untuned = torch.stack(sums).cpu().numpy().tobytes()
        self._seconds_per_step: float | None = None
        self._diverged = False
        self._saved_at = time.monotonic()
        self._recent: list[
            tuple[float, int, int]
        ] = []  # loss, right answers and rows of the steps since the last evaluation

    def events(self, *, resume: bool = False) -> Generator[Event, None, None]:
        """Tune, saying what happens."""
        yield from self._keep_activations()
        adapted = self.config.tuning.method == "lora"
        if adapted:
            attach(self.classifier.backbone, **self._adapter_settings, seed=self.config.seed)
        self.weights = list(trainable(self.classifier, self.config.tuning))
        self.classifier.requires_grad_(False)
        for _, weight in self.weights:
            weight.requires_grad_(True)
        self.optimizer = build_optimizer(self.weights, self.config.tuning)
        self.best = {name: weight.detach().clone() for name, weight in self.weights}
        torch.manual_seed(self.config.seed)
        if self._is_probe or self.config.tuning.start == "probe":
            yield self._fit_probe()
        if resume:
            yield from self._go_on()
        if self._is_probe:
            yield self._evaluate(epoch=0)
        else:
            self.classifier.train()  # its trunk came in another mode: dropout must not wait for the first evaluation
            yield from self._epochs()
        with torch.no_grad():
            for name, weight in self.weights:
                weight.copy_(self.best[name])
        if adapted:
            self.tuned.adapter = detach(self.classifier.backbone, **self._adapter_settings)
        self.classifier.requires_grad_(False).eval()
        self.tuned.steps = self.step
        yield Event("tuning", "done", self.step, self.total_steps, {"best_step": self.tuned.best_step})

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
        return self.config.tuning.method == "head" and isinstance(self.classifier.head, LinearHead)

    def _fit_probe(self) -> Event:
        """Set the head to a probe of what it will see, its penalty chosen by cross-validation (STATISTICS.md 23)."""
        if not isinstance(self.classifier.head, LinearHead):
            raise SettingError(
                "tuning.start is 'probe', but the head is not linear (model.head = 'mlp'). "
                "Take a linear head, or tuning.start = 'random'."
            )
        part, score = self.parts["train"], self.classifier.head.score
        pooled_ND, truth = torch.from_numpy(self._pooled("train")), torch.from_numpy(part.truth)
        groups = np.arange(len(part.truth)) if part.groups is None else part.groups
        options: dict[str, Any] = {"classes": len(self.classifier.labels), "bias": score.bias is not None}
        strength, _ = choose_strength(pooled_ND, truth, groups, seed=self.config.seed, **options)
        # A start for tuning stops early: a probe that fits all rows leaves no loss to move the features with.
        steps = MOST_STEPS if self._is_probe else EARLY_STEPS
        probe = fit_probe(
            pooled_ND, truth, strength=strength, class_weights_C=self.class_weights_C, steps=steps, **options
        )
        with torch.no_grad():
            score.weight.copy_(probe.weight_CD)
            if score.bias is not None and probe.bias_C is not None:
                score.bias.copy_(probe.bias_C)
        self.best = {name: weight.detach().clone() for name, weight in self.weights}
        if self._is_probe:  # no steps follow: this is the loss of training
            probs = self.classifier.calibration.probabilities(probe.logits(pooled_ND).numpy())
            right = round(held_out_accuracy(part.truth, probs) * len(truth))
            self._recent.append((held_out_loss(part.truth, probs), right, len(truth)))
        return Event("tuning", "probe", values={"strength": strength, "rows": len(truth)})

    def _pooled(self, name: str) -> np.ndarray:
        """What the head sees of the texts of a part `(N, D)`."""
        self.classifier.eval()
        if self.tuned.start:
            return pool_states(self.classifier, self.tuned.states[name], start=self.tuned.start)
        backbone = self.classifier.backbone
        frozen = FrozenBlocks(backbone, stop=backbone.depth, dtype=arithmetic(self.config))
        states = listened(frozen_states(frozen, self.parts[name].tokens), silent)
        return pool_states(self.classifier, states, start=backbone.depth)

    def _keep_activations(self) -> Generator[Event, None, None]:
        start = self.tuned.start
        if not start:  # nothing is frozen: every epoch begins at the tokens
            return
        total, done = sum(len(part.tokens.rows) for part in self.parts.values()), 0
        if set(self.tuned.states) == set(self.parts):
            return
        frozen = FrozenBlocks(self.classifier.backbone, stop=start, dtype=arithmetic(self.config))
        for name, part in self.parts.items():
            if name in self.tuned.states:
                continue
            self.tuned.states[name] = yield from frozen_states(
                frozen,
                part.tokens,
                done=done,
                total=total,
                cache=state_cache(self.config),
            )
            done += len(part.tokens.rows)

    def _epochs(self) -> Iterator[Event]:
        tuning = self.config.tuning
        sizes = self.parts["train"].tokens.sizes
        checks = _evaluation_steps(self.steps_per_epoch, tuning.evaluations_per_epoch)
        for epoch in range(self.step // self.steps_per_epoch, tuning.epochs):
            steps = training_steps(sizes, rows_per_step=tuning.batch_size, seed=self.config.seed, epoch=epoch)
            for i in range(self.step - epoch * self.steps_per_epoch, len(steps)):
                yield self._learn(steps[i], epoch=epoch)
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
                if self.stop():
                    self._stop_here()
            if self.checkpoint and time.monotonic() - self._saved_at >= SECONDS_BETWEEN_CHECKPOINTS:
                self._save()

    def _learn(self, rows: np.ndarray, *, epoch: int) -> Event:
        started = time.perf_counter()
        set_rates(self.optimizer, step=self.step, total=self.total_steps, config=self.config.tuning)
        if not self.classifier.training:
            self.classifier.train()
        self.optimizer.zero_grad(set_to_none=True)
        # One micro-batch after another on all cores: side by side, each would cast the weights to bf16 anew, which
        # measured twice as slow at 16 rows a step.
        loss, right = 0.0, 0
        for micro in packed(
            rows, self.parts["train"].tokens.sizes, tokens_per_batch=self.config.tuning.tokens_per_batch
        ):
            share, hits = self._backward(micro, rows_in_step=len(rows))
            loss, right = loss + share, right + hits
        self._clip()
        self.step += 1
        self._diverged = not math.isfinite(loss)
        if not self._diverged:
            self.optimizer.step()
        self._recent.append((loss, right, len(rows)))
        values = {
            "loss": loss,
            "accuracy": right / len(rows),
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

    def _clip(self) -> None:
        gradients = [weight.grad for _, weight in self.weights if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if norm > self.config.tuning.clip:  # most steps are shorter, and need no second look at every gradient
            torch.nn.utils.clip_grads_with_norm_([weight for _, weight in self.weights], self.config.tuning.clip, norm)

    def _backward(self, micro: np.ndarray, *, rows_in_step: int) -> tuple[float, int]:
        """Add the gradients of a micro-batch; its share of the step's loss, and its right answers."""
        truth = torch.from_numpy(self.parts["train"].truth[micro])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arithmetic(self.config) is torch.bfloat16):
            logits_BC = self._logits(micro)
        tuning = self.config.tuning
        loss = summed_loss(
            logits_BC,
            truth,
            class_weights_C=self.class_weights_C,
            focal_gamma=tuning.focal_gamma if tuning.loss == "focal" else 0.0,
            label_smoothing=tuning.label_smoothing,
        )
        loss = loss / rows_in_step
        loss.backward()
        return loss.item(), int(right_rows(logits_BC, truth).sum())

    def _seconds_left(self, seconds: float) -> float:
        before = self._seconds_per_step
        self._seconds_per_step = seconds if before is None else 0.95 * before + 0.05 * seconds
        return self._seconds_per_step * (self.total_steps - self.step)

    def _logits(self, rows: np.ndarray) -> Tensor:
        """Logits of texts `(B, C)`: the mean over the pieces of each."""
        tokens = self.parts["train"].tokens
        pieces, owners = tokens.pieces(rows)
        if self.tuned.start:
            batch = self.tuned.states["train"].padded(pieces, multiple=LENGTHS_APART)
            logits_PC = self.classifier.finish(*batch, start=self.tuned.start)
        else:
            ids_BL, lengths = tokens.padded(pieces)
            logits_PC = self.classifier(torch.from_numpy(ids_BL), torch.from_numpy(lengths))
        if len(pieces) == len(rows):
            return logits_PC
        shares_P = torch.from_numpy(1 / np.bincount(owners)[owners]).to(logits_PC.dtype)
        sums_BC = logits_PC.new_zeros(len(rows), logits_PC.shape[1])
        return sums_BC.index_add(0, torch.from_numpy(owners), logits_PC * shares_P[:, None])

    def _evaluate(self, *, epoch: float) -> Event:
        truth, probs = self.parts["validation"].truth, self.probabilities("validation")
        rows = sum(seen for _, _, seen in self._recent)
        values: dict[str, Any] = {
            "epoch": round(epoch, 3),
            "step": self.step,
            "train_loss": sum(loss * seen for loss, _, seen in self._recent) / rows,
            "train_accuracy": sum(right for _, right, _ in self._recent) / rows,
            "validation_loss": held_out_loss(truth, probs),
            "validation_accuracy": held_out_accuracy(truth, probs),
            "score": self.metric(truth, probs),
        }
        self._recent.clear()
        self.tuned.curves.append(values)
        if values["score"] > self.best_score:
            self.best_score, self.stale, self.tuned.best_step = values["score"], 0, self.step
            self.best = {name: weight.detach().clone() for name, weight in self.weights}
        else:
            self.stale += 1
        return Event("tuning", "evaluated", self.step, self.total_steps, values)

    def probabilities(self, name: str) -> np.ndarray:
        """Uncalibrated probabilities `(N, C)` of a part, under the weights of this moment, in fp32."""
        self.classifier.eval()
        if self.tuned.start:
            logits_NC = finish_states(self.classifier, self.tuned.states[name], start=self.tuned.start)
        else:
            logits_NC = Scorer(self.classifier).logits(self.parts[name].tokens)
        return self.classifier.calibration.probabilities(logits_NC)

    def _stop_here(self) -> None:
        if self.checkpoint is None:
            raise StoppedError(f"Stopped after step {self.step} of {self.total_steps}, without a checkpoint.")
        self._save()
        raise StoppedError(
            f"Stopped after step {self.step} of {self.total_steps}. A checkpoint is in '{self.checkpoint}'."
        )

    def _save(self) -> None:
        assert self.checkpoint is not None, "callers ask first"
        tensors = {f"weight.{name}": weight.detach() for name, weight in self.weights}
        tensors |= {f"best.{name}": weight for name, weight in self.best.items()}
        tensors |= pack_optimizer(self.optimizer) | {"random_state": torch.get_rng_state()}
        state = {
            "fingerprint": self.fingerprint(),
            "step": self.step,
            "stale": self.stale,
            "best_score": float(self.best_score),
            "best_step": self.tuned.best_step,
            "curves": self.tuned.curves,
            "recent": self._recent,
        }
        save_checkpoint(self.checkpoint, Checkpoint(tensors, state))
        self._saved_at = time.monotonic()

    def _go_on(self) -> Iterator[Event]:
        assert self.checkpoint is not None, "resume needs a folder"
        found = load_checkpoint(self.checkpoint, fingerprint=self.fingerprint())
        if found is None:
            yield Event("tuning", "note", values={"text": f"No checkpoint in '{self.checkpoint}': starting anew."})
            return
        with torch.no_grad():
            for name, weight in self.weights:
                weight.copy_(found.tensors[f"weight.{name}"])
        self.best = {name: found.tensors[f"best.{name}"] for name, _ in self.weights}
        unpack_optimizer(self.optimizer, found.tensors)
        torch.set_rng_state(found.tensors["random_state"])
        self.step, self.stale, self.best_score = found.state["step"], found.state["stale"], found.state["best_score"]
        self.tuned.best_step, self.tuned.curves = found.state["best_step"], list(found.state["curves"])
        self._recent = [tuple(values) for values in found.state["recent"]]
        yield Event("tuning", "note", values={"text": f"Going on after step {self.step} of {self.total_steps}."})

    def fingerprint(self) -> str:
        """A hash of what a checkpoint belongs to: weights before tuning, tokens, labels, settings, threads."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        digest.update(self._untuned)
        digest.update(f"{self.classifier.labels.names} {torch.get_num_threads()}".encode())
        for part in self.parts.values():
            digest.update(part.tokens.ids.tobytes() + part.tokens.offsets.tobytes() + part.truth.tobytes())
        return digest.hexdigest()


def _evaluation_steps(steps: int, evaluations: int) -> set[int]:
    return {max(1, round(steps * (i + 1) / evaluations)) for i in range(evaluations)}
