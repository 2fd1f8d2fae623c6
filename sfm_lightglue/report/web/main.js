// Fills the page from its data, and connects its parts: dialogs, the panel beside the 3D view, the list of sections.
"use strict";

const SECTIONS = { scene: "3D view", photos: "Photos", pairs: "Pairs", matches: "Matches", keypoints: "Keypoints",
  statistics: "Statistics", residuals: "Residuals", run: "Run" };
const MAX_PARTNERS = 15;

class Page {
  constructor(data) {
    this.data = data;
    this.scene = null;
    this.rowsOf = data.photos.photo.map(() => []);
    for (let row = 0; row < data.pairs.photo0.length; row++) {
      this.rowsOf[data.pairs.photo0[row]].push(row);
      this.rowsOf[data.pairs.photo1[row]].push(row);
    }
  }

  reveal(id, isFilled) {
    byId(id).hidden = !isFilled;
    if (isFilled) byId("contents").append(make("li", {}, make("a", { href: `#${id}` }, SECTIONS[id])));
  }

  show() {
    const { data } = this;
    byId("tiles").append(...data.tiles.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, formatted(value)))));
    byId("messages").append(...data.messages.map((message) => make("li", {}, message)));
    byId("messages").hidden = !data.messages.length;
    this.reveal("scene", data.models.length);
    if (data.models.length) this.showScene();
    this.reveal("photos", data.photos.photo.length);
    if (data.photos.photo.length) photoTable(this);
    this.reveal("pairs", data.pairs.photo0.length);
    if (data.pairs.photo0.length) {
      showMatrix(this);
      showGraph(this);
      pairTable(this);
    }
    showMatches(this);
    showKeypoints(this);
    showStatistics(this);
    showRun(this);
  }

  // --- the 3D view ---

  showScene() {
    const { data } = this;
    const panel = byId("scene-panel");
    const hint = () => panel.replaceChildren(make("p", {}, "Click a camera to see its photo, its partners and its numbers."));
    const label = (model, photo) => `3D view of ${formatted(model.photos.length)} cameras and ${formatted(model.num_points)} points`
      + (photo < 0 ? "" : `; chosen: ${data.photos.photo[photo]}`);
    let scene;
    try {
      scene = new Scene(byId("scene-canvas"), { tip: byId("scene-tip"), atlas: data.atlas, label, onchoose: (photo) => {
        scene.partners = photo < 0 ? [] : this.partnersOf(photo).map(([partner]) => partner);
        if (photo < 0) hint();
        else panel.replaceChildren(...this.photoDetail(photo));
      } });
    } catch (error) {
      byId("scene").querySelector(".view").replaceChildren(make("p", {}, `The 3D view needs WebGL, which this browser does not offer (${error.message}).`));
      return;
    }
    this.scene = scene;
    scene.nameOf = (photo) => data.photos.photo[photo];
    scene.setModel(data.models[0]);
    hint();
    this.addSceneControls(scene, hint);
  }

  addSceneControls(scene, hint) {
    const { models, atlas } = this.data;
    const toggle = (key) => (value) => { scene.show[key] = value; scene.redraw(); };
    const controls = byId("scene-controls");
    const facts = make("span", { className: "note" });
    const describe = (model) => {
      const sampled = model.points.length / 3 < model.num_points ? ` (${formatted(model.points.length / 3)} shown)` : "";
      facts.textContent = `${formatted(model.photos.length)} cameras, ${formatted(model.num_points)} points${sampled}. ${model.about}`;
    };
    if (models.length > 1) {
      const choices = models.map((model, i) => [i, `${model.name}: ${formatted(model.photos.length)} photos`]);
      controls.append(chooser("Model", choices, (i) => { scene.setModel(models[i]); hint(); describe(models[i]); }));
    }
    controls.append(checkbox("points", true, toggle("points")), checkbox("cameras", true, toggle("cameras")));
    if (atlas) controls.append(checkbox("pictures", true, toggle("pictures")));
    if (models.some((model) => model.gps)) controls.append(checkbox("GPS", true, toggle("gps")));
    controls.append(
      slider("point size", 0.3, 4, 1, (value) => { scene.sizes.point = value; scene.redraw(); }),
      slider("camera size", 0.1, 4, 1, (value) => { scene.sizes.camera = value; scene.fillCameras(); scene.fillChosen(); scene.redraw(); }),
      make("button", { type: "button", onclick: () => scene.reset() }, "Reset view"), facts);
    describe(models[0]);
  }

  // --- photos and pairs ---

  /** [photo, row of the pair] of the verified partners of a photo, most inliers first. */
  partnersOf(photo) {
    const { pairs } = this.data;
    const verified = pairs.verdicts.indexOf("verified");
    return this.rowsOf[photo].filter((row) => pairs.verdict[row] === verified).sort((a, b) => pairs.inliers[b] - pairs.inliers[a])
      .map((row) => [pairs.photo0[row] === photo ? pairs.photo1[row] : pairs.photo0[row], row]);
  }

  photoDetail(photo) {
    const { photos, pairs } = this.data;
    const partners = this.partnersOf(photo);
    const model = this.data.models.find((one) => one.photos.includes(photo));
    const isHere = this.scene && this.scene.model === model && this.scene.chosen === this.scene.cameraOf.get(photo);
    const buttons = !this.scene || !model ? [] : [
      isHere ? null : make("button", { type: "button", onclick: () => this.showInScene(photo, model) }, "Show in the 3D view"),
      make("button", { type: "button", onclick: () => { this.showInScene(photo, model); this.scene.lookThrough(this.scene.chosen); } }, "Look through it")];
    return [
      make("h3", {}, photos.photo[photo]), photoPicture(this.data, photo),
      facts([["verdict", photos.verdict[photo]], ["why", photos.reason[photo]], ["try", photos.advice[photo]], ["model", photos.model[photo]],
        ["size", photos.width[photo] ? `${photos.width[photo]} x ${photos.height[photo]} px` : ""], ["keypoints", formatted(photos.keypoints[photo])],
        ["pairs", `${formatted(photos.pairs[photo])}, ${formatted(photos.verified_pairs[photo])} verified`],
        ["inliers", `${formatted(photos.inliers[photo])} of ${formatted(photos.matches[photo])} matches`],
        ["mean score", formatted(photos.mean_score[photo])], ["points", formatted(photos.points[photo])],
        ["error", photos.reprojection_error_px[photo] === null ? "" : `${formatted(photos.reprojection_error_px[photo])} px`]]),
      make("div", { className: "controls" }, ...buttons),
      make("h3", {}, partners.length > MAX_PARTNERS ? `Partners: the first ${MAX_PARTNERS} of ${formatted(partners.length)}` : `Partners: ${partners.length}`),
      make("ul", { className: "partners" }, ...partners.slice(0, MAX_PARTNERS).map(([partner, row]) => make("li", {},
        make("button", { type: "button", className: "link", onclick: () => this.follow(photo, partner) }, photos.photo[partner]),
        make("button", { type: "button", className: "link", title: "Show the matches", onclick: () => this.openPair(row) }, `${formatted(pairs.inliers[row])} inliers`)))),
    ];
  }

  /** Goes on to a partner, in the 3D view or in the dialog, where the photo is shown now. */
  follow(photo, partner) {
    if (byId("photo-dialog").open) this.openPhoto(partner);
    else if (this.scene?.cameraOf.has(partner)) this.scene.choosePhoto(partner);
    else this.openPhoto(partner);
  }

  showInScene(photo, model) {
    byId("photo-dialog").close();
    if (this.scene.model !== model) {
      this.scene.setModel(model);
      const select = byId("scene-controls").querySelector("select");
      if (select) select.value = this.data.models.indexOf(model);
    }
    this.scene.choosePhoto(photo);
    byId("scene").scrollIntoView({ block: "start" });
    this.scene.canvas.focus({ preventScroll: true });
  }

  openPhoto(photo) {
    this.open(byId("photo-dialog"), make("div", { className: "detail" }, ...this.photoDetail(photo)));
  }

  openPair(row) {
    const { photos, pairs, matches } = this.data;
    const canvas = make("canvas", { role: "img", "aria-label": "Two photos with lines between matched keypoints" });
    const draw = (mode) => drawPair(canvas, this.data, row, mode);
    draw("score");
    const [reason, advice] = pairs.reasons[pairs.reason[row]];
    const names = [pairs.photo0[row], pairs.photo1[row]].map((photo) => make("button", { type: "button", className: "link",
      onclick: () => { byId("pair-dialog").close(); this.openPhoto(photo); } }, photos.photo[photo]));
    const shown = matches[row] ? matches[row].scores.length : 0;
    const note = !matches[row] ? (pairs.matches[row] ? "The lines of this pair are not stored in this report; those of the gallery are." : "")
      : shown < pairs.matches[row] ? `${formatted(shown)} of ${formatted(pairs.matches[row])} matches are drawn.` : "";
    this.open(byId("pair-dialog"), make("div", {}, make("h3", {}, names[0], " - ", names[1]), canvas,
      make("div", { className: "controls" }, ...(matches[row] ? [chooser("Colour", MODES, draw), ramp("score")] : []), make("span", { className: "note" }, note)),
      facts([["verdict", pairs.verdicts[pairs.verdict[row]]], ["why", reason], ["try", advice], ["matches", formatted(pairs.matches[row])],
        ["inliers", formatted(pairs.inliers[row])], ["mean score", formatted(pairScore(pairs, row))],
        ["geometry", pairs.configurations[pairs.configuration[row]].toLowerCase().replaceAll("_", " ")], ["matched because", pairs.sources[pairs.source[row]]]])));
  }

  open(dialog, content) {
    const close = make("button", { type: "button", className: "close", onclick: () => dialog.close() }, "Close");
    dialog.replaceChildren(close, content);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }
}

async function start() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }
  const page = new Page(await unpackAll(JSON.parse(byId("data").textContent)));
  page.show();
  globalThis.report = page;
}

start().catch((error) => {
  byId("fault").textContent = `This page cannot be shown (${error.message}): it needs a browser of 2023 or newer.`;
  byId("fault").hidden = false;
  console.error(error);
});
