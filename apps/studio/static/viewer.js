// The 3D view: a canvas to turn, zoom and look around in with pointer, touch, wheel and keys.

import { h } from "./dom.js";
import { Painter } from "./painter.js";
import { readSplats } from "./splats.js";

const START = { azimuth: 0.5, elevation: 0.26, radius: 3 };
const [NEAREST, FARTHEST, STEEPEST] = [0.6, 12, 1.54];
const STEP = Math.PI / 36;
const SLOW = 40; // milliseconds of a frame above which moving pictures get coarser
const HELP = "Drag or arrow keys turn it, the wheel or + and − zoom, Home resets.";
const KEYS = {
  ArrowLeft: [-STEP, 0, 1], ArrowRight: [STEP, 0, 1], ArrowUp: [0, STEP, 1], ArrowDown: [0, -STEP, 1],
  "+": [0, 0, 0.9], "=": [0, 0, 0.9], "-": [0, 0, 1.1], _: [0, 0, 1.1],
};

export class Viewer {
  #camera = { ...START };
  #pointers = new Map();
  #source = "";
  #loading = null;
  #frame = 0;
  #scale = 1;
  #isTurning = false;
  #settle = 0;

  constructor() {
    this.canvas = h("canvas", {
      tabIndex: 0, role: "application", "aria-roledescription": "3D view", "aria-label": `3D view. ${HELP}`,
    });
    this.note = h("p", { className: "dk-veil" });
    this.turn = h("button", { className: "dk-button dk-small", type: "button", "aria-pressed": "false", onclick: () => this.#toggle() }, "Turn");
    this.reset = h("button", { className: "dk-button dk-small", type: "button", onclick: () => this.#reset() }, "Reset view");
    this.count = h("span", { className: "dk-muted dk-number" });
    this.element = h(
      "div", { className: "dk-viewer" },
      h("div", { className: "dk-stage" }, this.canvas, this.note),
      h("div", { className: "dk-row dk-viewer-bar" }, this.turn, this.reset, this.count),
    );
    try {
      this.painter = new Painter(this.canvas);
    } catch (error) {
      this.say(`${error.message} The pictures and the film show the same.`);
      return;
    }
    this.#listen();
    this.say("Nothing to see yet.");
  }

  /** Words in place of the picture; "" for none. */
  say(text) {
    this.note.textContent = text;
    this.note.hidden = !text;
  }

  /** Nothing to show. */
  clear(text) {
    this.#loading?.abort();
    this.#source = "";
    this.painter?.load({ count: 0, data: new Float32Array(0) });
    this.count.textContent = "";
    this.canvas.dataset.splats = "0";
    this.stop();
    this.#draw();
    this.say(text);
  }

  /** Show a file; the camera stays where it is. What is shown already isn't fetched again. */
  async show(url) {
    if (!this.painter || url === this.#source) return;
    this.#source = url;
    this.#loading?.abort();
    const loading = (this.#loading = new AbortController());
    try {
      const answer = await fetch(url, { signal: loading.signal });
      if (!answer.ok) throw new Error("The 3D file is not there any more.");
      const splats = readSplats(await answer.arrayBuffer());
      if (loading.signal.aborted) return;
      this.painter.load(splats);
      this.canvas.dataset.splats = String(splats.count);
      this.count.textContent = `${splats.count.toLocaleString("en")} splats`;
      this.say("");
      this.#draw();
    } catch (error) {
      if (loading.signal.aborted) return;
      this.#source = "";
      this.say(error.message);
    }
  }

  /** Turn no more. */
  stop() {
    this.#isTurning = false;
    this.turn.setAttribute("aria-pressed", "false");
  }

  #listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      this.stop();
    });
    canvas.addEventListener("pointermove", (event) => this.#drag(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => this.#pointers.delete(event.pointerId));
    }
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.#move(0, 0, Math.exp(0.0012 * Math.max(-200, Math.min(200, event.deltaY))));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.key === "Home") this.#reset();
      else if (event.key in KEYS) this.#move(...KEYS[event.key]);
      else return;
      event.preventDefault();
    });
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.painter.prepare();
      this.#draw();
    });
    new ResizeObserver(() => this.#draw()).observe(canvas);
  }

  /** One finger (or the mouse) turns; two zoom with their distance and tilt with their height. */
  #drag(event) {
    const before = this.#pointers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    const speed = Math.PI / Math.max(200, this.canvas.clientWidth);
    const other = [...this.#pointers].find(([id]) => id !== event.pointerId)?.[1];
    let zoom = 1;
    if (other) {
      const distance = (place) => Math.hypot(place.x - other.x, place.y - other.y) || 1;
      zoom = distance(before) / distance(now);
    }
    this.#pointers.set(event.pointerId, now);
    this.#move(-(now.x - before.x) * speed, (now.y - before.y) * speed, zoom);
  }

  #move(azimuth, elevation, zoom) {
    const camera = this.#camera;
    camera.azimuth += azimuth;
    camera.elevation = Math.min(STEEPEST, Math.max(-STEEPEST, camera.elevation + elevation));
    camera.radius = Math.min(FARTHEST, Math.max(NEAREST, camera.radius * zoom));
    this.#draw(true);
  }

  #reset() {
    this.stop();
    this.#camera = { ...START };
    this.#draw();
  }

  #toggle() {
    if (this.#isTurning) return this.stop();
    this.#isTurning = true;
    this.turn.setAttribute("aria-pressed", "true");
    let last = performance.now();
    const step = (now) => {
      if (!this.#isTurning || !this.canvas.isConnected) return this.stop();
      this.#move(0.5 * Math.min(0.1, (now - last) / 1000), 0, 1);
      last = now;
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  /** Paint soon; while things move on a slow machine, with fewer pixels. */
  #draw(isMoving = false) {
    if (!this.painter || this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      const scale = (isMoving ? this.#scale : 1) * Math.min(1.5, devicePixelRatio || 1);
      const size = [this.canvas.clientWidth, this.canvas.clientHeight].map((side) => Math.max(1, Math.round(side * scale)));
      if (this.canvas.width !== size[0]) this.canvas.width = size[0];
      if (this.canvas.height !== size[1]) this.canvas.height = size[1];
      const began = performance.now();
      this.painter.paint(this.#camera);
      requestAnimationFrame(() => {
        const took = performance.now() - began;
        if (isMoving) this.#scale = took > SLOW ? Math.max(0.4, this.#scale * 0.85) : Math.min(1, this.#scale * 1.05);
      });
      if (isMoving && scale < 1) {
        clearTimeout(this.#settle);
        this.#settle = setTimeout(() => this.#draw(), 250);
      }
    });
  }
}
