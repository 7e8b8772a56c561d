"use strict";
const pairs = JSON.parse(document.getElementById("pairs").textContent);
const place = "study " + STUDY + " " + location.pathname;
const at = (id) => document.getElementById(id);

// A 32-bit mix of a counter: the order depends on (seed, person, pair) and on nothing that came before.
function mixed(...numbers) {
  let state = 0x9e3779b9;
  for (const number of numbers) {
    state = Math.imul(state ^ number, 0x85ebca6b);
    state = Math.imul(state ^ (state >>> 13), 0xc2b2ae35) ^ (state >>> 16);
  }
  return state >>> 0;
}

function remember(state) {
  try { localStorage.setItem(place, JSON.stringify(state)); } catch { /* a browser that keeps nothing */ }
}
function recall() {
  try { return JSON.parse(localStorage.getItem(place)); } catch { return null; }
}

const given = new URLSearchParams(location.search).get("person") || "";
const asked = /^\d{1,15}$/.test(given) ? Number(given) : null;
let state = recall();
if (!state || (asked !== null && state.person !== asked)) {
  const person = asked === null ? crypto.getRandomValues(new Uint32Array(1))[0] : asked;
  state = { person, answers: [] };
}
const order = pairs.map((_, index) => index);
order.sort((a, b) => mixed(SEED, state.person, a) - mixed(SEED, state.person, b) || a - b);

function show() {
  const done = state.answers.length;
  at("bar").value = done;
  at("progress").textContent = `${done} of ${pairs.length}`;
  at("question").hidden = done === pairs.length;
  at("end").hidden = done < pairs.length;
  at("back").disabled = done === 0;
  if (done < pairs.length) {
    for (const name of ["left", "right", "input"]) at(name).src = pairs[order[done]][name];
    return;
  }
  const text = JSON.stringify({ study: STUDY, seed: SEED, person: state.person, answers: state.answers });
  at("text").value = text;
  at("save").href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  at("save").download = `answers-${state.person}.json`;
}

function answer(choice) {
  const done = state.answers.length;
  if (done === pairs.length) return;
  state.answers.push({ pair: order[done], choice });
  remember(state);
  show();
}

for (const button of document.querySelectorAll("[data-answer]")) {
  button.addEventListener("click", () => answer(button.dataset.answer));
}
at("back").addEventListener("click", () => { state.answers.pop(); remember(state); show(); });
document.addEventListener("keydown", (event) => {
  const choice = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "same" }[event.key];
  if (choice && event.target.tagName !== "TEXTAREA") { event.preventDefault(); answer(choice); }
});
show();
