// The way to a session: a WebSocket that comes back by itself, or MJPEG and plain requests where none gets through.

const MAGIC = 0x31464b44; // "DKF1", little-endian
const HEADER = 20;
const GONE = 4404;
const FULL = 4429;
const FIRST_WAIT = 400;
const LONGEST_WAIT = 8000;
const TRIES_BEFORE_FALLBACK = 3;
const REPLY_WAIT = 30000;

/** Events: "open", "lost", "gone", "full", "fallback", "frame" and "message" (with `detail`). */
export class Connection extends EventTarget {
  #key = "";
  #socket = null;
  #timer = 0;
  #wait = FIRST_WAIT;
  #failures = 0;
  #hasOpened = false;
  #nextId = 1;
  #waiting = new Map();
  isOpen = false;
  isFallback = false;

  /** Go to a session, from whichever there was. */
  connect(key) {
    this.close();
    this.#key = key;
    this.#wait = FIRST_WAIT;
    this.#failures = 0;
    this.#hasOpened = false;
    this.#open();
  }

  /** Leave it for good. */
  close() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    this.isOpen = this.isFallback = false;
    this.#giveUp();
    if (socket) socket.close(1000);
  }

  /** Try again at once, where the next try is some time away. */
  hurry() {
    if (this.#key && !this.#socket && !this.isFallback) this.#open();
  }

  /** Say something that wants no answer; dropped while there is no connection. */
  say(message) {
    if (this.#canSend) this.#socket.send(JSON.stringify(message));
  }

  /** Say something and wait for the answer: an "ok" or an "error". */
  async ask(message) {
    if (this.isFallback) return this.#post(message);
    if (!this.#canSend) return { type: "error", message: "There is no connection right now.", hint: "It comes back by itself." };
    const id = this.#nextId++;
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        resolve({ type: "error", message: "The server does not answer.", hint: "Try again." });
      }, REPLY_WAIT);
      this.#waiting.set(id, { resolve, timer });
      this.#socket.send(JSON.stringify({ ...message, id }));
    });
  }

  get #canSend() {
    return this.isOpen && this.#socket.readyState === WebSocket.OPEN;
  }

  #open() {
    clearTimeout(this.#timer);
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/live/ws?session=${encodeURIComponent(this.#key)}`);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    socket.onopen = () => {
      if (socket !== this.#socket) return;
      this.isOpen = this.#hasOpened = true;
      this.#failures = 0;
      this.#emit("open");
    };
    socket.onmessage = (event) => {
      if (socket === this.#socket) this.#receive(event.data);
    };
    socket.onclose = (event) => {
      if (socket !== this.#socket) return;
      this.#socket = null;
      this.isOpen = false;
      this.#giveUp();
      if (event.code === GONE || event.code === FULL) {
        this.#emit(event.code === GONE ? "gone" : "full");
        return;
      }
      this.#failures += 1;
      this.#emit("lost");
      this.#tryAgain();
    };
  }

  async #tryAgain() {
    if (!this.#hasOpened && this.#failures >= TRIES_BEFORE_FALLBACK && (await this.#answersRequests())) {
      this.isFallback = true;
      this.#emit("fallback");
      return;
    }
    this.#timer = setTimeout(() => this.#open(), this.#wait * (0.75 + Math.random() / 2));
    this.#wait = Math.min(LONGEST_WAIT, 2 * this.#wait);
  }

  async #answersRequests() {
    try {
      const answer = await fetch(`/live/sessions?session=${encodeURIComponent(this.#key)}`);
      return answer.ok;
    } catch {
      return false;
    }
  }

  async #post(message) {
    try {
      const body = JSON.stringify(message);
      const answer = await fetch(`/live/command?session=${encodeURIComponent(this.#key)}`, { method: "POST", body });
      const content = await answer.json();
      return content.error ? { type: "error", message: content.error, hint: content.hint } : content;
    } catch {
      return { type: "error", message: "The server does not answer.", hint: "Try again." };
    }
  }

  #receive(data) {
    if (typeof data !== "string") {
      const view = new DataView(data);
      if (data.byteLength <= HEADER || view.getUint32(0, true) !== MAGIC) return;
      this.#emit("frame", {
        number: view.getUint32(4, true),
        control: view.getUint32(8, true),
        readyMs: view.getFloat64(12, true),
        jpeg: new Blob([new Uint8Array(data, HEADER)], { type: "image/jpeg" }),
      });
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "hello") this.#wait = FIRST_WAIT;
    const waiting = message.id == null ? undefined : this.#waiting.get(message.id);
    if (waiting) {
      this.#waiting.delete(message.id);
      clearTimeout(waiting.timer);
      waiting.resolve(message);
      return;
    }
    this.#emit("message", message);
  }

  #giveUp() {
    for (const { resolve, timer } of this.#waiting.values()) {
      clearTimeout(timer);
      resolve({ type: "error", message: "The connection was lost.", hint: "It comes back by itself." });
    }
    this.#waiting.clear();
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
