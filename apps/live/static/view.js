// What the page shows. Text of users and servers is only ever put in as text.

const byId = (id) => document.getElementById(id);

export const parts = Object.fromEntries(
  [
    "status", "theme", "screen", "canvas", "mjpeg", "ink", "overlay", "veil", "play", "record", "keep", "draw", "clear",
    "speed", "scaling", "stats", "message", "moments", "prompt", "say", "examples", "words", "joystick", "knob",
    "sideways", "seed", "restart", "dice", "viewers", "films", "copy-watch", "copy-steer",
  ].map((id) => [id, byId(id)]),
);

/** The connection in a word, `kind` is idle, good, warn or bad. */
export function showStatus(kind, text) {
  parts.status.dataset.kind = kind;
  parts.status.textContent = text;
}

/** A line below the video; an empty one for none. */
export function showMessage(text, kind = "") {
  parts.message.dataset.kind = kind;
  parts.message.textContent = text;
}

/** An answer that is an error, in words. */
export function showError(answer) {
  showMessage([answer.message, answer.hint].filter(Boolean).join(" "), "bad");
}

/** Say something instead of the video, with a button where there is something to do; `null` shows the video. */
export function showVeil(title, text = "", button = null) {
  parts.veil.hidden = title === null;
  if (title === null) return;
  byId("veil-title").textContent = title;
  byId("veil-text").textContent = text;
  const element = byId("veil-button");
  element.hidden = button === null;
  element.textContent = button?.text ?? "";
  element.onclick = button?.press ?? null;
}

/** A button's icon and words. */
export function label(button, icon, text) {
  button.querySelector("use").setAttribute("href", `#${icon}`);
  button.querySelector("span").textContent = text;
}

/** The frame's shape, before the first one comes: nothing jumps then. */
export function setShape(width, height) {
  parts.screen.style.setProperty("--aspect", String(width / height));
}

/** The words that a student knows; `null` is any. */
export function showWords(words) {
  parts.words.toggleAttribute("data-empty", !words);
  byId("word-list").textContent = words ? words.join(", ") : "";
}

/** Three speeds, two latencies and drift. */
export function showNumbers(numbers) {
  const write = (id, value, unit, digits) => {
    byId(id).textContent = value == null ? "–" : `${value.toFixed(digits)}${unit}`;
  };
  write("s-denoise", numbers.denoise, " FPS", 1);
  write("s-end", numbers.end, " FPS", 1);
  write("s-shown", numbers.shown, " FPS", 1);
  write("s-latency", numbers.latency, " ms", 0);
  write("s-trip", numbers.trip, " ms", 0);
  write("s-drift", numbers.drift == null ? null : 100 * numbers.drift, " %", 1);
}

/** Moments to go back to. */
export class MomentList {
  #images = new Map();

  constructor(press) {
    this.press = press;
  }

  /** Those that are kept, and pictures of new ones. */
  show(kept, added) {
    for (const { frame, image } of added) this.#images.set(frame, image);
    const wanted = new Set(kept);
    for (const item of [...parts.moments.children]) if (!wanted.has(Number(item.dataset.frame))) item.remove();
    for (const frame of [...this.#images.keys()]) if (!wanted.has(frame)) this.#images.delete(frame);
    kept.forEach((frame, place) => {
      const there = parts.moments.children[place];
      if (there && Number(there.dataset.frame) === frame && !added.some((item) => item.frame === frame)) return;
      const old = [...parts.moments.children].find((item) => Number(item.dataset.frame) === frame);
      old?.remove();
      parts.moments.insertBefore(this.#item(frame), parts.moments.children[place] ?? null);
    });
    byId("no-moments").hidden = kept.length > 0;
  }

  #item(frame) {
    const item = document.createElement("li");
    item.dataset.frame = String(frame);
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Go back to frame ${frame}`);
    const image = document.createElement("img");
    image.src = this.#images.get(frame) ?? "";
    image.alt = "";
    const text = document.createElement("span");
    text.textContent = `Frame ${frame}`;
    button.append(image, text);
    button.onclick = () => this.press(frame);
    item.append(button);
    return item;
  }
}

/** Links to finished recordings. */
export function showFilms(films, session) {
  byId("films-card").hidden = films.length === 0;
  parts.films.replaceChildren(
    ...films.map((film) => {
      const item = document.createElement("li");
      const link = document.createElement("a");
      link.href = `/live/films/${encodeURIComponent(film.name)}?session=${encodeURIComponent(session)}`;
      link.download = film.name;
      link.textContent = film.name;
      const size = document.createElement("span");
      size.className = "muted";
      size.textContent = ` ${film.seconds.toFixed(1)} s, ${(film.bytes / 1e6).toFixed(1)} MB`;
      item.append(link, size);
      return item;
    }),
  );
}

/** Light or dark, remembered. */
export function setUpTheme() {
  const root = document.documentElement;
  parts.theme.addEventListener("click", () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
    remember("dreamkit-theme", root.dataset.theme);
  });
}

/** Keep a setting; where storage is switched off it lasts as long as the page. */
export function remember(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // Nothing to do about it.
  }
}

/** A kept setting, `null` where there is none. */
export function recall(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}
