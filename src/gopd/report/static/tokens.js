// One rollout's numbers: unpacked, and what follows from them.

/** Numbers of a column by token, null where it was not logged. */
function column(row, name) {
  row.unpacked ??= {};
  if (!(name in row.unpacked)) {
    const packed = row.numbers[name];
    row.unpacked[name] = packed === undefined ? null : new Float32Array(Uint8Array.from(atob(packed), (c) => c.charCodeAt(0)).buffer);
  }
  return row.unpacked[name];
}

/** One number; null where it is not known. */
function at(row, name, place) {
  const value = column(row, name)?.[place];
  return value !== undefined && Number.isFinite(value) ? value : null;
}

/** λ(ℓ_T − ℓ_R), and λℓ_T + (1 − λ)ℓ_R − log Z; what is not known is null. */
function derived(row, place) {
  const [teacher, reference, partition] = ["teacher_logprobs", "reference_logprobs", "log_partition"].map((name) => at(row, name, place));
  const scale = row.scale;
  const both = teacher !== null && reference !== null && scale !== null;
  const unnormalised = scale === 1 ? teacher : both ? scale * teacher + (1 - scale) * reference : null;
  const normalised = scale === 1 || partition !== null;
  return {
    reward: both ? scale * (teacher - reference) : null,
    target: unnormalised === null ? null : unnormalised - (scale === 1 || partition === null ? 0 : partition),
    normalised,
  };
}

const tokenText = (row, place) => logged.tokens[row.run][row.ids[place]] ?? `⟨#${row.ids[place]}⟩`;

/** Line feeds and tabulators have a sign before them, so that a token of nothing else is seen. */
const withSigns = (text) => text.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥\t");
const oneLine = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥");

const SHADES = {
  advantage: { label: "advantage", of: (row, place) => at(row, "advantages", place) },
  reward: { label: "implicit reward λ(ℓ_T − ℓ_R)", of: (row, place) => derived(row, place).reward },
  gap: { label: "teacher − student, ℓ_T − ℓ_S", of: (row, place) => difference(row, "teacher_logprobs", "student_logprobs", place) },
};

function difference(row, left, right, place) {
  const [a, b] = [at(row, left, place), at(row, right, place)];
  return a === null || b === null ? null : a - b;
}

/** The smallest and the largest advantage of a response; null where none was logged. */
function summary(row) {
  if (row.summary === undefined) {
    const values = [...(column(row, "advantages") ?? [])].filter(Number.isFinite);
    row.summary = values.length ? { least: Math.min(...values), most: Math.max(...values) } : null;
  }
  return row.summary;
}

function meanOf(row, name) {
  const values = [...(column(row, name) ?? [])].filter(Number.isFinite);
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

/** All that is known of a token, as [name, number, further] in groups. */
function factsOf(row, place) {
  const logprob = (label, value) => [label, signed(value), value === null ? "" : percent(Math.exp(value))];
  const number = (label, value) => [label, signed(value), ""];
  const ratio = (label, value) => [label, value === null ? "–" : short(Math.exp(value)), ""];
  const { reward, target, normalised } = derived(row, place);
  const q = normalised || target === null ? "target log q_λ" : "target log q_λ (unnormalised)";
  const S = "student_logprobs", T = "teacher_logprobs", R = "reference_logprobs";
  return [
    [
      logprob("student ℓ_S", at(row, S, place)),
      logprob("teacher ℓ_T", at(row, T, place)),
      logprob("reference ℓ_R", at(row, R, place)),
      normalised ? logprob(q, target) : number(q, target),
      logprob("sampler’s ℓ_S", at(row, "sampler_logprobs", place)),
    ],
    [
      number("advantage", at(row, "advantages", place)),
      number("implicit reward λ(ℓ_T − ℓ_R)", reward),
      number("student’s entropy", at(row, "entropies", place)),
      number(logged.kls[row.run], at(row, "kls", place)),
    ],
    [
      ratio("teacher / student", difference(row, T, S, place)),
      ratio("teacher / reference", difference(row, T, R, place)),
      ratio("student / sampler", difference(row, S, "sampler_logprobs", place)),
    ],
  ];
}

function signed(value) {
  if (value === null) return "–";
  const size = Math.abs(value);
  const text = size !== 0 && size < 1e-3 ? value.toExponential(3) : value.toFixed(4);
  return text.replaceAll("-", "−");
}

const percent = (share) => (share >= 0.0995 ? `${(100 * share).toFixed(1)}%` : `${Number((100 * share).toPrecision(2))}%`);

// --- shades ---------------------------------------------------------------------------------------------------------

/** The value that gets the full shade: the 98th percentile of sizes, over all rollouts of the page. */
function fullShade(kind) {
  const sizes = [];
  for (const row of logged.rows) {
    for (let place = 0; place < row.ids.length; place += 1 + Math.floor(row.ids.length / 400)) {
      const value = SHADES[kind].of(row, place);
      if (value !== null) sizes.push(Math.abs(value));
    }
  }
  sizes.sort((a, b) => a - b);
  return sizes[Math.floor(0.98 * (sizes.length - 1))] || 1;
}

/** Blue above zero, orange below; the root of the size, so that small ones are seen. */
function shade(value, full) {
  if (value === null) return "transparent";
  const strength = Math.min(1, Math.sqrt(Math.abs(value) / full));
  const [plus, minus] = isDark() ? ["70 140 235", "225 120 20"] : ["60 130 220", "240 140 40"];
  return `rgb(${value > 0 ? plus : minus} / ${(0.68 * strength).toFixed(3)})`;
}

/** Above zero, below, or too small to matter. */
const signOf = (value, full) => (value === null || Math.abs(value) < full / 50 ? "" : value > 0 ? "plus" : "minus");
