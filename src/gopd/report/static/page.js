// What all parts of the page share: the data, elements from plain values, numbers, the theme.
"use strict";

const data = (name) => JSON.parse(document.getElementById(`data-${name}`).textContent);
const curves = data("curves");
const logged = data("rollouts");
const COLOURS = 8;
const DASHES = [[], [7, 3], [2, 2.5], [9, 3, 2, 3], [4, 2]];
const dashesOf = (group) => (group + Math.floor(group / COLOURS)) % DASHES.length;

/** An element with attributes and children; texts become text nodes, so nothing of them is ever markup. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** The line by which curves of a group are drawn. */
function swatch(group) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS(svg.namespaceURI, "line");
  const set = (element, values) => Object.entries(values).forEach(([name, value]) => element.setAttribute(name, value));
  set(svg, { class: "swatch", viewBox: "0 0 26 10", width: 26, height: 10, "aria-hidden": "true" });
  set(line, { x1: 0, x2: 26, y1: 5, y2: 5, class: `line c${group % COLOURS} d${dashesOf(group)}` });
  svg.append(line);
  return svg;
}

/** A colour of the style sheet as the present theme has it. */
function colour(name) {
  const probe = make("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** Four digits, with a minus sign of full width. */
function figure(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  let text;
  if (size >= 1000) text = Math.round(value).toLocaleString("en");
  else if (size >= 1e-3 || size === 0) text = String(Number(value.toPrecision(4)));
  else text = value.toExponential(2);
  return text.replace("-", "−");
}

/** Three digits, all of them written, for numbers that stand close together. */
function short(value) {
  const size = Math.abs(value);
  if (size >= 100) return figure(Math.round(value));
  if (size === 0) return "0";
  return (size < 1e-3 ? value.toExponential(1) : value.toPrecision(3)).replaceAll("-", "−");
}

/** Text with ℓ_T and the like as letters with a subscript. */
function formula(text) {
  return text.split(/_([A-Za-zλ]+)/).map((part, i) => (i % 2 ? make("sub", {}, part) : part));
}

// --- theme ----------------------------------------------------------------------------------------------------------

const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
const onTheme = [];

function showTheme() {
  themeButton.textContent = isDark() ? "Light theme" : "Dark theme";
  onTheme.forEach((redraw) => redraw());
}

themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
});
system.addEventListener("change", showTheme);
root.dataset.scripts = "";
