// Draws frames on a canvas as they come, and measures what is really shown.

const WINDOW = 2000; // milliseconds over which shown frames are counted

/** Shows the latest frame at the screen's next refresh, then calls `shown(frame)`. */
export class Player {
  #context;
  #waiting = null;
  #drawnAt = [];
  #asked = new Map(); // number of a prompt -> when it was given
  #obeyed = { control: 0, at: 0 };
  latency = null;
  frames = 0;

  constructor(canvas, shown) {
    this.canvas = canvas;
    this.shown = shown;
    this.#context = canvas.getContext("2d", { alpha: false });
  }

  /** Take a frame of a `Connection`. */
  async take(frame) {
    let bitmap;
    try {
      bitmap = await createImageBitmap(frame.jpeg);
    } catch {
      this.shown(frame); // broken: acknowledged all the same, or none would come after it
      return;
    }
    const isAsked = this.#waiting !== null;
    this.#waiting?.bitmap.close();
    this.#waiting = { bitmap, frames: [...(this.#waiting?.frames ?? []), frame] };
    if (!isAsked) requestAnimationFrame(() => this.#draw());
  }

  /** A prompt with this number was given at a time; the first frame that obeys it tells the latency. */
  expect(control, at) {
    if (control === 0) return;
    if (this.#obeyed.control >= control) this.latency = this.#obeyed.at - at; // the frame was faster than the answer
    else this.#asked.set(control, at);
  }

  /** Forget what belongs to another stream. */
  reset() {
    this.#asked.clear();
    this.#obeyed = { control: 0, at: 0 };
    this.#drawnAt = [];
    this.latency = null;
  }

  /** Frames a second that were shown lately. */
  get fps() {
    const now = performance.now();
    this.#drawnAt = this.#drawnAt.filter((at) => now - at < WINDOW);
    if (this.#drawnAt.length < 2) return 0;
    return (1000 * (this.#drawnAt.length - 1)) / (this.#drawnAt.at(-1) - this.#drawnAt[0]);
  }

  #draw() {
    const { bitmap, frames } = this.#waiting;
    this.#waiting = null;
    if (this.canvas.width !== bitmap.width || this.canvas.height !== bitmap.height) {
      this.canvas.width = bitmap.width;
      this.canvas.height = bitmap.height;
    }
    this.#context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const now = performance.now();
    this.frames += 1;
    this.#drawnAt.push(now);
    const last = frames.at(-1);
    if (last.control > this.#obeyed.control) {
      this.#obeyed = { control: last.control, at: now };
      for (const [control, at] of this.#asked) {
        if (control <= last.control) {
          this.#asked.delete(control);
          this.latency = now - at;
        }
      }
    }
    for (const frame of frames) this.shown(frame);
  }
}
