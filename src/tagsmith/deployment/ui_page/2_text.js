// ---- A text

let asking = 0;

function examples() {
  const made = state.examples.map((text) => {
    const button = make("button", { type: "button", text: shown(text, 60) });
    button.addEventListener("click", () => {
      $("text").value = text;
      label();
    });
    return button;
  });
  $("examples").replaceChildren(make("span", { className: "soft", text: "Try:" }), ...made);
  show("examples", made.length > 0 && !state.model.pairs);
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  label();
});
for (const id of ["text", "pair"]) {
  $(id).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      label();
    }
  });
}

async function label() {
  const mine = (asking += 1);
  const question = { texts: [$("text").value] };
  if (state.model.pairs) question.pairs = [$("pair").value];
  content();
  try {
    const { answers: [answer] } = await asked("ui/answer", question);
    if (mine !== asking) return;
    answered(question, answer);
    await explain(question, answer, explained(answer), mine);
  } catch (error) {
    if (mine === asking) complain(error);
  }
}

const explained = (answer) => (answer.labels.length ? state.model.labels.indexOf(answer.labels[0]) : likeliest(answer));
const likeliest = (answer) => answer.probabilities.indexOf(Math.max(...answer.probabilities));

function answered(question, answer) {
  const { labels } = state.model;
  const named = answer.labels.flatMap((name) => [", ", word(name)]).slice(1);
  const sure = answer.labels.length === 1 ? " " + percent(answer.probabilities[labels.indexOf(answer.labels[0])]) : "";
  const nothing = answer.abstained ? "No answer: none is sure enough" : "No label";
  $("verdict").replaceChildren(...(named.length ? [...named, make("span", { className: "sure", text: sure })] : [nothing]));
  const remarks = [
    answer.truncated ? `The text is longer than the ${state.model.max_tokens} tokens that are read: it was cut.` : "",
    answer.abstained && named.length ? "The model would rather not answer: it is not sure enough." : "",
  ].filter(Boolean);
  $("remark").textContent = remarks.join(" ");
  show("remark", remarks.length > 0);
  scores(question, answer, false);
  show("answer");
  say((answer.labels.join(", ") || nothing) + sure + ". " + remarks.join(" "));
  $("kept").textContent = "";
  const right = state.model.multi_label ? answer.labels : [];
  for (const option of $("right").options) option.selected = right.includes(labels[option.value]);
}

function scores(question, answer, all) {
  const order = answer.probabilities.map((_, i) => i).sort((a, b) => answer.probabilities[b] - answer.probabilities[a]);
  const most = all ? order.length : 8;
  $("scores").replaceChildren(...order.slice(0, most).map((i) => {
    const name = state.model.labels[i];
    const bar = track(answer.probabilities[i], answer.labels.includes(name), state.model.thresholds?.[i]);
    const share = make("span", { className: "share", text: percent(answer.probabilities[i]) });
    const button = make("button", { type: "button" }, word(name), bar, share);
    button.title = "Show the words that mattered for this label";
    button.dataset.label = i;
    button.addEventListener("click", () => explain(question, answer, i, (asking += 1)).catch(complain));
    return make("li", {}, button);
  }));
  show("more", order.length > most);
  $("more").onclick = () => scores(question, answer, true);
}

function track(share, strong, threshold) {
  const fill = make("span", { className: strong ? "fill" : "fill faint" });
  fill.style.width = 100 * share + "%";
  const mark = threshold === undefined ? null : make("span", { className: "mark" });
  if (mark) mark.style.left = 100 * threshold + "%";
  const bar = make("span", { className: "track" }, fill, mark);
  bar.setAttribute("aria-hidden", "true");
  return bar;
}

async function explain(question, answer, which, mine) {
  const name = state.model.labels[which];
  $("words-title").replaceChildren("The words that mattered for ", word(name));
  for (const button of $("scores").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.label) === which));
  }
  show("words-wait");
  show("words", false);
  show("words-told", false);
  const body = { text: question.texts[0], label: name };
  if (question.pairs) body.pair = question.pairs[0];
  try {
    const { pieces } = await patiently("explain", body, () => mine === asking);
    if (mine === asking) painted(pieces, name);
  } finally {
    if (mine === asking) show("words-wait", false);
  }
}

const bare = (text) => text.replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, "") || text.trim();

function painted(pieces, name) {
  const most = Math.max(...pieces.map((piece) => Math.abs(piece.weight)), 0.1);
  $("words").replaceChildren(...pieces.map(({ text, weight }) => {
    const depth = Math.round(45 * Math.abs(weight) / most);
    if (depth < 4) return make("span", { text: shown(text, 100000) });
    const span = make("span", { text: shown(text, 100000), className: weight > 0 ? "for" : "against" });
    span.style.background = `color-mix(in srgb, var(${weight > 0 ? "--accent" : "--second"}) ${depth}%, transparent)`;
    span.title = `${weight > 0 ? "+" : "\u2212"}${Math.abs(weight).toFixed(2)} log-odds`;
    return span;
  }));
  const listed = (sign) => pieces
    .filter((piece) => sign * piece.weight > 0.1 * most)
    .sort((a, b) => sign * (b.weight - a.weight))
    .slice(0, 8)
    .flatMap((piece) => [", ", word(bare(piece.text))])
    .slice(1);
  const [speaks, against] = [listed(1), listed(-1)];
  $("words-told").replaceChildren(
    "For ", word(name), speaks.length ? " speak: " : " speaks no single word", ...speaks,
    ...(against.length ? ["; against it (underlined): ", ...against] : []), ". The deeper the colour, the more ",
    "the log-odds of the label change when the words are left out.",
  );
  show("words");
  show("words-told");
}

$("correct").addEventListener("submit", async (event) => {
  event.preventDefault();
  const labels = [...$("right").selectedOptions].map((option) => state.model.labels[option.value]);
  const body = { text: $("text").value, labels };
  if (state.model.pairs) body.pair = $("pair").value;
  content();
  try {
    const { kept } = await asked("corrections", body);
    $("kept").textContent = `Kept. ${count(kept)} ${kept === 1 ? "correction waits" : "corrections wait"} for the next training.`;
  } catch (error) {
    complain(error);
  }
});
