import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# Threads that wait shall sleep: on shared cores, spinning makes steps of a tiny model twenty times as slow.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# No deadline: a shared machine pauses; no randomness: a failure here is a failure everywhere.
settings.register_profile("quick", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data sets beside the repository; absent on most machines."""
    folder = Path(__file__).parents[1] / ".." / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the folder shared/data beside the repository, with the real data sets; it is not there")
    return folder.resolve()


@pytest.fixture(scope="session", autouse=True)
def states_of_their_own(tmp_path_factory):
    """States of frozen blocks are kept for this process only, and not in the user's cache."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tagsmith.tuning.loop.cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def state_of_its_own(tmp_path_factory):
    """Looks at test rows are entered for this process only, and not into the user's state."""
    os.environ["TAGSMITH_STATE"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture
def heard():
    """A list that listens: pass `heard.append` as `listen`, then look at what was said."""
    return []


# ---- Tiny models: a few thousand random weights in the real architecture, and a real tokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "bert",
    "roberta",
    "modernbert",
)


def tiny_config(family, **changes):
    """A configuration of three blocks of width 32; sliding windows of 5 tokens where the family has them."""
    import transformers

    wide = {
        "vocab_size": 800,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    grouped = {"num_key_value_heads": 2, "head_dim": 8}
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    name, own = {
        "llama": ("LlamaConfig", grouped),
        "mistral": ("MistralConfig", grouped | {"sliding_window": 5}),
        "qwen2": ("Qwen2Config", {"num_key_value_heads": 2}),
        "qwen3": ("Qwen3Config", grouped),
        "gemma": ("GemmaConfig", grouped),
        "gemma2": ("Gemma2Config", grouped | {"sliding_window": 5}),
        "gemma3_text": ("Gemma3TextConfig", grouped | {"sliding_window": 5, "layer_types": kinds}),
        "gpt2": ("GPT2Config", {}),
        "bert": ("BertConfig", {}),
        "roberta": ("RobertaConfig", {"pad_token_id": 1}),
        "modernbert": (
            "ModernBertConfig",
            {"local_attention": 6, "global_attn_every_n_layers": 2, "pad_token_id": 0},
        ),
    }[family]
    values = wide | own
    if family == "gpt2":
        short = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        values = {short.get(key, key): value for key, value in wide.items() if key != "intermediate_size"}
        values = {("n_positions" if key == "max_position_embeddings" else key): v for key, v in values.items()}
        values |= {"bos_token_id": 0, "eos_token_id": 0}
    if family == "modernbert":
        values = {key: value for key, value in values.items() if key != "initializer_range"}
    return getattr(transformers, name)(**(values | changes))


def tiny_trunk(family, *, seed=0, **changes):
    """A Hugging Face trunk with random weights that depend on the seed alone."""
    import torch
    from transformers import AutoModel

    config = tiny_config(family, **changes)
    attention = "eager" if family == "gemma2" else "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = AutoModel.from_config(config, attn_implementation=attention)
        if family not in ("bert", "roberta"):  # norms that do something
            for name, weight in trunk.named_parameters():
                if weight.ndim == 1 and "norm" in name:
                    torch.nn.init.normal_(weight, mean=0.0 if family.startswith("gemma") else 1.0, std=0.2)
    trunk.config.use_cache = False
    return trunk.eval()


def byte_tokenizer(*, appended=None):
    """A byte-level BPE: any text has tokens. `appended` is a special token put after each text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for text, _ in toy_sentences(200, seed=99)], trainer)
    if appended is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {appended}", special_tokens=[(appended, tokenizer.token_to_id(appended))]
        )
    return tokenizer


def piece_tokenizer():
    """A WordPiece with [CLS] and [SEP] around each text, and limits of its own as all-MiniLM's has."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127)]
    # Not by a trainer: its vocabulary differs from process to process, and with it what a test would find.
    words = sorted({word for text, _ in toy_sentences(200, seed=99) for word in text.lower().split()} - set(letters))
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.enable_padding(length=48)
    tokenizer.enable_truncation(48)
    return tokenizer


def save_tiny(folder, family, *, tokenizer=None, tokenizer_config=None, seed=0, **changes):
    """A Hugging Face folder: config, weights, tokenizer and its settings."""
    tiny_trunk(family, seed=seed, **changes).save_pretrained(folder)
    two_sided = family in ("bert", "roberta", "modernbert")
    tokenizer = tokenizer or (piece_tokenizer() if two_sided else byte_tokenizer())
    tokenizer.save(str(folder / "tokenizer.json"))
    known = {
        "bert": {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"},
        "gpt2": {"eos_token": SPECIAL[0], "bos_token": SPECIAL[0], "unk_token": SPECIAL[0]},
    }.get(family, {"pad_token": SPECIAL[2], "eos_token": SPECIAL[2], "bos_token": SPECIAL[1]})
    known = {"tokenizer_class": "PreTrainedTokenizerFast", **known, **(tokenizer_config or {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(known), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def make_trunk():
    """`make_trunk(family, seed=0, **config)`: a tiny trunk of Hugging Face's in memory."""
    return tiny_trunk


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory):
    """`make_folder(family, ...)`: a folder with a tiny model and tokenizer; see `save_tiny`."""

    def make(family, **changes):
        return save_tiny(tmp_path_factory.mktemp(family), family, **changes)

    return make


@pytest.fixture(scope="session")
def make_tokenizer():
    """`make_tokenizer(appended=None)`: a byte-level BPE built in memory."""
    return byte_tokenizer


@pytest.fixture(scope="session")
def tiny_folder(make_folder):
    """A tiny Llama with a real tokenizer whose pad is its end of turn, as SmolLM2's is."""
    return make_folder("llama")


@pytest.fixture(scope="session")
def gpt2_folder(make_folder):
    """A tiny GPT-2 without a pad token."""
    return make_folder("gpt2")


@pytest.fixture(scope="session")
def bert_folder(make_folder):
    """A tiny BERT with dropout 0.1, as BERT has by default."""
    return make_folder("bert")


# ---- Toy rows: separable by one word


PRAISE = ["lovely", "great", "superb", "friendly", "tasty", "bright"]
COMPLAINT = ["awful", "broken", "rude", "dirty", "stale", "dreadful"]
NEUTRAL = [
    "the",
    "our",
    "room",
    "food",
    "service",
    "waiter",
    "hotel",
    "coffee",
    "breakfast",
    "garden",
    "window",
    "table",
    "morning",
    "train",
    "ticket",
    "parcel",
    "order",
    "evening",
    "bill",
    "staff",
    "kitchen",
    "street",
    "lamp",
    "bath",
    "towel",
    "pillow",
    "corner",
    "market",
    "river",
    "bridge",
    "soup",
    "bread",
    "kettle",
]


def toy_sentences(count, *, seed=0, duplicates=0):
    """`(text, label)` pairs, half praise and half complaint; the last `duplicates` repeat the first ones."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count - duplicates):
        label, words = ("praise", PRAISE) if i % 2 else ("complaint", COMPLAINT)
        chosen = [*random.choice(NEUTRAL, size=int(random.integers(3, 9))), *random.choice(words, size=3)]
        random.shuffle(chosen)
        rows.append((" ".join(map(str, chosen)), label))
    return rows + rows[:duplicates]


@pytest.fixture(scope="session")
def make_rows():
    """`make_rows(count, seed=0, duplicates=0)`: toy rows as `(text, label)`."""
    return toy_sentences


@pytest.fixture(scope="session")
def toy_rows():
    """240 rows, 12 of them word for word twice."""
    return toy_sentences(240, duplicates=12)


def write_csv(path, rows, *, header=("text", "label")):
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(itertools.chain([header], rows))
    return path


@pytest.fixture(scope="session")
def save_csv():
    """`save_csv(path, rows, header=("text", "label"))`."""
    return write_csv


@pytest.fixture(scope="session")
def toy_csv(tmp_path_factory, toy_rows):
    return write_csv(tmp_path_factory.mktemp("toy") / "reviews.csv", toy_rows)


# ---- Runs: a second or two each, no network


def quick_settings(folder, **sections):
    """Nested settings of a small run on a tiny backbone, in fp32."""
    from tagsmith.config import merge

    small = {
        "model": {"backbone": str(folder), "layers": "all", "max_tokens": 48},
        "tuning": {"epochs": 3, "learning_rate": 5e-3, "head_learning_rate": 1e-2, "precision": "fp32"},
        "evaluation": {"resamples": 200},
    }
    return merge(small, sections)


@pytest.fixture(scope="session")
def quick_config(tiny_folder):
    """`quick_config(folder=tiny_folder, **sections)`: the Config of a small run."""
    from tagsmith.config import Config

    def config(folder=None, **sections):
        return Config.of(quick_settings(folder or tiny_folder, **sections))

    return config


@pytest.fixture(scope="session")
def llama_bundle(tmp_path_factory, toy_csv, quick_config):
    """The folder of a bundle that Hugging Face's pipeline can load. Read it; never write into it."""
    from tagsmith.pipeline import train

    return train(toy_csv, out=tmp_path_factory.mktemp("llama") / "bundle", config=quick_config()).folder


@pytest.fixture(scope="session")
def bert_bundle(tmp_path_factory, toy_csv, quick_config, bert_folder):
    """The folder of a bundle that Hugging Face's pipeline cannot express: mean pooling."""
    from tagsmith.pipeline import train

    return train(toy_csv, out=tmp_path_factory.mktemp("bert") / "bundle", config=quick_config(bert_folder)).folder
