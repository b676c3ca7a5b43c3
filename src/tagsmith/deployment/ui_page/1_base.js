// Labels and texts come from strangers: they reach the page as textContent and in no other way.
const $ = (id) => document.getElementById(id);
const UNSEEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;
const shown = (text, most = 400) => {
  const seen = String(text).replace(UNSEEN, "\ufffd");
  return seen.length > most ? seen.slice(0, most).trimEnd() + " \u2026" : seen;
};
const percent = (share, digits = 1) => (100 * share).toFixed(digits) + "\u00a0%";
const count = (number) => Math.round(number).toLocaleString("en");

function make(tag, options = {}, ...children) {
  const { text, name, ...properties } = options;
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) element.textContent = text;
  if (name !== undefined) element.setAttribute("aria-label", name);
  element.append(...children.filter((child) => child !== null));
  return element;
}
const word = (text) => make("bdi", { text: shown(text, 80), title: String(text).length > 80 ? shown(text, 2000) : "" });
const show = (id, visible = true) => { $(id).hidden = !visible; };
const say = (text) => { $("said").textContent = shown(text, 1000); };

function picture(width, height, about, ...shapes) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", about);
  for (const [tag, attributes] of shapes) {
    const shape = document.createElementNS(space, tag);
    for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, String(value));
    svg.append(shape);
  }
  return svg;
}

// ---- The server

let key = "";
let state = null;
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

class Refused extends Error {
  constructor(status, message, retry) {
    super(message);
    this.status = status;
    this.retry = retry;
  }
}

async function fetched(path, body) {
  const headers = key ? { Authorization: "Bearer " + key } : {};
  const options = { headers, cache: "no-store", credentials: "omit", redirect: "error" };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refused(0, "The server does not answer. Is it still running?", null);
  }
  if (response.ok) return response;
  let told = "";
  try {
    const problem = await response.json();
    told = typeof problem.error === "string" ? problem.error : problem.error.message;
  } catch { /* not every proxy speaks JSON */ }
  const retry = Number(response.headers.get("retry-after")) || null;
  throw new Refused(response.status, told || `The server answered ${response.status}.`, retry);
}
const asked = async (path, body) => (await fetched(path, body)).json();

// A full server says when to come back.
async function patiently(path, body, goesOn = () => true) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await asked(path, body);
    } catch (error) {
      if (![429, 503].includes(error.status) || tries >= 20 || !goesOn()) throw error;
      await pause(1000 * (error.retry || 1));
    }
  }
}

function complain(error) {
  if (!(error instanceof Refused)) throw error;
  $("problem").textContent = shown(error.message);
  show("problem");
  if (error.status === 401) lock();
}
const content = () => show("problem", false);

// ---- The key, which is never stored

function lock() {
  key = "";
  show("desk", false);
  show("unlock");
  $("key").value = "";
  $("key").focus();
}

$("unlock").addEventListener("submit", async (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  content();
  if (await open()) {
    $("key").value = "";
    show("unlock", false);
    $("text").focus();
  }
});

async function open() {
  try {
    state = await asked("ui/state");
  } catch (error) {
    complain(error);
    return false;
  }
  const { model } = state;
  $("name").textContent = shown(`${model.name} \u00b7 ${model.engine}`);
  document.title = shown(`${model.name} \u00b7 Tagsmith`, 60);
  show("desk");
  show("second", model.pairs);
  show("second-column", model.pairs);
  show("correct", state.corrections);
  $("right").multiple = model.multi_label;
  $("right").size = model.multi_label ? Math.min(6, model.labels.length) : 1;
  $("right").replaceChildren(...model.labels.map((label, i) => make("option", { text: shown(label, 80), value: i })));
  examples();
  about();
  follow();
  return true;
}
