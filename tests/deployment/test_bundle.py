import json
import shutil

import numpy as np
import pytest
import torch

from tagsmith.config import ModelConfig
from tagsmith.data.encoding import Encoder
from tagsmith.deployment.baselines import read_baselines, write_baselines
from tagsmith.deployment.bundle import load
from tagsmith.deployment.saving import PROBES, write_probes
from tagsmith.deployment.torch_engine import reload
from tagsmith.deployment.weights import write_classifier
from tagsmith.labels import Labels
from tagsmith.model.backbone import load_backbone
from tagsmith.model.calibration import Calibration
from tagsmith.model.classifier import Scorer, assemble, build
from tagsmith.model.lexical_fitting import fit_lexical

NAMES = Labels.of(["complaint", "neither", "praise"])
TEXTS = ["lovely room", "a", "the waiter was rude " * 4, "Größe 12 😀", "the <|im_end|> end", "tasty  bread\n"]
RECIPE = {"config": {"data": {"text": None}}}


def untrained(folder, *, temperature=1.0, offset=None, **model):
    config = ModelConfig(**({"max_tokens": 48} | model))
    classifier = build(folder, config, labels=NAMES, layers=None, seed=0).eval().requires_grad_(False)
    torch.nn.init.normal_(classifier.head.score.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    classifier.calibration = Calibration(temperature, offset)
    return classifier


def several(folder, *, offset=None, **model):
    """An untrained classifier of texts that may have several labels."""
    config = ModelConfig(**({"max_tokens": 48} | model))
    labels = Labels(NAMES.names, multi_label=True)
    classifier = build(folder, config, labels=labels, layers=None, seed=0).eval().requires_grad_(False)
    torch.nn.init.normal_(classifier.head.score.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    classifier.head.score.bias.copy_(torch.tensor([-2.0, 0.0, 1.0]))
    classifier.calibration = Calibration(1.7, offset, multi_label=True)
    classifier.thresholds = np.array([0.2, 0.5, 0.6])
    return classifier


def hugging_face(folder, texts, **options):
    """Probabilities `(N, C)` as transformers' own pipeline gives them."""
    from transformers import pipeline

    with torch.inference_mode():
        answers = pipeline("text-classification", model=str(folder), top_k=None)(texts, **options)
    return np.array(
        [[next(a["score"] for a in answer if a["label"] == name) for name in NAMES.names] for answer in answers]
    )


VARIANTS = {
    "llama": ("llama", {}),
    "llama calibrated": ("llama", {"temperature": 1.7}),
    "llama mean": ("llama", {"pooling": "mean", "temperature": 1.7}),
    "llama mlp": ("llama", {"head": "mlp"}),
    "llama offset": ("llama", {"offset": (0.5, 0.0, -0.5), "temperature": 0.6}),
    "gpt2": ("gpt2", {}),
    "mistral": ("mistral", {}),
    "qwen3": ("qwen3", {"temperature": 0.7}),
    "gemma3": ("gemma3_text", {}),
    "llama tail": ("llama", {"long_texts": "tail", "max_tokens": 16}),
    "llama windows": ("llama", {"long_texts": "windows", "max_tokens": 16}),
    "llama two-sided": ("llama", {"causal_mask": False}),
    "llama two-sided last": ("llama", {"causal_mask": False, "pooling": "last", "temperature": 1.7}),
    "bert mean": ("bert", {}),
    "bert first": ("bert", {"pooling": "first", "temperature": 2.0}),
    "modernbert": ("modernbert", {}),
}


@pytest.fixture
def written(make_folder, tmp_path):
    """`written(variant)`: a classifier and the folder that it was written to."""

    def write(variant):
        family, changes = VARIANTS[variant]
        classifier = untrained(make_folder(family), **changes)
        folder = tmp_path / "bundle"
        folder.mkdir()
        write_classifier(folder, classifier, recipe=RECIPE)
        return classifier, folder

    return write


@pytest.mark.parametrize("variant", VARIANTS)
def test_save_then_load_predicts_the_same(variant, written):
    classifier, folder = written(variant)
    wanted = Scorer(classifier).probabilities(TEXTS)[0]
    np.testing.assert_allclose(reload(folder).predict_proba(TEXTS), wanted, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4], ids=["one by one", "batched"])
@pytest.mark.parametrize("variant", ["llama", "llama calibrated", "gpt2", "mistral", "qwen3", "gemma3"])
def test_hugging_faces_pipeline_gives_the_same_answers(variant, batch_size, written):
    _, folder = written(variant)
    wanted = reload(folder).predict_proba(TEXTS)
    probs = hugging_face(folder, TEXTS, batch_size=batch_size)
    np.testing.assert_allclose(probs, wanted, atol=1e-4)


def test_hugging_faces_pipeline_reads_the_same_end_of_a_long_text(written):
    _, folder = written("llama tail")
    probs = hugging_face(folder, TEXTS, truncation=True)
    np.testing.assert_allclose(probs, reload(folder).predict_proba(TEXTS), atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_tokenizer_that_pads_on_the_left_changes_no_answer(family, side, make_folder, tmp_path):
    classifier = untrained(make_folder(family, tokenizer_config={"padding_side": side}))
    write_classifier(tmp_path, classifier, recipe=RECIPE)
    probs = hugging_face(tmp_path, TEXTS, batch_size=6)
    np.testing.assert_allclose(probs, Scorer(classifier).probabilities(TEXTS)[0], atol=1e-4)


@pytest.mark.parametrize(
    "variant",
    [
        "llama mean",
        "llama two-sided",
        "llama two-sided last",
        "llama mlp",
        "llama offset",
        "llama windows",
        "bert mean",
        "bert first",
        "modernbert",
    ],
)
def test_hugging_faces_pipeline_refuses_what_it_cannot_express(variant, written):
    from transformers import pipeline

    _, folder = written(variant)
    assert not (folder / "config.json").exists()
    with pytest.raises((OSError, ValueError)):
        pipeline("text-classification", model=str(folder))


@pytest.mark.parametrize("offset", [None, (0.5, 0.0, -0.5)])
def test_hugging_faces_pipeline_gives_the_same_sigmoids_where_its_head_has_a_bias(offset, bert_folder, tmp_path):
    classifier = several(bert_folder, pooling="first", offset=offset)
    write_classifier(tmp_path, classifier, recipe=RECIPE)
    wanted = Scorer(classifier).probabilities(TEXTS)[0]
    np.testing.assert_allclose(reload(tmp_path).predict_proba(TEXTS), wanted, atol=1e-6)
    np.testing.assert_allclose(hugging_face(tmp_path, TEXTS, batch_size=3), wanted, atol=1e-5)
    assert json.loads((tmp_path / "config.json").read_text())["problem_type"] == "multi_label_classification"


@pytest.mark.parametrize(("family", "pooling"), [("llama", "last"), ("bert", "mean")])
def test_several_labels_keep_their_bias_and_thresholds(family, pooling, make_folder, tmp_path):
    """A Llama's head has no bias in transformers, and so its pipeline refuses."""
    classifier = several(make_folder(family), pooling=pooling, offset=(0.5, 0.0, -0.5))
    write_classifier(tmp_path, classifier, recipe=RECIPE)
    loaded = reload(tmp_path)
    np.testing.assert_allclose(loaded.predict_proba(TEXTS), Scorer(classifier).probabilities(TEXTS)[0], atol=1e-6)
    assert loaded.engine.thresholds.tolist() == [0.2, 0.5, 0.6]
    assert loaded.multi_label
    assert not (tmp_path / "config.json").exists()


def test_a_tokenizer_that_ends_each_text_with_its_pad_token_is_not_left_to_hugging_face(
    make_folder, make_tokenizer, tmp_path
):
    """Qwen3-Embedding's does: transformers pools at the last id that is not the pad id, one too early."""
    classifier = untrained(make_folder("llama", tokenizer=make_tokenizer(appended="<|im_end|>")))
    write_classifier(tmp_path, classifier, recipe=RECIPE)
    assert not json.loads((tmp_path / "tagsmith.json").read_text())["hugging_face"]
    np.testing.assert_allclose(
        reload(tmp_path).predict_proba(TEXTS), Scorer(classifier).probabilities(TEXTS)[0], atol=1e-6
    )


def test_a_tokenizer_that_ends_each_text_with_another_token_is_left_to_hugging_face(
    make_folder, make_tokenizer, tmp_path
):
    classifier = untrained(make_folder("llama", tokenizer=make_tokenizer(appended="<|im_start|>")))
    write_classifier(tmp_path, classifier, recipe=RECIPE)
    probs = hugging_face(tmp_path, TEXTS, batch_size=6)
    np.testing.assert_allclose(probs, Scorer(classifier).probabilities(TEXTS)[0], atol=1e-4)


def test_a_cut_backbone_is_saved_cut(make_folder, tmp_path):
    folder = make_folder("qwen3")
    config = ModelConfig(max_tokens=48)
    classifier = assemble(
        load_backbone(folder, layers=2), Encoder.from_folder(folder, max_tokens=48), config, labels=NAMES, seed=0
    )
    write_classifier(tmp_path, classifier.eval().requires_grad_(False), recipe=RECIPE)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["num_hidden_layers"] == 2 == len(saved["layer_types"])
    np.testing.assert_allclose(hugging_face(tmp_path, TEXTS), Scorer(classifier).probabilities(TEXTS)[0], atol=1e-4)


def test_weights_that_bf16_holds_exactly_are_saved_in_bf16_and_answer_in_fp32(make_folder, tmp_path):
    from safetensors.torch import load_file

    classifier = untrained(make_folder("llama"))
    for weight in classifier.backbone.blocks[0].parameters():
        weight.copy_(weight.bfloat16().float())
    write_classifier(tmp_path, classifier, recipe=RECIPE)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved["model.layers.0.mlp.up_proj.weight"].dtype is torch.bfloat16
    assert saved["model.layers.1.mlp.up_proj.weight"].dtype is torch.float32
    wanted = Scorer(classifier).probabilities(TEXTS)[0]
    np.testing.assert_allclose(reload(tmp_path).predict_proba(TEXTS), wanted, atol=1e-6)
    np.testing.assert_allclose(hugging_face(tmp_path, TEXTS), wanted, atol=1e-4)


def test_the_logits_of_the_probes_are_found_again(llama_bundle):
    bundle = load(llama_bundle)
    lines = [json.loads(line) for line in (llama_bundle / "probe.jsonl").read_text().splitlines()]
    assert tuple(line["text"] for line in lines) == PROBES
    np.testing.assert_allclose(
        bundle.engine.logits_of(bundle.engine.encode(PROBES)), [line["logits"] for line in lines], atol=1e-5
    )


def test_probes_are_written_by_the_engine_that_answers(written):
    _, folder = written("bert mean")
    bundle = reload(folder)
    write_probes(folder, bundle.engine)
    logits = [json.loads(line)["logits"] for line in (folder / "probe.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(bundle.engine.logits_of(bundle.engine.encode(PROBES)), logits, atol=1e-6)


def test_saved_baselines_are_the_fitted_ones(tmp_path, make_rows):
    texts, labels = zip(*make_rows(80), strict=True)
    truth = Labels.of(labels).encode(labels)
    lexical = fit_lexical(texts, truth, np.arange(80), classes=2, seed=0)
    write_baselines(tmp_path, lexical, [0.25, 0.75])
    found = read_baselines(tmp_path).probabilities(TEXTS)
    np.testing.assert_array_equal(found["tfidf"], lexical.probabilities(TEXTS))
    np.testing.assert_array_equal(found["majority"], [[0.25, 0.75]] * len(TEXTS))


def test_answers_say_what_they_know(llama_bundle):
    bundle = load(llama_bundle)
    first, empty, long = bundle.answer(["lovely room", " ", "1 " * 100])
    assert first.label in bundle.labels
    assert first.probability == max(first.probabilities)
    assert sum(first.probabilities) == pytest.approx(1)
    assert (empty.label, empty.probability, empty.probabilities, empty.reason) == (None, None, (), "empty")
    assert long.truncated
    assert not first.truncated
    assert bundle.predict(["lovely room", " "]) == [first.label, None]


def test_one_label_cannot_be_confused_with_its_neighbour(llama_bundle):
    """The columns of `predict_proba` stand in the order of `labels`; the toy task is learnt well enough to see it."""
    bundle = load(llama_bundle)
    assert bundle.labels == ("complaint", "praise")
    probs = bundle.predict_proba(["lovely great superb room", "awful broken rude room"])
    assert probs[0, 1] > probs[1, 1]


def test_loading_runs_no_code_and_needs_no_pickle(llama_bundle, bert_bundle):
    for folder in (llama_bundle, bert_bundle):
        kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
        assert kinds <= {".json", ".safetensors", ".jsonl", ".html", ".md"}


def test_a_bundle_works_wherever_it_is_copied(llama_bundle, tmp_path):
    shutil.copytree(llama_bundle, tmp_path / "a copy")
    np.testing.assert_array_equal(
        load(tmp_path / "a copy").predict_proba(TEXTS), load(llama_bundle).predict_proba(TEXTS)
    )
