"use strict";
for (const slider of document.querySelectorAll(".compare input")) {
  const move = () => slider.parentElement.style.setProperty("--split", slider.value + "%");
  slider.addEventListener("input", move);
  move();
}
function showMethod() {
  const choice = document.querySelector("#methods input:checked");
  const title = choice.parentElement.textContent.trim();
  for (const image of document.querySelectorAll("img.after")) image.hidden = image.dataset.method !== choice.value;
  for (const label of document.querySelectorAll("b.right")) label.textContent = title;
  for (const row of document.querySelectorAll("figcaption tr")) {
    row.classList.toggle("shown", row.dataset.method === choice.value);
  }
}
document.getElementById("methods").addEventListener("change", showMethod);
showMethod();
const degradations = document.getElementById("degradations");
function showDegradation() {
  for (const section of document.querySelectorAll("main section")) {
    section.hidden = degradations.value !== "" && degradations.value !== section.dataset.degradation;
  }
}
degradations.addEventListener("change", showDegradation);
showDegradation();
function number(text) {
  return text.startsWith("NaN") || text === "" || text === "–" ? NaN : parseFloat(text);
}
function compare(a, b) {
  if (typeof a === "string" && typeof b === "string") return a.localeCompare(b);
  return Number.isNaN(a) - Number.isNaN(b) || a - b;
}
function sortable(head, sort) {
  head.tabIndex = 0;
  const turn = () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    sort(head.cellIndex, descending ? -1 : 1);
  };
  head.addEventListener("click", turn);
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") turn(); });
}
for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.querySelectorAll("thead th")) sortable(head, (column, sign) => {
    const body = table.tBodies[0];
    const value = (row) => {
      const text = row.cells[column].textContent.trim();
      return column === 0 || !/\d/.test(text) && text !== "NaN" && text !== "–" ? text : number(text);
    };
    const rows = [...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      return Number.isNaN(x) || Number.isNaN(y) ? compare(x, y) : sign * compare(x, y);
    });
    body.append(...rows);
  });
}
const LIMIT = 200;
const data = JSON.parse(document.getElementById("data").textContent);
const scores = document.getElementById("scores");
const filters = [...scores.querySelectorAll("select")];
let order = (a, b) => 0;
function showScores() {
  const wanted = data.rows.filter((row) => filters.every((f) => f.value === "" || row[f.dataset.column] === f.value));
  const shown = wanted.sort(order).slice(0, LIMIT);
  const cell = (value) => {
    const element = document.createElement("td");
    element.textContent = value === null ? "" : typeof value === "number" ? value.toFixed(4) : value;
    return element;
  };
  scores.querySelector("tbody").replaceChildren(...shown.map((row) => {
    const element = document.createElement("tr");
    element.append(...row.map(cell));
    return element;
  }));
  scores.querySelector("span").textContent = `${shown.length} of ${wanted.length} rows`;
}
for (const filter of filters) {
  const names = new Set(data.rows.map((row) => row[filter.dataset.column]));
  filter.append(new Option("all", ""), ...[...names].map((name) => new Option(name)));
  filter.addEventListener("change", showScores);
}
const heads = document.createElement("tr");
for (const name of data.columns) {
  const head = document.createElement("th");
  head.textContent = name;
  heads.append(head);
}
scores.querySelector("thead").append(heads);
for (const head of heads.children) sortable(head, (column, sign) => {
  const value = (row) => row[column] === "NaN" || row[column] === null ? NaN : row[column];
  order = (a, b) => {
    const x = value(a), y = value(b);
    return Number.isNaN(x) || Number.isNaN(y) ? compare(x, y) : sign * compare(x, y);
  };
  showScores();
});
showScores();

const hint = document.getElementById("hint");
function showHint(event) {
  const cell = event.target.closest("[data-hint]");
  hint.hidden = !cell;
  if (!cell) return;
  hint.textContent = cell.dataset.hint;
  const box = cell.getBoundingClientRect();
  hint.style.left = Math.max(8, Math.min(box.left, innerWidth - hint.offsetWidth - 8)) + "px";
  const below = box.bottom + 6;
  hint.style.top = (below + hint.offsetHeight > innerHeight ? box.top - hint.offsetHeight - 6 : below) + "px";
}
for (const kind of ["pointerover", "focusin", "click"]) document.addEventListener(kind, showHint);
document.addEventListener("scroll", () => { hint.hidden = true; }, { passive: true });
