import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tagsmith import cli, plugins
from tagsmith.config import Config, load_settings

VERBS = ["train", "check", "predict", "evaluate", "report", "init", "assets", "plugins"]


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(*words, stdin="")`: the whole command line in this process; gives exit code, stdout and stderr."""

    def call(*words, stdin=""):
        monkeypatch.setattr(sys, "argv", ["tagsmith", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def options(tiny_folder):
    """Options of a run that takes a second on a tiny backbone."""
    chosen = {
        "model.backbone": tiny_folder,
        "model.layers": "all",
        "model.max_tokens": 48,
        "tuning.epochs": 1,
        "tuning.precision": "fp32",
        "evaluation.resamples": 200,
    }
    assigned = [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]
    return ["--preset", "fixed", *assigned]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- Bad input: exit code 3, one paragraph, no traceback, nothing touched

TABLES = {
    "a missing file": (None, "absent.csv"),
    "one label only": (b"text,label\nlovely,a\nrude,a\nfine,a\n", "label"),
    "fewer than two rows of a label": (b"text,label\n" + b"lovely room,a\nrude bath,a\n" * 9 + b"odd,b\n", "'b'"),
    "texts that are all empty": (b"text,label\n" + b",a\n,b\n" * 9, "has a text"),
    "a file of binary data": (bytes(range(256)) * 40, "in.csv"),
    "an empty file": (b"", "in.csv"),
    "a header alone": (b"text,label\n", ""),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(500), "in.csv"),
    "a zip without a table": ("zip", "in"),
}


@pytest.mark.parametrize("what", TABLES)
def test_a_table_that_cannot_be_used_is_explained_in_one_paragraph(what, run, here, options):
    content, told = TABLES[what]
    source = here / ("in.zip" if content == "zip" else "absent.csv" if content is None else "in.csv")
    if content == "zip":
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("picture.png", b"no table")
    elif content is not None:
        source.write_bytes(content)
    before = everything(here)
    code, out, err = run("train", source.name, *options)
    assert (code, out) == (3, "")
    assert_one_paragraph(err)
    assert told in err
    assert everything(here) == before


def assert_one_paragraph(err):
    said = err[err.index("tagsmith: ") :]
    assert "Traceback" not in err
    assert len([line for line in said.splitlines() if line.strip()]) == 1, err
    assert said.rstrip().endswith((".", "?", "!")) or "tagsmith assets" in said, said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "data.text=nope"], "No column 'nope'"),
        (["--set", "data.txt=a"], "Did you mean 'data.text'?"),
        (["--set", "tuning.epoch=3"], "Did you mean 'tuning.epochs'?"),
        (["--set", "epochs=3"], "epochs"),
        (["--set", "tuning.epochs=0"], "tuning.epochs"),
        (["--set", "tuning.epochs=many"], "tuning.epochs"),
        (["--set", "model.layers=some"], "model.layers"),
        (["--set", "no equals sign"], "section.key=value"),
        (["--preset", "bok"], "Did you mean 'book'?"),
        (["--config", "absent.toml"], "No settings file at 'absent.toml'"),
        (["--set", "model.layers=9"], "has 3 blocks"),
        (["--set", "tuning.blocks=9"], "tuning.blocks is 9"),
        (["--set", "model.pooling=first"], "model.pooling cannot be 'first'"),
        (["--set", "model.max_tokens=500"], "only 128 positions"),
        (["--backbone", "./nowhere"], "nowhere"),
        (["--test", "absent.csv"], "absent.csv"),
        (["--track", "tensorbord"], "Did you mean 'tensorboard'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_setting_that_cannot_be_used_is_explained_in_one_paragraph(words, told, run, here, options, toy_csv):
    code, out, err = run("train", toy_csv, *options, *words)
    assert (code, out) == (3, "")
    assert_one_paragraph(err)
    assert told in err
    assert list(here.iterdir()) == []


def test_an_existing_out_is_refused_and_untouched(run, here, options, toy_csv):
    (here / "mine").mkdir()
    (here / "mine" / "precious.txt").write_text("mine")
    code, out, err = run("train", toy_csv, *options, "--out", "mine")
    assert (code, out) == (3, "")
    assert_one_paragraph(err)
    assert everything(here) == {Path("mine/precious.txt"): b"mine"}


def test_without_network_and_cache_the_default_backbone_is_explained(run, here, toy_csv, monkeypatch):
    monkeypatch.setenv("TAGSMITH_OFFLINE", "1")
    monkeypatch.setenv("TAGSMITH_CACHE", str(here / "cache"))
    code, out, err = run("train", toy_csv)
    assert (code, out) == (3, "")
    assert_one_paragraph(err)
    assert "smollm2-135m-instruct-q4" in err
    assert "TAGSMITH_OFFLINE" in err
    assert not list(here.glob("*-tagsmith*"))


@pytest.mark.parametrize("verb", [["predict", "b", "a text"], ["evaluate", "b", "x.csv"], ["report", "b"]])
def test_an_altered_bundle_is_refused_and_the_file_named(verb, run, here, llama_bundle):
    shutil.copytree(llama_bundle, here / "b")
    (here / "b" / "tagsmith.json").write_text("{}")
    code, out, err = run(*verb)
    assert (code, out) == (3, "")
    assert_one_paragraph(err)
    assert "tagsmith.json" in err


def test_labels_that_training_did_not_see_are_refused(run, here, llama_bundle, save_csv):
    save_csv(here / "new.csv", [("lovely", "blame"), ("rude", "complaint"), ("bright", "blame")])
    code, out, err = run("evaluate", llama_bundle, "new.csv")
    assert (code, out) == (3, "")
    assert_one_paragraph(err)


# ---- A check


def test_a_check_shows_a_table_and_writes_nothing(run, here, toy_csv):
    code, out, err = run("check", toy_csv)
    assert code == 0
    assert "Labels (2)" in out
    assert "Findings" in out
    assert "Traceback" not in err
    assert list(here.iterdir()) == []


def test_a_check_as_json_is_plain_data(run, here, toy_csv, bert_folder):
    code, out, _ = run("check", toy_csv, "--json", "--against", toy_csv, "--backbone", bert_folder)
    found = json.loads(out)
    assert code == 0
    assert (found["source"], found["against"], found["leak"]["near"]) == (str(toy_csv), str(toy_csv), 240)
    assert found["tokens"]["unknown"] == 0.0
    assert found["tokens"]["max_tokens"] == 256


def test_a_page_of_a_check_is_not_written_over_another_unasked(run, here, toy_csv):
    assert run("check", toy_csv, "--html", "check.html")[:2] == (0, "check.html\n")
    before = everything(here)
    code, out, err = run("check", toy_csv, "--html", "check.html")
    assert (code, out) == (3, "")
    assert_one_paragraph(err)
    assert everything(here) == before
    assert run("check", toy_csv, "--html", "check.html", "--force")[0] == 0


def test_texts_without_labels_are_checked_and_that_is_said(run, here):
    Path("texts.csv").write_text("text\nthe room was lovely\nthe waiter was rude\n", encoding="utf-8")
    code, out, _ = run("check", "texts.csv")
    assert code == 0
    assert "ERROR: Only the texts were looked at" in out


@pytest.mark.parametrize("words", [["absent.csv"], ["in.csv", "--set", "data.label=nope"], ["in.csv", "--query", "q"]])
def test_what_cannot_be_checked_is_explained_in_one_paragraph(words, run, here):
    Path("in.csv").write_text("text,label\nlovely room,a\nrude bath,b\n", encoding="utf-8")
    code, out, err = run("check", *words)
    assert (code, out) == (3, "")
    assert_one_paragraph(err)


def test_a_check_needs_no_deep_learning_library(here, toy_csv):
    program = (
        "import sys; sys.argv = ['tagsmith', 'check', sys.argv[1]]\nfrom tagsmith.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'transformers', 'sklearn', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, toy_csv], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


# ---- Usage


@pytest.mark.parametrize(
    "words",
    [
        ["train"],
        ["trian", "x.csv"],
        ["train", "x.csv", "--nope"],
        ["train", "x.csv", "--seed", "-1"],
        ["predict"],
        ["predict", "b"],
        ["predict", "b", "--file", "x.csv"],
        ["predict", "b", "a text", "--file", "x.csv", "--out", "y.csv"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(words, run, here):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "Usage" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, run):
    code, out, err = run(verb, "--help")
    assert code == 0
    assert f"tagsmith {verb}" in out or "Usage" in out
    assert err == ""


def test_the_help_names_every_verb(run):
    _, out, _ = run("--help")
    assert [verb for verb in VERBS if f"  {verb} " not in out] == []


# ---- Train and the rest


def test_train_says_the_folder_on_stdout_and_nothing_else(run, here, options, toy_csv):
    code, out, err = run("train", toy_csv, *options)
    assert (code, out) == (0, "reviews-tagsmith\n")
    assert "On 48 test rows" in err
    assert (here / "reviews-tagsmith" / "MANIFEST.json").is_file()
    assert [path.name for path in here.iterdir()] == ["reviews-tagsmith"]


def test_a_run_is_tracked_beside_its_bundle_or_where_it_is_asked_for(run, here, options, toy_csv):
    code, out, err = run("train", toy_csv, *options, "--out", "b", "--track", "jsonl", "--track", "jsonl=mine.jsonl")
    assert (code, out) == (0, "b\n")
    assert "tracked by jsonl: mine.jsonl" in err
    mine, beside = (
        Path(name).read_text(encoding="utf-8").splitlines() for name in ("mine.jsonl", "b.log/events.jsonl")
    )
    assert mine == beside
    assert json.loads(mine[0])["name"] == "settings"
    assert json.loads(mine[-1])["name"] == "done"
    assert sorted(path.name for path in here.iterdir()) == ["b", "b.log", "mine.jsonl"]


def test_plugins_lists_trackers_and_what_they_lack(run, monkeypatch):
    monkeypatch.setitem(plugins._LIBRARIES, "wandb", ("no_such_library", "wandb"))
    code, out, _ = run("plugins")
    lines = {line.split("\t")[1]: line.split("\t") for line in out.splitlines()}
    assert code == 0
    assert lines["jsonl"] == ["tracker", "jsonl", "tagsmith", "here", "tagsmith.trackers:json_lines"]
    assert lines["wandb"][3] == 'pip install "tagsmith[wandb]"'


def test_seed_backbone_and_force_are_heard(run, here, options, toy_csv, gpt2_folder):
    (here / "b").mkdir()
    code, out, _ = run("train", toy_csv, *options, "--out", "b", "--force", "--seed", "5", "--backbone", gpt2_folder)
    assert (code, out) == (0, "b\n")
    settings = json.loads((here / "b" / "tagsmith.json").read_text())
    assert settings["config"]["seed"] == 5
    assert settings["config"]["model"]["backbone"] == str(gpt2_folder)


def test_the_command_of_a_report_runs(run, here, options, toy_csv):
    import shlex

    assert run("train", toy_csv, *options, "--out", "first")[0] == 0
    first = json.loads((here / "first" / "report.json").read_text())
    words = shlex.split(first["reproduce"])
    assert run(*words[1:], "--out", "second")[0] == 0
    assert (here / "second" / "report.json").read_bytes() == (here / "first" / "report.json").read_bytes()


def test_predict_answers_texts_in_order(run, llama_bundle):
    code, out, _ = run("predict", llama_bundle, "lovely room", "", "two\nlines\tand a tab")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split("\t")[2] == "lovely room"
    assert lines[1].startswith("-\t-\t")
    assert "empty" in lines[1]
    assert lines[2].split("\t")[2] == "two lines and a tab"
    assert {line.split("\t")[0] for line in (lines[0], lines[2])} <= {"complaint", "praise"}


def test_predict_reads_lines_from_standard_input(run, llama_bundle):
    code, out, _ = run("predict", llama_bundle, "-", stdin="lovely room\r\nrude waiter\n")
    assert code == 0
    assert [line.split("\t")[2] for line in out.splitlines()] == ["lovely room", "rude waiter"]


def test_predict_gives_json_with_all_probabilities(run, llama_bundle):
    from tagsmith.deployment.bundle import load

    code, out, _ = run("predict", llama_bundle, "--json", "lovely room", " ")
    first, empty = map(json.loads, out.splitlines())
    assert code == 0
    assert first["text"] == "lovely room"
    wanted = load(llama_bundle).predict_proba(["lovely room"])[0]
    assert list(first["probabilities"].values()) == pytest.approx(wanted.tolist(), abs=1e-5)
    assert (empty["label"], empty["probabilities"], empty["reason"]) == (None, {}, "empty")


def test_predict_labels_the_rows_of_a_file(run, here, llama_bundle, toy_csv):
    code, out, err = run("predict", llama_bundle, "--file", toy_csv, "--out", "labelled.csv")
    assert (code, out) == (0, "labelled.csv\n")
    assert "240 rows labelled" in err
    assert (here / "labelled.csv").read_text().splitlines()[0].startswith("text,label,predicted_label")
    before = everything(here)
    code, out, err = run("predict", llama_bundle, "--file", toy_csv, "--out", "labelled.csv")
    assert (code, out) == (3, "")
    assert_one_paragraph(err)
    assert everything(here) == before


def test_evaluate_prints_the_scores_or_the_whole_report(run, llama_bundle, toy_csv):
    code, out, _ = run("evaluate", llama_bundle, toy_csv)
    assert code == 0
    assert "On 240 test rows" in out
    code, out, _ = run("evaluate", llama_bundle, toy_csv, "--json")
    assert code == 0
    assert json.loads(out)["test"]["n"] == 240


def test_report_prints_the_scores_and_the_page(run, llama_bundle):
    code, out, _ = run("report", llama_bundle)
    assert code == 0
    assert "On 48 test rows" in out
    assert out.splitlines()[-1] == str(llama_bundle / "report.html")


def test_init_writes_the_defaults_and_overwrites_nothing(run, here):
    assert run("init")[:2] == (0, "tagsmith.toml\n")
    assert Config.of(load_settings(here / "tagsmith.toml")) == Config()
    (here / "tagsmith.toml").write_text("seed = 5")
    code, out, err = run("init")
    assert (code, out) == (3, "")
    assert_one_paragraph(err)
    assert (here / "tagsmith.toml").read_text() == "seed = 5"
    assert run("init", "--force")[0] == 0


def test_a_settings_file_is_read_and_options_come_after_it(run, here, options, toy_csv):
    (here / "own.toml").write_text("seed = 5\n[tuning]\nepochs = 9\n")
    assert run("train", toy_csv, *options, "--config", "own.toml", "--out", "b")[0] == 0
    settings = json.loads((here / "b" / "tagsmith.json").read_text())["config"]
    assert (settings["seed"], settings["tuning"]["epochs"]) == (5, 1)


def test_assets_names_the_default_backbone(run):
    code, out, _ = run("assets")
    assert code == 0
    assert any(line.startswith(Config().model.backbone) for line in out.splitlines())


def test_a_full_disk_is_explained(run, here, options, toy_csv, monkeypatch):
    def full(path, *arguments, **options):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    code, out, err = run("train", toy_csv, *options, "--out", "b")
    assert (code, out) == (3, "")
    assert_one_paragraph(err)
    assert "No space left on device" in err
    assert not (here / "b").exists()
    assert not list(here.glob(".b*"))


# ---- In a process of its own

COMMAND = [sys.executable, "-m", "tagsmith"]


@pytest.mark.alone
def test_help_comes_in_half_a_second_and_imports_nothing_heavy():
    took = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)
        took.append(time.perf_counter() - started)
    assert min(took) < 0.5
    script = (
        "import sys; sys.argv = ['tagsmith', '--help']\n"
        "from tagsmith.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'polars', 'sklearn', 'numpy') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert said.splitlines()[-1] == "[]"


def test_an_interrupt_leaves_a_checkpoint_and_the_command_that_goes_on(options, toy_csv, tmp_path):
    words = [*COMMAND, "train", str(toy_csv), *map(str, options)]
    words += ["--out", "b", "--set", "tuning.patience=9999", "--set", "tuning.evaluations_per_epoch=1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    process = subprocess.Popen([*words, "--set", "tuning.epochs=400"], **pipes)
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("Epoch 1.00"):
            process.send_signal(signal.SIGINT)
            break
    out, rest = process.communicate(timeout=60)
    assert process.returncode == 130, "".join(said) + rest
    assert out == ""
    assert "Traceback" not in rest
    assert (tmp_path / "b.checkpoint").is_dir()
    assert not (tmp_path / "b").exists()
    again = rest[rest.index("tagsmith train") :].strip()
    assert again.endswith("--resume")
    # As the message says, and the interrupted one again at once, so that the test is short: it goes on from there.
    process = subprocess.Popen(f"exec {sys.executable} -m {again}", shell=True, **pipes)
    for line in process.stderr:
        said.append(line)
        if "Going on after step" in line:
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=60)
    assert "Going on after step" in said[-1]


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_traceback(llama_bundle):
    texts = "\n".join(f"text {i}" for i in range(20000))
    process = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m tagsmith predict {llama_bundle} - | head -1"],
        input=texts,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert len(process.stdout.splitlines()) == 1
    assert "Traceback" not in process.stderr


def test_train_searches_unless_it_is_told_otherwise(run, here, toy_csv, tiny_folder, capsys):
    chosen = {"model.backbone": tiny_folder, "model.max_tokens": 48, "model.layers": 2, "tuning.precision": "fp32"}
    chosen |= {"tuning.epochs": 1, "tuning.learning_rate": 2e-4}
    words = [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]
    code, _, err = run("train", toy_csv, *words, "--budget", "60s", "--out", "b")
    assert code == 0
    assert "Searching within 1 min" in err
    assert "was chosen" in err
    number = next(each["number"] for each in report("b")["candidates"] if each["kind"] == "head")
    code, _, err = run("train", toy_csv, "--plan", "b", "--take", str(number), "--out", "c")
    assert code == 0
    assert "Searching" not in err
    assert report("c")["settings"]["tuning"]["method"] == "head"


def report(folder):
    return json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))


def test_a_candidate_needs_the_plan_it_is_of(run, here, toy_csv):
    code, _, err = run("train", toy_csv, "--take", "2")
    assert code == 3
    assert "--plan BUNDLE" in err


def test_reports_are_set_side_by_side(run, llama_bundle, bert_bundle, tmp_path):
    page = tmp_path / "page.html"
    code, out, _ = run("report", llama_bundle, "--compare", bert_bundle, "--html", page)
    assert code == 0
    assert out.splitlines()[-1] == str(page)
    assert "model.backbone:" in out
    assert "<table" in page.read_text(encoding="utf-8")
    assert run("report", llama_bundle, "--html", page)[0] == 2
