// The token inspector: rollouts to filter, sort and choose from; rollout.js shows the chosen one.

const AT_ONCE = 150;
const place = document.getElementById("inspector");
const state = { run: "", answers: "", step: "", teacher: "", verdict: "", find: "", sort: "logged", shade: "advantage", shown: AT_ONCE };
let rows = [];
let chosen = null;
let full = 1;

// --- verdicts, filters, orders --------------------------------------------------------------------------------------

const answersOf = (row) => (row.source === "training" ? "training" : `held-out: ${row.model}`);
const VERDICTS = {
  right: (row) => row.reward !== null && row.reward > 0,
  wrong: (row) => row.reward !== null && row.reward <= 0,
  "not graded": (row) => row.reward === null,
  finished: (row) => row.finished === true,
  cut: (row) => row.finished === false,
};
const verdictRank = (row) => (row.reward === null ? 2 : row.reward > 0 ? 1 : 0) * 2 + (row.finished ? 1 : 0);
/** A key of an order; what is not known comes last. */
const orLast = (value, sign) => (value === null || value === undefined ? Infinity : sign * value);
const ORDERS = {
  logged: ["as logged", () => 0],
  positive: ["most positive token", (row) => orLast(summary(row)?.most, -1)],
  negative: ["most negative token", (row) => orLast(summary(row)?.least, 1)],
  kl: ["largest mean KL to target", (row) => orLast(meanOf(row, "kls"), -1)],
  teacher: ["teacher", (row) => row.route ?? "\uffff"],
  verdict: ["verdict: wrong first", verdictRank],
  length: ["longest", (row) => -row.ids.length],
};

function compare(a, b) {
  const key = ORDERS[state.sort][1];
  const [left, right] = [key(a), key(b)];
  return left < right ? -1 : left > right ? 1 : a.place - b.place;
}

function matches(row) {
  return (state.run === "" || row.run === Number(state.run))
    && (state.answers === "" || answersOf(row) === state.answers)
    && (state.step === "" || row.step === Number(state.step))
    && (state.teacher === "" || row.route === state.teacher)
    && (state.verdict === "" || VERDICTS[state.verdict](row))
    && (state.find === "" || logged.prompts[row.prompt].toLowerCase().includes(state.find) || responseOf(row).toLowerCase().includes(state.find));
}

const responseOf = (row) => row.ids.map((_, token) => tokenText(row, token)).join("");

// --- the list -------------------------------------------------------------------------------------------------------

const distinct = (values) => [...new Set(values)].filter((value) => value !== null && value !== undefined);

function filters() {
  const all = logged.rows;
  const select = (name, label, options) => {
    const choices = options.map(([value, text]) => make("option", { value }, text));
    const input = make("select", { id: `by-${name}`, onchange: () => set(name, input.value) }, ...choices);
    return make("label", {}, label, input);
  };
  const any = (values, text = String) => [["", "all"], ...values.map((value) => [value, text(value)])];
  const runs = distinct(all.map((row) => row.run));
  const teachers = distinct(all.map((row) => row.route)).sort();
  const search = make("input", { id: "by-find", type: "search", placeholder: "prompt or response", oninput: () => set("find", search.value.toLowerCase()) });
  return make("div", { class: "filters" },
    runs.length > 1 ? select("run", "run", any(runs, (run) => logged.runs[run])) : null,
    select("answers", "answers of", any(distinct(all.map(answersOf)))),
    select("step", "step", any(distinct(all.map((row) => row.step)).sort((a, b) => a - b))),
    teachers.length ? select("teacher", "teacher", any(teachers)) : null,
    select("verdict", "verdict", any(Object.keys(VERDICTS))),
    select("sort", "sort by", Object.entries(ORDERS).map(([name, [text]]) => [name, text])),
    select("shade", "shade by", Object.entries(SHADES).map(([name, { label }]) => [name, label])),
    make("label", {}, "find", search));
}

function set(name, value) {
  state[name] = value;
  state.shown = AT_ONCE;
  if (name === "shade") full = fullShade(state.shade);
  refresh();
}

function refresh() {
  rows = logged.rows.filter(matches).sort(compare);
  if (!rows.includes(chosen)) chosen = rows[0] ?? null;
  const count = `${rows.length.toLocaleString("en")} of ${logged.rows.length.toLocaleString("en")} rollouts`;
  document.getElementById("count").textContent = count;
  showList();
  showChosen();
}

function showList() {
  const list = document.getElementById("rollouts");
  const more = rows.length > state.shown
    ? make("button", { type: "button", class: "more", onclick: () => { state.shown += AT_ONCE; showList(); } }, `show ${Math.min(AT_ONCE, rows.length - state.shown)} more`)
    : null;
  list.replaceChildren(...rows.slice(0, state.shown).map(option));
  document.getElementById("more").replaceChildren(...(more ? [more] : []));
  markChosen();
}

function option(row) {
  return make("div", { role: "option", id: `rollout-${row.place}`, "aria-selected": "false", onclick: () => choose(row) },
    meta(row), make("div", { class: "snippet" }, oneLine(logged.prompts[row.prompt])), strip(row));
}

/** Where a rollout is from, and what became of it. */
function meta(row, ...further) {
  const group = curves.groups.length > 1 ? [swatch(logged.groups[row.run])] : [];
  const run = logged.runs.length > 1 ? [make("span", {}, logged.runs[row.run])] : [];
  const verdict = row.reward === null ? null
    : make("span", { class: row.reward > 0 ? "right" : "wrong" }, row.reward > 0 ? "✓ right" : "✗ wrong", [0, 1].includes(row.reward) ? "" : ` (${figure(row.reward)})`);
  return make("div", { class: "meta" }, ...group, ...run,
    make("span", {}, `step ${row.step}`),
    row.source === "training" ? null : make("span", { class: "tag" }, `held-out ${row.model}`),
    row.route === null ? null : make("span", { class: "tag" }, row.route),
    verdict, row.finished === false ? make("span", { class: "wrong" }, "cut") : null, ...further);
}

/** The response as a row of shades. */
function strip(row) {
  const canvas = make("canvas", { class: "strip", width: Math.max(1, row.ids.length), height: 1, "aria-hidden": "true" });
  const pen = canvas.getContext("2d");
  row.ids.forEach((_, token) => {
    pen.fillStyle = shade(SHADES[state.shade].of(row, token), full);
    pen.fillRect(token, 0, 1, 1);
  });
  return canvas;
}

function markChosen() {
  const list = document.getElementById("rollouts");
  list.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
  const mine = chosen && document.getElementById(`rollout-${chosen.place}`);
  list.setAttribute("aria-activedescendant", mine ? mine.id : "");
  mine?.setAttribute("aria-selected", "true");
  return mine;
}

function choose(row) {
  chosen = row;
  const option = markChosen();
  if (option) {
    const list = option.parentElement.parentElement;
    const [top, bottom] = [option.offsetTop, option.offsetTop + option.offsetHeight];
    if (top < list.scrollTop) list.scrollTop = top;
    else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
  }
  showChosen();
}

function listKeys(event) {
  const here = rows.indexOf(chosen);
  const to = { ArrowDown: here + 1, ArrowUp: here - 1, PageDown: here + 8, PageUp: here - 8, Home: 0, End: state.shown - 1 }[event.key];
  if (to === undefined || !rows.length) return;
  event.preventDefault();
  choose(rows[Math.min(Math.max(to, 0), Math.min(rows.length, state.shown) - 1)]);
}

// --- start ----------------------------------------------------------------------------------------------------------

function startInspector() {
  if (!logged.rows.length) {
    const none = logged.logged ? "No logged rollout is of the steps that were asked for." : "No rollouts are there: method sft logs none, nor does tracking.rollouts_every: 0.";
    place.append(make("p", { class: "quiet" }, none));
    return;
  }
  logged.rows.forEach((row, i) => { row.place = i; });
  const left = logged.logged - logged.rows.length;
  const part = left > 0
    ? ` The runs logged ${logged.logged.toLocaleString("en")}; those here are from steps evenly apart, prompts that come back first. gopd report RUN --steps 1,20-25 holds what you name.`
    : "";
  place.append(
    filters(),
    make("p", { class: "note" }, make("span", { id: "count", role: "status" }), ".", part),
    make("div", { class: "inspector" },
      make("div", { class: "rollouts" }, make("div", { id: "rollouts", role: "listbox", tabindex: 0, "aria-label": "Rollouts", onkeydown: listKeys }), make("div", { id: "more" })),
      make("div", { id: "detail" })));
  full = fullShade(state.shade);
  refresh();
  onTheme.push(() => { showList(); showChosen(); });
}

startInspector();
startCurves();
showTheme();
