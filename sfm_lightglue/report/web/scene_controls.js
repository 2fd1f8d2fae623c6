// Mouse, touch and keys of the 3D view.
"use strict";

class SceneControls {
  constructor(scene) {
    this.scene = scene;
    this.pointers = new Map();
    const { canvas } = scene;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.release(event));
    canvas.addEventListener("pointerleave", () => { scene.tip.hidden = true; });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(clamp(event.deltaY, -200, 200) * 0.0015));
    }, { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", (event) => this.center(event));
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  down(event) {
    this.scene.canvas.focus({ preventScroll: true });
    this.scene.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    this.travel = this.pointers.size > 1 ? Infinity : 0; // a click that moved, or with two fingers, chooses nothing
    this.moves = event.button !== 0 || event.shiftKey || event.ctrlKey;
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    const now = [event.offsetX, event.offsetY];
    if (!before) {
      this.hover(...now);
      return;
    }
    const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
    this.travel += Math.hypot(dx, dy);
    if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const gap = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
      this.zoom(gap(before) / Math.max(gap(now), 1));
      this.pan(dx / 2, dy / 2);
    } else if (this.moves) this.pan(dx, dy);
    else this.turn(dx * 0.006, dy * 0.006);
    this.pointers.set(event.pointerId, now);
  }

  release(event) {
    const isClick = this.pointers.has(event.pointerId) && this.travel < 5 && event.type === "pointerup";
    this.pointers.delete(event.pointerId);
    if (isClick) this.scene.choose(this.scene.cameraAt(event.offsetX, event.offsetY));
  }

  hover(x, y) {
    const { scene } = this;
    const camera = scene.cameraAt(x, y);
    scene.tip.hidden = camera < 0;
    scene.canvas.style.cursor = camera < 0 ? "" : "pointer";
    if (camera < 0) return;
    scene.tip.textContent = scene.nameOf(scene.model.photos[camera]);
    scene.tip.style.left = `${Math.min(x + 14, Math.max(0, scene.canvas.clientWidth - 180))}px`;
    scene.tip.style.top = `${y + 14}px`;
  }

  turn(dx, dy) {
    this.scene.turn += dx;
    this.scene.tilt = clamp(this.scene.tilt + dy, -1.55, 1.55);
    this.scene.redraw();
  }

  pan(dx, dy) {
    const { scene } = this;
    const [right, up] = scene.viewAxes;
    const side = Math.min(scene.canvas.clientWidth, scene.canvas.clientHeight);
    const scale = 2 * scene.distance * Math.tan(FIELD_OF_VIEW / 2) / side;
    scene.target = add(add(scene.target, right, -dx * scale), up, dy * scale);
    scene.redraw();
  }

  zoom(factor) {
    const { scene } = this;
    scene.distance = clamp(scene.distance * factor, scene.model.radius * 1e-3, scene.model.radius * 50);
    scene.redraw();
  }

  /** A double click brings a camera into the middle. */
  center(event) {
    const camera = this.scene.cameraAt(event.offsetX, event.offsetY);
    if (camera < 0) return;
    this.scene.target = this.scene.center(camera);
    this.scene.redraw();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { scene } = this;
    const arrows = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const count = scene.model.photos.length;
    const actions = {
      "+": () => this.zoom(0.8), "=": () => this.zoom(0.8), "-": () => this.zoom(1.25), r: () => scene.reset(),
      n: () => scene.choose((scene.chosen + 1) % count), p: () => scene.choose((scene.chosen + count - (scene.chosen < 0 ? 0 : 1)) % count),
      l: () => scene.chosen >= 0 && scene.lookThrough(scene.chosen), Escape: () => scene.choose(-1),
    };
    const arrow = arrows[event.key];
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (arrow && event.shiftKey) this.pan(20 * arrow[0], 20 * arrow[1]);
    else if (arrow) this.turn(0.08 * arrow[0], 0.08 * arrow[1]);
    else if (action && (count || event.key === "+" || event.key === "-")) action();
    else return;
    event.preventDefault();
  }
}
