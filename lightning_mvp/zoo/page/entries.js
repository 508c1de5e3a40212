"use strict";
// Pure functions of the page's data: no document and no chart. The tests run them without a browser.

const UNKNOWN = "–";

// What a column of the table sorts by, and how it is written.
const COLUMNS = [
  { key: "task", title: "Task", value: (entry) => entry.task, text: (entry) => entry.task },
  { key: "classes", title: "Classes", value: (entry) => entry.classes.length, text: (entry) => classList(entry, 4) },
  { key: "family", title: "Family", value: (entry) => entry.made ?? entry.family, text: (entry) => shortened(entry.made ?? entry.family, 26) },
  { key: "wave", title: "Wave", number: true, value: (entry) => entry.wave, text: (entry) => entry.wave ?? UNKNOWN },
  { key: "removed", title: "Units removed", number: true, value: (entry) => entry.removed, text: (entry) => percent(entry.removed, 0) },
  { key: "parameters", title: "Parameters", number: true, value: (entry) => entry.parameters, text: (entry) => short(entry.parameters) },
  { key: "macs", title: "MACs kept", number: true, value: (entry) => entry.kept?.macs, text: (entry) => percent(entry.kept?.macs) },
  { key: "accuracy", title: "Accuracy", number: true, value: (entry) => entry.accuracy, text: (entry) => percent(entry.accuracy) },
  { key: "written", title: "Written", value: (entry) => entry.written, text: (entry) => day(entry.written) },
  { key: "size", title: "On disk", number: true, value: (entry) => entry.size, text: (entry) => `${short(entry.size)}B` },
];

const known = (value) => value !== null && value !== undefined;

function percent(value, digits = 1) {
  return known(value) ? `${(100 * value).toFixed(digits)}%` : UNKNOWN;
}

// 1234567 → "1.23 M", with room for a unit after it.
function short(number) {
  if (!known(number)) return UNKNOWN;
  const steps = ["", "k", "M", "G", "T"];
  let value = number, step = 0;
  while (value >= 999.5 && step < steps.length - 1) { value /= 1000; step += 1; }
  return `${step ? value.toPrecision(3) : value} ${steps[step]}`;
}

function day(iso) {
  return known(iso) ? iso.slice(0, 10) : UNKNOWN;
}

function classList(entry, most) {
  const more = entry.classes.length - most;
  return more > 0 ? `${entry.classes.slice(0, most).join(", ")} and ${more} more` : entry.classes.join(", ");
}

// 0.123456 → "0.1235": with four digits, and a list as its parts.
function written(value) {
  if (Array.isArray(value)) return value.map(written).join(", ");
  return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(4))) : String(value);
}

// {a: {b: 1}} → [["a.b", "1"]]: settings as people read them.
function flat(values, before = "") {
  return Object.entries(values ?? {}).flatMap(([name, value]) => {
    const inner = value !== null && typeof value === "object" && !Array.isArray(value);
    return inner ? flat(value, `${before}${name}.`) : [[before + name, written(value)]];
  });
}

// All words of the search must be found somewhere in what an entry is named by or made with.
function matching(entries, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return entries.filter((entry) => {
    const settings = flat(entry.config).map(([name, value]) => `${name}=${value}`);
    const all = [entry.name, entry.task, ...entry.classes, entry.family, ...settings].join("\n").toLowerCase();
    return words.every((word) => all.includes(word));
  });
}

// In the order of one column; what isn't known is last either way, and equals are in the order of their names.
function sorted(entries, key, down) {
  const value = COLUMNS.find((column) => column.key === key).value;
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : natural(String(a), String(b));
  return [...entries].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (known(a) !== known(b)) return known(a) ? -1 : 1;
    return (known(a) ? (down ? -1 : 1) * compare(a, b) : 0) || natural(one.name, other.name);
  });
}

// task-2 before task-10.
const COLLATOR = new Intl.Collator("en", { numeric: true });
function natural(a, b) {
  return COLLATOR.compare(a, b);
}

// The number of a pair in a lower triangle that is stored row by row in thousandths, or in one number for all pairs.
function pair(triangle, i, j) {
  if (typeof triangle === "number") return triangle / 1000;
  const [row, column] = i > j ? [i, j] : [j, i];
  return triangle[(row * (row - 1)) / 2 + column] / 1000;
}

// What tells a family from the others, or its hash where nothing does.
function familyLabel(family) {
  const settings = flat(family.settings).filter(([, value]) => value !== "null").map(([name, value]) => `${name}=${value}`);
  return settings.length ? settings.join(", ") : family.name;
}

function sharedClasses(one, other) {
  return one.classes.filter((name) => other.classes.includes(name));
}

// The entries of a family that have most in common with one: by similarity, then by overlap.
function relatives(family, index, most) {
  const place = family.order.indexOf(index);
  if (place < 0 || !family.iou) return [];
  const others = family.order.map((other, at) => ({ other, at })).filter(({ at }) => at !== place).map(({ other, at }) => ({
    index: other,
    similarity: pair(family.similarity, place, at),
    iou: pair(family.iou, place, at),
    chance: pair(family.chance, place, at),
  }));
  return others.sort((a, b) => b.similarity - a.similarity || b.iou - a.iou || a.index - b.index).slice(0, most);
}

// Whom an entry came from and what came from it: name → the number of steps between them.
function kin(entries, name) {
  const parents = new Map(entries.map((entry) => [entry.name, entry.parents ?? []]));
  const children = new Map();
  parents.forEach((names, child) => names.forEach((parent) => children.set(parent, [...(children.get(parent) ?? []), child])));
  const reached = (next) => {
    const steps = new Map([[name, 0]]);
    for (const each of steps.keys()) for (const other of next.get(each) ?? []) if (!steps.has(other)) steps.set(other, steps.get(each) + 1);
    steps.delete(name);
    return steps;
  };
  return { ancestors: reached(parents), descendants: reached(children) };
}

// The order of a lineage: parents that are gone first, then by wave and name.
function byWave(entries) {
  const names = new Set(entries.map((entry) => entry.name));
  const gone = [...new Set(entries.flatMap((entry) => entry.parents ?? []))].filter((name) => !names.has(name)).sort(natural);
  const there = entries.filter((entry) => known(entry.wave)).sort((a, b) => a.wave - b.wave || natural(a.name, b.name));
  return [...gone.map((name) => ({ name, task: name.split("--")[0], gone: true, parents: [], classes: [] })), ...there];
}

// Where each entry stands on an axis of waves: those of one wave side by side around its number, none beyond its place.
function besideWaves(entries) {
  const waves = Map.groupBy(byWave(entries).filter((entry) => !entry.gone), (entry) => entry.wave);
  const places = new Map();
  for (const [wave, own] of waves) own.forEach((entry, i) => places.set(entry.name, wave + 0.6 * ((i + 0.5) / own.length - 0.5)));
  return places;
}

// The mean accuracy of each wave, in order, and of how many entries.
function waveMeans(entries) {
  const waves = Map.groupBy(entries.filter((entry) => known(entry.wave) && known(entry.accuracy)), (entry) => entry.wave);
  return [...waves].sort(([a], [b]) => a - b).map(([wave, own]) => ({ wave, size: own.length, mean: own.reduce((sum, entry) => sum + entry.accuracy, 0) / own.length }));
}

// The mean fraction kept of each group over a family's sound entries.
function meanWidths(entries, groups) {
  const sound = entries.filter((entry) => entry.widths);
  return groups.map((group, i) => sound.reduce((sum, entry) => sum + entry.widths[i] / group.units, 0) / sound.length);
}

// The step between labels, so that no more than `most` of so many are written.
function labelStep(count, most) {
  return Math.max(1, Math.ceil(count / most));
}

// Plotly takes <b> and &lt; in texts for markup.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function shortened(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}
