// The 3D view: points, cameras and GPS positions of a model, drawn with WebGL; the viewpoint turns around a target.
"use strict";

const POINT_SHADERS = [`
  attribute vec3 position; attribute vec3 color; uniform mat4 clip_from_world; uniform float size; uniform vec2 limits; varying vec3 shade;
  void main() {
    gl_Position = clip_from_world * vec4(position, 1.0);
    gl_PointSize = clamp(size / gl_Position.w, limits.x, limits.y);
    shade = color;
  }`, `
  precision mediump float; varying vec3 shade;
  void main() {
    vec2 place = gl_PointCoord - 0.5;
    if (dot(place, place) > 0.25) discard;
    gl_FragColor = vec4(shade, 1.0);
  }`];
const LINE_SHADERS = [`
  attribute vec3 position; uniform mat4 clip_from_world; uniform vec2 shift;
  void main() {
    gl_Position = clip_from_world * vec4(position, 1.0);
    gl_Position.xy += shift * gl_Position.w;
  }`, `
  precision mediump float; uniform vec4 color;
  void main() { gl_FragColor = color; }`];
const PICTURE_SHADERS = [`
  attribute vec3 position; attribute vec2 place; uniform mat4 clip_from_world; varying vec2 texel;
  void main() { gl_Position = clip_from_world * vec4(position, 1.0); texel = place; }`, `
  precision mediump float; uniform sampler2D pictures; varying vec2 texel;
  void main() { gl_FragColor = texture2D(pictures, texel); }`];

const FIELD_OF_VIEW = 45 * Math.PI / 180;
const FRUSTUM_LINES = [0, 1, 0, 2, 0, 3, 0, 4, 1, 2, 2, 3, 3, 4, 4, 1];
const ICON = 12; // px around a camera in which a click chooses it

const add = (a, b, scale = 1) => [a[0] + scale * b[0], a[1] + scale * b[1], a[2] + scale * b[2]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => a.map((value) => value / (Math.hypot(...a) || 1));
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function rgb(name) {
  const text = cssColor(name).slice(1);
  return [0, 2, 4].map((i) => parseInt(text.slice(i, i + 2), 16) / 255);
}

class Scene {
  /** Raises an Error if the browser has no WebGL. */
  constructor(canvas, { tip, atlas, onchoose, label }) {
    this.canvas = canvas;
    this.tip = tip;
    this.onchoose = onchoose;
    this.label = label;
    this.show = { points: true, cameras: true, pictures: true, gps: true };
    this.sizes = { point: 1, camera: 1 };
    this.chosen = -1;
    this.partners = [];
    this.gl = canvas.getContext("webgl", { antialias: true });
    if (!this.gl) throw new Error("no WebGL");
    this.start(atlas);
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => { this.start(atlas); this.setModel(this.model, true); });
    new ResizeObserver(() => this.redraw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    new SceneControls(this);
  }

  start(atlas) {
    const { gl } = this;
    this.programs = { points: this.program(POINT_SHADERS), lines: this.program(LINE_SHADERS), pictures: this.program(PICTURE_SHADERS) };
    this.buffers = Object.fromEntries(["points", "colors", "cameras", "quads", "places", "chosen", "partners", "gps", "gpsColors", "offsets"]
      .map((name) => [name, { buffer: gl.createBuffer(), count: 0 }]));
    this.atlas = null;
    if (!atlas) return;
    const picture = new Image();
    picture.onload = () => {
      const texture = gl.createTexture();
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, picture);
      for (const [name, value] of [["WRAP_S", "CLAMP_TO_EDGE"], ["WRAP_T", "CLAMP_TO_EDGE"], ["MIN_FILTER", "LINEAR"], ["MAG_FILTER", "LINEAR"]]) {
        gl.texParameteri(gl.TEXTURE_2D, gl[`TEXTURE_${name}`], gl[value]);
      }
      this.atlas = { ...atlas, texture, width: picture.width, height: picture.height };
      if (this.model) this.fillCameras();
      this.redraw();
    };
    picture.src = atlas.picture;
  }

  program([vertex, fragment]) {
    const { gl } = this;
    const program = gl.createProgram();
    for (const [type, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program) ?? "the shaders do not link");
    return program;
  }

  fill(name, values, width = 3) {
    const { gl } = this;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name].buffer);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
    this.buffers[name].count = values.length / width;
  }

  /** Shows a model: its points, cameras and GPS positions; the viewpoint is reset unless `keepsView`. */
  setModel(model, keepsView = false) {
    this.model = model;
    const points = new Float32Array(model.points.length);
    for (let i = 0; i < points.length; i++) points[i] = model.low[i % 3] + model.step * model.points[i];
    this.fill("points", points);
    this.fill("colors", model.colors);
    this.cameraOf = new Map([...model.photos].map((photo, camera) => [photo, camera]));
    this.fillCameras();
    this.fillGps();
    if (!keepsView) {
      this.chosen = -1;
      this.reset();
    }
    this.choose(this.chosen, false);
  }

  center(camera) {
    return [...this.model.poses.subarray(7 * camera + 4, 7 * camera + 7)];
  }

  /** The axes x, y, z of a camera in world coordinates. */
  axes(camera) {
    const [w, x, y, z] = this.model.poses.subarray(7 * camera, 7 * camera + 4); // world_from_cam
    return [[1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
      [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
      [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)]];
  }

  /** The centre of a camera and the four corners of its picture: top left, top right, bottom right, bottom left. */
  corners(camera, depth = this.model.camera_size * this.sizes.camera) {
    const [left, top, right, bottom] = this.model.extents.subarray(4 * camera, 4 * camera + 4);
    const [axisX, axisY, axisZ] = this.axes(camera);
    const center = this.center(camera);
    const corner = (x, y) => add(add(add(center, axisX, x * depth), axisY, y * depth), axisZ, depth);
    return [center, corner(left, top), corner(right, top), corner(right, bottom), corner(left, bottom)];
  }

  fillCameras() {
    const count = this.model.photos.length;
    const lines = new Float32Array(count * FRUSTUM_LINES.length * 3);
    const quads = [];
    const places = [];
    for (let camera = 0; camera < count; camera++) {
      const corners = this.corners(camera);
      FRUSTUM_LINES.forEach((corner, i) => lines.set(corners[corner], (camera * FRUSTUM_LINES.length + i) * 3));
      const cell = this.atlas?.cells[this.model.photos[camera]];
      if (cell) {
        const [left, top, right, bottom] = cell.map((value, i) => value / (i % 2 ? this.atlas.height : this.atlas.width));
        for (const i of [1, 2, 3, 1, 3, 4]) quads.push(...corners[i]);
        places.push(left, top, right, top, right, bottom, left, top, right, bottom, left, bottom);
      }
    }
    this.fill("cameras", lines);
    this.fill("quads", new Float32Array(quads));
    this.fill("places", new Float32Array(places), 2);
  }

  fillGps() {
    const { gps } = this.model;
    const positions = gps ? gps.positions : new Float32Array();
    const offsets = [];
    for (let i = 0; gps && i < gps.photos.length; i++) {
      const camera = this.cameraOf.get(gps.photos[i]);
      if (camera !== undefined) offsets.push(...positions.subarray(3 * i, 3 * i + 3), ...this.center(camera));
    }
    this.fill("gps", positions);
    this.fill("offsets", new Float32Array(offsets));
  }

  /** The first viewpoint: in the mean direction of the cameras, from above, so that everything is seen. */
  reset() {
    const { up, forward, middle } = this.model;
    this.up = unit(up);
    this.ahead = unit(add(forward, this.up, -dot(forward, this.up)));
    this.aside = cross(this.ahead, this.up);
    this.turn = 0;
    this.tilt = 0.45;
    this.fit(middle);
    this.redraw();
  }

  /** Chooses target and distance so that the cameras and all points near the middle are inside the view. */
  fit(middle) {
    const { points, low, step, photos, radius } = this.model;
    const axes = this.viewAxes;
    const seen = [...photos.keys()].map((camera) => this.center(camera));
    for (let i = 0; i < points.length; i += 3 * Math.ceil(points.length / 9000)) {
      const point = [0, 1, 2].map((axis) => low[axis] + step * points[i + axis]);
      if (Math.hypot(...add(point, middle, -1)) <= radius) seen.push(point);
    }
    const places = seen.map((point) => axes.map((axis) => dot(axis, add(point, middle, -1))));
    const ends = [0, 1].map((axis) => places.reduce(([least, most], place) => [Math.min(least, place[axis]), Math.max(most, place[axis])], [0, 0]));
    const centers = ends.map(([least, most]) => (least + most) / 2);
    const slope = Math.tan(FIELD_OF_VIEW / 2) * 0.9; // a margin for the drawn cameras
    const aspect = (this.canvas.clientWidth || 1) / (this.canvas.clientHeight || 1);
    const slopes = [slope * Math.max(1, aspect), slope * Math.max(1, 1 / aspect)];
    const needed = (place) => Math.max(...[0, 1].map((axis) => Math.abs(place[axis] - centers[axis]) / slopes[axis])) - place[2];
    this.distance = places.reduce((most, place) => Math.max(most, needed(place)), radius * 0.3);
    this.target = add(add(middle, axes[0], centers[0]), axes[1], centers[1]);
  }

  get direction() {
    const level = add([0, 0, 0], add(this.ahead.map((value) => value * Math.cos(this.turn)), this.aside, Math.sin(this.turn)), Math.cos(this.tilt));
    return add(level, this.up, -Math.sin(this.tilt));
  }

  /** Right, up and forward axes of the viewpoint. */
  get viewAxes() {
    const forward = this.direction;
    const right = unit(cross(forward, this.up));
    return [right, cross(right, forward), forward];
  }

  lookThrough(camera) {
    const [, , axisZ] = this.axes(camera);
    this.tilt = clamp(-Math.asin(clamp(dot(axisZ, this.up), -1, 1)), -1.55, 1.55);
    this.turn = Math.atan2(dot(axisZ, this.aside), dot(axisZ, this.ahead));
    this.distance = this.model.radius * 0.6;
    this.target = add(this.center(camera), this.direction, this.distance * 0.98);
    this.redraw();
  }

  /** Columns of the matrix clip_from_world, for this size of the canvas. */
  matrix() {
    const [right, up, forward] = this.viewAxes;
    const eye = add(this.target, forward, -this.distance);
    const focal = 1 / Math.tan(FIELD_OF_VIEW / 2);
    const aspect = this.canvas.width / this.canvas.height;
    const [near, far] = [this.distance / 200, this.distance * 4 + this.model.radius * 40];
    const [a, b] = [(far + near) / (far - near), (-2 * far * near) / (far - near)];
    const wide = Math.min(focal, focal * aspect); // the smaller side sees the field of view
    const rows = [[right, wide / aspect, 0], [up, wide, 0], [forward, a, b], [forward, 1, 0]].map(([axis, scale, shift]) => [
      ...axis.map((value) => value * scale), -dot(axis, eye) * scale + shift]);
    const columns = new Float32Array(16);
    rows.forEach((row, i) => row.forEach((value, j) => { columns[4 * j + i] = value; }));
    return columns;
  }

  /** CSS px of a world point on the canvas and its depth; null if it is behind the viewpoint. */
  project(m, point) {
    const [x, y, z] = point;
    const w = m[3] * x + m[7] * y + m[11] * z + m[15];
    if (w < this.distance / 200) return null;
    const place = [0, 1].map((i) => (m[i] * x + m[4 + i] * y + m[8 + i] * z + m[12 + i]) / w);
    return [(place[0] + 1) / 2 * this.canvas.clientWidth, (1 - place[1]) / 2 * this.canvas.clientHeight, w];
  }

  /** The nearest camera whose picture or centre lies at (x, y) px of the canvas; -1 if there is none. */
  cameraAt(x, y) {
    if (!this.show.cameras) return -1;
    const m = this.matrix();
    let [best, depth] = [-1, Infinity];
    for (let camera = 0; camera < this.model.photos.length; camera++) {
      const center = this.project(m, this.center(camera));
      if (!center || center[2] >= depth) continue;
      const isNear = Math.hypot(center[0] - x, center[1] - y) < ICON;
      if (isNear || (Math.hypot(center[0] - x, center[1] - y) < 600 && this.isInside(m, camera, x, y))) [best, depth] = [camera, center[2]];
    }
    return best;
  }

  isInside(m, camera, x, y) {
    const corners = this.corners(camera).slice(1).map((corner) => this.project(m, corner));
    if (corners.includes(null)) return false;
    const sides = corners.map((corner, i) => {
      const next = corners[(i + 1) % 4];
      return (next[0] - corner[0]) * (y - corner[1]) - (next[1] - corner[1]) * (x - corner[0]);
    });
    return sides.every((side) => side > 0) || sides.every((side) => side < 0);
  }

  /** Marks a camera and its partners, and tells the page; -1 chooses none. */
  choose(camera, tells = true) {
    this.chosen = camera;
    const photo = camera < 0 ? -1 : this.model.photos[camera];
    if (tells) this.onchoose(photo);
    this.canvas.setAttribute("aria-label", this.label(this.model, photo));
    this.fillChosen();
    this.redraw();
  }

  choosePhoto(photo) {
    if (this.cameraOf.has(photo)) this.choose(this.cameraOf.get(photo));
  }

  fillChosen() {
    const corners = this.chosen < 0 ? [] : this.corners(this.chosen);
    this.fill("chosen", new Float32Array(corners.length ? FRUSTUM_LINES.flatMap((i) => corners[i]) : []));
    const known = this.chosen < 0 ? [] : this.partners.filter((photo) => this.cameraOf.has(photo));
    this.fill("partners", new Float32Array(known.flatMap((photo) => [...corners[0], ...this.center(this.cameraOf.get(photo))])));
  }

  redraw() {
    if (this.model && !this.isWaiting) {
      this.isWaiting = true;
      requestAnimationFrame(() => { this.isWaiting = false; this.draw(); });
    }
  }

  draw() {
    const { gl, canvas, show } = this;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const size = [canvas.clientWidth, canvas.clientHeight].map((length) => Math.max(1, Math.round(length * ratio)));
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    gl.viewport(0, 0, ...size);
    gl.clearColor(...rgb("--stage"), 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    const m = this.matrix();
    if (show.points) this.drawPoints(m, ratio);
    if (show.cameras && show.pictures && this.atlas) this.drawPictures(m);
    if (show.cameras) this.drawLines(m, "cameras", "--camera", 0.6 * ratio);
    if (show.gps && this.model.gps) {
      this.drawLines(m, "offsets", "--gps", 0);
      this.drawDots(m, "gps", "--gps", 9 * ratio);
    }
    gl.disable(gl.DEPTH_TEST);
    this.drawLines(m, "partners", "--chosen", 0);
    this.drawLines(m, "chosen", "--chosen", 1.5 * ratio);
  }

  use(name, m, inputs) {
    const { gl } = this;
    const program = this.programs[name];
    gl.useProgram(program);
    gl.uniformMatrix4fv(gl.getUniformLocation(program, "clip_from_world"), false, m);
    for (const [attribute, buffer, width, type] of inputs) {
      const place = gl.getAttribLocation(program, attribute);
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[buffer].buffer);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, width, type, type === gl.UNSIGNED_BYTE, 0, 0);
    }
    return (uniform) => gl.getUniformLocation(program, uniform);
  }

  drawPoints(m, ratio) {
    const { gl } = this;
    const at = this.use("points", m, [["position", "points", 3, gl.FLOAT], ["color", "colors", 3, gl.UNSIGNED_BYTE]]);
    gl.uniform1f(at("size"), this.sizes.point * this.model.point_size * this.canvas.height);
    gl.uniform2f(at("limits"), 1.5 * ratio, 10 * ratio);
    gl.drawArrays(gl.POINTS, 0, this.buffers.points.count);
  }

  drawDots(m, name, color, size) {
    const { gl } = this;
    const at = this.use("points", m, [["position", name, 3, gl.FLOAT]]);
    const place = gl.getAttribLocation(this.programs.points, "color");
    gl.disableVertexAttribArray(place);
    gl.vertexAttrib3f(place, ...rgb(color));
    gl.uniform1f(at("size"), 1);
    gl.uniform2f(at("limits"), size, size);
    gl.drawArrays(gl.POINTS, 0, this.buffers[name].count);
  }

  /** Lines of about 1 px, or of 1 + 2 `spread` px, drawn several times: browsers draw no wider lines. */
  drawLines(m, name, color, spread) {
    const { gl } = this;
    if (!this.buffers[name].count) return;
    const at = this.use("lines", m, [["position", name, 3, gl.FLOAT]]);
    gl.uniform4f(at("color"), ...rgb(color), 1);
    for (const [x, y] of spread ? [[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]] : [[0, 0]]) {
      gl.uniform2f(at("shift"), x * spread / this.canvas.width, y * spread / this.canvas.height);
      gl.drawArrays(gl.LINES, 0, this.buffers[name].count);
    }
  }

  drawPictures(m) {
    const { gl } = this;
    const at = this.use("pictures", m, [["position", "quads", 3, gl.FLOAT], ["place", "places", 2, gl.FLOAT]]);
    gl.bindTexture(gl.TEXTURE_2D, this.atlas.texture);
    gl.uniform1i(at("pictures"), 0);
    gl.drawArrays(gl.TRIANGLES, 0, this.buffers.quads.count);
  }
}
