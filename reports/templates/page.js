"use strict";
// Sorting, filtering, switching series and the theme. The page is complete without it.

function sortTable(header) {
  const table = header.closest("table");
  const column = [...header.parentNode.children].indexOf(header);
  const up = header.getAttribute("aria-sort") !== "ascending";
  for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const keyed = [...table.tBodies[0].rows].map((row) => [row.cells[column].dataset.sort, row]);
  const filled = keyed.filter(([key]) => key !== undefined);
  const numeric = filled.every(([key]) => key !== "" && !Number.isNaN(Number(key)));
  const compare = numeric ? (a, b) => Number(a[0]) - Number(b[0]) : (a, b) => a[0].localeCompare(b[0]);
  filled.sort((a, b) => (up ? compare(a, b) : compare(b, a)));
  // Absent values come last, whichever the direction.
  const rest = keyed.filter(([key]) => key === undefined);
  table.tBodies[0].append(...[...filled, ...rest].map(([, row]) => row));
}

function applyFilters() {
  const words = document.getElementById("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = [...document.querySelectorAll("[data-facet]")].filter((s) => s.value !== "");
  let rows = 0;
  let tables = 0;
  for (const grid of document.querySelectorAll("#comparison .grid")) {
    const fits = wanted.every((s) => grid.getAttribute("data-f-" + s.dataset.facet) === s.value);
    const title = grid.querySelector("h3").textContent.toLowerCase();
    let left = 0;
    for (const row of grid.querySelectorAll("tbody tr")) {
      const text = title + " " + row.textContent.toLowerCase();
      const hit = fits && words.every((word) => text.includes(word));
      row.classList.toggle("hidden", !hit);
      left += hit ? 1 : 0;
    }
    grid.classList.toggle("hidden", left === 0);
    rows += left;
    tables += left ? 1 : 0;
  }
  document.getElementById("shown").textContent = rows + " rows in " + tables + " tables";
}

function toggleSeries(key) {
  const on = key.getAttribute("aria-pressed") !== "true";
  key.setAttribute("aria-pressed", String(on));
  for (const part of key.closest("figure").querySelectorAll(".s" + key.dataset.series)) part.classList.toggle("off", !on);
}

function storedTheme() {
  try { return localStorage.getItem("snnbench-theme") || "auto"; } catch (error) { return "auto"; }
}

function showTheme(choice) {
  document.documentElement.dataset.theme = choice;
  const button = document.getElementById("theme");
  button.textContent = "theme: " + choice;
  button.dataset.choice = choice;
}

function nextTheme() {
  const order = ["auto", "light", "dark"];
  const choice = order[(order.indexOf(document.getElementById("theme").dataset.choice) + 1) % order.length];
  try { localStorage.setItem("snnbench-theme", choice); } catch (error) { /* a browser may forbid storage to files */ }
  showTheme(choice);
}

for (const header of document.querySelectorAll("th")) header.firstElementChild.addEventListener("click", () => sortTable(header));
for (const key of document.querySelectorAll("button.key")) key.addEventListener("click", () => toggleSeries(key));
document.getElementById("theme").addEventListener("click", nextTheme);
showTheme(storedTheme());
const filters = document.getElementById("filters");
if (filters) {
  for (const name of ["input", "change"]) filters.addEventListener(name, applyFilters);
  filters.addEventListener("submit", (event) => event.preventDefault());
  applyFilters();
}
