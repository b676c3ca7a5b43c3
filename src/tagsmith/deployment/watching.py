"""What follows the live traffic of a server: drift against the bundle's profile, and if asked the hashes of texts."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np

from tagsmith.data.cleaning import clean_texts
from tagsmith.data.pairs import PAIR
from tagsmith.deployment.classifying import Answers, Question
from tagsmith.deployment.corrections import HashLog
from tagsmith.deployment.drift import Monitor, Profile
from tagsmith.deployment.live_model import LiveModel
from tagsmith.deployment.recipe import read_settings
from tagsmith.deployment.versions import Versions
from tagsmith.errors import BundleError, ResourceError

_log = logging.getLogger("tagsmith.serve")


class Watcher:
    """Hears each answer that is given, and compares those of the current version with its profile."""

    def __init__(self, versions: Versions, *, hashes: HashLog | None = None) -> None:
        self._versions = versions
        self._hashes = hashes
        self._digest = ""
        self._monitor: Monitor | None = None

    @property
    def monitor(self) -> Monitor | None:
        """What compares the version that is served now; None where it has no profile, or is not open yet."""
        if not self._versions.opened:
            return None
        live = self._versions.current
        if live.about.digest != self._digest:
            self._digest, self._monitor = live.about.digest, _monitor_of(live)
        return self._monitor

    def heard(self, question: Question, answers: Answers) -> None:
        """Count answered texts; a canary's answers are no part of what the current version's profile speaks of."""
        texts = list(question.texts)
        if question.pairs is not None:
            texts = [f"{text}{PAIR}{pair}" for text, pair in zip(texts, question.pairs, strict=True)]
        probs_NC = np.array([result.probs_C for result in answers.results])
        monitor = self.monitor
        if monitor is not None and answers.about.digest == self._digest:
            monitor.observe(texts, probs_NC)
        self._note(texts, probs_NC, answers)

    def _note(self, texts: list[str], probs_NC: np.ndarray, answers: Answers) -> None:
        if self._hashes is None:
            return
        try:
            self._hashes.note(texts, probs_NC, labels=answers.about.labels, version=answers.about.version)
        except ResourceError as error:  # the answer is right all the same
            _log.error("hashes_lost", extra={"texts": len(texts), "reason": str(error)})


def _monitor_of(live: LiveModel) -> Monitor | None:
    folder = live.launch.folder
    try:
        profile = Profile.read(folder)
    except BundleError as error:  # answers are right all the same
        _log.error("profile_refused", extra={"reason": str(error)})
        return None
    if profile is None:
        return None
    return Monitor(
        profile,
        labels=live.about.labels,
        clean=partial(clean_texts, steps=read_settings(folder).get("cleaning", ())),
        window=live.config.drift_window,
        alarm_rate=live.config.drift_alarm_rate,
    )
