// The page: what is shown, and what follows from a click.

const page = JSON.parse(document.getElementById("data").textContent);
const VIEWS = ["entries", "pairs", "lineage", "widths", "accuracy"];
const MOST_RELATIVES = 8;
const state = {
  search: "", family: "", sort: "task", down: false, chosen: "",
  time: page.entries.some((entry) => entry.wave > 0) ? "wave" : "date",
};
for (const { name, ...family } of page.families) for (const entry of page.entries) if (entry.family === name) entry.made = familyLabel({ name, ...family });
const byName = new Map(page.entries.map((entry, index) => [entry.name, { entry, index }]));
const at = (id) => document.getElementById(id);

// An element; texts become text, never markup.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function count(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

// The entries that the search and the choice of a family leave.
function visible() {
  const entries = state.family ? page.entries.filter((entry) => entry.family === state.family) : page.entries;
  return matching(entries, state.search);
}

// The family whose pairs and widths are shown: the one that was chosen, else the chosen entry's, else the largest.
function shownFamily() {
  const name = state.family || byName.get(state.chosen)?.entry.family;
  const largest = [...page.families].sort((a, b) => b.order.length - a.order.length)[0];
  return page.families.find((family) => family.name === name) ?? largest;
}

function ofFamily(note) {
  const family = shownFamily();
  return page.families.length > 1 && family ? `Family ${familyLabel(family)}. ${note}` : note;
}

function showTable() {
  at("headings").replaceChildren(...shownColumns().map(({ key, title, number }) => {
    const order = state.sort === key && (state.down ? "descending" : "ascending");
    const press = () => change({ sort: key, down: state.sort === key ? !state.down : Boolean(number) });
    return element("th", { scope: "col", "aria-sort": order, class: number ? `number ${key}` : key }, element("button", { type: "button", onclick: press, "data-focus": `sort ${key}` }, title));
  }));
  const entries = sorted(visible(), state.sort, state.down);
  at("rows").replaceChildren(...entries.map(tableRow));
  at("none").hidden = entries.length > 0;
  at("none").textContent = page.entries.length ? "Nothing matches the search." : "The zoo is empty. Fill it with mvp-prune.";
}

// A column that is the same for all, as the family often is, says nothing.
function shownColumns() {
  const several = (key) => new Set(page.entries.map((entry) => entry[key])).size > 1;
  return COLUMNS.filter(({ key }) => !["family", "wave"].includes(key) || several(key));
}

function tableRow(entry) {
  const choose = () => change({ chosen: entry.name });
  const cells = shownColumns().map(({ key, number, text }) => {
    const cell = element("td", { class: number ? `number ${key}` : key });
    if (key === "task") cell.append(element("button", { type: "button", "data-focus": `entry ${entry.name}` }, entry.task));
    else cell.append(entry.problem && key === "classes" ? "damaged" : text(entry));
    if (key === "classes") cell.title = entry.classes.join(", ");
    if (key === "accuracy") {
      const fill = element("i");
      fill.style.width = `${100 * (entry.accuracy ?? 0)}%`;
      cell.append(element("span", { class: known(entry.accuracy) ? "bar" : "bar none" }, fill));
    }
    return cell;
  });
  const looks = [entry.name === state.chosen && "chosen", entry.problem && "damaged"].filter(Boolean).join(" ");
  return element("tr", { class: looks, onclick: choose }, ...cells);
}

function showPairs() {
  const family = shownFamily();
  const left = new Set(visible().map((entry) => entry.name));
  const places = (family?.order ?? []).map((index, place) => ({ entry: page.entries[index], place })).filter(({ entry }) => left.has(entry.name));
  const enough = Boolean(family?.iou) && places.length > 1;
  document.querySelector("#view-pairs .two").hidden = !enough;
  if (!enough) {
    at("pairs-note").textContent = ofFamily("Fewer than two sound entries to compare.");
    return;
  }
  const alike = family.measure === "prototypes" ? "the class means of θ⁰'s features" : "the classes that both tasks have";
  const r = family.correlation === null ? "not defined" : family.correlation.toFixed(2);
  at("pairs-note").textContent = ofFamily(`Do similar tasks keep the same units? Correlation of similarity and overlap over all pairs: r = ${r}. Tasks are in the same order in both maps, similar ones side by side.`);
  const names = places.map(({ entry }) => label(entry));
  const chosen = places.findIndex(({ entry }) => entry.name === state.chosen);
  const digits = family.measure === "prototypes" ? 2 : 0;
  const map = (what) => (i, j) => pair(family[what], places[i].place, places[j].place);
  const on = {
    tip: ({ x, y }) => pairTip(family, places[y], places[x]),
    click: ({ x, y }) => change({ chosen: places[y].entry.name === state.chosen ? places[x].entry.name : places[y].entry.name }),
  };
  const chances = typeof family.chance === "number" ? [family.chance] : family.chance;
  const chance = chances.reduce((a, b) => Math.min(a, b)) / 1000;
  const [least, most] = drawMap("similarity-map", { triangle: map("similarity"), names, chosen }, on);
  const [low, high] = drawMap("overlap-map", { triangle: map("iou"), names, chosen, lowest: chance }, on);
  caption("similarity-title", "Similarity", `by ${alike}`, least.toFixed(digits), most.toFixed(digits));
  caption("overlap-title", "Overlap", "IoU of the units kept, from what random masks share", `chance ${low.toFixed(2)}`, high.toFixed(2));
}

function caption(id, title, what, low, high) {
  at(id).replaceChildren(element("div", {}, title, element("small", {}, what)), element("span", { class: "scale" }, low, element("i"), high));
}

function label(entry) {
  return `${entry.task}: ${entry.classes.join(", ")}`;
}

function pairTip(family, one, other) {
  const shared = sharedClasses(one.entry, other.entry);
  const value = (what) => pair(family[what], one.place, other.place).toFixed(2);
  return [
    ...entryTip(one.entry), ...entryTip(other.entry),
    family.measure === "prototypes" ? `similarity ${value("similarity")}` : "",
    `overlap ${value("iou")}, by chance ${value("chance")}`,
    shared.length ? `both have ${shared.join(", ")}` : "no class in common",
  ].filter(Boolean);
}

function entryTip(entry) {
  return [entry.task, { quiet: classList(entry, 12) }];
}

function showLineage() {
  const family = page.entries.filter((entry) => entry.parents && (!state.family || entry.family === state.family));
  const grown = family.some((entry) => entry.wave > 0);
  const voted = new Set(family.flatMap((entry) => entry.parents));
  const alone = family.filter((entry) => !entry.parents.length && !voted.has(entry.name));
  const left = alone.length ? ` ${count(alone.length, "seed that voted for nobody is", "seeds that voted for nobody are")} left out.` : "";
  at("lineage-note").textContent = grown
    ? `Each arc leads from an entry that voted to the one that was grown from it. Click an entry: whom it came from is orange, what came from it green, and arcs at the entry itself are thick.${left}`
    : "All entries are seeds, pruned from the zoo's backbone. Entries that are grown from the vote of others stand below their parents here.";
  const related = family.filter((entry) => !alone.includes(entry));
  const { ancestors, descendants } = kin(related, state.chosen);
  at("only-kin").hidden = !grown || !ancestors.size + descendants.size;
  const found = new Set(visible().map((entry) => entry.name));
  const searched = (entry) => found.has(entry.name) || entry.parents.some((name) => found.has(name)) || related.some((other) => found.has(other.name) && other.parents.includes(entry.name));
  const only = at("kin").checked && !at("only-kin").hidden;
  const shown = byWave(related.filter((entry) => only ? entry.name === state.chosen || ancestors.has(entry.name) || descendants.has(entry.name) : searched(entry)));
  document.querySelector("#view-lineage figure").hidden = !grown || !shown.length;
  at("lineage-none").hidden = !grown || shown.length > 0;
  if (!grown || !shown.length) return;
  drawLineage("lineage-chart", shown, state.chosen, {
    tip: ({ customdata }) => byName.has(customdata) ? [...entryTip(byName.get(customdata).entry), kinTip(customdata)] : [customdata, "no longer in the zoo"],
    click: ({ customdata }) => byName.has(customdata) && change({ chosen: customdata }),
  });
}

function kinTip(name) {
  const { ancestors, descendants } = kin(page.entries, name);
  return `${count(ancestors.size, "ancestor", "ancestors")}, ${count(descendants.size, "descendant", "descendants")}`;
}

function showWidths() {
  const family = shownFamily();
  const members = (family?.order ?? []).map((index) => page.entries[index]);
  const chosen = members.find((entry) => entry.name === state.chosen);
  const means = meanWidths(members, page.groups);
  const same = members.length > 1 && members.every((entry) => entry.widths.join() === members[0].widths.join());
  const [low, high] = [Math.min(...means), Math.max(...means)];
  // Widths that are equal by construction need a sentence, no chart.
  const flat = same && high - low < 0.05;
  document.querySelector("#view-widths figure").hidden = flat || !members.length;
  at("widths-note").textContent = ofFamily(widthsNote(members, same, flat, low, high, chosen));
  if (!flat && members.length) drawWidths("widths-chart", page.groups, same ? null : chosen, means);
}

function widthsNote(members, same, flat, low, high, chosen) {
  if (!members.length) return "No sound entry.";
  if (flat) return `Every entry keeps ${percent(low, 0)}${percent(low, 0) === percent(high, 0) ? "" : ` to ${percent(high, 0)}`} of the units of each of the ${page.groups.length} layers: only which units they keep tells them apart.`;
  if (same) return "All entries keep as many units of each layer: only which units they keep tells them apart. First layers above.";
  return chosen ? "Units kept of each layer, first layers above." : "Units kept of each layer, first layers above. Click an entry in another view to set it against this mean.";
}

function showAccuracy() {
  const entries = visible().filter((entry) => known(entry.accuracy));
  const unknown = visible().length - entries.length;
  const families = page.families.filter(({ name }) => entries.some((entry) => entry.family === name));
  const means = state.time === "wave" && families.some(({ name }) => waveMeans(entries.filter((entry) => entry.family === name)).filter(({ size }) => size > 1).length > 1);
  at("accuracy-note").textContent = [
    "Accuracy on each task's own validation images.", unknown ? `Not known of ${count(unknown, "entry", "entries")}.` : "",
    means ? "A line leads through the mean of each wave with several entries." : "",
  ].filter(Boolean).join(" ");
  document.querySelector("#view-accuracy figure").hidden = !entries.length;
  at("time").hidden = !entries.length || !page.entries.some((entry) => entry.wave > 0);
  for (const button of at("time").children) button.setAttribute("aria-pressed", button.dataset.time === state.time);
  if (!entries.length) return;
  const tip = ({ customdata }) => {
    const { entry } = byName.get(customdata);
    const began = known(entry.start) ? `, the vote began with ${percent(entry.start)}` : "";
    return [...entryTip(entry), `${percent(entry.accuracy)}${began}`, entry.wave ? `wave ${entry.wave}` : "seed"];
  };
  drawAccuracy("accuracy-chart", entries, families, state.time, state.chosen, { tip, click: ({ customdata }) => customdata && change({ chosen: customdata }) });
}

function facts(pairs) {
  return element("dl", { class: "facts" }, ...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function links(names) {
  return element("ul", {}, ...names.map((name) => byName.has(name)
    ? element("li", {}, element("button", { type: "button", onclick: () => change({ chosen: name }) }, byName.get(name).entry.task))
    : element("li", { title: "no longer in the zoo" }, `${name} †`)));
}

function heading(text, content) {
  return content ? [element("h3", {}, text), content] : [];
}

function showDetails() {
  const found = byName.get(state.chosen);
  at("details").hidden = !found;
  if (!found) return;
  const { entry, index } = found;
  const closeDetails = () => change({ chosen: "" });
  const close = element("button", { class: "close", type: "button", "aria-label": "Close", onclick: closeDetails }, "×");
  const parts = [close, element("h2", {}, entry.task), element("p", { class: "id" }, entry.name)];
  if (entry.problem) {
    at("details").replaceChildren(...parts, ...heading("Damaged", element("p", {}, entry.problem)));
    return;
  }
  const big = (value, what) => element("div", {}, value, element("small", {}, what));
  const children = page.entries.filter((other) => other.parents?.includes(entry.name)).map((other) => other.name);
  const settings = flat(entry.config).map(([name, value]) => [name.replaceAll("_", " "), value]);
  parts.push(
    element("div", { class: "big" }, big(percent(entry.accuracy), "accuracy"),
      big(short(entry.parameters).trim(), "parameters"), big(percent(entry.removed, 0), "units removed")),
    ...heading(count(entry.classes.length, "class", "classes"), element("ul", {}, ...entry.classes.map((name) => element("li", {}, name)))),
    ...heading("Nearest tasks", nearest(entry, index)),
    ...heading("Grown from", entry.parents.length ? links(entry.parents) : null),
    ...heading("Grown from it", children.length ? links(children) : null),
    ...heading("Kept", facts(["units", "params", "macs"].filter((name) => known(entry.kept[name])).map((name) => [{ params: "parameters", macs: "MACs" }[name] ?? name, percent(entry.kept[name])]))),
    ...heading("Made with", facts([...(entry.wave ? [["wave", String(entry.wave)], ["generation", String(entry.generation)]] : []), ...(known(entry.start) ? [["began with", percent(entry.start)]] : []), ...settings])),
    ...heading("Facts", facts([["family", entry.family], ["on disk", `${short(entry.size)}B`], ["file written", (entry.written ?? UNKNOWN).replace("T", " ").replace("+00:00", " UTC")],
      ...flat(entry.facts), ...flat(entry.info)].map(([name, value]) => [name.replaceAll("_", " "), value]))),
  );
  const before = at("details").dataset.name;
  at("details").replaceChildren(...parts);
  if (before !== entry.name) at("details").scrollTop = 0;
  at("details").dataset.name = entry.name;
}

function nearest(entry, index) {
  const family = page.families.find(({ name }) => name === entry.family);
  const found = relatives(family, index, MOST_RELATIVES);
  if (!found.length) return null;
  const digits = family.measure === "prototypes" ? 2 : 0;
  const titles = ["", family.measure === "prototypes" ? "similarity" : "classes shared", "overlap", "chance"];
  return element("table", {}, element("tr", {}, ...titles.map((title, i) => element("th", { class: i ? "number" : "" }, title))),
    ...found.map((other) => element("tr", { onclick: () => change({ chosen: page.entries[other.index].name }), title: page.entries[other.index].classes.join(", ") },
      element("td", {}, element("button", { type: "button" }, page.entries[other.index].task)),
      ...[other.similarity.toFixed(digits), other.iou.toFixed(2), other.chance.toFixed(2)].map((text) => element("td", { class: "number" }, text)))));
}

function showTip(lines, event) {
  at("tip").replaceChildren(...lines.map((line) => line.quiet === undefined ? element("p", {}, line) : element("p", { class: "quiet" }, line.quiet)));
  at("tip").hidden = false;
  const { width, height } = at("tip").getBoundingClientRect();
  const [x, y] = [event.clientX + 16, event.clientY + 16];
  at("tip").style.left = `${x + width > innerWidth ? Math.max(0, event.clientX - width - 12) : x}px`;
  at("tip").style.top = `${y + height > innerHeight ? Math.max(0, event.clientY - height - 12) : y}px`;
}

function hideTip() {
  at("tip").hidden = true;
}

const SHOW = { entries: showTable, pairs: showPairs, lineage: showLineage, widths: showWidths, accuracy: showAccuracy };

function show() {
  const view = VIEWS.find((name) => `#${name}` === location.hash) ?? VIEWS[0];
  hideTip();
  for (const name of VIEWS) at(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const left = visible().length;
  at("found").textContent = state.search || state.family ? `${left} of ${page.entries.length}` : "";
  showDetails(); // first: it takes width from the charts
  // What is made anew keeps the keyboard's place.
  const focus = document.activeElement?.dataset.focus;
  SHOW[view]();
  if (focus) [...document.querySelectorAll("[data-focus]")].find((each) => each.dataset.focus === focus)?.focus({ preventScroll: true });
}

function change(what) {
  Object.assign(state, what);
  show();
}

function start() {
  const { zoo, entries, families } = page;
  document.title = `Zoo ${zoo.name}`;
  at("title").textContent = `Zoo ${zoo.name}`;
  const accuracies = entries.map((entry) => entry.accuracy).filter(known);
  const range = accuracies.length ? `validation accuracy ${percent(Math.min(...accuracies), 0)} to ${percent(Math.max(...accuracies), 0)}` : null;
  const size = `${short(entries.reduce((sum, entry) => sum + entry.size, 0))}B`;
  const damaged = entries.filter((entry) => entry.problem).length;
  at("about").textContent = [
    count(entries.length, "entry", "entries"), damaged ? `${damaged} damaged` : null, families.length > 1 ? `${families.length} families` : null,
    zoo.backbone ? `backbone ${zoo.backbone}` : null, range, size, `read ${zoo.made.slice(0, 16).replace("T", " ")} UTC`,
  ].filter(Boolean).join(" · ");
  at("family").hidden = families.length < 2;
  at("family").append(new Option("all families", ""), ...families.map((family) => new Option(`${familyLabel(family)} (${family.order.length})`, family.name)));
  at("family").addEventListener("change", () => change({ family: at("family").value }));
  at("search").addEventListener("input", () => change({ search: at("search").value }));
  for (const button of at("time").children) button.addEventListener("click", () => change({ time: button.dataset.time }));
  at("kin").addEventListener("change", show);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  at("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
    document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
    show();
  });
  dark.addEventListener("change", show);
  addEventListener("hashchange", () => { scrollTo(0, 0); show(); });
  addEventListener("keydown", ({ key }) => key === "Escape" && change({ chosen: "" }));
  let waiting = 0;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(show, 150); });
  show();
}

start();
