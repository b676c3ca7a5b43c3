"""Speed of tuning all weights on a GPU, against Hugging Face's Trainer with `group_by_length`, side by side.

Two Llamas with random weights, the shapes of SmolLM2-135M and of Llama 3.2 1B, learn from short texts: those of the
book's split where it is at hand, else drawn ones of like length. Both sides have the same rows per step, the same
trainable weights (embeddings too), bf16 autocast and a fused AdamW; steps are timed from the `WARM`th on. Utilisation
is the model's own arithmetic, 6 floating-point operations per weight of the blocks and token, over what the GPU is
rated at in bf16, or over a measured product where its rating is not known. Tagsmith's last block runs on one row per
text: what it leaves out so still counts as the model's.

No weights, no data and no network are needed; beside PyTorch, transformers and tokenizers, pydantic and polars are.
Cells run in processes of their own and are kept (cells.py). `--tiny` is for a look at the script on the CPU.

    PYTHONPATH=src python benchmarks/gpu.py --write docs/benchmarks/gpu.md
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import peers
from cells import answered, cell

SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "Llama 1B": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
ROWS_PER_STEP = (16, 256)
WARM, STEPS = 30, 90
"""Compiled blocks are compiled anew when a length has turned out to vary: the warm steps are for that."""
TEXTS, MOST_TOKENS, TOKENS_PER_BATCH = 20_000, 128, 32_768

RATED = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12}
"""Dense bf16 operations per second, as NVIDIA's data sheets have them for the fastest variant of each."""


def main() -> None:
    """Run the cells that were not run yet, and print the table."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU: does the script run?")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        sys.exit("This benchmark needs a CUDA device, and PyTorch finds none.")
    device = "cpu" if arguments.tiny else torch.cuda.get_device_name()
    common = {"device": device, "texts": "drawn" if arguments.tiny or not _has_book() else "book"}
    common |= {"warm": 8, "steps": 5} if arguments.tiny else {"warm": WARM, "steps": STEPS}
    peak, page = cell(__file__, "peak", device=device), _head(device)
    for shape in ("tiny",) if arguments.tiny else ("SmolLM2-135M", "Llama 1B"):
        for rows in ROWS_PER_STEP[:1] if arguments.tiny else ROWS_PER_STEP:
            plan = {"shape": shape, "rows": rows, **common}
            found = {name: cell(__file__, side, **plan, **options) for name, (side, options) in SIDES.items()}
            page += _lines(shape, rows, found, peak)
    text = "\n".join([*page, "", _said(peak), ""])
    print(text)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")


# ---- Cells


def peak(*, device: str) -> dict[str, Any]:
    """Operations per second of a bf16 product of two square matrices, and what the GPU is rated at, 0 if unknown."""
    import torch

    size, where = (512, "cpu") if device == "cpu" else (8192, "cuda")
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=where) for _ in range(2))
    for _ in range(3):
        left @ right
    started = _now(where)
    for _ in range(10):
        left @ right
    measured = 10 * 2 * size**3 / (_now(where) - started)
    return {
        "size": size,
        "measured": measured,
        "rated": next((rate for name, rate in RATED.items() if name in device), 0.0),
    }


def tagsmith(
    *, shape: str, rows: int, device: str, texts: str, warm: int, steps: int, compiled: bool = False
) -> dict[str, Any]:
    """Steps of Tagsmith's own learner."""
    from tagsmith.config import TuningConfig
    from tagsmith.data.batching import training_steps
    from tagsmith.tuning.learner import Learner, Part
    from tagsmith.tuning.methods import trainable
    from tagsmith.tuning.optimizers import build_optimizer, set_rates

    tuning = TuningConfig(
        method="full", batch_size=rows, precision="bf16", compile=compiled, tokens_per_batch=TOKENS_PER_BATCH
    )
    where = "cpu" if device == "cpu" else "cuda"
    classifier = _classifier(shape, texts).to(where)
    tokens = classifier.encoder.encode(_texts(texts))
    part = Part(tokens, np.arange(len(tokens)) % 2)
    weights = list(trainable(classifier, tuning))
    if compiled:
        for block in classifier.backbone.blocks:
            block.compile(dynamic=True)
    learner = Learner(
        classifier,
        part,
        tuning,
        weights=[weight for _, weight in weights],
        optimizer=build_optimizer(weights, tuning),
        class_weights_C=None,
        states=None,
        start=None,
    )
    chosen = training_steps(tokens.sizes, rows_per_step=rows, seed=123, epoch=0)[: warm + steps]
    started, losses = 0.0, []
    for i, step in enumerate(chosen):
        if i == warm:
            started = _now(where)
        set_rates(learner.optimizer, step=i, total=len(chosen), config=tuning)
        losses.append(learner.step(step)[0])
    timed = int(sum(tokens.sizes[step].sum() for step in chosen[warm:]))
    return _result(classifier.backbone.trunk, timed, _now(where) - started, losses)


def trainer(*, shape: str, rows: int, device: str, texts: str, warm: int, steps: int) -> dict[str, Any]:
    """Steps of Hugging Face's Trainer."""
    import torch
    from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

    where = "cpu" if device == "cpu" else "cuda"
    tokens = _encoder(texts).encode(_texts(texts))
    rows_of = [
        {"input_ids": tokens.ids[start:end].tolist(), "labels": i % 2}
        for i, (start, end) in enumerate(zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True))
    ]
    counted: list[int] = []

    def padded(features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        counted.append(sum(len(each["input_ids"]) for each in features))
        ids = [torch.tensor(each["input_ids"]) for each in features]
        ids_BL = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        real_BL = torch.nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in ids], batch_first=True)
        labels_B = torch.tensor([each["labels"] for each in features])
        return {"input_ids": ids_BL, "attention_mask": real_BL, "labels": labels_B}

    class Clock(TrainerCallback):
        started = 0.0

        def on_step_end(self, arguments: Any, state: Any, *_: object, **__: object) -> None:
            if state.global_step == warm:
                self.started = _now(where)

    torch.manual_seed(123)
    config = _config(shape)
    config.num_labels, config.pad_token_id = 2, 0
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        settings = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
        arguments = TrainingArguments(
            out,
            bf16=True,
            use_cpu=where == "cpu",
            max_steps=warm + steps,
            per_device_train_batch_size=rows,
            learning_rate=2e-4,
            weight_decay=0.01,
            seed=123,
            **settings,
            **_by_length(TrainingArguments),
        )
        running = Trainer(model, arguments, train_dataset=rows_of, data_collator=padded, callbacks=[clock])
        loss = running.train().training_loss
        seconds = _now(where) - clock.started
    return _result(model.model, sum(counted[warm : warm + steps]), seconds, [loss])


def _by_length(arguments: Any) -> dict[str, Any]:
    """Rows of like length together, under the name that this transformers has for it."""
    known = arguments.__dataclass_fields__
    return (
        {"train_sampling_strategy": "group_by_length"}
        if "train_sampling_strategy" in known
        else {"group_by_length": True}
    )


CELLS = {"peak": peak, "tagsmith": tagsmith, "trainer": trainer}


# ---- What both sides learn from


def _classifier(shape: str, texts: str) -> Any:
    import torch
    from transformers import AutoModel

    from tagsmith.config import ModelConfig
    from tagsmith.labels import Labels
    from tagsmith.model.backbone import Backbone
    from tagsmith.model.classifier import assemble

    torch.manual_seed(123)
    trunk = AutoModel.from_config(_config(shape), dtype=torch.float32)
    return assemble(Backbone(trunk), _encoder(texts), ModelConfig(), labels=Labels.of(["no", "yes"]), seed=123)


def _config(shape: str) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**SHAPES[shape], max_position_embeddings=2048, use_cache=False, tie_word_embeddings=True)


def _encoder(texts: str) -> Any:
    """A byte-level BPE that was trained on the texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from tagsmith.data.encoding import Encoder

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 4096, "special_tokens": ["<pad>"], "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(_texts(texts), trainers.BpeTrainer(**options))
    return Encoder(tokenizer, max_tokens=MOST_TOKENS)


def _texts(which: str) -> list[str]:
    if which == "book":
        own = [text for text, _ in peers.book_rows("train")]
        return [own[i % len(own)] for i in range(TEXTS)]
    random = np.random.default_rng(123)
    words = ["".join(random.choice(list("aeioubdklmnrst"), size)) for size in random.integers(2, 9, 3000)]
    likely = 1 / np.arange(1, len(words) + 1)
    counts = np.clip(random.lognormal(2.6, 0.7, TEXTS), 2, 80).astype(int)  # as the words of short messages
    return [" ".join(random.choice(words, count, p=likely / likely.sum())) for count in counts]


def _has_book() -> bool:
    return (peers.DATA / "sms_spam" / "book_split" / "train.csv").exists()


def _now(where: str) -> float:
    """The time when all that was asked of the device is done."""
    import torch

    if where == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _result(trunk: Any, tokens: int, seconds: float, losses: Sequence[float]) -> dict[str, Any]:
    import torch

    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return {
        "tokens_per_second": tokens / seconds,
        "weights": sum(weight.numel() for weight in trunk.layers.parameters()),
        "gib": memory,
        "loss": float(np.mean(losses)),
    }


# ---- The page

SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "Trainer": ("trainer", {}),
    "Tagsmith": ("tagsmith", {}),
    "Tagsmith, compiled": ("tagsmith", {"compiled": True}),
}


def _head(device: str) -> list[str]:
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return [
        "# Tuning on a GPU",
        "",
        f"{device}; {versions}; {datetime.now(UTC):%Y-%m-%d}. All weights learn, in bf16, from short texts.",
        "",
        "| model | rows a step | | tokens/s | against the Trainer | utilisation | GiB |",
        "|---|---|---|---|---|---|---|",
    ]


def _lines(shape: str, rows: int, found: dict[str, dict[str, Any]], peak: dict[str, Any]) -> list[str]:
    lines, usual = [], found["Trainer"]["tokens_per_second"]
    for name, result in found.items():
        speed = result["tokens_per_second"]
        share = 6 * result["weights"] * speed / (peak["rated"] or peak["measured"])
        lines.append(
            f"| {shape} | {rows} | {name} | {speed:,.0f} | {speed / usual:.2f} | {share:.1%} | {result['gib']:.1f} |"
        )
    return lines


def _said(peak: dict[str, Any]) -> str:
    size, rate = peak["size"], peak["measured"] / 1e12
    measured = f"A product of two {size} x {size} matrices in bf16 ran at {rate:,.1f} TFLOP/s here"
    return f"{measured}; utilisation is of the rated {peak['rated'] / 1e12:,.0f}." if peak["rated"] else f"{measured}."


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # the Trainer would take all
    if not answered(CELLS):
        main()
