// ---- Now

const EVERY_MS = 2000;
const OWN = new Set(["/metrics", "/ui", "/ui/state", "/health", "/ready", "/ping"]);
let before = null;
let rates = [];
let following = false;

function samples(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const match = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value;
    found.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return found;
}

function totals(found) {
  const sum = (name, fits = () => true) => found
    .filter((each) => each.name === name && fits(each.labels))
    .reduce((total, each) => total + each.value, 0);
  const answers = (labels) => !OWN.has(labels.route);
  const buckets = new Map();
  for (const { name, labels, value } of found) {
    if (name !== "tagsmith_request_duration_seconds_bucket" || !answers(labels)) continue;
    const edge = labels.le === "+Inf" ? Infinity : Number(labels.le);
    buckets.set(edge, (buckets.get(edge) ?? 0) + value);
  }
  return {
    at: performance.now() / 1000,
    texts: sum("tagsmith_confidence_count"),
    requests: sum("tagsmith_requests_total", answers),
    refused: sum("tagsmith_requests_total", (labels) => answers(labels) && /^(429|5)/.test(labels.code)),
    waiting: sum("tagsmith_queue_texts"),
    buckets: [...buckets].sort((a, b) => a[0] - b[0]),
  };
}

// The upper edge of the bucket that holds a quantile: no more is known.
function within(now, past, share) {
  const earlier = new Map(past.buckets);
  const counts = now.buckets.map(([edge, value]) => [edge, value - (earlier.get(edge) ?? 0)]);
  const all = counts.length ? counts[counts.length - 1][1] : 0;
  if (all <= 0) return null;
  return counts.find(([, value]) => value >= share * all)[0];
}
const time = (seconds) => (seconds === null ? "\u2013" : seconds === Infinity ? "> 30 s" : seconds < 1 ? `\u2264 ${Math.round(1000 * seconds)} ms` : `\u2264 ${seconds} s`);

async function follow() {
  if (following) return;
  following = true;
  for (let round = 0; !$("desk").hidden; round += 1) {
    if (!document.hidden) {
      try {
        const now = totals(samples(await (await fetched("metrics")).text()));
        if (before) beat(now, before);
        before = now;
        if (round % 5 === 4) {
          state = await asked("ui/state");
          about();
        }
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        $("pulse").textContent = "The server does not answer.";
        if (error.status === 401) complain(error);
      }
    }
    await pause(EVERY_MS);
  }
  following = false;
}

function beat(now, past) {
  const seconds = now.at - past.at;
  const rate = Math.max(0, (now.texts - past.texts) / seconds);
  rates = [...rates, rate].slice(-60);
  const tiles = [
    ["texts a second", rate.toFixed(rate < 10 ? 1 : 0)],
    ["requests a second", Math.max(0, (now.requests - past.requests) / seconds).toFixed(1)],
    ["half take", time(within(now, past, 0.5))],
    ["99 of 100 take", time(within(now, past, 0.99))],
    ["texts waiting", count(now.waiting)],
    ["refused or failed", count(now.refused)],
  ];
  $("tiles").replaceChildren(...tiles.map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value }))));
  $("pulse").textContent = `${tiles[0][1]} texts a second`;
  const top = Math.max(...rates, 1);
  const points = rates.map((value, i) => `${(60 - rates.length + i) * 10},${58 - 56 * value / top}`).join(" ");
  const told = `Texts a second over the last two minutes, at most ${Math.max(...rates).toFixed(1)}.`;
  $("course").replaceChildren(picture(600, 60, told, ["polyline", { points, class: "spark" }]));
  $("course-told").textContent = told;
  show("rate", rates.length > 1);
}

// ---- Drift and the model

const FEATURES = { length: "length of texts", unknown_words: "share of words unknown to training", score: "surety of answers", label: "labels answered" };

function about() {
  drift();
  const { report, model } = state;
  $("model-verdict").textContent = shown(report.verdict ?? "");
  const facts = [
    ...report.scores.map((each) => [each.name, `${percent(each.value)}${each.low === null ? "" : ` (${percent(each.low)} to ${percent(each.high)})`} ${each.measure}`]),
    ["test rows", count(report.rows ?? 0)],
    ["labels", count(model.labels.length)],
    ["tokens read of a text", model.max_tokens === null ? "all" : count(model.max_tokens)],
    ["version", model.version],
  ];
  const rows = facts.map(([name, value]) => make("tr", {}, make("th", { scope: "row", text: shown(name) }), make("td", { text: shown(value) })));
  $("model-facts").replaceChildren(make("div", { className: "box" }, make("table", {}, make("tbody", {}, ...rows))));
  $("card-text").textContent = shown(state.card ?? "", 20000);
  show("card", Boolean(state.card));
}

function drift() {
  const found = state.drift;
  if (!found) {
    $("drift-told").textContent = "This bundle has no profile of its test rows to compare with. Train it again to have one.";
    return;
  }
  const rate = percent(found.alarm_rate, 0);
  const compared = found.windows
    ? `${count(found.windows)} windows of ${count(found.window)} texts were compared with ${count(found.reference_rows)} test rows; ${count(found.alarms)} raised an alarm. Without any drift, ${rate} of the windows do.`
    : `${count(found.waiting)} of the ${count(found.window)} texts of the first window are here. It is compared with ${count(found.reference_rows)} test rows; without any drift, ${rate} of the windows raise an alarm.`;
  const warning = found.alarm ? make("strong", { className: "drifts", text: "The latest texts differ from those that the model was tested on: its measured quality may not hold. " }) : "";
  $("drift-told").replaceChildren(warning, compared);
  if (!found.features.length) return;
  const heads = ["what", "PSI", "chance without drift", "", "test rows and now"];
  const rows = found.features.map((each) => make("tr", {},
    make("th", { scope: "row", text: FEATURES[each.name] ?? shown(each.name) }),
    make("td", { className: "n", text: each.psi.toFixed(3) }),
    make("td", { className: "n", text: each.p_value <= 0.001 ? "0.1 % or less" : percent(each.p_value) }),
    make("td", { className: each.alarm ? "drifts" : "", text: each.alarm ? "drifts" : "as before" }),
    make("td", {}, sides(each))));
  const head = make("tr", {}, ...heads.map((text, i) => make("th", { text, scope: "col", className: i === 1 || i === 2 ? "n" : "" })));
  $("drift").replaceChildren(make("div", { className: "box", tabIndex: 0, name: "Drift by feature" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))));
}

function sides({ reference, live, name }) {
  const share = (counts) => counts.map((each) => each / Math.max(1, counts.reduce((a, b) => a + b, 0)));
  const [was, is] = [share(reference), share(live)];
  const top = Math.max(...was, ...is);
  const width = 100 / was.length;
  const bars = was.flatMap((each, i) => [
    ["rect", { class: "was", x: i * width + 1, width: 0.4 * width, y: 24 - 24 * each / top, height: 24 * each / top }],
    ["rect", { class: "is", x: i * width + 0.45 * width + 1, width: 0.4 * width, y: 24 - 24 * is[i] / top, height: 24 * is[i] / top }],
  ]);
  return picture(100, 24, `${FEATURES[name] ?? ""}: shares among the test rows in grey, now in colour`, ...bars);
}

if (document.body.dataset.key === "needed") lock();
else open();
