// The charts: each draws what it is given into one element. Colours are those of the style sheet, light or dark.

const CONFIG = { displaylogo: false, displayModeBar: false, doubleClick: "reset" };
const HIDDEN = { visible: false, fixedrange: true };

function colour(name) {
  const probe = document.getElementById("tip");
  probe.style.outlineColor = `var(--${name})`;
  return getComputedStyle(probe).outlineColor;
}

// What lies at chance has the colour of the paper; the most alike stand out.
function scale() {
  return [[0, colour("low")], [0.5, colour("middle")], [1, colour("high")]];
}

function layout(more) {
  const axis = { gridcolor: colour("line"), zeroline: false, automargin: true, ticks: "outside", ticklen: 6, tickcolor: "rgba(0,0,0,0)", tickfont: { color: colour("quiet") } };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest", dragmode: "zoom",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("text") },
    ...more,
    xaxis: { ...axis, ...titled(more.xaxis) },
    yaxis: { ...axis, ...titled(more.yaxis) },
  };
}

function titled({ title, ...axis }) {
  return title ? { ...axis, title: { text: title, font: { size: 12, color: colour("quiet") }, standoff: 10 } } : axis;
}

// `on` has the functions `tip(point)`, what is said of a point, and `click(point)`; both may be missing.
function draw(id, traces, shape, on = {}) {
  const chart = document.getElementById(id);
  Plotly.react(chart, traces, layout({ width: chart.clientWidth, ...shape }), CONFIG);
  chart.actions = on;
  if (chart.listening) return;
  chart.listening = true;
  chart.on("plotly_hover", ({ points, event }) => chart.actions.tip && showTip(chart.actions.tip(points[0]), event));
  chart.on("plotly_unhover", hideTip);
  chart.on("plotly_click", ({ points }) => chart.actions.click?.(points[0]));
}

// Pairs of tasks as the lower half of a map, each row's name beside its end, in the half that is free.
// Returns the ends of the scale.
function drawMap(id, { triangle, names, lowest, chosen }, on) {
  const count = names.length;
  const chart = document.getElementById(id);
  const room = 172; // for the last names, right of the map
  const side = Math.min(Math.max(160, chart.clientWidth - room), 56 * count);
  const margin = { l: 4, r: chart.clientWidth - side - 4, t: 8, b: 4 };
  const rows = names.map((_, i) => names.map((_, j) => (j < i ? triangle(i, j) : null)));
  const values = rows.flat().filter(known);
  const low = lowest ?? values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = Math.max(values.reduce((a, b) => Math.max(a, b), -Infinity), low + 0.001);
  const step = labelStep(count, side / 14);
  const labels = names.map((name, i) => (i % step && i !== chosen ? "" : plain(shortened(name, 26))));
  const line = { color: colour("from"), width: 1.5 };
  const box = (x0, x1, y0, y1) => ({ type: "rect", x0, x1, y0, y1, line });
  draw(id, [
    { type: "heatmap", z: rows, colorscale: scale(), zmin: low, zmax: high, hoverinfo: "none", hoverongaps: false,
      xgap: count < 60 ? 1 : 0, ygap: count < 60 ? 1 : 0,
      showscale: false },
    { type: "scatter", mode: "text", x: names.map((_, i) => i - 0.45), y: names.map((_, i) => i), text: labels, hoverinfo: "skip",
      textposition: "middle right", cliponaxis: false,
      textfont: { size: 11, color: names.map((_, i) => (i === chosen ? colour("from") : colour("text"))) } },
  ], {
    height: side + margin.t + margin.b, margin,
    xaxis: { ...HIDDEN, fixedrange: false, range: [-0.5, count - 0.5] },
    yaxis: { ...HIDDEN, fixedrange: false, range: [count - 0.5, -0.5] },
    shapes: chosen < 0 ? [] : [box(-0.5, chosen - 0.5, chosen - 0.5, chosen + 0.5), box(chosen - 0.5, chosen + 0.5, chosen + 0.5, count - 0.5)],
  }, on);
  return [low, high];
}

// Entries one below the other by wave, with an arc from each parent to its child.
function drawLineage(id, entries, chosen, on) {
  const row = new Map(entries.map((entry, i) => [entry.name, i]));
  const edges = entries.flatMap((entry) => (entry.parents ?? []).filter((name) => row.has(name)).map((parent) => [parent, entry.name]));
  const longest = edges.reduce((most, [parent, child]) => Math.max(most, Math.abs(row.get(parent) - row.get(child))), 1);
  const { ancestors, descendants } = kin(entries, chosen);
  // An arc belongs to the chosen entry's kin if both of its ends do.
  const within = (kin, [parent, child]) => [parent, child].every((name) => name === chosen || kin.has(name));
  const arcs = (list, tone, width, parts = 12) => {
    const x = [], y = [];
    for (const [parent, child] of list) {
      const [a, b] = [row.get(parent), row.get(child)];
      const depth = Math.sqrt(Math.abs(a - b) / longest);
      for (let t = 0; t <= parts; t += 1) {
        x.push(-depth * Math.sin((Math.PI * t) / parts));
        y.push((a + b) / 2 - ((b - a) / 2) * Math.cos((Math.PI * t) / parts));
      }
      x.push(null); y.push(null);
    }
    return { type: "scatter", mode: "lines", x, y, line: { color: tone, width }, hoverinfo: "skip" };
  };
  const near = (kin) => (edge) => within(kin, edge) && edge.some((name) => name === chosen);
  const tone = (entry) => entry.name === chosen ? "accent" : ancestors.has(entry.name) ? "from" : descendants.has(entry.name) ? "to" : entry.gone ? "quiet" : "text";
  const tones = entries.map((entry) => colour(tone(entry)));
  const y = entries.map((_, i) => i);
  const width = document.getElementById(id).clientWidth;
  const unit = Math.min(200, width / 4);
  const column = (pixels, text, color) => ({ type: "scatter", mode: "text", x: y.map(() => pixels / unit), y, text: entries.map(text),
    textposition: "middle right", textfont: { color }, hoverinfo: "skip" });
  const second = 24 + 7.5 * Math.min(24, Math.max(...entries.map((entry) => entry.task.length)));
  const room = Math.floor((width - unit - second - 180) / 6.6);
  draw(id, [
    arcs(edges, colour("line"), 1),
    arcs(edges.filter((edge) => within(ancestors, edge)), colour("from-far"), 1),
    arcs(edges.filter((edge) => within(descendants, edge)), colour("to-far"), 1),
    arcs(edges.filter(near(ancestors)), colour("from"), 2, 40),
    arcs(edges.filter(near(descendants)), colour("to"), 2, 40),
    { type: "scatter", mode: "markers", x: y.map(() => 0), y, customdata: entries.map((entry) => entry.name), hoverinfo: "none",
      marker: { color: tones, size: 9, symbol: entries.map((entry) => (entry.gone ? "circle-open" : "circle")) } },
    column(8, (entry) => plain(shortened(entry.task, 24)), tones),
    column(second, (entry) => (entry.gone ? "gone" : entry.wave ? `wave ${entry.wave}` : "seed"), colour("quiet")),
    column(second + 70, (entry) => (known(entry.accuracy) ? percent(entry.accuracy) : ""), colour("quiet")),
    column(second + 140, (entry) => (room > 12 ? plain(shortened(entry.classes.join(", "), room)) : ""), colour("quiet")),
  ], {
    height: 22 * entries.length + 24, margin: { l: 4, r: 4, t: 12, b: 12 }, hovermode: "y", dragmode: false,
    xaxis: { ...HIDDEN, range: [-1.04, (width - 8) / unit - 1.04] },
    yaxis: { ...HIDDEN, range: [entries.length - 0.5, -0.5] },
  }, on);
}

// Of each group the fraction kept: bars of an entry, with a mark at its family's mean; or bars of the mean alone.
function drawWidths(id, groups, entry, mean) {
  const own = entry ? entry.widths.map((width, i) => width / groups[i].units) : mean;
  const y = groups.map((_, i) => i);
  const traces = [{ type: "bar", orientation: "h", x: own, y, name: entry ? plain(entry.task) : "mean of the family", hoverinfo: "none",
    marker: { color: colour(entry ? "accent" : "middle") }, width: 0.62 },
    { type: "scatter", mode: "text", x: own.map(() => 1), y, text: own.map((value) => percent(value, 0)), textposition: "middle right", cliponaxis: false,
      textfont: { color: colour("text") }, hoverinfo: "skip", showlegend: false }];
  if (entry) traces.push({ type: "scatter", mode: "markers", x: mean, y, name: "mean of the family", hoverinfo: "skip",
    marker: { symbol: "line-ns", size: 15, line: { width: 2.5, color: colour("text") } } });
  draw(id, traces, {
    height: 26 * groups.length + 80, margin: { l: 4, r: 50, t: entry ? 30 : 8, b: 44 }, showlegend: Boolean(entry), hovermode: "y",
    legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom" },
    xaxis: { range: [0, 1], tickformat: ".0%", fixedrange: true, title: "units kept" },
    yaxis: { tickvals: y, ticktext: groups.map((group) => plain(shortened(group.name, 40))), range: [groups.length - 0.5, -0.5], fixedrange: true, showgrid: false },
  }, { tip: ({ y: i }) => [groups[i].name, `${entry ? `${entry.widths[i]} of ${groups[i].units} units kept, ${percent(own[i])}` : `${groups[i].units} units`}`, `mean of the family: ${percent(mean[i])}`] });
}

// Validation accuracy by wave or by date, with a line from where a vote began.
function drawAccuracy(id, entries, families, time, chosen, on) {
  const beside = besideWaves(entries);
  const at = (entry) => (time === "wave" ? beside.get(entry.name) : entry.written);
  const tones = ["accent", "from", "to", "other"].map(colour);
  const grown = entries.filter((entry) => known(entry.start));
  const traces = [
    { type: "scatter", mode: "lines", x: grown.flatMap((entry) => [at(entry), at(entry), null]), y: grown.flatMap((entry) => [entry.start, entry.accuracy, null]),
      line: { color: colour("line"), width: 2 }, hoverinfo: "skip", showlegend: false },
    { type: "scatter", mode: "markers", x: grown.map(at), y: grown.map((entry) => entry.start), hoverinfo: "skip", name: "where the vote began",
      marker: { symbol: "line-ew", size: 7, line: { width: 2, color: colour("quiet") } }, showlegend: grown.length > 0 },
  ];
  families.forEach((family, i) => {
    const own = entries.filter((entry) => entry.family === family.name);
    const picked = (entry) => entry.name === chosen;
    const color = tones[i % tones.length];
    traces.push({ type: "scatter", mode: "markers", x: own.map(at), y: own.map((entry) => entry.accuracy), customdata: own.map((entry) => entry.name), hoverinfo: "none",
      name: families.length > 1 ? plain(shortened(familyLabel(family), 40)) : grown.length ? "in the end" : "accuracy",
      marker: { opacity: 1, color, size: own.map((entry) => (picked(entry) ? 14 : 8)), line: { width: own.map((entry) => (picked(entry) ? 3 : 0)), color: colour("text") } } });
    const waves = waveMeans(own).filter(({ size }) => size > 1);
    if (time === "wave" && waves.length > 1) traces.unshift({ type: "scatter", mode: "lines", x: waves.map(({ wave }) => wave), y: waves.map(({ mean }) => mean),
      line: { color, width: 1.5 }, hoverinfo: "skip", showlegend: false });
  });
  // Files that were copied at once have one date, and an axis without width would show fractions of a second.
  const times = entries.map((entry) => Date.parse(entry.written)).filter(Number.isFinite);
  const room = Math.max(0.04 * (Math.max(...times) - Math.min(...times)), 60 * 1000);
  const last = entries.reduce((most, entry) => Math.max(most, entry.wave ?? 0), 0);
  draw(id, traces, {
    height: 460, margin: { l: 4, r: 12, t: 34, b: 40 }, showlegend: true, legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom" },
    xaxis: time === "wave" ? { title: "wave (seeds are wave 0)", showgrid: false, ...(last < 13 ? { dtick: 1 } : { nticks: 12 }) } : { type: "date", title: "file written (UTC)", range: [Math.min(...times) - room, Math.max(...times) + room].map((time) => new Date(time).toISOString()) },
    yaxis: { tickformat: ".0%", title: "validation accuracy" },
  }, on);
}
