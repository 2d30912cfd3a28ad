"use strict";
const form = document.getElementById("filters");
const list = document.getElementById("cards");
const shown = document.getElementById("shown");
const cards = [...list.children].map((card) => ({ card, text: card.textContent.toLowerCase() }));

function least(value, bound) {
  return bound === "" || (value !== "" && Number(value) <= Number(bound));
}

function apply() {
  const asked = Object.fromEntries(new FormData(form));
  let count = 0;
  for (const { card, text } of cards) {
    const data = card.dataset;
    const kept =
      ["kind", "set", "target"].every((name) => asked[name] === "" || asked[name] === "=" + data[name]) &&
      least(data.worst, asked.worst) &&
      least(data.result, asked.result) &&
      text.includes(asked.text.trim().toLowerCase());
    card.hidden = !kept;
    count += kept;
  }
  shown.textContent = count + " of " + cards.length + " shown";
}

function order() {
  const name = form.elements.order.value;
  const rank = ({ card }) => (card.dataset[name] === "" ? 2 : Number(card.dataset[name]));
  const sorted = name === "log" ? cards : [...cards].sort((a, b) => rank(a) - rank(b));
  list.append(...sorted.map(({ card }) => card));
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(() => (order(), apply())));
form.addEventListener("input", (event) => (event.target.name === "order" ? order() : apply()));
order(); // a reload may bring back what was chosen
apply();
