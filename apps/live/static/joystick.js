// The camera's joystick: dragged, dragged on the picture, or held by the arrow keys.

const SEND_EVERY = 100; // milliseconds
const DEAD = 0.08;
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

/** Calls `moved({x, y})` with x and y from -1 to 1 (right and up are positive), at most ten times a second. */
export class Joystick {
  #keys = new Set();
  #drag = { x: 0, y: 0 };
  #sent = { x: 0, y: 0 };
  #timer = 0;
  #isEnabled = false;

  constructor(base, knob, moved) {
    this.base = base;
    this.knob = knob;
    this.moved = moved;
    this.listen(base, () => base.getBoundingClientRect().width / 2 - 8, () => true);
    document.addEventListener("keydown", (event) => this.#press(event, true));
    document.addEventListener("keyup", (event) => this.#press(event, false));
    window.addEventListener("blur", () => this.release());
    this.enable(false);
  }

  /** Whether it moves anything. */
  enable(isEnabled) {
    this.#isEnabled = isEnabled;
    this.base.setAttribute("aria-disabled", String(!isEnabled));
    if (!isEnabled) this.release();
  }

  /** Let an element be dragged on, `reach()` pixels to the full, while `isWanted()`. */
  listen(element, reach, isWanted) {
    let from = null;
    element.addEventListener("pointerdown", (event) => {
      if (!this.#isEnabled || !isWanted() || event.button !== 0) return;
      from = { x: event.clientX, y: event.clientY };
      if (element === this.base) {
        const box = element.getBoundingClientRect();
        from = { x: box.x + box.width / 2, y: box.y + box.height / 2 };
      }
      element.setPointerCapture(event.pointerId);
      pull(event);
    });
    const pull = (event) => {
      if (!from) return;
      const scale = 1 / reach();
      const x = (event.clientX - from.x) * scale;
      const y = (from.y - event.clientY) * scale;
      const length = Math.max(1, Math.hypot(x, y));
      this.#drag = { x: settled(x / length), y: settled(y / length) };
      this.#change();
    };
    const end = () => {
      if (!from) return;
      from = null;
      this.#drag = { x: 0, y: 0 };
      this.#change();
    };
    element.addEventListener("pointermove", pull);
    element.addEventListener("pointerup", end);
    element.addEventListener("pointercancel", end);
  }

  /** Let go of everything. */
  release() {
    this.#keys.clear();
    this.#drag = { x: 0, y: 0 };
    this.#change();
  }

  get #position() {
    let { x, y } = this.#drag;
    for (const key of this.#keys) {
      x += KEYS[key][0];
      y += KEYS[key][1];
    }
    return { x: clamp(x), y: clamp(y) };
  }

  #press(event, isDown) {
    if (!(event.key in KEYS) || event.ctrlKey || event.altKey || event.metaKey) return;
    if (isDown && (!this.#isEnabled || event.target.closest?.("input, textarea, select"))) return;
    if (isDown) {
      event.preventDefault(); // the page would scroll
      this.#keys.add(event.key);
    } else this.#keys.delete(event.key);
    this.#change();
  }

  #change() {
    const { x, y } = this.#position;
    const reach = this.base.clientWidth / 2 - 24;
    this.knob.style.translate = `${x * reach}px ${-y * reach}px`;
    if (!this.#timer) this.#send();
  }

  #send() {
    const now = this.#position;
    if (now.x === this.#sent.x && now.y === this.#sent.y) return;
    this.#sent = now;
    this.moved(now);
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      this.#send();
    }, SEND_EVERY);
  }
}

function settled(value) {
  return Math.abs(value) < DEAD ? 0 : Math.round(100 * value) / 100;
}

function clamp(value) {
  return Math.min(1, Math.max(-1, value));
}
