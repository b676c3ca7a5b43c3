"""A bundle for another engine: a new folder with the same recipe, and the numbers by which the engine was let in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tagsmith.data.cleaning import clean_texts
from tagsmith.deployment.choosing import LOSSY
from tagsmith.deployment.engine import Engine, open_engine, probabilities
from tagsmith.deployment.held_out import HeldOut, held_out_rows
from tagsmith.deployment.hugging_face import fill_hugging_face, pipeline_probabilities, require_expressible
from tagsmith.deployment.manifest import refuse_existing, staging, verify
from tagsmith.deployment.parity import Parity, closely, closely_and_faster, compare, compared, exactly
from tagsmith.deployment.recipe import SETTINGS, cleaning_of, read_settings
from tagsmith.deployment.tfidf_bundle import fill_tfidf
from tagsmith.errors import SettingError
from tagsmith.events import Event, Listener, silent
from tagsmith.plugins import find

PIPELINE = "transformers.pipeline"
Fill = Callable[[Path, Path], None]
"""Writes what an engine needs: from the bundle's folder into the new one."""
Gate = Callable[[Parity], list[str]]
"""Says why an engine may not answer; nothing where it may."""


def _allow(settings: Mapping[str, Any]) -> None:
    """Every recipe can be exported."""


@dataclass(frozen=True)
class Target:
    """What `--to` names: what is written, and which engines it is for, each with its gate.

    The first engine is what was asked for, and no bundle is written where its gate is not passed; another one is only
    noted. `whole` says whether all of the bundle is copied first; `check` raises where a recipe cannot be exported.
    """

    fill: Fill
    gates: Mapping[str, Gate]
    whole: bool = True
    check: Callable[[Mapping[str, Any]], None] = _allow


@dataclass(frozen=True)
class Export:
    """A bundle that was written, and each engine's comparison with why it may not answer (empty: it may)."""

    folder: Path
    parity: Mapping[str, Parity]
    refusals: Mapping[str, tuple[str, ...]]


def export(
    bundle: str | Path,
    *,
    to: str,
    out: str | Path,
    rows: str | None = None,
    force: bool = False,
    listen: Listener = silent,
) -> Export:
    """Write the bundle for another engine to `out`, with all of its recipe, if the engine passes its gate.

    Args:
        bundle: the folder of a bundle; it stays as it is.
        to: `onnx`, `onnx-int8`, `openvino` or `torch-bf16`; `tfidf` for the baseline as a bundle of its own; `hf` for
            a folder that is no bundle any more and that `transformers.pipeline` loads.
        out: the folder to write.
        rows: a source of labelled rows to compare on; without it, the source that the bundle was trained on.
        force: replace an existing `out`.
        listen: told each event.

    Raises:
        SettingError: an unknown target, a library that is missing, or an engine that does not pass its gate.
        BundleError: no bundle, or one that was altered.
    """
    folder, target = Path(bundle), Path(out)
    if to not in TARGETS:
        raise SettingError(f"Unknown target '{to}' of an export. Expected one of {', '.join(sorted(TARGETS))}.")
    refuse_existing(target, force=force)
    verify(folder)
    settings = read_settings(folder)
    if settings.get("kind") == "tfidf":
        raise SettingError(
            f"'{folder}' answers by TF-IDF, which needs no export: it runs on numpy alone. Expected a bundle with an "
            "LLM, as `tagsmith train` writes it."
        )
    TARGETS[to].check(settings)
    with staging(target, force=force, manifest=to != "hf") as aside:
        if TARGETS[to].whole:
            _copy(folder, aside)
        listen(Event("deployment", "exporting", values={"to": to}))
        TARGETS[to].fill(folder, aside)
        found = _judge(aside, folder, settings, to, rows, listen)
        _refuse_first(to, found)
        _note(aside, settings, found)
    return Export(target, found.parity, found.refusals)


@dataclass(frozen=True)
class _Judged:
    parity: dict[str, Parity]
    refusals: dict[str, tuple[str, ...]]


def _judge(
    aside: Path, folder: Path, settings: Mapping[str, Any], to: str, rows: str | None, listen: Listener
) -> _Judged:
    found = _Judged({}, {})
    if not TARGETS[to].gates:
        return found
    held_out = held_out_rows(folder, settings, rows, listen=listen)
    why = f", since no held-out rows could be had: {held_out.why}" if held_out.why else ""
    listen(Event("deployment", "note", values={"text": f"The export is compared on {held_out.told}{why}."}))
    reference = open_engine(folder, "torch-fp32")
    for name, gate in TARGETS[to].gates.items():
        listen(Event("deployment", "comparing", values={"engine": name}))
        if to == "hf":
            found.parity[name] = _beside_pipeline(aside, settings, reference, held_out)
        else:
            found.parity[name] = compare(find("engine", name)(aside, settings), reference, held_out)
        found.refusals[name] = (*gate(found.parity[name]), *_unproven(name, settings, found.parity[name], rows))
    return found


def _unproven(name: str, settings: Mapping[str, Any], found: Parity, rows: str | None) -> list[str]:
    """Why what was proven of a bundle's silence does not hold for an engine of fewer bits; empty where it does.

    The proof counts answers and errors among the calibration rows. Where each of them is answered, or not, as before,
    the counts are the same, and so is the proof; one row that is not, and there is none.
    """
    if name not in LOSSY or not settings.get("abstention"):
        return []
    changed = round((1 - found.agreement) * found.n)
    if rows is not None or found.agreement_low is None:
        return ["its silence was proven on the calibration rows, which must be compared: leave --rows out"]
    return [f"its silence was proven for answers in fp32, and {changed} of {found.n} rows differ"] if changed else []


def _beside_pipeline(aside: Path, settings: Mapping[str, Any], reference: Engine, held_out: HeldOut) -> Parity:
    return compared(
        pipeline_probabilities(aside, settings, clean_texts(held_out.texts, cleaning_of(settings))),
        probabilities(reference, held_out.texts),
        held_out.truth,
        names=(PIPELINE, reference.name),
        told=held_out.told,
        thresholds=reference.thresholds,
        sureties=reference.sureties,
    )


def _refuse_first(to: str, found: _Judged) -> None:
    first = next(iter(found.refusals), None)
    if first is not None and found.refusals[first]:
        raise SettingError(
            f"The export to {to} is refused: {'; '.join(found.refusals[first])}. Expected an engine that answers as "
            f"{found.parity[first].reference} does; keep the bundle as it is, or export it to another engine."
        )


def _note(aside: Path, settings: Mapping[str, Any], found: _Judged) -> None:
    """Which engines may answer, and the numbers for it, in the recipe and in the card."""
    engines = {
        name: {"passed": not found.refusals[name], "refused": list(found.refusals[name]), **parity.as_dict()}
        | ({"keeps_silence": not found.refusals[name]} if name in LOSSY and settings.get("abstention") else {})
        for name, parity in found.parity.items()
    }
    if engines and (aside / SETTINGS).is_file():
        noted = {**settings, "engines": {**settings.get("engines", {}), **engines}}
        (aside / SETTINGS).write_text(json.dumps(noted, indent=1, ensure_ascii=False), encoding="utf-8")
    card = aside / "README.md"
    if card.is_file() and found.parity:
        lines = [card.read_text(encoding="utf-8"), "## Engines", ""]
        lines += [f"- {sentence(parity, found.refusals[name])}" for name, parity in found.parity.items()]
        card.write_text("\n".join([*lines, ""]), encoding="utf-8")


def sentence(found: Parity, refused: Sequence[str]) -> str:
    """A comparison in words."""
    low = "" if found.agreement_low is None else f" (lower bound {100 * found.agreement_low:.2f} %)"
    f1 = speed = ""
    if found.macro_f1 is not None and found.macro_f1_reference is not None:
        f1 = f", macro-F1 {found.macro_f1:.4f} against {found.macro_f1_reference:.4f}"
    if found.speedup is not None:
        speed = f"; {found.rows_per_second:.1f} rows/s against {found.rows_per_second_reference:.1f} "
        speed += f"({found.speedup:.2f} times)"
    told = (
        f"{found.engine} beside {found.reference} on {found.rows}: {100 * found.agreement:.2f} % of {found.n} answers "
        f"agree{low}, probabilities differ by at most {found.largest_difference:.1e}{f1}{speed}."
    )
    return f"{told} It may not answer: {'; '.join(refused)}." if refused else told


_LEFT_BEHIND = frozenset({"MANIFEST.json", "report.html"})
"""What a new bundle has of its own, and the one file that holds texts of rows."""


def _copy(folder: Path, aside: Path) -> None:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir():
            (aside / name).mkdir(exist_ok=True)
        elif str(name) not in _LEFT_BEHIND:
            shutil.copyfile(path, aside / name)


# --- what is written


def _fill_onnx(folder: Path, aside: Path) -> None:
    from tagsmith.deployment.graph import require_libraries
    from tagsmith.deployment.onnx_engine import FILES, FOLDER

    require_libraries("onnxruntime", extra="onnx", wanted="An export to ONNX")
    _write_graph(folder, aside / FOLDER / FILES["onnxruntime"])


def _fill_onnx_int8(folder: Path, aside: Path) -> None:
    from tagsmith.deployment.graph import require_libraries
    from tagsmith.deployment.onnx_engine import FILES, FOLDER

    require_libraries("onnxruntime", extra="onnx", wanted="An export to ONNX")
    (aside / FOLDER).mkdir(exist_ok=True)
    with TemporaryDirectory(dir=aside.parent, prefix=".graph-") as scratch:
        whole = Path(scratch) / "model.onnx"
        _write_graph(folder, whole)
        _quantize(whole, aside / FOLDER / FILES["onnxruntime-int8"])


def _quantize(whole: Path, cut: Path) -> None:
    """Weights of matrix products in 8 bits, one scale for each column; activations are rounded as they come."""
    import logging

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(whole)
    # The exporter notes shapes of weights as they were before it transposed them, over which the quantizer stumbles.
    del model.graph.value_info[:]

    def is_no_advice(record: logging.LogRecord) -> bool:
        return "pre-processing" not in record.getMessage()

    logging.getLogger().addFilter(is_no_advice)
    try:
        quantize_dynamic(
            model, cut, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
        )
    finally:
        logging.getLogger().removeFilter(is_no_advice)


def _fill_openvino(folder: Path, aside: Path) -> None:
    from tagsmith.deployment.graph import require_libraries
    from tagsmith.deployment.openvino_engine import FILE, FOLDER

    require_libraries("openvino", extra="openvino", wanted="An export to OpenVINO")
    import openvino

    (aside / FOLDER).mkdir(exist_ok=True)
    with TemporaryDirectory(dir=aside.parent, prefix=".graph-") as scratch:
        whole = Path(scratch) / "model.onnx"
        _write_graph(folder, whole)
        openvino.save_model(openvino.Core().read_model(whole), aside / FOLDER / FILE, compress_to_fp16=False)


def _write_graph(folder: Path, file: Path) -> None:
    from tagsmith.deployment.graph import write_onnx
    from tagsmith.deployment.weights import load_classifier

    write_onnx(load_classifier(folder, read_settings(folder)), file)


def _fill_nothing(folder: Path, aside: Path) -> None:
    """The engine computes from the bundle's own weights."""


TARGETS = {
    "onnx": Target(_fill_onnx, {"onnxruntime": exactly}),
    "onnx-int8": Target(_fill_onnx_int8, {"onnxruntime-int8": closely_and_faster}),
    "openvino": Target(_fill_openvino, {"openvino": exactly, "openvino-bf16": closely}),
    "torch-bf16": Target(_fill_nothing, {"torch-bf16": closely}),
    "tfidf": Target(fill_tfidf, {}, whole=False),
    "hf": Target(fill_hugging_face, {PIPELINE: exactly}, whole=False, check=require_expressible),
}
