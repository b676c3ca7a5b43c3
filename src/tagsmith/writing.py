"""Stage 5 on a run: the bundle is saved before it is measured, and its report afterwards."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsmith.data.preparing import Prepared
from tagsmith.refitting import refit
from tagsmith.rivals import save_tfidf
from tagsmith.run import Result, Run

if TYPE_CHECKING:
    from tagsmith.deployment.bundle import Bundle
    from tagsmith.evaluation.page.texts import PageTexts
    from tagsmith.model.classifier import Classifier


def save(aside: Path, classifier: Classifier, prepared: Prepared, result: Result, run: Run) -> Bundle:
    """Write the classifier with its recipe to `aside`, and give back what a reader of the folder gets."""
    from tagsmith.deployment.adapter import write_adapter
    from tagsmith.deployment.baselines import BASELINE
    from tagsmith.deployment.bf16_gate import with_bf16_gate
    from tagsmith.deployment.manifest import flush_meanwhile
    from tagsmith.deployment.saving import write_probes
    from tagsmith.deployment.torch_engine import reload
    from tagsmith.deployment.weights import write_classifier
    from tagsmith.model.device import device_of

    assert run.weights is not None, "the model was built"
    recipe = {
        "tagsmith": version(),
        "backbone": {"name": run.weights.name, "sha256": run.weights.sha256},
        "data": {"sha256": _data_hash(prepared), "priors": dict(prepared.true_priors), "source": run.source},
        "cleaning": list(run.config.data.clean),
        "config": run.config.model_dump(),
        "prior": None if result.answering is None else (result.answering.about.get("prior") or {}).get("shares"),
        **_abstention(result),
        **({} if result.mixing is None else {"hybrid": result.mixing.as_dict()}),
    }
    device = device_of(classifier)
    write_classifier(aside, classifier.cpu(), recipe=recipe)
    if result.tuned.adapter is not None:
        write_adapter(aside, result.tuned.adapter)
    if result.lexical is not None and not (aside / BASELINE).exists():
        save_tfidf(aside, result.lexical, prepared, result, run)
    flush_meanwhile(aside)
    prepared.remembered.write(aside)
    bundle = reload(aside, device=str(device))
    write_probes(aside, bundle.engine)
    name = next(name for name in ("calibration", "validation") if len(result.parts[name].truth))
    part, texts = result.parts[name], getattr(prepared.splits, name).texts
    tokens = part.tokens if result.mixing is None else bundle.engine.encode(texts)
    return with_bf16_gate(bundle, tokens, part.truth)


def save_refitted(
    aside: Path, bundle: Bundle, prepared: Prepared, result: Result, run: Run, *, stop: Callable[[], bool]
) -> Bundle:
    """The bundle of a classifier that has learnt from the validation rows too, in the place of the measured one.

    TF-IDF beside it stays the one that was measured.
    """
    from tagsmith.deployment.adapter import FOLDER as ADAPTER
    from tagsmith.deployment.weights import TRUNK

    classifier = bundle.engine.classifier
    kept = refit(classifier, prepared, result, run, stop=stop)
    for name in (TRUNK, ADAPTER):
        shutil.rmtree(aside / name, ignore_errors=True)
    for path in aside.glob("*.safetensors"):  # they may be mapped into memory, and must not be written over
        path.unlink()
    return save(aside, classifier, prepared, kept, run)


def _abstention(result: Result) -> dict[str, Any]:
    """From which surety labels are answered, and what is proven of that, for the engine that was asked."""
    answering = result.answering
    if answering is None or answering.sureties is None:
        return {}
    sureties = [None if np.isposinf(each) else float(each) for each in answering.sureties]
    about = {"sureties": sureties, "certificate": answering.certificate, "engine": "torch-fp32"}
    return {"abstention": about}


def _data_hash(prepared: Prepared) -> str:
    """SHA-256 of all texts and labels by split: the same for the same rows in the same parts."""
    digest = hashlib.sha256()
    for name, table in prepared.splits.items():
        labels = table.label_sets if table.multi_label else table.labels
        digest.update(json.dumps([name, table.texts, labels]).encode())
    return digest.hexdigest()


def write_report_of(bundle: Bundle, report: Mapping[str, Any], texts: PageTexts, run: Run) -> None:
    """Write report.json, run.json, the card and the page beside the bundle's weights."""
    from tagsmith.deployment.saving import write_report
    from tagsmith.model.device import device_of, name_of

    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "timing": {stage: round(seconds, 3) for stage, seconds in run.seconds.items()},
        **run.apart,
        **_forecast_and_truth(bundle.folder, run),
        **({} if run.searched is None else {"budget": run.searched.budget, "candidates": run.searched.times}),
        "environment": environment() | {"device": name_of(device_of(bundle.engine.classifier))},
    }
    write_report(bundle.folder, report, run=facts, texts=texts)


def write_profile(bundle: Bundle, probs_NC: np.ndarray, prepared: Prepared) -> None:
    """What live traffic is compared with: the test rows as they were answered, and the words of the training rows."""
    from tagsmith.deployment.drift import Profile

    train = dict.fromkeys(prepared.splits.train.texts)  # oversampled rows count once
    Profile.of(train, prepared.splits.test.texts, probs_NC, labels=bundle.labels).write(bundle.folder)


def _forecast_and_truth(folder: Path, run: Run) -> dict[str, Any]:
    """What was forecast, and what it came to: seconds since then, the most memory, and the bytes of the bundle."""
    from tagsmith.tuning.fitting import peak

    if run.forecast is None:
        return {}
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    truth = {"seconds": round(run.forecast.seconds_since, 3), "memory_bytes": peak(), "bundle_bytes": written}
    return {"forecast": run.forecast.as_dict(), "truth": truth}


def version() -> str:
    """Of this Tagsmith."""
    from tagsmith import __version__

    return __version__


def environment() -> dict[str, str]:
    """What a run was made with, as run.json tells it."""
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": str(torch.get_num_threads()),
    }
