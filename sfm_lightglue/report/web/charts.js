// Histograms, maps of reprojection errors, and the tables of the section "Run".
"use strict";

/** A histogram {title, unit, edges, counts, note}: bars with the axis below. */
function histogram({ title, unit, edges, counts, note }) {
  const [width, height, left, bottom] = [320, 150, 40, 22];
  const most = Math.max(...counts, 1);
  const step = (width - left - 6) / counts.length;
  const tall = height - bottom - 8;
  const svg = makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${note}` });
  counts.forEach((count, i) => {
    const size = count ? Math.max(1, count / most * tall) : 0;
    const bar = makeSvg("rect", { class: "bar", x: left + i * step + 0.5, y: 8 + tall - size, width: Math.max(0.5, step - 1), height: size });
    bar.append(makeSvg("title", {}, `${formatted(edges[i])} to ${formatted(edges[i + 1])} ${unit}: ${formatted(count)}`));
    svg.append(bar);
  });
  svg.append(makeSvg("line", { class: "axis", x1: left, x2: width - 6, y1: 8 + tall, y2: 8 + tall }));
  for (const [i, anchor] of [[0, "start"], [Math.floor(counts.length / 2), "middle"], [counts.length, "end"]]) {
    svg.append(makeSvg("text", { x: left + i * step, y: height - 6, "text-anchor": anchor }, formatted(edges[i])));
  }
  svg.append(makeSvg("text", { x: left - 5, y: 17, "text-anchor": "end" }, formatted(most)));
  svg.append(makeSvg("text", { x: left - 5, y: 8 + tall, "text-anchor": "end" }, "0"));
  return make("figure", {}, svg, make("figcaption", {}, make("b", {}, title), unit ? ` (${unit})` : "", make("br"), note));
}

/** The mean error vectors of a camera: cells in the colour of the length, arrows `scale` times too long. */
function residualMap({ title, size, columns, rows, x, y, count, note }) {
  const width = 320;
  const cell = width / columns;
  const height = Math.round(width * size[1] / size[0]);
  const tall = height / rows;
  const lengths = [...x].map((value, i) => Math.hypot(value, y[i]));
  const known = lengths.filter((_, i) => count[i]).sort((a, b) => a - b);
  const most = Math.max(known[Math.floor(0.95 * (known.length - 1))] ?? 0, 0.05);
  const scale = 0.9 * Math.max(cell, tall) / most;
  const svg = makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${note}` });
  const arrows = makeSvg("g");
  lengths.forEach((length, i) => {
    if (!count[i]) return;
    const [left, top] = [(i % columns) * cell, Math.floor(i / columns) * tall];
    const square = makeSvg("rect", { x: left, y: top, width: cell, height: tall, fill: scoreColor(1 - length / most, 0.45) });
    square.append(makeSvg("title", {}, `${formatted(x[i])}, ${formatted(y[i])} px, mean of ${formatted(count[i])} observations`));
    svg.append(square);
    const shrink = Math.min(1, most / Math.max(length, 1e-9)) * scale;
    const [startX, startY] = [left + cell / 2, top + tall / 2];
    const [endX, endY] = [startX + x[i] * shrink, startY + y[i] * shrink];
    arrows.append(makeSvg("path", { class: "arrow", d: `M${startX} ${startY}L${endX} ${endY}` }),
      makeSvg("circle", { cx: startX, cy: startY, r: 1.2, fill: "currentColor" }));
  });
  svg.append(arrows, makeSvg("rect", { class: "frame", x: 0.5, y: 0.5, width: width - 1, height: height - 1 }));
  const legend = `blue: 0 px, red: ${formatted(most)} px and more; arrows ${formatted(scale * size[0] / width, 0)} times as long`;
  return make("figure", {}, svg, make("figcaption", {}, make("b", {}, title), make("br"), note, make("br"), legend));
}

function showStatistics(page) {
  const { histograms, residuals } = page.data;
  byId("charts").append(...histograms.map(histogram));
  page.reveal("statistics", histograms.length);
  const place = byId("residual-maps");
  const shown = 6;
  place.append(...residuals.slice(0, shown).map(residualMap));
  if (residuals.length > shown) {
    const more = make("button", { type: "button", onclick: () => more.replaceWith(...residuals.slice(shown).map(residualMap)) },
      `Show ${residuals.length - shown} more cameras`);
    place.append(more);
  }
  page.reveal("residuals", residuals.length);
}

function plainTable(title, heads, rows, note = "") {
  if (!rows.length) return null;
  const cells = (row) => row.map((value) => make("td", { className: typeof value === "number" ? "number" : "" },
    value instanceof Node ? value : formatted(value, 1)));
  return make("div", {}, make("h3", {}, title), note ? make("p", { className: "note" }, note) : null,
    make("div", { className: "scroll" }, make("table", { className: "plain" },
      make("thead", {}, make("tr", {}, ...heads.map((head, i) => make("th", { scope: "col", className: typeof rows[0][i] === "number" ? "number" : "" }, head)))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells(row)))))));
}

/** A bar whose length shows a part of the largest value. */
function meter(value, most) {
  const bar = make("i");
  bar.style.width = `${most ? 100 * value / most : 0}%`;
  return make("span", { className: "meter", "aria-hidden": "true" }, bar);
}

function showRun(page) {
  const { stages, settings, weights, versions, files } = page.data;
  const longest = Math.max(...stages.map((stage) => stage.seconds), 0);
  const tables = [
    plainTable("Stages", ["stage", "time, s", "", "CPU, s", "memory, MB"], stages.map((stage) => [
      stage.name, stage.seconds, meter(stage.seconds, longest), stage.cpu_seconds ?? "", stage.peak_memory_mb ?? ""])),
    plainTable("Settings that differ from the defaults", ["option", "value", "default"], settings.changed, settings.note),
    plainTable("Weights", ["weights", "licence"], weights),
    plainTable("Files", ["file", "content"], files.map(([name, about]) => [make("a", { href: name }, name), about])),
    plainTable("Versions", ["package", "version"], versions),
  ].filter((table) => table);
  if (!settings.changed.length && settings.note) tables.splice(1, 0, make("div", {}, make("h3", {}, "Settings"), make("p", {}, settings.note)));
  byId("run-tables").append(...tables);
  page.reveal("run", tables.length);
}
