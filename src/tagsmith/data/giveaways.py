"""What gives a label away without being understood: a word, the length of a text, a number or the label in front.

A word that decides a label may be what the task is about ("prize" in spam) or a trace of how the rows were gathered; a
person has to say which, so the surest are listed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

FEWEST_GROUPS = 20
"""A word in fewer groups of rows is no giveaway."""
SURE = 0.9
_QUANTILE = 2.576  # 99 %: many words are tried
_MOST_WORDS = 20
_BINS, _ROWS_PER_BIN = 20, 50


@dataclass(frozen=True)
class Word:
    """A word that stands in `groups` groups of rows, `hits` of which have `label`.

    `where` is `anywhere`, `first` or `last` (sign); `precision` = hits / groups, `low` the lower end of its 99 %
    interval (Wilson), `recall` the share of the label's groups that hold the word.
    """

    word: str
    where: str
    label: str
    groups: int
    hits: int
    precision: float
    low: float
    recall: float


@dataclass(frozen=True)
class Guess:
    """How often a number that says nothing of the meaning guesses the label, beside always guessing the commonest."""

    by: str
    accuracy: float
    always: float


def find_words(texts: pl.Series, words: pl.DataFrame, labels: pl.Series, groups: np.ndarray) -> list[Word]:
    """The words that all but decide a label, the most telling first, at most 20.

    `words` are those of `words_of(texts)`, `labels (N,)` strings or lists of them. Rows of one group count once. The
    lower end of the interval must reach 0.9, and leave at most a fifth of the error that guessing the label always has.
    """
    carriers = pl.DataFrame({"label": labels, "group": groups}).with_row_index("row")
    if labels.dtype == pl.List(pl.String):
        carriers = carriers.explode("label")
    carriers = carriers.drop_nulls("label")
    traits = pl.concat([words.with_columns(pl.lit("anywhere").alias("where")), _ends(texts)])
    often = traits.group_by("word", "where").len().filter(pl.col("len") >= FEWEST_GROUPS).drop("len")
    rows = traits.join(often, on=["word", "where"])
    whole = pl.DataFrame({"row": np.arange(len(groups), dtype=np.uint32), "group": groups})
    seen = rows.join(whole, on="row").group_by("word", "where").agg(pl.col("group").n_unique().alias("groups"))
    hits = (
        rows.join(carriers, on="row").group_by("word", "where", "label").agg(pl.col("group").n_unique().alias("hits"))
    )
    sizes = carriers.group_by("label").agg(pl.col("group").n_unique().alias("size"))
    share = pl.col("size") / max(1, len(np.unique(groups)))
    found = (
        hits.join(seen, on=["word", "where"])
        .join(sizes, on="label")
        .with_columns(_wilson_low(pl.col("hits"), pl.col("groups")).alias("low"), share.alias("share"))
        .filter(
            pl.col("groups") >= FEWEST_GROUPS, pl.col("low") >= SURE, 1 - pl.col("low") <= (1 - pl.col("share")) / 5
        )
        .with_columns((pl.col("hits") / pl.col("size")).alias("recall"))
        .sort("recall", "low", "word", "where", "label", descending=[True, True, False, False, False])
    )
    return _without_repeats(found)[:_MOST_WORDS]


def guesses(texts: pl.Series, labels: pl.Series) -> list[Guess]:
    """What the length of a text, and a number in front of it, guess of the label of a single-label table."""
    frame = pl.DataFrame({"text": texts, "label": labels}).drop_nulls()
    found = [_guess(frame["text"].str.len_chars(), frame["label"], by="length")]
    numbers = frame["text"].str.extract(r"^\W*([0-9]{1,15})\b").cast(pl.Float64)
    if len(numbers) and numbers.is_not_null().sum() * 2 >= len(numbers):
        found.append(_guess(numbers.fill_null(-1), frame["label"], by="number in front"))
    return [guess for guess in found if guess is not None]


def labels_in_front(texts: pl.Series, labels: pl.Series) -> dict[str, float]:
    """For each label that leads half or more of its own texts by name, the share that it leads."""
    frame = pl.DataFrame({"text": texts.str.to_lowercase(), "label": labels}).drop_nulls()
    name = pl.col("label").str.to_lowercase()
    leads = pl.col("text").str.replace(r"^[\W_]+", "").str.starts_with(name) & (name.str.len_chars() >= 2)
    shares = (
        frame.group_by("label")
        .agg(leads.mean().alias("share"), pl.len())
        .filter(pl.col("share") >= 0.5, pl.col("len") >= FEWEST_GROUPS)
    )
    return dict(shares.sort("share", "label", descending=[True, False]).select("label", "share").iter_rows())


def _ends(texts: pl.Series) -> pl.DataFrame:
    """The first word and the last sign of each text."""
    frame = texts.alias("text").to_frame().with_row_index("row")
    first = pl.col("text").str.to_lowercase().str.extract(r"^\s*(\S{1,40})(?:\s|$)")
    last = pl.col("text").str.extract(r"([^\w\s])\s*$")
    parts = [(first, "first"), (last, "last")]
    return pl.concat(
        [frame.select("row", part.alias("word"), pl.lit(where).alias("where")).drop_nulls() for part, where in parts]
    )


def _wilson_low(hits: pl.Expr, rows: pl.Expr) -> pl.Expr:
    """The lower end of the score interval of a proportion (Wilson 1927)."""
    z2, share = _QUANTILE**2, hits / rows
    spread = _QUANTILE * (share * (1 - share) / rows + z2 / (4 * rows**2)).sqrt()
    return (share + z2 / (2 * rows) - spread) / (1 + z2 / rows)


def _without_repeats(found: pl.DataFrame) -> list[Word]:
    """One line for a word and label, be it in front, at the end or anywhere: the one of the most recall."""
    kept: dict[tuple[str, str], Word] = {}
    for row in found.drop("size", "share").head(4 * _MOST_WORDS).iter_rows(named=True):
        word = Word(**row, precision=row["hits"] / row["groups"])
        kept.setdefault((word.word.strip("\"'.,:;!?()[]"), word.label), word)
    return list(kept.values())


def _guess(values: pl.Series, labels: pl.Series, *, by: str) -> Guess | None:
    """The commonest label of each bin of equally many rows; None for fewer rows than two bins have."""
    bins = min(_BINS, len(values) // _ROWS_PER_BIN)
    if bins < 2:
        return None
    cuts = np.unique(np.quantile(values.to_numpy(), np.arange(1, bins) / bins))
    frame = pl.DataFrame({"bin": np.searchsorted(cuts, values.to_numpy()), "label": labels})
    counts = frame.group_by("bin", "label").len()
    right = int(counts.group_by("bin").agg(pl.col("len").max())["len"].sum())
    always = int(frame["label"].value_counts()["count"].max() or 0)  # pyrefly: ignore[bad-argument-type]
    return Guess(by, right / len(values), always / len(values))
