"""An engine process under its supervisor, without a server."""

import asyncio
import json
import os
import shutil
import signal

import numpy as np
import pytest

from tagsmith.deployment import supervisor as supervisors
from tagsmith.deployment.engine import open_engine
from tagsmith.deployment.supervisor import EngineFailed, EngineLost, Launch, Supervisor
from tagsmith.errors import BundleError

TEXTS = ["a lovely room", "", "the waiter was rude"]


def supervised(launch, talk):
    """Run `talk(supervisor)` with an engine that is up, and end it."""

    async def run():
        supervisor = Supervisor(launch)
        await supervisor.start()
        try:
            return await talk(supervisor)
        finally:
            await supervisor.stop()

    return asyncio.run(asyncio.wait_for(run(), 90))


async def until(condition):
    while not condition():
        await asyncio.sleep(0.02)


def test_an_engine_process_answers_as_the_engine_does(llama_bundle):
    async def talk(supervisor):
        tokens = await supervisor.ask("encode", {"texts": TEXTS, "pairs": None}, {})
        return tokens, await supervisor.ask("score", {}, tokens.arrays)

    tokens, scored = supervised(Launch(llama_bundle, engine="tfidf"), talk)
    engine = open_engine(llama_bundle, "tfidf")
    np.testing.assert_array_equal(tokens.arrays["ids"], engine.encode(TEXTS).ids)
    wanted = engine.probabilities_of(engine.logits_of(engine.encode(TEXTS)))
    np.testing.assert_allclose(scored.arrays["probabilities"], wanted, atol=1e-6)


def test_a_question_that_the_engine_cannot_answer_ends_nothing(llama_bundle):
    async def talk(supervisor):
        with pytest.raises(EngineFailed) as failure:
            await supervisor.ask("score", {}, {"ids": np.zeros(3, dtype="<i4")})
        assert not failure.value.unfit
        assert "3" not in str(failure.value).partition(" at ")[0]
        with pytest.raises(EngineFailed) as failure:
            await supervisor.ask("encode", {"texts": ["a"], "pairs": ["b"]}, {})
        assert failure.value.unfit
        return supervisor.ready

    assert supervised(Launch(llama_bundle, engine="tfidf"), talk)


def test_an_engine_that_hangs_is_killed_and_comes_back(llama_bundle, monkeypatch):
    monkeypatch.setattr(supervisors, "ANSWER_S", 0.5)

    async def talk(supervisor):
        before = supervisor.pid
        os.kill(before, signal.SIGSTOP)
        with pytest.raises(EngineLost):
            await supervisor.ask("encode", {"texts": TEXTS, "pairs": None}, {})
        await until(lambda: supervisor.ready)
        return before, supervisor.pid, supervisor.restarts

    before, after, restarts = supervised(Launch(llama_bundle, engine="tfidf"), talk)
    assert before != after
    assert restarts == 1


def test_an_engine_comes_back_as_the_version_that_it_was_or_not_at_all(llama_bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(llama_bundle, folder)

    async def talk(supervisor):
        (folder / "tagsmith.json").write_text("{}")
        os.kill(supervisor.pid, signal.SIGKILL)
        await until(lambda: supervisor.refused is not None)
        refused = supervisor.refused
        shutil.copy(llama_bundle / "tagsmith.json", folder)
        await until(lambda: supervisor.ready)
        return refused

    assert "tagsmith.json" in supervised(Launch(folder, engine="tfidf"), talk)


def test_another_version_in_its_place_is_refused(llama_bundle):
    async def run():
        with pytest.raises(BundleError, match="another one than the one that was served"):
            await supervisors.EngineProcess.start(Launch(llama_bundle, engine="tfidf"), digest="0" * 64)

    asyncio.run(run())


def test_a_bundle_that_cannot_be_opened_is_told_in_the_words_of_its_error(tmp_path):
    async def run():
        with pytest.raises(BundleError, match=r"MANIFEST\.json"):
            await Supervisor(Launch(tmp_path, engine="tfidf")).start()

    asyncio.run(run())


def test_an_engine_that_dies_while_it_loads_is_lost_with_its_last_words(llama_bundle, monkeypatch, caplog):
    command = ["/bin/sh", "-c", "echo no memory >&2; exit 7"]
    monkeypatch.setattr(Launch, "command", lambda *_: command)

    async def run():
        with pytest.raises(EngineLost):
            await Supervisor(Launch(llama_bundle)).start()

    asyncio.run(run())
    assert caplog.records[-1].ended == "with code 7"
    assert json.dumps(caplog.records[-1].last_words) == '"no memory"'
