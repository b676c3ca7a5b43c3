import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tagsmith.data.encoding import Tokens
from tagsmith.deployment.baselines import read_baselines
from tagsmith.deployment.engine import Engine, answers_of, open_engine
from tagsmith.deployment.engine_process import lanes_of
from tagsmith.deployment.torch_engine import reload
from tagsmith.errors import BundleError, SettingError

TEXTS = ["lovely room", "  ", "the waiter was rude " * 20, "Größe 12 😀", "qqq", "the <|im_end|> end", ""]
NAMES = ["torch-fp32", "tfidf"]

BLOCKED = """
import sys

for name in ("torch", "transformers", "sklearn", "scipy", "polars"):
    sys.modules[name] = None  # as where it is not installed
from tagsmith.deployment.engine import open_engine
engine = open_engine(sys.argv[1], sys.argv[2])
print([answer.label for answer in engine.answer(["lovely superb room", "a rude, dirty waiter"])])
"""


@pytest.fixture(params=NAMES)
def engine(request, llama_bundle) -> Engine:
    return open_engine(llama_bundle, request.param)


def test_a_text_has_the_same_answer_step_by_step_and_at_once(engine):
    tokens = engine.encode(TEXTS)
    probs_NC = engine.probabilities_of(engine.logits_of(tokens))
    assert answers_of(engine, probs_NC, tokens.truncated) == engine.answer(TEXTS)
    assert probs_NC.shape == (len(TEXTS), len(engine.labels))


def test_neighbours_change_nothing(engine):
    alone = [engine.answer([text])[0] for text in TEXTS]
    together = engine.answer(TEXTS[::-1])[::-1]
    assert [answer.label for answer in together] == [answer.label for answer in alone]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)


def test_a_text_without_a_letter_has_no_tokens_and_no_answer(engine):
    tokens = engine.encode(TEXTS)
    assert [i for i, size in enumerate(tokens.sizes) if not size] == [1, 6]
    assert [answer.reason for answer in engine.answer(TEXTS)] == [None, "empty", None, None, None, None, "empty"]
    assert np.isnan(engine.logits_of(tokens)[[1, 6]]).all()


def test_tokens_of_several_calls_are_computed_together(engine):
    """As a batcher does, which encodes requests one by one."""
    first, second = engine.encode(TEXTS[:3]), engine.encode(TEXTS[3:])
    joined = Tokens(
        np.concatenate([first.ids, second.ids]),
        np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        np.concatenate([first.rows, second.rows + len(first)]),
        np.concatenate([first.truncated, second.truncated]),
    )
    np.testing.assert_allclose(engine.logits_of(joined), engine.logits_of(engine.encode(TEXTS)), atol=1e-5)


def test_no_texts_have_no_answers(engine):
    assert engine.answer([]) == []
    assert engine.logits_of(engine.encode([])).shape == (0, 2)


def test_pairs_are_refused_where_single_texts_were_learned(engine):
    with pytest.raises(SettingError, match="trained on single texts"):
        engine.answer(["a"], pairs=["b"])


def test_a_pair_is_read_as_in_training_and_its_sign_is_no_letter_of_a_user(tmp_path, make_folder, quick_config):
    from tagsmith.data.table import Table
    from tagsmith.pipeline import train

    pairs = [(f"is it {word}", f"it is {word} {i}") for i, word in enumerate(["lovely", "rude"] * 60)]
    table = Table.of([f"{a}\x1e{b}" for a, b in pairs], ["good", "bad"] * 60)
    folder = train(table, out=tmp_path / "pairs", config=quick_config(make_folder("bert"))).folder
    for name in NAMES:
        engine = open_engine(folder, name)
        found = engine.answer(["is it lovely", "is\x1eit rude"], pairs=["it is lovely", "it\x1eis"])
        assert found == engine.answer(["is it lovely\x1eit is lovely", "is it rude\x1eit is"])
    with pytest.raises(SettingError, match="2 texts and 1 second texts"):
        engine.answer(["a", "b"], pairs=["c"])


def test_the_tfidf_engine_answers_as_the_baseline_did(llama_bundle):
    expected = read_baselines(llama_bundle).probabilities(TEXTS)["tfidf"]
    engine = open_engine(llama_bundle, "tfidf")
    probs_NC = engine.probabilities_of(engine.logits_of(engine.encode(TEXTS)))
    answered = [0, 2, 3, 4, 5]
    np.testing.assert_array_equal(probs_NC[answered], expected[answered])


def test_the_engine_of_torch_is_the_bundles_own(llama_bundle):
    engine = open_engine(llama_bundle, "auto")
    assert engine.name == "torch-fp32"
    loaded = reload(llama_bundle).engine
    np.testing.assert_array_equal(engine.logits_of(engine.encode(TEXTS)), loaded.logits_of(loaded.encode(TEXTS)))


def test_an_unknown_engine_is_refused_with_the_nearest_name(llama_bundle):
    with pytest.raises(SettingError, match="Did you mean 'torch-fp32'"):
        open_engine(llama_bundle, "torch-fp23")


def test_an_altered_bundle_has_no_engine(llama_bundle, tmp_path):
    folder = shutil.copytree(llama_bundle, tmp_path / "altered")
    settings = json.loads((folder / "tagsmith.json").read_text())
    (folder / "tagsmith.json").write_text(json.dumps(settings | {"labels": ["praise", "complaint"]}))
    with pytest.raises(BundleError, match=r"tagsmith\.json"):
        open_engine(folder, "tfidf")


def answered_without(folder, name):
    command = [sys.executable, "-c", BLOCKED, str(folder), name]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_tfidf_engine_answers_where_no_heavy_library_is_installed(llama_bundle):
    done = answered_without(llama_bundle, "tfidf")
    assert (done.stdout.strip(), done.stderr) == ("['praise', 'complaint']", "")


def test_lanes_of_pytorch_compute_at_a_time_what_each_computes_alone(llama_bundle):
    engine, threads = open_engine(llama_bundle, "torch-fp32"), torch.get_num_threads()
    tokens = [engine.encode([f"a lovely room {i}", "the waiter was rude"]) for i in range(12)]
    alone = [engine.logits_of(each) for each in tokens]
    try:
        torch.set_num_threads(2)
        lanes = lanes_of(engine)
        assert len(lanes) == 2
        assert torch.get_num_threads() == 1, "a lane has one core"
        with ThreadPoolExecutor(2, initializer=lanes[1]) as pool:
            together = list(pool.map(engine.logits_of, tokens))
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)


def test_an_engine_that_says_nothing_of_lanes_has_one(llama_bundle):
    assert len(lanes_of(open_engine(llama_bundle, "tfidf"))) == 1
