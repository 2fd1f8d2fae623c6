// Pictures of pairs with their matches, and of photos with their keypoints, drawn on canvases.
"use strict";

const GAP = 8; // px between the two photos

const loaded = new Map();

/** The picture of a photo, loaded once; null if there is none. */
function loadPicture(data, photo) {
  if (!loaded.has(photo)) {
    const source = data.large[photo] ?? data.pictures[photo];
    loaded.set(photo, !source ? Promise.resolve(null) : new Promise((resolve) => {
      const picture = new Image();
      picture.onload = () => resolve(picture);
      picture.onerror = () => resolve(null);
      picture.src = source;
    }));
  }
  return loaded.get(photo);
}

/** (width, height) of the upright photo, for a picture that may be missing. */
const shapeOf = (picture, data, photo) => (picture ? [picture.width, picture.height] : data.photos.width[photo]
  ? [data.photos.width[photo], data.photos.height[photo]] : [4, 3]);

/** Draws two photos side by side with matches {places (k x 4, parts of 65535), scores, inliers}; `mode` is score, inlier or verified. */
async function drawPair(canvas, data, row, mode) {
  const { pairs } = data;
  const photos = [pairs.photo0[row], pairs.photo1[row]];
  const pictures = await Promise.all(photos.map((photo) => loadPicture(data, photo)));
  const shapes = pictures.map((picture, i) => shapeOf(picture, data, photos[i]));
  const aspects = shapes.map(([width, height]) => width / height);
  const height = Math.round((1200 - GAP) / (aspects[0] + aspects[1]));
  canvas.width = 1200;
  canvas.height = Math.min(height, 900);
  const widths = aspects.map((aspect) => aspect * canvas.height);
  const lefts = [(1200 - GAP - widths[0] - widths[1]) / 2];
  lefts.push(lefts[0] + widths[0] + GAP);
  const pen = canvas.getContext("2d");
  pictures.forEach((picture, i) => {
    if (picture) pen.drawImage(picture, lefts[i], 0, widths[i], canvas.height);
    else pen.strokeRect(lefts[i], 0, widths[i], canvas.height);
  });
  const found = data.matches[row];
  if (found) drawMatches(pen, found, lefts, widths, canvas.height, mode);
}

function drawMatches(pen, { places, scores, inliers }, lefts, widths, height, mode) {
  const order = [...scores.keys()].sort((a, b) => inliers[a] - inliers[b] || scores[a] - scores[b]);
  for (const i of order) {
    if (mode === "verified" && !inliers[i]) continue;
    const [x0, y0, x1, y1] = places.subarray(4 * i, 4 * i + 4);
    const ends = [[lefts[0] + x0 / 65535 * widths[0], y0 / 65535 * height], [lefts[1] + x1 / 65535 * widths[1], y1 / 65535 * height]];
    const color = mode === "inlier" ? (inliers[i] ? "rgba(60,220,110,.8)" : "rgba(255,60,50,.75)") : scoreColor(scores[i] / 255, 0.75);
    pen.strokeStyle = pen.fillStyle = color;
    pen.lineWidth = 1.5;
    pen.beginPath();
    pen.moveTo(...ends[0]);
    pen.lineTo(...ends[1]);
    pen.stroke();
    for (const end of ends) {
      pen.beginPath();
      pen.arc(...end, 3.2, 0, 2 * Math.PI);
      pen.fill();
    }
  }
}

async function drawKeypoints(canvas, data, photo, { places, scores }) {
  const picture = await loadPicture(data, photo);
  const [width, height] = shapeOf(picture, data, photo);
  canvas.width = 800;
  canvas.height = Math.min(Math.round(800 * height / width), 1200);
  const wide = Math.min(800, canvas.height * width / height);
  const left = (800 - wide) / 2;
  const pen = canvas.getContext("2d");
  if (picture) pen.drawImage(picture, left, 0, wide, canvas.height);
  for (let i = scores.length - 1; i >= 0; i--) {
    pen.fillStyle = scoreColor(scores[i] / 255);
    pen.beginPath();
    pen.arc(left + places[2 * i] / 65535 * wide, places[2 * i + 1] / 65535 * canvas.height, 3, 0, 2 * Math.PI);
    pen.fill();
  }
}

const MODES = [["score", "score of each match"], ["inlier", "inlier or not"], ["verified", "only verified matches"]];

const ramp = (text) => make("span", { className: "ramp" }, `${text} 0`, make("i"), "1");

function pairCaption(data, row) {
  const { photos, pairs } = data;
  const [reason] = pairs.reasons[pairs.reason[row]];
  const isVerified = pairs.verdicts[pairs.verdict[row]] === "verified";
  const counts = `${formatted(pairs.inliers[row])} of ${formatted(pairs.matches[row])} matches ${isVerified ? "verified" : "agree"}`;
  return make("figcaption", {}, make("b", {}, `${photos.photo[pairs.photo0[row]]} - ${photos.photo[pairs.photo1[row]]}`), make("br"),
    reason ? `${counts}. ${reason}` : counts);
}

function showMatches(page) {
  const { data } = page;
  const kinds = Object.keys(data.galleries).filter((kind) => data.galleries[kind].length);
  page.reveal("matches", kinds.length);
  if (!kinds.length) return;
  let [kind, mode] = [kinds[0], "score"];
  const cards = byId("match-cards");
  const fill = () => cards.replaceChildren(...data.galleries[kind].map((row) => {
    const canvas = make("canvas", { role: "img", "aria-label": "Two photos with lines between matched keypoints" });
    drawPair(canvas, data, row, mode);
    return make("figure", {}, make("button", { type: "button", title: "Show this pair large", onclick: () => page.openPair(row) }, canvas), pairCaption(data, row));
  }));
  const buttons = kinds.map((name) => make("button", { type: "button", onclick: () => {
    kind = name;
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", kinds[i] === kind));
    fill();
  } }, `${name} (${data.galleries[name].length})`));
  buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === 0));
  byId("match-controls").append(...buttons, chooser("Colour", MODES, (value) => { mode = value; fill(); }), ramp("score"));
  fill();
}

function showKeypoints(page) {
  const { data } = page;
  byId("keypoint-cards").append(...data.keypoints.map((entry) => {
    const canvas = make("canvas", { role: "img", "aria-label": "Photo with its keypoints" });
    drawKeypoints(canvas, data, entry.photo, entry);
    const { photos } = data;
    const count = photos.keypoints[entry.photo];
    return make("figure", {}, make("button", { type: "button", onclick: () => page.openPhoto(entry.photo) }, canvas),
      make("figcaption", {}, make("b", {}, photos.photo[entry.photo]), make("br"), `${formatted(count)} keypoints. ${photos.reason[entry.photo]}`));
  }));
  page.reveal("keypoints", data.keypoints.length);
}
