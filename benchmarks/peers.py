"""What Tagsmith is measured against: Hugging Face's Trainer, peft with it, the book's own loop, and a reference pass.

Each function trains the same backbone, blocks and tensors as Tagsmith's plan beside it. `steps` cuts a run short: its
steady steps (from the sixth on) then stand for the others.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
BACKBONE = "smollm2-135m-instruct-q4"
BOOK_EPOCHS, BOOK_BATCH, BOOK_TOKENS = 5, 8, 120


def folder_of(backbone: str = BACKBONE) -> Path:
    """The converted weights of a backbone."""
    from tagsmith.assets import backbone_folder
    from tagsmith.model.gguf import ready_folder

    return ready_folder(backbone_folder(backbone))


def book_rows(part: str) -> list[tuple[str, int]]:
    """Texts and labels of a part of the book's split."""
    path = DATA / "sms_spam" / "book_split" / f"{part}.csv"
    if not path.exists():
        sys.exit(f"The book's split is not at {path.parent}: this benchmark needs its three files.")
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["Text"], int(row["Label"])) for row in csv.DictReader(file)]


def trec_rows(part: str) -> list[tuple[str, int]]:
    """Texts and label ids of TREC-6."""
    import polars as pl

    path = DATA / "trec6" / f"{part}.parquet"
    if not path.exists():
        sys.exit(f"TREC-6 is not at {path.parent}: this benchmark needs its two files.")
    frame = pl.read_parquet(path)
    names = sorted(pl.read_parquet(DATA / "trec6" / "train.parquet")["label"].cast(pl.String).unique())
    return [(text, names.index(str(label))) for text, label in zip(frame["text"], frame["label"], strict=True)]


def trainer_on_book(*, bf16: bool, seed: int, steps: int = -1) -> dict[str, Any]:
    """Hugging Face's Trainer on the book's recipe: the last block, final norm and head learn, five epochs."""
    model = _with_head(labels=2)
    model.requires_grad_(False)
    for part in (model.model.layers[-1], model.model.norm, model.score):
        part.requires_grad_(True)
    return _train(
        model,
        {"train": book_rows("train"), "test": book_rows("test")},
        max_length=BOOK_TOKENS,
        max_steps=steps,
        num_train_epochs=BOOK_EPOCHS,
        per_device_train_batch_size=BOOK_BATCH,
        learning_rate=5e-5,
        weight_decay=0.1,
        lr_scheduler_type="constant",
        bf16=bf16,
        seed=seed,
    )


def trainer_on_trec(
    *, layers: int, method: str, seed: int, steps: int, bf16: bool = True, embeddings: bool = False
) -> dict[str, Any]:
    """Hugging Face's Trainer (with peft for `lora`) on TREC-6: all blocks of a cut backbone learn, 16 rows a step."""
    model = _with_head(labels=6, layers=layers)
    model.model.embed_tokens.requires_grad_(embeddings)
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model,
            LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"),
        )
    return _train(
        model,
        {"train": trec_rows("train"), "test": trec_rows("test")},
        max_length=256,
        max_steps=steps,
        num_train_epochs=1,
        per_device_train_batch_size=16,
        learning_rate=2e-4,
        weight_decay=0.01,
        warmup_steps=0.06,
        lr_scheduler_type="linear",
        bf16=bf16,
        seed=seed,
    )


def trainer_by_default(rows: Path, *, backbone: str, seed: int, seconds: float) -> dict[str, Any]:
    """Hugging Face's Trainer with its example script's defaults on `train.parquet`, answering `test.parquet`.

    Three epochs of 8 rows a step at 5e-5, falling linearly, in fp32, at most 128 tokens; batches are padded to their
    longest text, which the script does not do by itself. Where that takes longer than it has, the schedule is shortened
    so that it ends in time, by the pace of a pilot of 30 steps.
    """
    import polars as pl
    from transformers import AutoModelForSequenceClassification

    started = time.perf_counter()
    frame = pl.read_parquet(rows / "train.parquet", columns=["text", "label"])
    test = pl.read_parquet(rows / "test.parquet", columns=["text"])["text"].to_list()
    is_multi = frame["label"].dtype == pl.List
    labels = [set(each) if is_multi else {str(each)} for each in frame["label"].to_list()]
    names = sorted(set.union(*labels))
    truth: list[Any] = [[float(name in each) for name in names] if is_multi else names.index(*each) for each in labels]
    given = {"train": list(zip(frame["text"].to_list(), truth, strict=True)), "test": [(text, None) for text in test]}
    common: dict[str, Any] = {"max_length": 128, "bf16": False, "seed": seed, "backbone": backbone}

    def model() -> Any:
        kind = "multi_label_classification" if is_multi else "single_label_classification"
        return AutoModelForSequenceClassification.from_pretrained(
            folder_of(backbone), num_labels=len(names), problem_type=kind
        )

    pilot = _train(model(), given, max_steps=30, **common)
    left = seconds - (time.perf_counter() - started)
    steps = min(3 * -(-len(truth) // 8), int(left / pilot["seconds_per_step"]))
    logits_NC = _train(model(), given, max_steps=steps, answer=True, **common)["logits"]
    if is_multi:
        return {"answers": [[names[i] for i in np.flatnonzero(row > 0)] for row in logits_NC], "steps": steps}
    return {"answers": [names[i] for i in logits_NC.argmax(axis=1)], "steps": steps}


def _with_head(*, labels: int, layers: int | None = None) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = folder_of()
    config = AutoConfig.from_pretrained(folder, num_labels=labels)
    if layers is not None:
        config.num_hidden_layers = layers
    return AutoModelForSequenceClassification.from_pretrained(folder, config=config, dtype=torch.float32)


def _train(
    model: Any,
    rows: dict[str, list[tuple[str, int]]],
    *,
    max_length: int,
    bf16: bool,
    backbone: str = BACKBONE,
    answer: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(folder_of(backbone))
    padding = DataCollatorWithPadding(tokenizer)
    counted: list[int] = []

    def encoded(part: str) -> list[dict[str, Any]]:
        told = [(tokenizer(text, truncation=True, max_length=max_length), label) for text, label in rows[part]]
        return [{**words} if label is None else {**words, "labels": label} for words, label in told]

    def counting(features: Sequence[dict[str, Any]]) -> Any:
        counted.append(sum(len(each["input_ids"]) for each in features))
        return padding(features)

    class Clock(TrainerCallback):
        times: ClassVar[list[float]] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            out, bf16=bf16, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, **settings
        )
        trainer = Trainer(model, arguments, train_dataset=encoded("train"), data_collator=counting, callbacks=[Clock()])
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        tokens = counted[: len(Clock.times)]
        result = {
            "seconds": seconds,
            "seconds_per_step": _mean_gap(Clock.times[5:]),
            "tokens_per_second": sum(tokens[6:]) / (Clock.times[-1] - Clock.times[5]),
            "trained": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        }
        if settings["max_steps"] < 0:
            trainer.data_collator = padding
            answers = trainer.predict(encoded("test"))
            result["accuracy"] = float((answers.predictions.argmax(1) == answers.label_ids).mean())
        if answer:
            trainer.data_collator = padding
            result["logits"] = trainer.predict(encoded("test")).predictions
    return result


def book_loop(*, seed: int, steps: int = -1) -> dict[str, Any]:
    """A plain PyTorch loop as in the book: fp32, every text padded to 120 tokens, the last position pooled."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = folder_of()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    trunk = AutoModel.from_pretrained(folder, dtype=torch.float32)
    trunk.requires_grad_(False)
    head = torch.nn.Linear(trunk.config.hidden_size, 2)
    for part in (trunk.layers[-1], trunk.norm):
        part.requires_grad_(True)
    weights = [weight for weight in (*trunk.parameters(), *head.parameters()) if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=5e-5, weight_decay=0.1)

    def padded(part: str) -> tuple[torch.Tensor, torch.Tensor]:
        rows = book_rows(part)
        ids = [tokenizer(text, truncation=True, max_length=BOOK_TOKENS)["input_ids"] for text, _ in rows]
        ids = [row + [tokenizer.pad_token_id] * (BOOK_TOKENS - len(row)) for row in ids]
        return torch.tensor(ids), torch.tensor([label for _, label in rows])

    def logits(ids_BL: torch.Tensor) -> torch.Tensor:
        return head(trunk(ids_BL, use_cache=False).last_hidden_state[:, -1])

    ids_NL, truth_N = padded("train")
    trunk.train()
    times, started = [], time.perf_counter()
    for _ in range(BOOK_EPOCHS):
        for rows in torch.randperm(len(ids_NL)).split(BOOK_BATCH):
            if len(rows) < BOOK_BATCH:  # the book drops a last batch that is not full
                continue
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits(ids_NL[rows]), truth_N[rows]).backward()
            optimizer.step()
            times.append(time.perf_counter())
            if len(times) == steps:
                return {"seconds": times[-1] - started, "seconds_per_step": _mean_gap(times[5:])}
    result = {"seconds": time.perf_counter() - started, "seconds_per_step": _mean_gap(times[5:])}
    trunk.eval()
    ids_NL, truth_N = padded("test")
    with torch.inference_mode():
        answers = torch.cat([logits(ids) for ids in ids_NL.split(BOOK_BATCH)]).argmax(1)
    return result | {"accuracy": float((answers == truth_N).float().mean())}


def reference_pass(texts: Sequence[str]) -> dict[str, Any]:
    """One pass of transformers' own trunk over all texts: bf16, SDPA, batches of 2,048 tokens sorted by length."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = folder_of()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trunk = AutoModel.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    ids = sorted((tokenizer(text)["input_ids"] for text in texts), key=len)
    batches: list[list[list[int]]] = [[]]
    for row in ids:
        if batches[-1] and (len(batches[-1]) + 1) * len(row) > 2048:
            batches.append([])
        batches[-1].append(row)
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            longest = len(batch[-1])
            ids_BL = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
            real_BL = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
            trunk(ids_BL, attention_mask=real_BL, use_cache=False)
    return {"seconds": time.perf_counter() - started, "tokens": sum(map(len, ids))}


def floor(*, seed: int) -> dict[str, Any]:
    """What the book's recipe cannot cost less than on this machine, in seconds, if nothing but the following took time.

    The frozen pass and the test rows are their matrix products at the rate of one large product, on both cores, the
    former in the faster of both arithmetics (bf16 counts where the processor has it); a step
    reads weights, gradients and both moments and writes all but the gradients, and its last block reads and writes the
    weights that learn twice more, at the rate of one large copy. Equal texts count once.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer

    del seed  # nothing is drawn; the number names the round
    folder = folder_of()
    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    tokens = {
        part: sum(len(tokenizer(text)["input_ids"]) for text in {text for text, _ in book_rows(part)})
        for part in ("train", "validation", "test")
    }
    width, heads, shared = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    weights = width * width * (2 + 2 * shared / heads) + 3 * width * config.intermediate_size
    blocks = config.num_hidden_layers
    fp32 = _product_rate(torch.float32)
    bf16 = _product_rate(torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 0.0
    bandwidth = _copy_rate()
    frozen = 2 * weights * (blocks - 1) * (tokens["train"] + tokens["validation"]) / max(bf16, fp32)
    test = 2 * weights * (blocks - 1) * tokens["test"] / fp32
    steps = BOOK_EPOCHS * -(-len(book_rows("train")) // BOOK_BATCH) * (7 + 4) * 4 * weights / bandwidth
    return {
        "frozen": frozen,
        "test": test,
        "steps": steps,
        "seconds": frozen + test + steps,
        "bf16": bf16,
        "fp32": fp32,
        "bytes": bandwidth,
    }


def _product_rate(dtype: Any) -> float:
    """Operations a second of a product through the library that Tagsmith's frozen blocks use, the best of five."""
    import torch

    from tagsmith.model.packing import PackedLinear

    size, best = 2048, 0.0
    layer, rows = PackedLinear(torch.randn(size, size).to(dtype), None), torch.randn(size, size).to(dtype)
    with torch.inference_mode():
        for _ in range(6):
            started = time.perf_counter()
            for _ in range(10):
                layer(rows)
            best = max(best, 10 * 2 * size**3 / (time.perf_counter() - started))
    return best


def _copy_rate() -> float:
    """Bytes a second that a large copy reads and writes, the best of six."""
    import torch

    source, best = torch.ones(2**26), 0.0
    target = torch.empty_like(source)
    for _ in range(6):
        started = time.perf_counter()
        target.copy_(source)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - started))
    return best


def _mean_gap(times: list[float]) -> float:
    return float(np.diff(times).mean())
