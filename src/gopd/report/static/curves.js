// The curves: a panel for each figure, one cursor for all of them.

const panelsRoot = document.getElementById("panels");
const hidden = new Set();
const panels = [];
let cursor = null;

/** The Vega-Lite description of a panel, in the colours of the present theme. */
function specification(panel) {
  const names = curves.groups.map((_, place) => String(place));
  const ranges = {
    color: names.map((_, place) => colour(`c${place % COLOURS}`)),
    dash: names.map((_, place) => DASHES[dashesOf(place)]),
  };
  const color = { field: "group", type: "nominal", scale: { domain: names, range: ranges.color }, legend: null };
  const strokeDash = { field: "group", type: "nominal", scale: { domain: names, range: ranges.dash }, legend: null };
  const shown = panel.rows.filter((row) => !hidden.has(row[0]));
  const domain = (...columns) => {
    const values = shown.flatMap((row) => columns.map((column) => row[column]));
    return values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  };
  const step = { field: "step", type: "quantitative", title: null, scale: { domain: domain(1), nice: false, zero: false } };
  const y = { field: "mean", type: "quantitative", title: null, scale: { domain: domain(3, 4), nice: true, zero: false } };
  const bounds = { y: { ...y, field: "low" }, y2: { field: "high" } };
  const banded = new Set(shown.filter((row) => row[3] < row[4]).map((row) => row[0]));
  const here = [{ filter: "datum.step === chosenStep" }];
  const band = { mark: { type: "area", opacity: 0.2 }, encoding: { ...bounds, color } };
  const whiskers = { mark: { type: "rule", strokeWidth: 1.5, opacity: 0.7 }, encoding: { ...bounds, color } };
  const layers = [
    ...(banded.size ? [{ transform: [{ filter: "datum.banded" }], ...(panel.dots ? whiskers : band) }] : []),
    { mark: { type: "line", strokeWidth: 2, strokeCap: "butt", point: panel.rows.length < 30 || panel.dots }, encoding: { y, color, strokeDash } },
    { transform: here, mark: { type: "rule", color: colour("quiet"), opacity: 0.35 }, encoding: {} },
    { transform: here, mark: { type: "point", filled: true, size: 45, opacity: 1 }, encoding: { y, color } },
  ];
  const values = shown.map(([group, at, mean, low, high]) => ({ group: String(group), step: at, mean, low, high, banded: banded.has(group) }));
  return {
    data: { values },
    params: [{ name: "chosenStep", value: cursor }],
    width: "container",
    height: 150,
    padding: { left: 0, right: 6, top: 4, bottom: 0 },
    autosize: { type: "fit", contains: "padding" },
    description: describe(panel),
    encoding: { x: { ...step, axis: { format: "d", tickCount: 5, values: few(shown) } } },
    layer: layers,
    config: theme(),
  };
}

function theme() {
  const font = getComputedStyle(document.body).fontFamily;
  const axis = {
    labelFont: font, labelFontSize: 11, labelColor: colour("quiet"), gridColor: colour("rule"), domain: false, ticks: false,
    labelPadding: 5, tickCount: 4, labelOverlap: true,
  };
  return { background: "transparent", view: { stroke: null }, axis, axisX: { grid: false, domain: true, domainColor: colour("rule") },
    point: { size: 18, filled: true } };
}

/** The steps themselves as ticks where they are few; otherwise Vega finds round ones. */
function few(shown) {
  const steps = [...new Set(shown.map((row) => row[1]))].sort((a, b) => a - b);
  return steps.length <= 5 ? steps : undefined;
}

/** A panel in words, for those who do not see it. */
function describe(panel) {
  const parts = curves.groups.map((group, place) => {
    const mine = panel.rows.filter((row) => row[0] === place);
    if (!mine.length) return null;
    const [first, last] = [mine[0], mine[mine.length - 1]];
    return `${group.label}: ${figure(first[2])} at step ${first[1]}, ${figure(last[2])} at step ${last[1]}`;
  });
  return `${panel.title}${panel.unit ? ` in ${panel.unit}` : ""}. ${parts.filter(Boolean).join("; ")}.`;
}

/** Values of a panel at the cursor, or each curve's last where there is none. */
function readout(panel) {
  const items = curves.groups.map((group, place) => {
    const mine = panel.rows.filter((row) => row[0] === place && (cursor === null || row[1] === cursor));
    if (!mine.length || hidden.has(place)) return null;
    const [, , mean, low, high] = mine[mine.length - 1];
    const span = low < high ? ` [${short(low)}, ${short(high)}]` : "";
    return make("li", { title: group.label, "aria-label": `${group.label}: ${short(mean)}${span}` }, swatch(place), `${short(mean)}${span}`);
  });
  return [make("li", { class: "at" }, cursor === null ? "last" : `step ${cursor}`), ...items.filter(Boolean)];
}

function build(panel) {
  const unit = panel.unit ? make("span", {}, panel.unit) : null;
  const values = make("ul", { class: "readout" });
  const plot = make("div", { class: "plot" });
  const frame = make("figure", { class: "panel", tabindex: 0, "aria-label": `${describe(panel)} Arrow keys move along the steps.` },
    make("h4", {}, panel.title, unit), make("p", { class: "about" }, ...formula(panel.about)), values, plot);
  const built = { panel, frame, plot, values, view: null };
  const steps = [...new Set(panel.rows.map((row) => row[1]))].sort((a, b) => a - b);
  plot.addEventListener("pointermove", (event) => {
    if (built.view) moveTo(nearest(steps, built.view.scale("x").invert(event.clientX - origin(built))));
  });
  plot.addEventListener("pointerleave", () => moveTo(null));
  frame.addEventListener("keydown", (event) => {
    const place = steps.indexOf(cursor === null ? steps[steps.length - 1] : nearest(steps, cursor));
    const to = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: steps.length - 1, Escape: null }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    moveTo(to === null ? null : steps[Math.min(Math.max(to, 0), steps.length - 1)]);
  });
  frame.addEventListener("blur", () => moveTo(null));
  return built;
}

const origin = (built) => built.plot.getBoundingClientRect().left + built.view.origin()[0];
const nearest = (steps, at) => steps.reduce((best, step) => (Math.abs(step - at) < Math.abs(best - at) ? step : best));

/** Puts the cursor of all panels at a step; null takes it away. */
function moveTo(step) {
  if (step === cursor) return;
  cursor = step;
  requestAnimationFrame(() => {
    for (const built of panels) {
      built.values.replaceChildren(...readout(built.panel));
      if (built.view) built.view.signal("chosenStep", cursor).runAsync();
    }
  });
}

async function draw(built) {
  built.view?.finalize();
  built.view = null;
  const options = { mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false, tooltip: false };
  const result = await window.vegaEmbed(built.plot, specification(built.panel), options);
  built.view = result.view;
  built.values.replaceChildren(...readout(built.panel));
}

/** Draws what is in open sections; the others are drawn when they are opened. */
async function drawAll() {
  for (const built of panels) {
    if (built.frame.closest("details")?.open !== false) await draw(built);
  }
  panelsRoot.dataset.drawn = "";
}

function legend() {
  const buttons = curves.groups.map((group, place) =>
    make("button", {
      type: "button", "aria-pressed": "true",
      onclick(event) {
        const gone = hidden.delete(place) ? false : Boolean(hidden.add(place));
        event.currentTarget.setAttribute("aria-pressed", String(!gone));
        drawAll();
      },
    }, swatch(place), group.label));
  return make("div", { class: "legend", role: "group", "aria-label": "Runs shown" }, ...buttons);
}

function note() {
  const bands = curves.groups.some((group) => group.runs > 1);
  const parts = ["Curves are by step; move over one, or press arrow keys in it, to read them all at that step."];
  if (bands) parts.push("Runs whose recipes differ only in seed and name are one curve: the mean, in a band from the lowest to the highest run.");
  if (curves.stepsPerPoint > 1) parts.push(`Each point is the mean of ${curves.stepsPerPoint} steps.`);
  return make("p", { class: "note" }, parts.join(" "));
}

function startCurves() {
  if (!curves.sections.length) {
    panelsRoot.append(make("p", { class: "quiet" }, "No metrics are there to draw."));
    return;
  }
  panelsRoot.append(legend(), note());
  curves.sections.forEach((section, place) => {
    const built = section.panels.map(build);
    panels.push(...built);
    const family = make("details", { class: "family", open: place < 3 }, make("summary", {}, section.title),
      make("div", { class: "panels" }, ...built.map((one) => one.frame)));
    family.addEventListener("toggle", () => {
      if (family.open) built.filter((one) => !one.view).forEach(draw);
    });
    panelsRoot.append(family);
  });
  for (const built of panels) built.values.replaceChildren(...readout(built.panel));
  onTheme.push(drawAll);
}
