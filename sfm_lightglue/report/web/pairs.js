// The matrix of all pairs and the view graph with its components.
"use strict";

const MATRIX_CELLS = 560;
const GRAPH_NODES = 300;

/** Colours of a pair in the matrix: verified pairs from light to dark blue by inliers, rejected ones red. */
function pairColor(inliers, isVerified, most) {
  if (!isVerified) return [214, 96, 77];
  const share = Math.log1p(inliers) / Math.log1p(Math.max(most, 1));
  return [Math.round(198 - 170 * share), Math.round(219 - 130 * share), Math.round(239 - 70 * share)];
}

function showMatrix(page) {
  const { photos, pairs } = page.data;
  const count = photos.photo.length;
  const cells = Math.min(count, MATRIX_CELLS);
  const strength = new Float32Array(cells * cells).fill(-1); // -1: not matched, 0: rejected, else inliers
  const rowOf = new Int32Array(cells * cells).fill(-1);
  const cellOf = (photo) => Math.floor(photo * cells / count);
  const verified = pairs.verdicts.indexOf("verified");
  let most = 1;
  for (let row = 0; row < pairs.photo0.length; row++) {
    if (!["verified", "rejected"].includes(pairs.verdicts[pairs.verdict[row]])) continue;
    const value = pairs.verdict[row] === verified ? Math.max(pairs.inliers[row], 1) : 0;
    most = Math.max(most, value);
    const [i, j] = [cellOf(pairs.photo0[row]), cellOf(pairs.photo1[row])];
    for (const place of [i * cells + j, j * cells + i]) {
      if (value > strength[place]) [strength[place], rowOf[place]] = [value, row];
    }
  }
  const canvas = make("canvas", { className: "square", role: "img",
    "aria-label": `Matrix of ${count} photos: which pairs are verified. The table of pairs has the same numbers.` });
  [canvas.width, canvas.height] = [cells, cells];
  const pen = canvas.getContext("2d");
  const pixels = pen.createImageData(cells, cells);
  strength.forEach((value, i) => { if (value >= 0) pixels.data.set([...pairColor(value, value > 0, most), 255], 4 * i); });
  pen.putImageData(pixels, 0, 0);
  const tip = make("div", { className: "tip", hidden: true });
  const placeOf = (event) => {
    const [i, j] = [event.offsetY / canvas.clientHeight, event.offsetX / canvas.clientWidth].map((part) => clamp(Math.floor(part * cells), 0, cells - 1));
    return i * cells + j;
  };
  canvas.addEventListener("click", (event) => { if (rowOf[placeOf(event)] >= 0) page.openPair(rowOf[placeOf(event)]); });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("pointermove", (event) => {
    const row = rowOf[placeOf(event)];
    tip.hidden = row < 0;
    if (row < 0) return;
    tip.textContent = `${photos.photo[pairs.photo0[row]]} - ${photos.photo[pairs.photo1[row]]}: ${pairs.inliers[row]} inliers of ${pairs.matches[row]}`;
    tip.style.left = `${Math.min(event.offsetX, Math.max(0, canvas.clientWidth - 200))}px`;
    tip.style.top = `${event.offsetY + 16}px`;
  });
  const grouped = cells < count ? ` Each cell stands for ${Math.ceil(count / cells)} x ${Math.ceil(count / cells)} photos and shows the best pair.` : "";
  byId("matrix").append(make("h3", {}, "Matrix of pairs"),
    make("p", { className: "note" }, `Photos in the order of their names. Blue: verified, darker with more inliers; red: rejected; empty: not matched.${grouped}`),
    make("div", { className: "hover" }, canvas, tip));
}

/** The photos of each component of the graph of verified pairs, by one of its photos. */
function findComponents(data) {
  const { photos, pairs } = data;
  const parent = Int32Array.from(photos.photo, (_, i) => i);
  const root = (i) => {
    while (parent[i] !== i) i = parent[i] = parent[parent[i]];
    return i;
  };
  const verified = pairs.verdicts.indexOf("verified");
  for (let row = 0; row < pairs.photo0.length; row++) {
    if (pairs.verdict[row] === verified) parent[root(pairs.photo0[row])] = root(pairs.photo1[row]);
  }
  const members = new Map();
  parent.forEach((_, photo) => {
    const found = members.get(root(photo));
    if (found) found.push(photo);
    else members.set(root(photo), [photo]);
  });
  return members;
}

/** The nodes of the drawn graph: photos, or groups of photos with neighbouring names if there are too many. */
function graphNodes(members, count) {
  const perNode = Math.max(1, Math.ceil(count / GRAPH_NODES));
  const nodes = [];
  const nodeOf = new Int32Array(count).fill(-1);
  const sorted = [...members.values()].sort((a, b) => b.length - a.length || a[0] - b[0]);
  const components = [];
  for (const photos of sorted) {
    if (photos.length < 2) continue;
    const first = nodes.length;
    for (let i = 0; i < photos.length; i += perNode) {
      const group = photos.slice(i, i + perNode);
      for (const photo of group) nodeOf[photo] = nodes.length;
      nodes.push({ photos: group, x: 0, y: 0 });
    }
    components.push({ first, end: nodes.length, size: photos.length });
    if (nodes.length > 2 * GRAPH_NODES) break;
  }
  return { nodes, nodeOf, components, perNode, sorted };
}

function graphEdges(pairs, nodeOf) {
  const verified = pairs.verdicts.indexOf("verified");
  const weights = new Map();
  for (let row = 0; row < pairs.photo0.length; row++) {
    const [a, b] = [nodeOf[pairs.photo0[row]], nodeOf[pairs.photo1[row]]];
    if (pairs.verdict[row] !== verified || a < 0 || b < 0 || a === b) continue;
    const key = Math.min(a, b) * 65536 + Math.max(a, b);
    weights.set(key, (weights.get(key) ?? 0) + pairs.inliers[row]);
  }
  return [...weights].map(([key, weight]) => ({ a: Math.floor(key / 65536), b: key % 65536, weight }));
}

/** Places the nodes of a component in the unit circle: neighbours attract, all others repel (Fruchterman and Reingold). */
function placeNodes(nodes, edges) {
  const count = nodes.length;
  nodes.forEach((node, i) => { [node.x, node.y] = [Math.cos(2 * Math.PI * i / count), Math.sin(2 * Math.PI * i / count)]; });
  const ideal = 1.5 / Math.sqrt(count);
  const strongest = Math.max(...edges.map((edge) => edge.weight), 1);
  const rounds = count > 150 ? 90 : 200;
  for (let round = 0; count > 2 && round < rounds; round++) {
    const forces = nodes.map(() => [0, 0]);
    const pull = (i, j, force) => {
      const [dx, dy] = [nodes[j].x - nodes[i].x, nodes[j].y - nodes[i].y];
      const gap = Math.max(Math.hypot(dx, dy), 1e-3);
      const size = force(gap) / gap;
      forces[i][0] += dx * size; forces[i][1] += dy * size;
      forces[j][0] -= dx * size; forces[j][1] -= dy * size;
    };
    for (let i = 0; i < count; i++) for (let j = i + 1; j < count; j++) pull(i, j, (gap) => -ideal * ideal / gap);
    for (const { i, j, weight } of edges) pull(i, j, (gap) => gap * gap / ideal * Math.sqrt(weight / strongest));
    const longest = 0.2 * (1 - round / rounds);
    nodes.forEach((node, i) => {
      const size = Math.max(Math.hypot(...forces[i]), 1e-9);
      node.x += forces[i][0] / size * Math.min(size, longest);
      node.y += forces[i][1] / size * Math.min(size, longest);
    });
  }
  const middle = ["x", "y"].map((key) => nodes.reduce((sum, node) => sum + node[key], 0) / count);
  const extent = Math.max(...nodes.map((node) => Math.hypot(node.x - middle[0], node.y - middle[1])), 1e-6);
  for (const node of nodes) [node.x, node.y] = [(node.x - middle[0]) / extent, (node.y - middle[1]) / extent];
}

/** Places the circles of all components in rows; returns the height of the drawing. */
function placeComponents(graph, edges, width) {
  const largest = Math.max(...graph.components.map((one) => Math.sqrt(one.size)));
  let [x, y, rowHeight] = [0, 0, 0];
  for (const component of graph.components) {
    const radius = Math.max(34, (width / 2 - 14) * 0.82 * Math.sqrt(component.size) / largest);
    const nodes = graph.nodes.slice(component.first, component.end);
    placeNodes(nodes, edges.filter((edge) => edge.a >= component.first && edge.a < component.end)
      .map((edge) => ({ i: edge.a - component.first, j: edge.b - component.first, weight: edge.weight })));
    if (x + 2 * radius + 24 > width) [x, y, rowHeight] = [0, y + rowHeight, 0];
    for (const node of nodes) [node.x, node.y] = [x + 12 + radius + node.x * radius, y + 12 + radius + node.y * radius];
    x += 2 * radius + 24;
    rowHeight = Math.max(rowHeight, 2 * radius + 24);
  }
  return y + rowHeight;
}

function drawGraph(canvas, data, graph, edges) {
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const strongest = Math.max(...edges.map((edge) => edge.weight), 1);
  pen.strokeStyle = cssColor("--faint");
  for (const { a, b, weight } of edges) {
    pen.globalAlpha = 0.08 + 0.5 * Math.sqrt(weight / strongest);
    pen.lineWidth = 1 + 4 * weight / strongest;
    pen.beginPath();
    pen.moveTo(graph.nodes[a].x, graph.nodes[a].y);
    pen.lineTo(graph.nodes[b].x, graph.nodes[b].y);
    pen.stroke();
  }
  pen.globalAlpha = 1;
  const colors = { true: cssColor("--good"), false: cssColor("--warn") };
  for (const node of graph.nodes) {
    const registered = node.photos.filter((photo) => data.photos.model[photo] !== null).length;
    pen.fillStyle = colors[2 * registered >= node.photos.length];
    pen.beginPath();
    pen.arc(node.x, node.y, graph.nodes.length > 100 ? 5 : 8, 0, 2 * Math.PI);
    pen.fill();
  }
}

function showGraph(page) {
  const { data } = page;
  const count = data.photos.photo.length;
  const members = findComponents(data);
  const graph = graphNodes(members, count);
  const edges = graphEdges(data.pairs, graph.nodeOf);
  const alone = graph.sorted.filter((photos) => photos.length === 1).length;
  const sizes = graph.sorted.filter((photos) => photos.length > 1).map((photos) => photos.length);
  const about = `${sizes.length} ${sizes.length === 1 ? "component" : "components"} of verified pairs`
    + (sizes.length ? ` with ${sizes.slice(0, 8).map((size) => formatted(size)).join(", ")}${sizes.length > 8 ? ", ..." : ""} photos` : "")
    + (alone ? `; ${formatted(alone)} photos have no verified pair` : "");
  const grouped = graph.perNode > 1 ? ` Each dot stands for up to ${graph.perNode} photos that follow each other by name.` : "";
  byId("graph").append(make("h3", {}, "View graph"),
    make("p", { className: "note" }, `${about}. Green: with a pose, orange: without; strong lines: many inliers.${grouped}`));
  if (!graph.nodes.length) return;
  const canvas = make("canvas", { className: "graph", role: "img", "aria-label": `View graph: ${about}` });
  canvas.width = 1000;
  canvas.height = Math.ceil(placeComponents(graph, edges, 1000));
  const tip = make("div", { className: "tip", hidden: true });
  const nodeAt = (event) => {
    const scale = canvas.width / canvas.clientWidth;
    const [x, y] = [event.offsetX * scale, event.offsetY * scale];
    return graph.nodes.find((node) => Math.hypot(node.x - x, node.y - y) < 10 * Math.max(1, scale / 2));
  };
  canvas.addEventListener("click", (event) => { const node = nodeAt(event); if (node) page.openPhoto(node.photos[0]); });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("pointermove", (event) => {
    const node = nodeAt(event);
    tip.hidden = !node;
    if (!node) return;
    const names = [node.photos[0], ...(node.photos.length > 1 ? [node.photos.at(-1)] : [])].map((photo) => data.photos.photo[photo]);
    tip.textContent = names.join(" to ");
    tip.style.left = `${Math.min(event.offsetX + 12, Math.max(0, canvas.clientWidth - 160))}px`;
    tip.style.top = `${event.offsetY + 12}px`;
  });
  byId("graph").append(make("div", { className: "hover" }, canvas, tip));
  const draw = () => drawGraph(canvas, data, graph, edges);
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
