"""Live texts and answers against those that the model was tested on: does the measured quality still apply?

Of each text four things are counted: its length, its share of words that training did not know, the surety of its
answer and the label answered. A window of live texts is compared with the test rows by the population stability index
(PSI) of each, and by how rarely a window without drift has one as large: texts of both are dealt out anew, 999 times
(Fisher, The Design of Experiments, 1935, section 21). Nothing of a text is kept but these counts.

Axes: N texts, C labels, K bins.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tagsmith.errors import BundleError
from tagsmith.evaluation.permutation import chance_of, stability_index
from tagsmith.model.attribution import WRITTEN_WITHOUT_SPACES

PROFILE = "profile.json"
FORMAT = 1
WINDOW = 500
ALARM_RATE = 0.01
NOTABLE = 0.1
"""The PSI from which on a difference is worth an alarm; below it even a certain one hardly matters."""
_MOST_BINS = 10
_ROWS_PER_BIN = 15
_MOST_LABELS = 20
_MOST_WORDS = 20_000
_OTHERS = ""
"""The bin of all labels that have none of their own."""
_words = re.compile(rf"[{WRITTEN_WITHOUT_SPACES}]|[^\W{WRITTEN_WITHOUT_SPACES}]+").findall
_MOST_LETTERS = 20_000


@dataclass(frozen=True)
class Feature:
    """One thing that is counted of each text: `counts (K,)` of the test rows, by bin.

    A number falls into the first bin whose `edges (K-1,)` value it does not exceed; a label into the bin of its name
    in `names (K,)`, or into the last.
    """

    name: str
    counts: tuple[int, ...]
    edges: tuple[float, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of_numbers(cls, name: str, values: np.ndarray) -> Feature:
        """Bins with equally many of the values `(N,)` each, fewer where many are equal."""
        bins = int(np.clip(len(values) // _ROWS_PER_BIN, 2, _MOST_BINS))
        edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
        counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
        return cls(name, tuple(counts.tolist()), edges=tuple(edges.tolist()))

    @classmethod
    def of_names(cls, name: str, values: Sequence[str]) -> Feature:
        """A bin for each of the most frequent values, and one for all others."""
        counted = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))[:_MOST_LABELS]
        counts = [count for _, count in counted]
        names = (*(value for value, _ in counted), _OTHERS)
        return cls(name, (*counts, len(values) - sum(counts)), names=names)

    def bins(self, values: Any) -> np.ndarray:
        """The bin of each value `(N,)`."""
        if self.names:
            places = {name: i for i, name in enumerate(self.names)}
            return np.array([places.get(value, len(self.names) - 1) for value in values], dtype=np.int64)
        return np.searchsorted(self.edges, values)


@dataclass(frozen=True)
class Profile:
    """What texts and answers looked like when the model was tested; plain numbers, no texts.

    `words` are 32-bit hashes of the words in two training texts or more, the most frequent ones; `rows` of the test.
    """

    rows: int
    words: frozenset[int]
    features: tuple[Feature, ...]

    @classmethod
    def of(
        cls, train_texts: Iterable[str], texts: Sequence[str], probs_NC: np.ndarray, *, labels: Sequence[str]
    ) -> Profile:
        """The profile of test rows with their probabilities; which words are known, the training texts say."""
        words = _frequent_words(train_texts)
        seen = _observed(texts, probs_NC, labels, words)
        features = (
            *(Feature.of_numbers(name, seen[name]) for name in ("length", "unknown_words", "score")),
            Feature.of_names("label", seen["label"]),
        )
        return cls(len(seen["label"]), words, features)

    @classmethod
    def read(cls, folder: Path) -> Profile | None:
        """The profile of a bundle; None where it has none, as those of 0.1.0. BundleError for another format."""
        path = folder / PROFILE
        if not path.is_file():
            return None
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain.get("format") != FORMAT:
            raise BundleError(
                f"'{path}' has format {plain.get('format')}; this release reads format {FORMAT}. "
                "Install the release that wrote it."
            )
        features = tuple(
            Feature(each["name"], tuple(each["counts"]), tuple(each["edges"]), tuple(each["names"]))
            for each in plain["features"]
        )
        return cls(plain["rows"], frozenset(plain["words"]), features)

    def counts_of(self, texts: Sequence[str], probs_NC: np.ndarray, *, labels: Sequence[str]) -> dict[str, np.ndarray]:
        """Counts `(K,)` of other texts by the bins of each feature; those without an answer (NaN) are left out."""
        seen = _observed(texts, probs_NC, labels, self.words)
        return {
            feature.name: np.bincount(feature.bins(seen[feature.name]), minlength=len(feature.counts))
            for feature in self.features
        }

    def write(self, folder: Path) -> None:
        """Keep it in a bundle."""
        features = [asdict(feature) for feature in self.features]
        plain = {"format": FORMAT, "rows": self.rows, "features": features, "words": sorted(self.words)}
        (folder / PROFILE).write_text(json.dumps(plain, ensure_ascii=False), encoding="utf-8")


@dataclass(frozen=True)
class Compared:
    """One feature in one window: its PSI, and the chance `p_value` of one as large without drift."""

    name: str
    psi: float
    p_value: float
    alarm: bool
    live: tuple[int, ...]


class Monitor:
    """Counts live texts and compares each full window with a profile.

    `alarm_rate` is the chance that a window without drift raises an alarm, over all features together: of as many
    windows, that share is alarmed for nothing. Texts are taken as independent; bursts of one text are drift.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        labels: Sequence[str],
        clean: Callable[[Sequence[str]], Sequence[str]] = list,
        window: int = WINDOW,
        alarm_rate: float = ALARM_RATE,
        seed: int = 0,
    ) -> None:
        self.profile = profile
        self.window = window
        self.alarm_rate = alarm_rate
        self.windows = 0
        self.alarms = 0
        self.latest: tuple[Compared, ...] = ()
        self._labels, self._clean, self._seed = tuple(labels), clean, seed
        self._waiting: list[tuple[int, ...]] = []

    def observe(self, texts: Sequence[str], probs_NC: np.ndarray) -> None:
        """Count answered texts with their probabilities `(N, C)`; those without an answer (NaN) are left out."""
        seen = _observed(self._clean(texts), probs_NC, self._labels, self.profile.words)
        bins = [feature.bins(seen[feature.name]).tolist() for feature in self.profile.features]
        self._waiting += zip(*bins, strict=True)
        while len(self._waiting) >= self.window:
            self._compare(np.array(self._waiting[: self.window]))
            del self._waiting[: self.window]

    def state(self) -> dict[str, Any]:
        """All of it as plain data: how many windows there were, and the latest one feature by feature."""
        by_name = {feature.name: feature for feature in self.profile.features}
        return {
            "window": self.window,
            "alarm_rate": self.alarm_rate,
            "reference_rows": self.profile.rows,
            "windows": self.windows,
            "alarms": self.alarms,
            "waiting": len(self._waiting),
            "alarm": any(each.alarm for each in self.latest),
            "features": [asdict(each) | _about(by_name[each.name]) for each in self.latest],
        }

    def _compare(self, bins_NF: np.ndarray) -> None:
        random = np.random.default_rng([self._seed, self.windows])
        level = self.alarm_rate / len(self.profile.features)
        compared = []
        for feature, bins_N in zip(self.profile.features, bins_NF.T, strict=True):
            reference = np.array(feature.counts)
            live = np.bincount(bins_N, minlength=len(reference))
            psi = float(stability_index(reference, live))
            p_value = chance_of(reference, live, random=random, statistic=stability_index)
            alarm = p_value <= level and psi >= NOTABLE
            compared.append(Compared(feature.name, psi, p_value, alarm, tuple(live.tolist())))
        self.latest = tuple(compared)
        self.windows += 1
        self.alarms += any(each.alarm for each in compared)


def collector(monitor_of: Callable[[], Monitor | None]) -> Any:
    """What a registry of prometheus_client collects: the state of the monitor that answers now."""
    return _Collector(monitor_of)


class _Collector:
    def __init__(self, monitor_of: Callable[[], Monitor | None]) -> None:
        self._monitor_of = monitor_of

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        monitor = self._monitor_of()
        if monitor is None:
            return
        psi = GaugeMetricFamily(
            "tagsmith_drift_psi", "PSI of the latest window against the test rows.", labels=["feature"]
        )
        chance = GaugeMetricFamily(
            "tagsmith_drift_p_value", "Chance of a PSI as large in a window without drift.", labels=["feature"]
        )
        for each in monitor.latest:
            psi.add_metric([each.name], each.psi)
            chance.add_metric([each.name], each.p_value)
        yield psi
        yield chance
        yield CounterMetricFamily("tagsmith_drift_windows", "Windows of live texts compared.", value=monitor.windows)
        yield CounterMetricFamily(
            "tagsmith_drift_alarms",
            "Windows that raised an alarm; without drift alarm_rate of them.",
            value=monitor.alarms,
        )


def _about(feature: Feature) -> dict[str, Any]:
    return {"reference": feature.counts, "edges": feature.edges, "names": feature.names}


def _observed(
    texts: Sequence[str], probs_NC: np.ndarray, labels: Sequence[str], words: frozenset[int]
) -> Mapping[str, Any]:
    """The value of each feature for each answered text."""
    answered = np.flatnonzero(~np.isnan(probs_NC).any(axis=1))
    kept, probs_NC = [texts[int(i)] for i in answered], np.asarray(probs_NC)[answered]
    return {
        "length": np.array([len(text) for text in kept], dtype=np.float64),
        "unknown_words": np.array([_unknown_share(text, words) for text in kept], dtype=np.float64),
        "score": probs_NC.max(axis=1, initial=0.0),
        "label": [labels[i] for i in probs_NC.argmax(axis=1)] if len(kept) else [],
    }


def _frequent_words(texts: Iterable[str]) -> frozenset[int]:
    counted = Counter(word for text in texts for word in set(_hashes(text)))
    frequent = sorted((item for item in counted.items() if item[1] > 1), key=lambda item: (-item[1], item[0]))
    return frozenset(word for word, _ in frequent[:_MOST_WORDS])


def _unknown_share(text: str, words: frozenset[int]) -> float:
    hashes = _hashes(text)
    return sum(each not in words for each in hashes) / len(hashes) if hashes else 0.0


def _hashes(text: str) -> list[int]:
    return [zlib.crc32(word.encode("utf-8", "replace")) for word in _words(text[:_MOST_LETTERS].lower())]
