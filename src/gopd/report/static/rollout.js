// One rollout in full: its tokens, the numbers of one of them, extremes, a table, the same prompt elsewhere.

const BESIDE = 24;
let current = null;

function showChosen() {
  const detail = document.getElementById("detail");
  current = null;
  if (!chosen) {
    detail.replaceChildren(make("p", { class: "quiet" }, "No rollout matches."));
    return;
  }
  const row = chosen;
  const facts = make("aside", { class: "facts", id: "facts", "aria-live": "polite", "aria-label": "Numbers of the token" });
  const about = make("span", {}, `${row.where}, sample ${row.sample}, ${row.ids.length} tokens`);
  const scale = row.scale === null ? null : make("span", {}, `λ = ${row.scale}`);
  const version = row.versions.length ? make("span", {}, `sampled by the weights of ${weightsOf(row)}`) : null;
  const text = tokensOf(row, "Tokens of the response; arrow keys move along them");
  text.id = "tokens-chosen";
  detail.replaceChildren(
    make("section", { class: "card", "aria-label": "Rollout" }, meta(row, scale, about, version),
      make("div", { class: "prompt", tabindex: 0, role: "region", "aria-label": "Prompt" }, logged.prompts[row.prompt])),
    make("section", { class: "card", "aria-label": "Response" },
      make("div", { class: "response" }, make("div", {}, scaleLegend(row), text, extremes(row), allTokens(row)), facts)),
    beside(row));
  if (row.ids.length) show(row, 0, text.firstChild, false);
}

/** The steps whose weights sampled a response, and from which token on. */
function weightsOf(row) {
  const [[, first], ...later] = row.versions;
  return [`step ${first}`, ...later.map(([token, step]) => `${step} from token ${token + 1}`)].join(", ");
}

/** Tokens as one composite control: one of them can be reached by Tab, arrow keys go on from it. */
function tokensOf(row, label) {
  const tokens = row.ids.map((_, token) => {
    const value = SHADES[state.shade].of(row, token);
    const text = withSigns(tokenText(row, token));
    const name = `token ${token + 1}, ${oneLine(tokenText(row, token))}, ${SHADES[state.shade].label} ${signed(value)}`;
    const made = make("span", { class: `token ${signOf(value, full)}`, role: "option", tabindex: token ? -1 : 0, "aria-label": name, "data-token": token }, text);
    made.style.backgroundColor = shade(value, full);
    return made;
  });
  const box = make("div", { class: "tokens", role: "listbox", "aria-label": label, "aria-orientation": "horizontal" }, ...tokens);
  const showTarget = (event) => {
    const made = event.target.closest(".token");
    if (made) show(row, Number(made.dataset.token), made, event.type === "focusin");
  };
  for (const kind of ["pointerover", "focusin", "click"]) box.addEventListener(kind, showTarget);
  box.addEventListener("keydown", (event) => tokenKeys(event, tokens));
  return box;
}

function tokenKeys(event, tokens) {
  const here = tokens.indexOf(event.target);
  const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: tokens.length - 1 }[event.key];
  const line = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const next = line ? nextLine(tokens, here, line) : tokens[to];
  if (to === undefined && !line) return;
  event.preventDefault();
  next?.focus();
}

/** The token nearest to the one here, a line further down or up. */
function nextLine(tokens, here, way) {
  const box = tokens[here].getBoundingClientRect();
  const middle = (box.left + box.right) / 2;
  let found = null;
  for (let i = here + way; tokens[i]; i += way) {
    const other = tokens[i].getBoundingClientRect();
    if (way * (other.top - box.top) < box.height / 2) continue;
    if (found && Math.abs(other.top - found.top) > box.height / 2) break;
    const distance = Math.abs((other.left + other.right) / 2 - middle);
    if (!found || distance < found.distance) found = { token: tokens[i], top: other.top, distance };
  }
  return found?.token;
}

/** Shows a token's numbers; `reached` by keyboard, it becomes the one that Tab comes back to. */
function show(row, token, element, reached) {
  current?.classList.remove("current");
  current?.removeAttribute("aria-selected");
  current = element;
  element.classList.add("current");
  element.setAttribute("aria-selected", "true");
  if (reached) {
    element.parentElement.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
    element.setAttribute("tabindex", "0");
  }
  const from = row === chosen ? "" : ` of ${logged.runs[row.run]}, step ${row.step}`;
  const lines = factsOf(row, token).flatMap((group, which) => group.map(([name, value, further], i) =>
    make("tr", { class: `${which && !i ? "first" : ""} ${i === group.length - 1 ? "before" : ""} ${name === "advantage" ? "strong" : ""}` },
      make("th", { scope: "row" }, ...formula(name)), make("td", {}, value), make("td", {}, further))));
  document.getElementById("facts").replaceChildren(
    make("h3", {}, oneLine(tokenText(row, token)) || "⟨empty⟩"),
    make("p", { class: "meta" }, `token ${token + 1} of ${row.ids.length}${from}, id ${row.ids[token]}`),
    make("table", {}, make("tbody", {}, ...lines)));
}

function scaleLegend(row) {
  const canvas = make("canvas", { width: 101, height: 1, "aria-hidden": "true" });
  const pen = canvas.getContext("2d");
  for (let x = 0; x <= 100; x++) {
    pen.fillStyle = shade(((x - 50) / 50) * full, full);
    pen.fillRect(x, 0, 1, 1);
  }
  const known = row.ids.some((_, token) => SHADES[state.shade].of(row, token) !== null);
  const sign = (kind, text) => make("u", { class: `token ${kind}` }, text);
  if (!known) return make("p", { class: "scale" }, `No ${SHADES[state.shade].label} was logged for this rollout, so nothing is shaded.`);
  return make("p", { class: "scale" }, make("span", { class: "bar" }, figure(-full), canvas, `+${figure(full)}`), make("span", {}, ...formula(SHADES[state.shade].label)),
    make("span", {}, sign("plus", "solid line: above 0"), ", ", sign("minus", "dotted: below")));
}

/** The tokens of the largest and of the smallest advantage, as buttons that lead to them. */
function extremes(row) {
  const known = row.ids.map((_, token) => [token, SHADES[state.shade].of(row, token)]).filter(([, value]) => value !== null);
  if (!known.length) return null;
  const chips = (title, found) => make("div", {}, make("h3", {}, title), make("ul", { class: "chips" }, ...found.map(([token, value]) => {
    const chip = make("button", { type: "button", onclick: () => focusToken(token) }, `${oneLine(tokenText(row, token))}  ${signed(value)}`);
    chip.style.backgroundColor = shade(value, full);
    return make("li", {}, chip);
  })));
  return make("div", { class: "extremes" },
    chips("Most positive", known.filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]).slice(0, 6)),
    chips("Most negative", known.filter(([, value]) => value < 0).sort((a, b) => a[1] - b[1]).slice(0, 6)));
}

function focusToken(token) {
  document.querySelector(`#tokens-chosen [data-token="${token}"]`).focus();
}

/** Every token as a table that can be sorted by any of its columns; made when it is opened. */
function allTokens(row) {
  const names = { token: null, advantage: "advantages", student: "student_logprobs", teacher: "teacher_logprobs", reference: "reference_logprobs", entropy: "entropies", KL: "kls" };
  const shown = Object.keys(names).filter((name) => names[name] === null || column(row, names[name]));
  const order = { name: "token", down: false };
  const body = make("tbody");
  const fill = () => {
    const key = (token) => (names[order.name] ? at(row, names[order.name], token) : token);
    const tokens = row.ids.map((_, token) => token);
    tokens.sort((a, b) => {
      const [left, right] = [key(a), key(b)];
      if (left === null || right === null) return Number(left === null) - Number(right === null);
      return (order.down ? right - left : left - right) || a - b;
    });
    body.replaceChildren(...tokens.map((token) => make("tr", {}, make("td", {}, String(token + 1)), make("td", { class: "name" }, oneLine(tokenText(row, token))),
      ...shown.slice(1).map((name) => make("td", {}, signed(at(row, names[name], token)))))));
    heads.forEach((head, i) => head.setAttribute("aria-sort", shown[i] === order.name ? (order.down ? "descending" : "ascending") : "none"));
  };
  const heads = shown.map((name) => make("th", { scope: "col" }, make("button", { type: "button", onclick: () => {
    order.down = order.name === name ? !order.down : name === "advantage";
    order.name = name;
    fill();
  } }, name === "token" ? "№" : name)));
  const table = make("table", {}, make("thead", {}, make("tr", {}, heads[0], make("th", { class: "name" }, "token"), ...heads.slice(1))), body);
  const made = make("details", { ontoggle: () => { if (made.open && !body.firstChild) fill(); } },
    make("summary", {}, "All tokens as a table"), make("div", { class: "tokentable", tabindex: 0, role: "region", "aria-label": "All tokens" }, table));
  return made;
}

/** The other rollouts of the same prompt: other samples, steps and runs. */
function beside(row) {
  const same = logged.rows.filter((other) => other.prompt === row.prompt);
  same.sort((a, b) => a.step - b.step || a.run - b.run || a.place - b.place);
  if (same.length < 2) return make("p", { class: "note" }, "No other rollout of this prompt is in the page.");
  const articles = same.slice(0, BESIDE).map((other) => {
    const open = other === row ? null : make("button", { type: "button", onclick: () => choose(other) }, "open");
    return make("article", { "aria-current": String(other === row) }, meta(other, open), tokensOf(other, `Tokens at step ${other.step}`));
  });
  const title = `The same prompt, ${same.length} times${same.length > BESIDE ? `, the first ${BESIDE}` : ""}`;
  return make("section", { class: "card", id: "same", "aria-label": "The same prompt" }, make("h3", {}, title), make("div", { class: "beside", tabindex: 0, role: "region", "aria-label": title }, ...articles));
}
