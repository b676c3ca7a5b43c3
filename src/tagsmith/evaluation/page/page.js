"use strict";
(() => {
  document.documentElement.classList.add("scripted");
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const byId = (id) => document.getElementById(id);
  const count = (value) => value.toLocaleString("en-US");
  const percent = (value) => (100 * value).toFixed(1) + " %";

  const made = (name, text, isQuoted) => {
    const element = document.createElement(name);
    if (isQuoted) element.dir = "auto";
    element.textContent = text;
    return element;
  };

  // --- the texts behind a cell of the confusion matrix

  const panel = byId("cell-texts");
  let pressed = null;

  const rowsOf = (cell) => {
    const square = document.querySelector(`[data-cell="${cell}"]`);
    return Number(square.dataset.rows || square.textContent.replaceAll(",", ""));
  };

  const show = (cell, by) => {
    const [truth, answer] = cell.split("-").map((place) => data.labels[Number(place)]);
    const rows = rowsOf(cell), texts = data.cells[cell] || [];
    const head = made("h3", "");
    head.append("truth ", made("bdi", truth), ", answer ", made("bdi", answer), `: ${count(rows)} rows`);
    const list = document.createElement("ol");
    for (const [row, text, probability] of texts) {
      const item = document.createElement("li");
      item.append(made("small", `row ${count(row)}, ${percent(probability)} sure`), made("bdi", text, true));
      list.append(item);
    }
    panel.replaceChildren(head, list);
    if (texts.length < rows) panel.append(made("p", texts.length ? `The ${texts.length} surest of them.` : "Their texts are not in this page."));
    panel.hidden = false;
    if (pressed) pressed.removeAttribute("aria-pressed");
    pressed = by;
    if (by.tagName === "BUTTON") by.setAttribute("aria-pressed", "true");
    panel.scrollIntoView({ block: "nearest" });
  };

  document.addEventListener("click", (event) => {
    const by = event.target.closest("[data-cell]");
    if (by && panel) show(by.dataset.cell, by);
  });

  // --- arrow keys in the matrix: one stop for the tab key, then from cell to cell

  const turns = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const table = document.querySelector("table.confusion");
  if (table) {
    const buttons = [...table.querySelectorAll("button")];
    buttons.forEach((button, i) => { button.tabIndex = i ? -1 : 0; });
    table.addEventListener("keydown", (event) => {
      const turn = turns[event.key], from = event.target.closest("td");
      if (!turn || !from) return;
      event.preventDefault();
      let [row, column] = [from.parentElement.rowIndex, from.cellIndex];
      for (;;) {
        row += turn[0];
        column += turn[1];
        const cell = row > 0 && column > 0 && table.rows[row] && table.rows[row].cells[column];
        if (!cell) return;
        const button = cell.querySelector("button");
        if (button) {
          event.target.tabIndex = -1;
          button.tabIndex = 0;
          button.focus();
          return;
        }
      }
    });
  }

  // --- the map of many labels: a cross that follows the pointer or the arrow keys

  const map = byId("map");
  if (map) {
    const labels = data.labels.length;
    let truth = 0, answer = 0;
    const look = () => {
      byId("cross").setAttribute("d", `M${answer + 0.5} 0V${labels}M0 ${truth + 0.5}H${labels}`);
      const square = map.querySelector(`[data-cell="${truth}-${answer}"]`);
      const told = byId("map-cell");
      told.replaceChildren("truth ", made("bdi", data.labels[truth]), ", answer ", made("bdi", data.labels[answer]),
        `: ${square ? count(Number(square.dataset.rows)) : 0} rows`);
      return square;
    };
    const within = (place) => Math.max(0, Math.min(labels - 1, place));
    map.addEventListener("pointermove", (event) => {
      const box = map.getBoundingClientRect(), side = (labels + 2) / box.width;
      answer = within(Math.floor((event.clientX - box.left) * side - 1));
      truth = within(Math.floor((event.clientY - box.top) * side - 1));
      look();
    });
    map.addEventListener("keydown", (event) => {
      const turn = turns[event.key];
      if (turn) {
        event.preventDefault();
        truth = within(truth + turn[0]);
        answer = within(answer + turn[1]);
        look();
      } else if (event.key === "Enter") {
        const square = look();
        if (square) show(`${truth}-${answer}`, square);
      }
    });
  }

  // --- the slider: what another threshold would have done

  const slider = byId("threshold"), choice = byId("threshold-label");
  if (slider) {
    const picture = byId("threshold-picture");
    const [first, second] = picture.querySelectorAll("polyline");
    const rule = picture.querySelector(".rule");
    const { options, independent, frame: [left, right, top, bottom] } = data.thresholds;
    const across = (share) => left + share * (right - left);
    const up = (share) => bottom - share * (bottom - top);

    const wilson = (hits, rows) => {
      const z2 = 3.8415, share = hits / rows, middle = share + z2 / (2 * rows);
      const room = Math.sqrt(z2 * (share * (1 - share) / rows + z2 / (4 * rows * rows)));
      return [(middle - room) / (1 + z2 / rows), (middle + room) / (1 + z2 / rows)];
    };
    const told = (hits, rows) => {
      if (!rows) return "none";
      const [low, high] = wilson(hits * independent, rows * independent);
      return `${percent(hits / rows)} (${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)})`;
    };
    const recalled = (option, at) => (option.any ? option.answered : option.right)[at];

    const move = () => {
      const option = options[Number(choice.value)], at = Number(slider.value);
      const answered = option.answered[at];
      byId("threshold-value").textContent = `${at} %`;
      byId("threshold-precision").textContent = told(option.right[at], answered);
      byId("threshold-recall").textContent = told(recalled(option, at), option.all);
      byId("threshold-count").textContent = count(answered);
      const names = option.any ? ["right of those answered", "answered"] : ["precision", "recall"];
      byId("threshold-precision-name").textContent = names[0];
      byId("threshold-recall-name").textContent = names[1];
      picture.parentElement.querySelectorAll(".legend li").forEach((item, i) => { item.textContent = names[i]; });
      const x = across(at / 100).toFixed(1);
      rule.setAttribute("d", `M${x} ${top}V${bottom}`);
      const points = (values) => values.map(([place, share]) => `${across(place).toFixed(1)},${up(share).toFixed(1)}`).join(" ");
      const places = option.answered.map((rows, i) => [i / 100, i]).filter(([, i]) => option.answered[i]);
      first.setAttribute("points", points(places.map(([place, i]) => [place, option.right[i] / option.answered[i]])));
      second.setAttribute("points", points(option.answered.map((_, i) => [i / 100, recalled(option, i) / (option.all || 1)])));
    };
    slider.addEventListener("input", move);
    choice.addEventListener("input", move);
    move();
  }
})();
