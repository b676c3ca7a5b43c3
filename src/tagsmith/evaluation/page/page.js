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
})();
