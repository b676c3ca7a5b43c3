import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tagsmith.config import ModelConfig
from tagsmith.errors import SettingError
from tagsmith.labels import Labels
from tagsmith.model.calibration import Calibration
from tagsmith.model.classifier import Scorer, build

NAMES = Labels.of(["a", "b", "c"])
WORDS = ["lovely", "room", "rude", "the", "<|im_end|>", "<|endoftext|>", "[SEP]", "😀", "12", "Größe", "\x00", "a" * 30]
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join),
)
MODELS = ["llama last", "llama mean", "mistral last", "gpt2 last", "bert mean", "bert first", "modernbert mean"]


@pytest.fixture(scope="module")
def classifiers(make_folder):
    """A classifier for each of MODELS, whose head gives clear answers."""
    made = {}
    for name in MODELS:
        family, pooling = name.split()
        config = ModelConfig(pooling=pooling, max_tokens=48)
        made[name] = build(make_folder(family), config, labels=NAMES, layers=None, seed=0).eval().requires_grad_(False)
        torch.nn.init.normal_(made[name].head.score.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    return made


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=15)
@given(data=st.data())
def test_one_text_has_one_answer_in_any_batch(model, data, classifiers):
    classifier = classifiers[model]
    texts = data.draw(st.lists(TEXTS, min_size=1, max_size=12))
    order = data.draw(st.permutations(range(len(texts))))
    budget = data.draw(st.sampled_from([16, 64, 200, 4096]))
    neighbours = data.draw(st.lists(TEXTS, max_size=6))
    alone = np.concatenate([Scorer(classifier).probabilities([text])[0] for text in texts])
    shuffled = [texts[i] for i in order] + neighbours
    together = Scorer(classifier, tokens_per_batch=budget).probabilities(shuffled)[0][: len(texts)]
    np.testing.assert_allclose(together, alone[order], atol=1e-5, rtol=0)
    ranked = np.sort(alone[order], axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > 2e-5
    assert (together.argmax(1) == alone[order].argmax(1))[clear].all()


@pytest.mark.parametrize("model", MODELS)
def test_many_texts_of_one_beginning_are_answered_as_each_alone(model, classifiers):
    classifier = classifiers[model]
    beginnings = ["the waiter was rude", "the waiter", "a lovely room"]
    texts = [f"{begun} and {word} {number}" for number in range(8) for word in WORDS[:3] for begun in beginnings]
    together = Scorer(classifier, tokens_per_batch=40).probabilities(texts)[0]
    alone = np.concatenate([Scorer(classifier).probabilities([text])[0] for text in texts[::9]])
    np.testing.assert_allclose(together[::9], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", MODELS)
def test_the_scorer_answers_as_the_plain_classifier(model, classifiers):
    classifier = classifiers[model]
    texts = ["lovely room", "the waiter was rude", "a", "12 " * 40]
    tokens = classifier.encoder.encode(texts)
    ids_BL, lengths = tokens.padded(np.arange(len(texts)))
    plain = classifier(torch.from_numpy(ids_BL), torch.from_numpy(lengths)).numpy()
    np.testing.assert_allclose(Scorer(classifier).logits(tokens), plain, atol=1e-5, rtol=1e-5)


def test_threads_change_no_answer(classifiers):
    texts = [f"lovely room {i} " * (1 + i % 5) for i in range(60)]
    cores = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            answers.append(Scorer(classifiers["llama last"], tokens_per_batch=100).probabilities(texts)[0])
    finally:
        torch.set_num_threads(cores)
    np.testing.assert_allclose(*answers, atol=1e-5)


@pytest.mark.parametrize("model", ["llama last", "bert mean"])
@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
def test_an_empty_text_gets_no_answer_and_its_neighbours_do(model, text, classifiers):
    probs, truncated = Scorer(classifiers[model]).probabilities(["lovely", text, "rude"])
    assert np.isnan(probs[1]).all()
    assert not truncated[1]
    np.testing.assert_allclose(probs[[0, 2]].sum(1), 1)


def test_no_texts_give_no_answers(classifiers):
    probs, truncated = Scorer(classifiers["llama last"]).probabilities([])
    assert probs.shape == (0, 3)
    assert truncated.shape == (0,)


def test_a_pad_id_inside_or_after_a_text_is_a_token_like_any_other(classifiers):
    """Pooling goes by lengths: control ids, put in by hand, are seen and are not taken for padding."""
    classifier = classifiers["llama last"]
    pad = classifier.encoder.pad_id
    ids_BL = torch.tensor([[300, 301, pad, pad], [300, 301, 0, 0]])
    longer = classifier(ids_BL[:1], torch.tensor([4]))
    shorter = classifier(ids_BL, torch.tensor([2, 2]))
    torch.testing.assert_close(shorter[0], shorter[1])
    assert float((longer[0] - shorter[0]).abs().max()) > 1e-3


def test_truncated_texts_are_marked(classifiers):
    _, truncated = Scorer(classifiers["llama last"]).probabilities(["1 " * 10, "1 " * 200])
    assert truncated.tolist() == [False, True]


def test_more_tokens_than_positions_are_refused(tiny_folder):
    with pytest.raises(SettingError, match=r"model.max_tokens is 256, but this backbone has only 128 positions"):
        build(tiny_folder, ModelConfig(max_tokens=256), labels=NAMES, layers=None, seed=0)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_an_encoder_has_no_causal_mask_to_remove(family, make_folder):
    with pytest.raises(
        SettingError, match=rf"model.causal_mask is false, but a '{family}' backbone has no causal mask"
    ):
        build(make_folder(family), ModelConfig(max_tokens=48, causal_mask=False), labels=NAMES, layers=None, seed=0)


def test_robertas_positions_begin_after_its_pad_id(make_folder, make_tokenizer):
    folder = make_folder("roberta", tokenizer=make_tokenizer())
    build(folder, ModelConfig(max_tokens=126), labels=NAMES, layers=None, seed=0)
    with pytest.raises(SettingError, match="only 126 positions"):
        build(folder, ModelConfig(max_tokens=127), labels=NAMES, layers=None, seed=0)


def test_probabilities_are_softmax_of_shifted_and_cooled_logits():
    logits = np.array([[1.0, 2.0, 0.5]], dtype=np.float32)
    probs = Calibration(2.0, (0.5, 0.0, -0.5)).probabilities(logits)
    np.testing.assert_allclose(probs, torch.tensor([[0.75, 1.0, 0.0]]).double().softmax(1).numpy(), atol=1e-7)


def test_huge_logits_make_no_warning_and_no_nan():
    probs = Calibration(0.05).probabilities(np.array([[1e4, -1e4], [0.0, 3e4]], dtype=np.float32))
    np.testing.assert_allclose(probs, [[1, 0], [0, 1]])
