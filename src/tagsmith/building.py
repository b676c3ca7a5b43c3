"""Stage 2 on a run: an LLM with its head replaced, where it is to learn."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tagsmith.assets import Located, backbone_folder
from tagsmith.catalogue import ASSETS
from tagsmith.data.pairs import PAIR
from tagsmith.data.preparing import Prepared
from tagsmith.errors import AssetError, ResourceError
from tagsmith.events import Event
from tagsmith.run import Run, labels_of, truth_of

if TYPE_CHECKING:
    from tagsmith.model.classifier import Classifier


def import_all() -> None:
    """Import what takes seconds, so that its time is stated apart."""
    for name in _HEAVY:
        import_module(name)
    from tagsmith.model.packing import keep_few_kernels, keep_freed_memory

    keep_freed_memory()
    keep_few_kernels()


_HEAVY = (
    "scipy.optimize",
    "scipy.stats",
    "sklearn.linear_model",
    "transformers.masking_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",  # most backbones are Llamas, and the others import the same
    "tagsmith.model.classifier",
    "tagsmith.tuning.loop",
)


def build(prepared: Prepared, run: Run) -> Classifier:
    """The untrained classifier, on the device that is asked for."""
    from tagsmith.model.device import choose_device

    return assembled(prepared, run).to(choose_device(run.config.tuning.device))


def place(classifier: Classifier, run: Run, *, checkpoint: Path | None) -> None:
    """Put the classifier where it learns; one whose weights are to be divided stays in the CPU's memory."""
    from tagsmith.model.device import choose_device
    from tagsmith.tuning.dividing import chosen
    from tagsmith.tuning.parallel import ranks_here
    from tagsmith.tuning.sharded_checkpoints import SHARDED

    was_divided = checkpoint is not None and any(checkpoint.glob(f"*{SHARDED}"))
    device, weights = choose_device(run.config.tuning.device), sum(each.numel() for each in classifier.parameters())
    choice = chosen(run.config, weights, device, ranks_here(), was_divided=was_divided)
    if not choice.is_divided:
        classifier.to(device)
        return
    if choice.told:
        run.note(choice.told)
    run.config = run.config.with_settings({"tuning": {"sharding": "fully"}})


def assembled(prepared: Prepared, run: Run) -> Classifier:
    """The untrained classifier, in the CPU's memory."""
    from tagsmith.model.classifier import build
    from tagsmith.model.gguf import ready_folder
    from tagsmith.model.heads import begin_at

    run.weights = locate(run)
    folder = ready_folder(run.weights, listen=run.listen)
    model, asset = run.config.model, ASSETS.get(run.weights.name)
    layers: int | None = model.layers if isinstance(model.layers, int) else None
    if model.layers == "recommended" and asset is not None:
        layers = asset.layers
    labels = labels_of(prepared.splits.train)
    pairs = bool(prepared.splits.train.frame["text"].str.contains(PAIR, literal=True).any())
    classifier = build(folder, model, labels=labels, layers=layers, seed=run.config.seed, pairs=pairs)
    if labels.multi_label:
        weights_C = None if prepared.class_weights is None else labels.in_order(prepared.class_weights)
        begin_at(classifier.head, truth_of(prepared.splits.train, labels), weights_C=weights_C)
    values = {"backbone": run.weights.name, "layers": classifier.backbone.depth, "pooling": classifier.pooling}
    run.listen(Event("model", "built", values=values))
    return classifier


def settle_long_texts(classifier: Classifier, prepared: Prepared, run: Run) -> None:
    """With `model.long_texts = auto` the validation rows decide what is read of long texts."""
    if run.config.model.long_texts != "auto":
        return
    from tagsmith.model.device import arithmetic, device_of
    from tagsmith.tuning.long_texts import Sample, choose_long_texts

    train, validation = (
        Sample(table.texts, truth_of(table, classifier.labels))
        for table in (prepared.splits.train, prepared.splits.validation)
    )
    dtype = arithmetic(run.config.tuning.precision, device_of(classifier))
    choice = choose_long_texts(classifier, train, validation, dtype=dtype, seed=run.config.seed, listen=run.listen)
    classifier.encoder = classifier.encoder.reading(choice.policy)
    losses = ", ".join(f"{policy} {loss:.4f}" for policy, loss in choice.losses.items())
    told = f"validation log loss of a frozen probe: {losses}" if losses else "no text is longer than model.max_tokens"
    run.note(f"Of long texts '{choice.policy}' is read ({told}).")


def locate(run: Run) -> Located:
    """The first of the backbones named that can be had; a later one is never taken without a word."""
    names = [name.strip() for name in run.config.model.backbone.split(" or ")]
    for name in names[:-1]:
        try:
            return backbone_folder(name, listen=run.listen)
        except AssetError:
            run.note(f"The backbone '{name}' cannot be had here; '{names[-1]}' takes its place.")
    return backbone_folder(names[-1], listen=run.listen)


def require_room(parent: Path, classifier: Classifier) -> None:
    """ResourceError where the disk of `parent` cannot hold the bundle."""
    size = 4 * sum(weight.numel() for weight in classifier.parameters())
    existing = next(folder for folder in (parent.absolute(), *parent.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise ResourceError(
            f"The bundle may take {size / 2**20:.0f} MiB, and '{parent}' has {free / 2**20:.0f} MiB free. "
            "Free some space, or choose another disk with --out."
        )
