// The data of the page: packed arrays, small helpers for elements, numbers and colours.
"use strict";

const TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i2: Int16Array, f4: Float32Array };

/** The typed array of {type, data}: base64 of zlib-compressed little-endian numbers; or what compressed JSON holds. */
async function unpack(packed) {
  const text = atob(packed.data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const response = new Response(stream);
  return packed.type === "json" ? response.json() : new TYPES[packed.type](await response.arrayBuffer());
}

/** The same tree, with every packed array as a typed array. */
async function unpackAll(node) {
  if (node === null || typeof node !== "object") return node;
  if ((node.type in TYPES || node.type === "json") && typeof node.data === "string") return unpack(node);
  if (Array.isArray(node) && (node[0] === null || typeof node[0] !== "object")) return node; // a column of names or numbers
  if (Array.isArray(node)) return Promise.all(node.map(unpackAll));
  const entries = await Promise.all(Object.entries(node).map(async ([key, value]) => [key, await unpackAll(value)]));
  return Object.fromEntries(entries);
}

/** An element with properties and children. Text is always set as text, so names of photos cannot become markup. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && key !== "list" && key !== "width" && key !== "height") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const byId = (id) => document.getElementById(id);
const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A number for people: thousands separated, at most `digits` decimals; empty for a missing one. */
function formatted(value, digits = 2) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en").replaceAll(",", "\u202f");
  return value.toFixed(digits);
}

const SCORE_COLORS = [[200, 20, 40], [240, 90, 30], [255, 175, 50], [235, 235, 130], [110, 225, 220], [20, 175, 255]];

/** The CSS colour of a score in 0..1: red, yellow, azure. */
function scoreColor(score, opacity = 1) {
  const place = Math.min(Math.max(score, 0), 1) * (SCORE_COLORS.length - 1);
  const low = Math.min(Math.floor(place), SCORE_COLORS.length - 2);
  const mixed = SCORE_COLORS[low].map((value, i) => Math.round(value + (SCORE_COLORS[low + 1][i] - value) * (place - low)));
  return `rgba(${mixed.join(",")},${opacity})`;
}

function checkbox(label, checked, onchange) {
  const box = make("input", { type: "checkbox", checked, onchange: () => onchange(box.checked) });
  return make("label", {}, box, label);
}

function slider(label, min, max, value, oninput) {
  const input = make("input", { type: "range", min, max, step: (max - min) / 100, oninput: () => oninput(Number(input.value)) });
  input.value = value;
  return make("label", {}, label, input);
}

/** A list of choices [value, text]. */
function chooser(label, choices, onchange) {
  const select = make("select", { onchange: () => onchange(select.value) }, ...choices.map(([value, text]) => make("option", { value }, text)));
  return make("label", {}, label, select);
}

function facts(rows) {
  const shown = rows.filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return make("dl", { className: "facts" }, ...shown.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
}

/** The picture of a photo, or a note why there is none. */
function photoPicture(data, photo) {
  const source = data.pictures[photo];
  if (!source) return make("p", { className: "note" }, data.picture_note);
  const picture = make("img", { src: source, alt: data.photos.photo[photo], loading: "lazy" });
  picture.addEventListener("error", () => picture.replaceWith(make("p", { className: "note" },
    `The picture ${source} is missing: the folder report belongs beside this page.`)));
  return picture;
}
