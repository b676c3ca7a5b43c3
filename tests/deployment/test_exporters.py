import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tagsmith.config import ModelConfig
from tagsmith.deployment import choosing, exporters
from tagsmith.deployment.baselines import write_baselines
from tagsmith.deployment.bundle import load
from tagsmith.deployment.engine import open_engine
from tagsmith.deployment.exporters import export
from tagsmith.deployment.manifest import staging, verify
from tagsmith.deployment.saving import write_probes
from tagsmith.deployment.torch_engine import reload
from tagsmith.deployment.weights import write_classifier
from tagsmith.errors import BundleError, DataError, SettingError
from tagsmith.labels import Labels
from tagsmith.model.calibration import Calibration
from tagsmith.model.classifier import build
from tagsmith.model.lexical_fitting import fit_lexical

TEXTS = ["lovely room", "", "the waiter was rude " * 20, "Größe 12 😀", "q", "the <|im_end|> end", "bread " * 9]
ANSWERABLE = [text for text in TEXTS if text]


def probabilities(engine, texts=ANSWERABLE):
    return engine.probabilities_of(engine.logits_of(engine.encode(texts)))


@pytest.fixture(scope="module")
def onnx_bundle(llama_bundle, tmp_path_factory):
    return export(llama_bundle, to="onnx", out=tmp_path_factory.mktemp("onnx") / "bundle")


@pytest.fixture(scope="module")
def openvino_bundle(bert_bundle, tmp_path_factory):
    return export(bert_bundle, to="openvino", out=tmp_path_factory.mktemp("openvino") / "bundle")


@pytest.fixture(scope="module")
def tfidf_bundle(llama_bundle, tmp_path_factory):
    return export(llama_bundle, to="tfidf", out=tmp_path_factory.mktemp("tfidf") / "bundle").folder


def test_onnx_runtime_answers_as_torch_does(onnx_bundle, llama_bundle):
    ours, theirs = open_engine(llama_bundle, "torch-fp32"), open_engine(onnx_bundle.folder, "onnxruntime")
    assert [a.label for a in theirs.answer(TEXTS)] == [a.label for a in ours.answer(TEXTS)]
    assert [a.truncated for a in theirs.answer(TEXTS)] == [a.truncated for a in ours.answer(TEXTS)]
    np.testing.assert_allclose(probabilities(theirs), probabilities(ours), atol=1e-4)
    assert np.isnan(theirs.logits_of(theirs.encode([""]))).all()


def test_openvino_answers_as_torch_does_in_fp32_unless_bf16_is_asked_for(openvino_bundle, bert_bundle):
    ours, theirs = open_engine(bert_bundle, "torch-fp32"), open_engine(openvino_bundle.folder, "openvino")
    np.testing.assert_allclose(probabilities(theirs), probabilities(ours), atol=1e-4)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_neighbours_change_nothing_in_an_export(kind, onnx_bundle, openvino_bundle):
    folder, name = (onnx_bundle.folder, "onnxruntime") if kind == "onnx" else (openvino_bundle.folder, "openvino")
    engine = open_engine(folder, name)
    alone = np.concatenate([probabilities(engine, [text]) for text in ANSWERABLE])
    np.testing.assert_allclose(probabilities(engine, ANSWERABLE[::-1] * 3)[: len(alone)][::-1], alone, atol=1e-5)


def test_an_export_is_a_new_whole_bundle_and_the_old_one_stays(onnx_bundle, llama_bundle):
    verify(onnx_bundle.folder)
    verify(llama_bundle)
    assert not (llama_bundle / "onnx").exists()
    assert not (onnx_bundle.folder / "report.html").exists(), "it holds texts of rows"
    assert load(onnx_bundle.folder).predict(ANSWERABLE) == load(llama_bundle).predict(ANSWERABLE)


def test_an_export_carries_its_parity_report(onnx_bundle):
    found = onnx_bundle.parity["onnxruntime"]
    noted = json.loads((onnx_bundle.folder / "tagsmith.json").read_text())["engines"]["onnxruntime"]
    assert noted["passed"]
    assert noted["agreement"] == found.agreement == 1.0
    assert noted["largest_difference"] < 1e-4
    assert 0.5 < noted["agreement_low"] < 1
    assert noted["macro_f1"] == noted["macro_f1_reference"]
    assert noted["rows_per_second"] > 0
    assert re.search(r"held-out rows of '.*reviews\.csv'", noted["rows"])
    assert "onnxruntime beside torch-fp32" in (onnx_bundle.folder / "README.md").read_text()


def test_rows_of_an_export_are_held_out_ones(onnx_bundle, llama_bundle):
    splits = json.loads((llama_bundle / "report.json").read_text())["data"]["splits"]
    held_out = splits["validation"] + splits["calibration"]
    assert held_out - 12 <= onnx_bundle.parity["onnxruntime"].n <= held_out, "twelve rows stand there twice"


def test_without_its_source_fp32_is_compared_on_made_texts_and_fewer_bits_are_refused(
    llama_bundle, tmp_path, monkeypatch
):
    folder = without_source(llama_bundle, tmp_path / "no-source")
    with pytest.raises(SettingError, match=r"torch-bf16 is refused.* texts made of words.*give labelled rows"):
        export(folder, to="torch-bf16", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def without_source(bundle, folder):
    shutil.copytree(bundle, folder)
    (folder / "MANIFEST.json").unlink()
    settings = json.loads((folder / "tagsmith.json").read_text())
    settings["data"]["source"] = str(folder / "gone.csv")
    settings.pop("engines", None)
    with staging(folder.with_name("aside"), force=True) as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True)
        (aside / "tagsmith.json").write_text(json.dumps(settings))
    return folder.with_name("aside")


def test_rows_that_were_tested_or_trained_on_are_refused(llama_bundle, toy_csv, tmp_path, save_csv):
    from tagsmith.data.earlier import Earlier
    from tagsmith.data.readers import read

    table = read(toy_csv)
    parts = Earlier.read(llama_bundle).parts_of(table)
    used = [
        (row["text"], row["label"]) for row, part in zip(table.frame.to_dicts(), parts, strict=True) if part in (0, 3)
    ]
    rows = save_csv(tmp_path / "used.csv", used)
    with pytest.raises(DataError, match="each of them was trained or tested on"):
        export(llama_bundle, to="torch-bf16", out=tmp_path / "out", rows=str(rows))


def test_a_refused_export_leaves_nothing_behind(llama_bundle, tmp_path, monkeypatch):
    refused = exporters.Target(exporters._fill_nothing, {"torch-bf16": lambda found: ["it is Tuesday"]})
    monkeypatch.setitem(exporters.TARGETS, "torch-bf16", refused)
    with pytest.raises(SettingError, match="refused: it is Tuesday"):
        export(llama_bundle, to="torch-bf16", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_target_is_refused(llama_bundle, tmp_path):
    with pytest.raises(SettingError, match="Unknown target 'coreml'.*onnx, onnx-int8"):
        export(llama_bundle, to="coreml", out=tmp_path / "out")


def test_an_altered_bundle_is_not_exported(llama_bundle, tmp_path):
    folder = shutil.copytree(llama_bundle, tmp_path / "altered")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        export(folder, to="tfidf", out=tmp_path / "out")


def test_an_altered_graph_is_never_loaded(onnx_bundle, tmp_path):
    folder = shutil.copytree(onnx_bundle.folder, tmp_path / "altered")
    graph = bytearray((folder / "onnx" / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (folder / "onnx" / "model.onnx").write_bytes(graph)
    with pytest.raises(BundleError, match=r"onnx/model\.onnx"):
        open_engine(folder, "onnxruntime")


# ---- TF-IDF


def test_the_baseline_becomes_a_bundle_of_its_own(tfidf_bundle, llama_bundle):
    engine, beside = open_engine(tfidf_bundle), open_engine(llama_bundle, "tfidf")
    assert engine.name == "tfidf"
    np.testing.assert_array_equal(probabilities(engine), probabilities(beside))
    report, whole = (json.loads((folder / "report.json").read_text()) for folder in (tfidf_bundle, llama_bundle))
    assert report["test"] == whole["baselines"]["tfidf"]
    assert sum(path.stat().st_size for path in tfidf_bundle.rglob("*")) < 2e6
    assert not list(tfidf_bundle.rglob("model.safetensors"))


def test_a_tfidf_bundle_predicts_scores_and_reports(tfidf_bundle, toy_csv, tmp_path):
    from typer.testing import CliRunner

    from tagsmith.cli import app

    runner = CliRunner()
    done = runner.invoke(app, ["predict", str(tfidf_bundle), "lovely superb room"])
    assert done.stdout.startswith("praise\t")
    assert runner.invoke(app, ["report", str(tfidf_bundle)]).exit_code == 0
    assert runner.invoke(app, ["evaluate", str(tfidf_bundle), str(toy_csv)]).exit_code == 0


def test_a_tfidf_bundle_has_no_other_engine_and_no_export(tfidf_bundle, tmp_path):
    with pytest.raises(SettingError, match="answers by TF-IDF and has no other weights"):
        open_engine(tfidf_bundle, "torch-fp32")
    with pytest.raises(SettingError, match="needs no export"):
        export(tfidf_bundle, to="onnx", out=tmp_path / "out")


# ---- Hugging Face


def test_hugging_faces_pipeline_loads_what_hf_writes(llama_bundle, tmp_path):
    done = export(llama_bundle, to="hf", out=tmp_path / "hf")
    assert sorted(path.name for path in done.folder.iterdir()) == [
        *("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    ]
    assert done.parity["transformers.pipeline"].largest_difference < 1e-4


def test_what_hugging_face_cannot_express_is_an_error_that_says_why(bert_bundle, tmp_path):
    with pytest.raises(SettingError, match="it pools by 'mean'"):
        export(bert_bundle, to="hf", out=tmp_path / "hf")


# ---- where nothing heavy is installed

BLOCKED = """
import sys

for name in ("torch", "transformers", "sklearn", "scipy", "polars", "onnx"):
    sys.modules[name] = None  # as where it is not installed
from tagsmith.deployment.engine import open_engine
engine = open_engine(sys.argv[1], sys.argv[2])
print([answer.label for answer in engine.answer(sys.argv[3:])])
"""


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_export_answers_without_torch(kind, onnx_bundle, openvino_bundle, llama_bundle, bert_bundle):
    exported, name, whole = {
        "onnx": (onnx_bundle.folder, "onnxruntime", llama_bundle),
        "openvino": (openvino_bundle.folder, "openvino", bert_bundle),
    }[kind]
    command = [sys.executable, "-c", BLOCKED, str(exported), name, *ANSWERABLE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(load(whole).predict(ANSWERABLE)), done.stderr


# ---- every recipe is expressed

VARIANTS = {
    "llama offset": ("llama", {}, {"calibration": Calibration(0.6, (0.5, 0.0, -0.5))}),
    "llama mean": ("llama", {"pooling": "mean"}, {}),
    "llama both ways": ("llama", {"pooling": "mean", "causal_mask": False}, {}),
    "llama mlp": ("llama", {"head": "mlp"}, {}),
    "llama windows": ("llama", {"long_texts": "windows", "max_tokens": 16}, {}),
    "llama head and tail": ("llama", {"long_texts": "head_tail", "max_tokens": 16}, {}),
    "bert first": ("bert", {"pooling": "first"}, {}),
    **{family: (family, {}, {}) for family in ("gpt2", "mistral", "qwen2", "qwen3", "gemma", "gemma2")},
    **{family: (family, {}, {}) for family in ("gemma3_text", "roberta", "modernbert")},
}


def bundle_of(folder, model_folder, *, model, labels, calibration=None, thresholds=None):
    import torch

    config = ModelConfig(**({"max_tokens": 48} | model))
    classifier = build(model_folder, config, labels=labels, layers=None, seed=0).eval().requires_grad_(False)
    torch.nn.init.normal_(classifier.head.score.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    classifier.calibration = calibration or Calibration(multi_label=labels.multi_label)
    if thresholds is not None:
        classifier.thresholds = thresholds
    recipe = {"config": {"data": {"text": None}}, "data": {}, "cleaning": []}
    with staging(folder, force=False) as aside:
        write_classifier(aside, classifier, recipe=recipe)
        lexical = fit_lexical(["a b", "b c", "c a"] * 3, np.arange(9) % 3, np.arange(9), classes=3, seed=0)
        write_baselines(aside, lexical, [0.3, 0.3, 0.4])
        write_probes(aside, reload(aside).engine)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_recipe_and_family_is_exported_exactly(variant, to, make_folder, tmp_path):
    family, model, options = VARIANTS[variant]
    labels = Labels.of(["complaint", "neither", "praise"])
    folder = bundle_of(tmp_path / "bundle", make_folder(family), model=model, labels=labels, **options)
    exported = export(folder, to=to, out=tmp_path / "out").folder
    ours = open_engine(folder, "torch-fp32")
    theirs = open_engine(exported, {"onnx": "onnxruntime", "openvino": "openvino"}[to])
    np.testing.assert_allclose(probabilities(theirs), probabilities(ours), atol=1e-4)


@pytest.mark.slow
def test_thresholds_of_several_labels_are_exported(make_folder, tmp_path):
    labels = Labels(("complaint", "neither", "praise"), multi_label=True)
    folder = bundle_of(
        tmp_path / "bundle",
        make_folder("bert"),
        model={},
        labels=labels,
        calibration=Calibration(1.7, None, multi_label=True),
        thresholds=np.array([0.2, 0.5, 0.6]),
    )
    exported = export(folder, to="onnx", out=tmp_path / "out").folder
    ours, theirs = open_engine(folder, "torch-fp32"), open_engine(exported, "onnxruntime")
    assert [answer.labels for answer in theirs.answer(TEXTS)] == [answer.labels for answer in ours.answer(TEXTS)]


@pytest.mark.slow
def test_int8_is_refused_where_it_is_too_far_off_and_its_numbers_are_told(llama_bundle, tmp_path):
    with pytest.raises(SettingError, match=r"onnx-int8 is refused: .*% of the answers on \d+ rows agree"):
        export(llama_bundle, to="onnx-int8", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ---- which engine answers


@pytest.mark.parametrize("fastest", ["torch-fp32", "onnxruntime"])
def test_auto_takes_the_fastest_of_those_that_may_answer(fastest, onnx_bundle, monkeypatch):
    asked = []

    def seconds(engine, texts):
        asked.append(engine.name)
        return 1.0 if engine.name == fastest else 2.0

    monkeypatch.setattr(choosing, "_seconds", seconds)
    assert open_engine(onnx_bundle.folder, "auto").name == fastest
    assert {"torch-fp32", "onnxruntime"} <= set(asked) <= {"torch-fp32", "onnxruntime", "torch-bf16"}


def test_measuring_takes_time_and_texts_that_differ(onnx_bundle):
    engine = open_engine(onnx_bundle.folder, "onnxruntime")
    texts = choosing._probe_texts(onnx_bundle.folder)
    assert len(set(texts)) == len(texts) == 32
    assert choosing._seconds(engine, texts) > 0


def test_without_torch_the_reference_is_the_next_engine_in_fp32(onnx_bundle):
    code = BLOCKED.replace("print([", "print(engine.name, [")
    for name in ("reference", "auto"):
        command = [sys.executable, "-c", code, str(onnx_bundle.folder), name, "a lovely room"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout.startswith("onnxruntime "), done.stderr


def test_what_keeps_an_engine_from_answering_is_told(onnx_bundle, llama_bundle, monkeypatch):
    def why(name, folder=onnx_bundle.folder, device="cpu", **gates):
        settings = json.loads((folder / "tagsmith.json").read_text())
        return choosing.why_not(name, folder, {**settings, "engines": gates}, device)

    assert why("onnxruntime") == why("torch-fp32") == why("tfidf") == ""
    assert (
        why("onnxruntime", llama_bundle) == "the bundle lacks onnx/model.onnx; write one with tagsmith export --to onnx"
    )
    assert "the bundle lacks openvino/model.xml" in why("openvino-bf16")
    assert "the CPU alone, and 'cuda' was asked for" in why("onnxruntime", device="cuda")
    assert "no gate was passed for it" in why("torch-bf16")
    refused = {"torch-bf16": {"passed": False, "refused": ["it is Tuesday"]}}
    assert why("torch-bf16", **refused) == "it did not pass its gate: it is Tuesday"
    monkeypatch.setattr(choosing, "has_bf16", lambda: False)
    assert why("torch-bf16", **{"torch-bf16": {"passed": True}}) == "this processor has no bf16"


def test_what_was_proven_of_silence_in_fp32_keeps_fewer_bits_out_until_an_export_compared_all(
    llama_bundle, monkeypatch
):
    monkeypatch.setattr(choosing, "has_bf16", lambda: True)
    settings = json.loads((llama_bundle / "tagsmith.json").read_text())
    settings["abstention"] = {"sureties": [0.5, 0.5, 0.5], "certificate": {}, "engine": "torch-fp32"}

    def why(**gate):
        return choosing.why_not("torch-bf16", llama_bundle, {**settings, "engines": {"torch-bf16": gate}})

    assert re.search("was proven for torch-fp32; an export compares both", why(passed=True))
    assert why(passed=True, keeps_silence=True) == ""
    assert choosing.why_not("torch-fp32", llama_bundle, settings) == ""


def test_a_proof_holds_for_fewer_bits_where_every_calibration_row_is_answered_as_before(onnx_bundle):
    alike = onnx_bundle.parity["onnxruntime"]
    about = {"abstention": {"sureties": [0.5, 0.5, 0.5]}}
    assert exporters._unproven("torch-bf16", about, alike, None) == []
    assert exporters._unproven("torch-bf16", {}, replace(alike, agreement=0.5), None) == []
    assert exporters._unproven("onnxruntime", about, replace(alike, agreement=0.5), None) == []
    one_off = replace(alike, agreement=1 - 1 / alike.n)
    assert exporters._unproven("torch-bf16", about, one_off, None) == [
        f"its silence was proven for answers in fp32, and 1 of {alike.n} rows differ"
    ]
    assert "leave --rows out" in exporters._unproven("torch-bf16", about, alike, "other.csv")[0]


def test_an_engine_that_may_not_answer_is_refused_by_name(llama_bundle):
    with pytest.raises(SettingError, match=r"The engine 'openvino' cannot answer for .*lacks openvino/model\.xml"):
        open_engine(llama_bundle, "openvino")


def test_a_saved_bundle_knows_whether_bf16_may_answer(llama_bundle):
    gate = json.loads((llama_bundle / "tagsmith.json").read_text()).get("engines", {}).get("torch-bf16")
    if not choosing.has_bf16():
        assert gate is None
        return
    assert gate["passed"] == (gate["agreement"] == 1.0 and gate["n"] >= 32)
    if gate["passed"]:
        ours, theirs = (open_engine(llama_bundle, name) for name in ("torch-fp32", "torch-bf16"))
        np.testing.assert_allclose(probabilities(theirs), probabilities(ours), atol=0.2)
