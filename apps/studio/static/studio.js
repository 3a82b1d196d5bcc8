// The studio's page: what Gradio's parts and ours tell each other, and the address that brings one back.

import { ask, ApiError, place } from "./api.js";
import { Comparison } from "./compare.js";
import { h } from "./dom.js";
import { Gallery } from "./gallery.js";
import { JobView } from "./job.js";
import { Queue } from "./queue.js";

const NARROW = "(max-width: 820px)"; // as in studio.css: the job is below the form then
const THEME = "dreamkit-theme";
const parts = {};
let wantedComparison = null;

/** Fill one of Gradio's empty places: header, examples, queue, job, gallery, compare or live. */
export function mount(name, root, settings) {
  Object.assign(place(), settings.place);
  const makers = { header, examples, queue, job, gallery, compare, live };
  if (!root.dataset.mounted) makers[name](root, settings);
  root.dataset.mounted = "yes";
}

const app = {
  /** Show a job. */
  open(id) {
    address({ job: id });
    select("make");
    parts.job?.openJob(id);
    parts.queue?.refresh();
    parts.look?.();
    reach();
  },
  /** Show a run. */
  openRun(id) {
    address({ run: id });
    select("make");
    parts.job?.openRun(id);
    reach();
  },
  /** Show a comparison. */
  openComparison(id) {
    wantedComparison = id;
    select("compare");
    parts.compare?.show(id);
  },
  opened: address,
  /** A run is gone. */
  deleted(id) {
    if (query().get("run") === id) address({});
    if (parts.job?.content?.run === id) parts.job.close();
  },
  /** Put a job's settings into the form. */
  fill(settings) {
    const put = document.querySelector("#dk-fill textarea, #dk-fill input");
    put.value = JSON.stringify(settings);
    put.dispatchEvent(new Event("input", { bubbles: true }));
    document.querySelector("#dk-fill-button")?.click();
    document.querySelector("#dk-prompt textarea")?.focus();
  },
  /** Ask Gradio's part to show a mesh; "" for none. */
  showMesh(url) {
    const block = document.querySelector("#dk-mesh");
    if (!block) return;
    block.classList.toggle("dk-shown", Boolean(url));
    if (url || mesh) document.querySelector("#dk-mesh-button")?.click();
    mesh = url;
    if (url) block.scrollIntoView({ block: "nearest" });
  },
  /** Say what went wrong, for a while. */
  warn(text) {
    const note = h("div", { className: "dk-toast", role: "alert" }, text);
    document.querySelector(".gradio-container").append(note);
    setTimeout(() => note.remove(), 8000);
  },
};
let mesh = "";

/** What Gradio's own events call. */
window.dreamkit = {
  /** What the form was answered: a job, or what was wrong. */
  answered(answer) {
    const line = document.querySelector("#dk-form-problem");
    if (line) line.textContent = answer?.error ? [answer.error, answer.hint].filter(Boolean).join(" ") : "";
    if (answer?.job) app.open(answer.job);
  },
  /** A job's settings as the form's values, in the order of `defaults`. */
  form(text, defaults) {
    const settings = JSON.parse(text || "{}");
    return Object.entries(defaults).map(([name, value]) => {
      const given = settings[name] ?? value;
      return Array.isArray(given) ? given.join("\n") : String(given ?? "");
    });
  },
  /** The mesh to show, as Gradio wants files. */
  mesh: () => (mesh ? { path: mesh, url: new URL(mesh, location.href).href, orig_name: "mesh.glb", meta: { _type: "gradio.FileData" } } : null),
};

function header(root) {
  const theme = h("button", { className: "dk-button dk-small", type: "button", "aria-label": "Light or dark", onclick: toggleTheme }, "◐");
  const status = h("p", { className: "dk-status", role: "status" });
  const logo = h("a", { className: "dk-brand", href: `${place().studio}/` }, h("span", { className: "dk-mark", "aria-hidden": "true" }), "DreamKit Studio");
  root.replaceChildren(h("header", { className: "dk-header" }, h("h1", {}, logo), status, theme));
  const look = async () => {
    if (document.hidden) return;
    try {
      const { workers, jobs } = await ask("/health");
      const active = jobs.queued + jobs.running + jobs.cancelling;
      status.textContent = workers ? `${workers === 1 ? "1 worker" : `${workers} workers`}, ${active} ${active === 1 ? "job" : "jobs"}` : "No worker runs";
      status.dataset.kind = workers ? "good" : "bad";
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      status.textContent = "Not connected";
      status.dataset.kind = "bad";
    }
  };
  parts.look = look;
  look();
  setInterval(look, 5000);
  document.addEventListener("visibilitychange", look);
}

function examples(root, { examples: known }) {
  const put = (prompt) => {
    const box = document.querySelector("#dk-prompt textarea");
    box.value = prompt;
    box.dispatchEvent(new Event("input", { bubbles: true }));
    box.focus();
  };
  root.replaceChildren(
    h("div", { className: "dk-examples", role: "group", "aria-label": "Examples" }, ...known.map(({ prompt, picture }) =>
      h("button", { type: "button", className: "dk-example", title: prompt, "aria-label": prompt, onclick: () => put(prompt) },
        picture ? h("img", { src: `${place().studio}/dk/${picture}`, alt: "", width: 48, height: 48, decoding: "async" }) : h("span", {}, prompt)))),
  );
}

function queue(root) {
  parts.queue = new Queue(root, app);
}

function job(root) {
  parts.job = new JobView(root, app);
  fromAddress();
}

function gallery(root) {
  parts.gallery = new Gallery(root, app);
  whenSeen(root, () => parts.gallery.refresh());
}

function compare(root) {
  parts.compare = new Comparison(root, app, wantedComparison);
  whenSeen(root, () => parts.compare.refresh());
}

function live(root) {
  const link = h("a", { className: "dk-button", href: place().live, target: "_blank", rel: "noopener" }, "Open in a page of its own");
  const box = h("div", { className: "dk-live-frame" });
  root.replaceChildren(h("div", { className: "dk-row dk-between" }, h("p", { className: "dk-muted" }, "A video that goes on and follows what you say."), link), box);
  whenSeen(root, () => box.firstChild ?? box.append(h("iframe", { src: place().live, title: "Live video" })));
}

/** Call when an element comes into view, each time. */
function whenSeen(element, call) {
  let wasSeen = false;
  new IntersectionObserver((entries) => {
    const isSeen = entries.at(-1).isIntersecting;
    if (isSeen && !wasSeen) call();
    wasSeen = isSeen;
  }).observe(element);
}

/** Go to a tab. */
function select(name) {
  const tab = document.querySelector(`#dk-tabs button[data-tab-id="${name}"]`);
  if (tab?.getAttribute("aria-selected") !== "true") tab?.click();
}

function query() {
  return new URLSearchParams(location.search);
}

/** Keep in the address what is shown: `{job}`, `{run}` or nothing. */
function address(shown) {
  const words = query();
  const before = words.toString();
  words.delete("job");
  words.delete("run");
  for (const [name, value] of Object.entries(shown)) words.set(name, value);
  if (words.toString() === before) return;
  const text = words.toString();
  history.pushState(null, "", text ? `?${text}` : location.pathname);
}

function fromAddress() {
  const words = query();
  if (words.get("job")) parts.job.openJob(words.get("job"));
  else if (words.get("run")) parts.job.openRun(words.get("run"));
  else return parts.job.close();
  return reach();
}

/** Bring what is shown into sight. */
function reach() {
  const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "instant" : "smooth";
  if (matchMedia(NARROW).matches) document.querySelector(".dk-job")?.scrollIntoView({ block: "start", behavior });
  else window.scrollTo({ top: 0, behavior });
}
window.addEventListener("popstate", fromAddress);

const system = matchMedia("(prefers-color-scheme: dark)");

/** Whether the page is dark: as the user chose, or as the system is. */
function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : system.matches;
}

function applyTheme() {
  if (document.body.classList.contains("dark") !== isDark()) document.body.classList.toggle("dark", isDark());
}

function toggleTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem(THEME, theme);
  } catch {
    // Storage is switched off: it lasts as long as the page.
  }
  applyTheme();
}
system.addEventListener("change", applyTheme);
new MutationObserver(applyTheme).observe(document.body, { attributeFilter: ["class"] });
applyTheme();
