// Tracks painted on the picture: a point goes where the finger went, as fast as it went.

const MAX_TRACKS = 8;
const MAX_PLACES = 4000;
const MAX_SECONDS = 8;
const HELD_SECONDS = 1;
const LINGER = 1500; // milliseconds that painted tracks stay to be seen after they were played

/** Calls `painted(tracks)` whenever a stroke ends: lists of [x, y] from 0 to 1, one place a frame. */
export class Tracks {
  #strokes = [];
  #stroke = null;
  #expires = 0;
  #timer = 0;
  isOn = false;
  fps = 12;

  constructor(surface, ink, painted) {
    this.surface = surface;
    this.ink = ink;
    this.painted = painted;
    surface.addEventListener("pointerdown", (event) => this.#begin(event));
    surface.addEventListener("pointermove", (event) => this.#go(event));
    surface.addEventListener("pointerup", () => this.#end());
    surface.addEventListener("pointercancel", () => this.#end());
    new ResizeObserver(() => this.#draw()).observe(surface);
  }

  /** Forget all strokes. */
  clear() {
    this.#strokes = [];
    this.#stroke = null;
    this.#draw();
  }

  #place(event) {
    const box = this.surface.getBoundingClientRect();
    const share = (value, from, size) => Math.min(1, Math.max(0, (value - from) / size));
    return { x: share(event.clientX, box.x, box.width), y: share(event.clientY, box.y, box.height), at: performance.now() };
  }

  #begin(event) {
    if (!this.isOn || event.button !== 0) return;
    if (performance.now() > this.#expires) this.#strokes = [];
    this.surface.setPointerCapture(event.pointerId);
    this.#stroke = [this.#place(event)];
    this.ink.classList.remove("faded");
    this.#draw();
  }

  #go(event) {
    if (!this.#stroke) return;
    const place = this.#place(event);
    if (place.at - this.#stroke[0].at < 1000 * MAX_SECONDS) this.#stroke.push(place);
    this.#draw();
  }

  #end() {
    if (!this.#stroke) return;
    this.#strokes = [...this.#strokes, this.#stroke].slice(-MAX_TRACKS);
    this.#stroke = null;
    const seconds = Math.max(HELD_SECONDS, ...this.#strokes.map((stroke) => (stroke.at(-1).at - stroke[0].at) / 1000));
    const frames = Math.max(1, Math.min(Math.ceil(seconds * this.fps), Math.floor(MAX_PLACES / this.#strokes.length)));
    this.#expires = performance.now() + 1000 * seconds + LINGER;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.ink.classList.add("faded"), 1000 * seconds + LINGER);
    this.painted(this.#strokes.map((stroke) => resampled(stroke, frames, this.fps)));
    this.#draw();
  }

  #draw() {
    const scale = window.devicePixelRatio || 1;
    const width = Math.round(this.surface.clientWidth * scale);
    const height = Math.round(this.surface.clientHeight * scale);
    this.ink.width = width;
    this.ink.height = height;
    const context = this.ink.getContext("2d");
    context.lineWidth = 4 * scale;
    context.lineCap = context.lineJoin = "round";
    const colour = getComputedStyle(document.documentElement).getPropertyValue("--dk-ink").trim();
    context.strokeStyle = context.fillStyle = colour || "#a594ff";
    for (const stroke of [...this.#strokes, ...(this.#stroke ? [this.#stroke] : [])]) {
      context.beginPath();
      for (const { x, y } of stroke) context.lineTo(x * width, y * height);
      context.stroke();
      const { x, y } = stroke.at(-1);
      context.beginPath();
      context.arc(x * width, y * height, 7 * scale, 0, 2 * Math.PI);
      context.fill();
    }
  }
}

/** A stroke's place at every frame; it stays where it ended. */
function resampled(stroke, frames, fps) {
  const places = [];
  let at = 0;
  for (let frame = 0; frame < frames; frame++) {
    const time = stroke[0].at + (1000 * frame) / fps;
    while (at + 1 < stroke.length && stroke[at + 1].at <= time) at += 1;
    const here = stroke[at];
    const next = stroke[at + 1] ?? here;
    const share = next.at > here.at ? Math.max(0, (time - here.at) / (next.at - here.at)) : 0;
    places.push([rounded(here.x + share * (next.x - here.x)), rounded(here.y + share * (next.y - here.y))]);
  }
  return places;
}

function rounded(value) {
  return Math.round(10000 * value) / 10000;
}
