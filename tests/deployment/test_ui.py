import base64
import csv
import hashlib
import json
import re
from importlib.resources import files
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from tagsmith.deployment.bundle import load

KEY = "a-key-of-more-than-sixteen-letters"
TEXT = "our room awful, the dreadful window and a stale bath"


def beside(name):
    """A module of this folder, which no test can import by its name."""
    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Served, Browser, SCRIPTS = beside("conftest").Served, beside("browser"), beside("hostile").SCRIPTS


@pytest.fixture(scope="module")
def watched(tmp_path_factory, llama_bundle):
    """A server that keeps corrections and hashes, with small windows of drift."""
    folder = tmp_path_factory.mktemp("kept")
    kept = ("--corrections", folder / "corrections.jsonl", "--log-hashes", folder / "hashes.jsonl")
    server = Served(llama_bundle, "--name", "toy", *kept, "--set", "deployment.drift_window=50")
    server.folder = folder
    yield server
    server.close()


@pytest.fixture(scope="module")
def locked(tmp_path_factory, llama_bundle):
    """A server that asks for a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"me:{KEY}\n")
    server = Served(llama_bundle, "--api-key-file", keys)
    yield server
    server.close()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, make_folder):
    """A server whose labels, report, card and name are all hostile; its model is untrained."""
    from tagsmith.config import ModelConfig
    from tagsmith.deployment.manifest import staging
    from tagsmith.deployment.weights import write_classifier
    from tagsmith.labels import Labels
    from tagsmith.model.classifier import build

    labels = Labels.of(SCRIPTS)
    classifier = build(make_folder("llama"), ModelConfig(max_tokens=48), labels=labels, layers=None, seed=0)
    folder = tmp_path_factory.mktemp("hostile") / "bundle"
    with staging(folder, force=False) as aside:
        write_classifier(aside, classifier.eval().requires_grad_(False), recipe={"config": {}})
        score = {"value": 0.5, "low": 0.4, "high": 0.6}
        report = {"test": {"n": 9, "accuracy": score}, "verdict": {"text": "".join(SCRIPTS)}, "baselines": {}}
        (aside / "report.json").write_text(json.dumps(report))
        (aside / "README.md").write_text("\n".join(SCRIPTS), encoding="utf-8")
    server = Served(folder, "--name", SCRIPTS[0], "--corrections", tmp_path_factory.mktemp("kept") / "c.jsonl")
    yield server
    server.close()


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    """One headless Chromium for all tests of this file."""
    if Browser.installed() is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt install chromium-driver); they are not there")
    with Browser.Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def browser(window):
    """The window, which must end with an empty console and with requests to its own server alone."""
    window.logs(), window.requests()
    yield window
    assert window.logs() == []
    own = window.run("return location.origin")
    foreign = [url for url in window.requests() if url.startswith(("http", "ws")) and not url.startswith(own + "/")]
    window.open("about:blank")
    window.width(1100), window.media(prefers_color_scheme="light", prefers_reduced_motion="no-preference")
    assert foreign == []


def opened(browser, server):
    browser.open(f"{server.url}/ui")
    browser.wait("!document.getElementById('desk').hidden")


def labelled(browser, text):
    browser.run("document.getElementById('text').value = ''; document.getElementById('words').hidden = true")
    browser.write("#text", text)
    browser.click("#ask button")
    browser.wait("!document.getElementById('words').hidden")


# ---- The routes behind the page


def test_the_page_runs_its_own_script_and_no_other(llama_server):
    page = llama_server.ask("/ui")
    policy = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
    text = page.body.decode()
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[rule] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"


def test_the_script_makes_no_markup_from_strings():
    folder = files("tagsmith.deployment").joinpath("ui_page")
    script = "".join(path.read_text(encoding="utf-8") for path in folder.iterdir() if path.name.endswith(".js"))
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "localStorage",
    ):
        assert word not in script
    assert set(re.findall(r"https?://[^\"]*", script)) == {"http://www.w3.org/2000/svg"}


def test_the_pieces_are_the_text_and_weigh_what_the_bundle_says(llama_server, llama_bundle):
    found = llama_server.ask("/explain", {"text": TEXT, "label": "complaint"}).json
    assert "".join(piece["text"] for piece in found["pieces"]) == TEXT
    bundle = load(llama_bundle)
    which = bundle.labels.index("complaint")
    whole, rest = (np.log(p[which] / (1 - p[which])) for p in bundle.predict_proba([TEXT, TEXT.replace("our ", "")]))
    assert found["pieces"][0]["text"] == "our"
    assert found["pieces"][0]["weight"] == pytest.approx(whole - rest, abs=1e-3)


def test_without_a_label_the_answer_is_explained(llama_server):
    answer = llama_server.ask("/ui/answer", {"texts": [TEXT]}).json["answers"][0]
    assert [llama_server.ask("/explain", {"text": TEXT}).json["label"]] == answer["labels"]


def test_shortened_texts_are_no_traffic(llama_server):
    before = llama_server.metric("tagsmith_confidence_count")
    llama_server.ask("/explain", {"text": TEXT})
    assert llama_server.metric("tagsmith_confidence_count") == before + 1


@pytest.mark.parametrize(
    ("route", "body", "status"),
    [
        ("/explain", {"text": ""}, 422),
        ("/explain", {"text": TEXT, "label": "secret-canary"}, 422),
        ("/explain", {"text": TEXT, "pair": "secret-canary"}, 422),
        ("/explain", {"text": "\ud800 secret-canary"}, 422),
        ("/explain", {}, 422),
        ("/ui/answer", {"texts": ["secret-canary"] * 33}, 413),
        ("/ui/answer", {"texts": "secret-canary"}, 422),
        ("/corrections", {"text": "secret-canary", "labels": ["praise"]}, 404),
    ],
)
def test_what_cannot_be_answered_is_refused_without_an_echo(llama_server, route, body, status):
    reply = llama_server.ask(route, body)
    assert reply.status == status
    assert b"secret-canary" not in reply.body


@pytest.mark.parametrize(
    "body",
    [
        {"text": "fine", "labels": ["no such label"]},
        {"text": "fine", "labels": []},
        {"text": "fine", "labels": ["praise", "complaint"]},
        {"text": "", "labels": ["praise"]},
        {"text": "\ud800", "labels": ["praise"]},
        {"text": "one\x1etwo", "labels": ["praise"]},
        {"text": "x" * 100_000, "labels": ["praise"]},
        {"text": "fine", "pair": "one too many", "labels": ["praise"]},
        {"labels": ["praise"]},
    ],
)
def test_a_correction_that_could_not_be_learned_is_refused(watched, body):
    before = (watched.folder / "corrections.jsonl").read_bytes()
    assert watched.ask("/corrections", body).status == 422
    assert (watched.folder / "corrections.jsonl").read_bytes() == before


def test_hashes_are_noted_and_no_texts(watched):
    watched.ask("/predict", {"inputs": "a text like no other"})
    log = (watched.folder / "hashes.jsonl").read_text()
    assert hashlib.sha256(b"a text like no other").hexdigest() in log
    assert "like no other" not in log


def test_drift_is_counted_over_all_routes_and_told(watched, make_rows):
    texts = [f"{text} quite unheard of" for text, _ in make_rows(120, seed=5)]
    for start in range(0, 120, 30):
        watched.ask("/", {"inputs": texts[start : start + 30]})
    drift = watched.ask("/ui/state").json["drift"]
    assert drift["windows"] >= 2
    assert drift["alarm"]
    assert {each["name"] for each in drift["features"] if each["alarm"]} >= {"unknown_words"}
    assert watched.metric("tagsmith_drift_windows_total") == drift["windows"]
    assert watched.metric('tagsmith_drift_psi{feature="unknown_words"}') > 0.25


def test_with_keys_only_the_shell_of_the_page_is_open(locked):
    assert 'data-key="needed"' in locked.ask("/ui").body.decode()
    assert locked.ask("/ui/state").status == 401
    for route in ("/ui/answer", "/explain", "/corrections"):
        assert locked.ask(route, {"text": "x"}).status == 401
    assert locked.ask("/ui/state", headers={"authorization": f"Bearer {KEY}"}).status == 200


def test_a_bundle_without_report_or_profile_has_a_page_too(several_server):
    state = several_server.ask("/ui/state").json
    assert (state["drift"], state["card"], state["examples"]) == (None, None, [])


# ---- The page in a browser


def test_a_text_is_labelled_and_its_words_are_shown(browser, llama_server, llama_bundle):
    opened(browser, llama_server)
    labelled(browser, TEXT)
    answer = load(llama_bundle).answer([TEXT])[0]
    assert browser.text("#verdict") == f"{answer.label} {100 * answer.probability:.1f} %"
    assert browser.text("#words") == TEXT
    assert browser.run("return document.querySelectorAll('#words .for, #words .against').length") > 0
    said = browser.run("return document.getElementById('said').textContent")
    assert said.startswith(f"{answer.label} {100 * answer.probability:.1f}\N{NO-BREAK SPACE}%")


def test_another_label_is_explained_on_a_click(browser, llama_server):
    opened(browser, llama_server)
    labelled(browser, TEXT)
    other = browser.run("return document.querySelectorAll('#scores bdi')[1].textContent")
    browser.click("#scores li:nth-child(2) button")
    browser.wait(f"document.getElementById('words-title').textContent.endsWith({json.dumps(other)})")
    browser.wait("!document.getElementById('words').hidden")
    pressed = "return [...document.querySelectorAll('#scores button')].map(b => b.getAttribute('aria-pressed'))"
    assert browser.run(pressed) == ["false", "true"]


def test_the_keyboard_alone_is_enough(browser, llama_server):
    opened(browser, llama_server)
    browser.press("\ue004")  # Tab: the link that skips to the field
    browser.press("\ue007")  # Enter
    browser.wait("location.hash === '#text'")
    browser.run("document.getElementById('text').focus()")
    for letter in "dreadful":
        browser.press(letter)
    browser.press("\ue009", "\ue007")  # Ctrl and Enter
    browser.wait("!document.getElementById('words').hidden")
    reached = set()
    for _ in range(40):
        browser.press("\ue004")
        reached.add(browser.run("return document.activeElement.id || document.activeElement.textContent"))
    assert {"file", "text"} <= reached
    assert any("complaint" in each for each in reached)


def test_everything_that_can_be_used_has_a_name(browser, watched):
    opened(browser, watched)
    labelled(browser, TEXT)
    named = browser.accessible()
    used = [(role, name) for role, name in named if role in ("button", "textbox", "combobox", "checkbox", "link")]
    assert len(used) > 6
    assert all(name for _, name in used)
    assert ("textbox", "Text to label") in used
    assert [name for role, name in named if role == "heading"][:2] == ["Tagsmith toy · torch-fp32", "A text"]
    assert browser.run("return document.querySelectorAll('[role=status], [role=alert]').length") >= 2


def test_a_file_is_labelled_and_saved(browser, llama_server, llama_bundle, tmp_path):
    texts = ["lovely, superb", 'awful "stale" bath\nrude', "", "=1+1", "great;tasty"] * 15
    source = tmp_path / "rows.csv"
    with source.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "text"], *([i, text] for i, text in enumerate(texts))])
    opened(browser, llama_server)
    browser.write("#file", str(source))
    browser.wait("!document.getElementById('table').hidden")
    assert browser.run("return document.getElementById('column').selectedOptions[0].textContent") == "text"
    browser.click("#run")
    browser.wait("!document.getElementById('result').hidden")
    browser.click("#save")
    saved = browser.folder / "rows-labelled.csv"
    browser.wait_for(saved)
    with saved.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    saved.unlink()
    assert [row["text"] for row in rows] == [text.replace("=1+1", "'=1+1") for text in texts]
    assert [row["predicted_label"] or None for row in rows] == load(llama_bundle).predict(texts)
    assert [row["remark"] for row in rows[:3]] == ["", "", "empty"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"text\n", "no rows"),
        (b'text\n"never closed', "never closed"),
        ("text\nnaïve".encode("windows-1252"), "Windows-1252"),
        ("text;other\na;b\n".encode("utf-8-sig"), "1 rows"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_told(browser, llama_server, tmp_path, content, told):
    (tmp_path / "rows.csv").write_bytes(content)
    opened(browser, llama_server)
    browser.write("#file", str(tmp_path / "rows.csv"))
    browser.wait(f"document.querySelector('main').innerText.includes({json.dumps(told)})")


def test_hostile_labels_and_texts_are_shown_and_do_nothing(browser, hostile, tmp_path):
    opened(browser, hostile)
    before = browser.run(
        "return document.scripts.length + document.querySelectorAll('link, style, base, iframe').length"
    )
    for text in SCRIPTS:
        if text.replace("\u0000", "").strip():
            browser.run("document.getElementById('text').value = arguments[0]", text)
            browser.run("document.getElementById('words').hidden = true")
            browser.click("#ask button")
            browser.wait("!document.getElementById('words').hidden || !document.getElementById('problem').hidden")
    source = tmp_path / "rows.csv"
    with source.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", SCRIPTS[0]], *([text, text] for text in SCRIPTS)])
    browser.write("#file", str(source))
    browser.wait("!document.getElementById('table').hidden")
    browser.click("#run")
    browser.wait("!document.getElementById('result').hidden")
    browser.run("document.getElementById('card').open = true; document.getElementById('more').click()")
    assert browser.run("return window.hacked ?? null") is None
    assert browser.alert() is None
    after = browser.run(
        "return document.scripts.length + document.querySelectorAll('link, style, base, iframe').length"
    )
    assert after == before
    assert browser.run("return document.querySelectorAll('main img, main a:not(.skip), main math').length") == 0
    assert SCRIPTS[0] in browser.run("return document.getElementById('scores').textContent")
    shown = browser.run("return document.body.textContent")
    assert not set(shown) & set("\u202e\u2066\u0000\u001b\u009b")


def test_hostile_labels_break_no_layout_on_a_phone(browser, hostile):
    browser.width(390)
    opened(browser, hostile)
    labelled(browser, "W" * 300)
    browser.click("#more")
    assert browser.run("return document.documentElement.scrollWidth") <= 390


def test_a_key_is_asked_for_and_kept_in_memory_alone(browser, locked):
    browser.open(f"{locked.url}/ui")
    browser.wait("!document.getElementById('unlock').hidden")
    assert browser.run("return document.activeElement.id") == "key"
    browser.write("#key", KEY)
    browser.click("#unlock button")
    browser.wait("!document.getElementById('desk').hidden")
    labelled(browser, TEXT)
    kept = "return [localStorage.length, sessionStorage.length, document.cookie, document.getElementById('key').value]"
    assert browser.run(kept) == [0, 0, "", ""]
    assert KEY not in browser.run("return document.documentElement.outerHTML")
    browser.open(f"{locked.url}/ui")
    browser.wait("!document.getElementById('unlock').hidden")


def test_a_wrong_key_is_told(window, locked):
    window.open(f"{locked.url}/ui")
    window.wait("!document.getElementById('unlock').hidden")
    window.write("#key", "not-the-key-of-this-server")
    window.click("#unlock button")
    window.wait("!document.getElementById('problem').hidden")
    assert "key" in window.text("#problem")
    assert window.run("return document.getElementById('desk').hidden")
    assert [line for line in window.logs() if "401" not in line] == []  # the browser itself tells of a 401


def test_a_correction_is_kept(browser, watched):
    opened(browser, watched)
    labelled(browser, "a lamp that hums and nobody minds")
    browser.run(
        "const right = document.getElementById('right');"
        "right.value = [...right.options].find(option => option.textContent === 'praise').value"
    )
    browser.click("#correct button")
    browser.wait("document.getElementById('kept').textContent.startsWith('Kept')")
    last = json.loads((watched.folder / "corrections.jsonl").read_text().splitlines()[-1])
    assert (last["text"], last["label"]) == ("a lamp that hums and nobody minds", "praise")


def test_where_corrections_are_not_kept_none_are_asked_for(browser, llama_server):
    opened(browser, llama_server)
    labelled(browser, TEXT)
    assert browser.run("return document.getElementById('correct').hidden")


def test_several_labels_a_text_are_shown_with_their_thresholds(browser, several_server):
    opened(browser, several_server)
    labelled(browser, TEXT)
    assert browser.run("return document.querySelectorAll('#scores .mark').length") == 3


def test_the_present_is_shown(browser, watched):
    opened(browser, watched)
    browser.wait("document.querySelectorAll('#tiles div').length === 6")
    for _ in range(3):
        watched.ask("/", {"inputs": ["lovely"] * 20})
    browser.wait("[...document.querySelectorAll('#tiles dd')].some(dd => Number(dd.textContent) > 0)")
    assert "50 texts" in browser.run("return document.getElementById('drift-told').textContent")


def test_a_phone_scrolls_in_one_direction(browser, watched):
    browser.width(390)
    opened(browser, watched)
    labelled(browser, TEXT)
    assert browser.run("return document.documentElement.scrollWidth") <= 390


CONTRAST = """
const blend = (over, under) => over.slice(0, 3).map((c, i) => c * over[3] + under[i] * (1 - over[3]));
const read = (text) => {
  const n = text.match(/-?[\\d.]+(e-?\\d+)?/g).map(Number);
  return text.startsWith('color(') ? [255 * n[0], 255 * n[1], 255 * n[2], n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1];
};
const under = (element) => {
  const own = read(getComputedStyle(element).backgroundColor);
  if (own[3] === 1) return own.slice(0, 3);
  return blend(own, element.parentElement ? under(element.parentElement) : [255, 255, 255]);
};
const light = (c) => c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const faint = [];
for (const element of document.querySelectorAll('main *')) {
  const text = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!text || !element.checkVisibility() || element.disabled) continue;
  const back = under(element), ink = blend(read(getComputedStyle(element).color), back);
  const [a, b] = [light(back), light(ink)].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) faint.push(`${element.tagName} ${element.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
}
return faint;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_stands_out_from_its_ground(browser, watched, scheme):
    browser.media(prefers_color_scheme=scheme)
    opened(browser, watched)
    labelled(browser, TEXT)
    assert browser.run(CONTRAST) == []


def test_nothing_moves_for_who_wants_less_motion(browser, watched):
    browser.media(prefers_reduced_motion="reduce")
    opened(browser, watched)
    labelled(browser, TEXT)
    moving = """
        const moves = (element) => parseFloat(getComputedStyle(element).transitionDuration) > 0;
        return [...document.querySelectorAll('main *')].filter(moves).length;
    """
    assert browser.run(moving) == 0
