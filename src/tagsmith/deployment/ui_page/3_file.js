// ---- A file

const MOST_BYTES = 50 * 2 ** 20;
let table = null;
let running = false;

// RFC 4180, with whichever of comma, semicolon and tab parts the first line into most cells.
function parsed(text) {
  const [head] = text.split("\n", 1);
  const parts = [",", ";", "\t"].map((sign) => [head.split(sign).length, sign]);
  const separator = parts.reduce((best, each) => (each[0] > best[0] ? each : best))[1];
  const rows = [];
  let row = [], cell = "", quoted = false;
  const endCell = () => { row.push(cell); cell = ""; };
  const endRow = () => { endCell(); if (row.length > 1 || row[0] !== "") rows.push(row); row = []; };
  for (let i = 0; i < text.length; i += 1) {
    const sign = text[i];
    if (quoted) {
      if (sign !== '"') cell += sign;
      else if (text[i + 1] === '"') { cell += '"'; i += 1; } else quoted = false;
    } else if (sign === '"' && cell === "") quoted = true;
    else if (sign === separator) endCell();
    else if (sign === "\n") endRow();
    else if (sign !== "\r" || text[i + 1] !== "\n") cell += sign;
  }
  if (cell !== "" || row.length) endRow();
  return { separator, quoted, rows };
}

async function take(file) {
  content();
  show("result", false);
  show("table", false);
  if (file.size > MOST_BYTES) {
    return complain(new Refused(0, "This file has more than 50 MB. Use the command line: tagsmith predict BUNDLE --file ROWS.csv --out LABELLED.csv", null));
  }
  const bytes = await file.arrayBuffer();
  let text, remark = "";
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    text = new TextDecoder("windows-1252").decode(bytes);
    remark = " It is not UTF-8, and was read as Windows-1252.";
  }
  const { rows, quoted } = parsed(text);
  if (quoted) return complain(new Refused(0, "A quotation mark is opened in this file and never closed. Mend it, or save it anew as CSV.", null));
  if (rows.length < 2) return complain(new Refused(0, "This file has no rows below its first line, which names the columns.", null));
  const [columns, ...body] = rows;
  table = { name: file.name, columns, rows: body, answers: [] };
  const names = columns.map((name, i) => make("option", { text: shown(name || `column ${i + 1}`, 80), value: i }));
  $("column").replaceChildren(...names);
  $("column-pair").replaceChildren(...names.map((option) => option.cloneNode(true)));
  const guess = columns.findIndex((name) => /^(text|message|review|sentence|body|content)$/i.test(name.trim()));
  const length = (i) => body.slice(0, 50).reduce((sum, row) => sum + (row[i] ?? "").length, 0);
  $("column").value = guess >= 0 ? guess : columns.reduce((best, _, i) => (length(i) > length(best) ? i : best), 0);
  $("column-pair").value = Math.min(Number($("column").value) + 1, columns.length - 1);
  $("table-about").replaceChildren(word(file.name), `: ${count(body.length)} rows.${remark}`);
  show("table");
  show("progress", false);
  $("run").focus();
  return undefined;
}

$("file").addEventListener("change", () => {
  if ($("file").files.length) take($("file").files[0]);
  $("file").value = "";
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
  });
}
document.addEventListener("drop", (event) => {
  if (event.dataTransfer.files.length && state) take(event.dataTransfer.files[0]);
});

$("stop").addEventListener("click", () => { running = false; });
$("table").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (running) return;
  running = true;
  content();
  table.answers = [];
  for (const id of ["stop", "progress"]) show(id);
  $("run").disabled = true;
  try {
    await labelRows();
  } catch (error) {
    complain(error);
  }
  running = false;
  $("run").disabled = false;
  show("stop", false);
  results();
  say(`${table.answers.length} of ${table.rows.length} rows are labelled.`);
});

async function labelRows() {
  const [first, second] = [Number($("column").value), Number($("column-pair").value)];
  for (let start = 0; start < table.rows.length && running; start += state.limits.texts) {
    const rows = table.rows.slice(start, start + state.limits.texts);
    const texts = rows.map((row) => row[first] ?? "");
    const pairs = state.model.pairs ? rows.map((row) => row[second] ?? "") : null;
    table.answers.push(...(await batch(texts, pairs)));
    const share = table.answers.length / table.rows.length;
    $("bar").value = share;
    $("done").textContent = `${count(table.answers.length)} of ${count(table.rows.length)}`;
  }
}

// Where the server refuses a batch for one of its texts, each is asked by itself, and that one is remarked on.
async function batch(texts, pairs) {
  const answers = texts.map((text) => (text.trim() ? null : { remark: "empty" }));
  const filled = texts.map((_, i) => i).filter((i) => answers[i] === null);
  const ask = (places) => patiently(
    "ui/answer",
    { texts: places.map((i) => texts[i]), ...(pairs ? { pairs: places.map((i) => pairs[i]) } : {}) },
    () => running,
  );
  if (!filled.length) return answers;
  try {
    (await ask(filled)).answers.forEach((answer, i) => { answers[filled[i]] = answer; });
  } catch (error) {
    if (![413, 422, 424].includes(error.status)) throw error;
    for (const i of filled) {
      try {
        [answers[i]] = (await ask([i])).answers;
      } catch (problem) {
        if (![413, 422, 424].includes(problem.status)) throw problem;
        answers[i] = { remark: problem.message };
      }
    }
  }
  return answers;
}

const surety = (answer) => (answer.labels?.length ? Math.max(...answer.labels.map((name) => answer.probabilities[state.model.labels.indexOf(name)])) : null);

function results() {
  const tally = new Map();
  for (const answer of table.answers) {
    for (const name of answer.labels ?? []) tally.set(name, (tally.get(name) ?? 0) + 1);
  }
  const most = [...tally].sort((a, b) => b[1] - a[1]);
  $("found").replaceChildren(...most.slice(0, 20).map(([name, number]) => make("li", {}, make("div", {}, word(name),
    track(number / table.answers.length, true), make("span", { className: "share", text: count(number) })))));
  const column = Number($("column").value);
  const cells = table.answers.slice(0, 200).map((answer, i) => make("tr", {},
    make("td", { className: "n", text: count(i + 1) }),
    make("td", {}, ...(answer.labels ?? []).flatMap((name) => [", ", word(name)]).slice(1)),
    make("td", { className: "n", text: surety(answer) === null ? "" : percent(surety(answer)) }),
    make("td", { className: "text" }, make("bdi", { dir: "auto", text: shown(table.rows[i][column] ?? "", 280) })),
    make("td", { text: shown(remark(answer)) })));
  const heads = [["row", "n"], ["label", ""], ["probability", "n"], ["text", "text"], ["remark", ""]];
  const head = make("tr", {}, ...heads.map(([text, className]) => make("th", { text, className, scope: "col" })));
  const caption = table.answers.length > 200 ? [make("caption", { className: "soft", text: "The first 200 rows; the saved file has all." })] : [];
  $("rows").replaceChildren(make("table", {}, ...caption, make("thead", {}, head), make("tbody", {}, ...cells)));
  show("result", table.answers.length > 0);
}

const remark = (answer) => answer.remark ?? [answer.truncated ? "truncated" : "", answer.abstained ? "abstained" : ""].filter(Boolean).join(", ");

$("save").addEventListener("click", () => {
  const safe = $("safe").checked;
  const cell = (value) => {
    let text = String(value ?? "");
    if (safe && /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(text)) text = "'" + text;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [[...table.columns, "predicted_label", "probability", "remark"]];
  table.answers.forEach((answer, i) => {
    const row = table.columns.map((_, j) => table.rows[i][j] ?? "");
    lines.push([...row, (answer.labels ?? []).join(";"), surety(answer) ?? "", remark(answer)]);
  });
  const text = lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
  const address = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" }));
  make("a", { href: address, download: table.name.replace(/\.\w+$/, "") + "-labelled.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
});
