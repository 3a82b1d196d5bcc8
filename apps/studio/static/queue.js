// The jobs that wait and run, of everybody.

import { ask, ApiError } from "./api.js";
import { h } from "./dom.js";

const EVERY = 4000; // milliseconds
const WORDS = { queued: "waiting", running: "running", cancelling: "stopping" };

export class Queue {
  #timer = 0;

  /** `app.open(job)` shows one. */
  constructor(root, app) {
    this.app = app;
    this.list = h("ul", { className: "dk-queue-list" });
    this.note = h("p", { className: "dk-muted" });
    this.root = h("section", { className: "dk-queue", "aria-label": "Jobs that wait and run" }, h("h3", {}, "Queue"), this.note, this.list);
    root.replaceChildren(this.root);
    document.addEventListener("visibilitychange", () => !document.hidden && this.refresh());
    this.refresh();
  }

  /** Look again, now and from time to time while the page is seen. */
  async refresh() {
    clearTimeout(this.#timer);
    try {
      const { jobs, total } = await ask("/jobs?state=queued,running,cancelling&limit=8");
      const had = this.list.contains(document.activeElement) ? document.activeElement.dataset.job : null;
      this.list.replaceChildren(...jobs.map((job) => this.#item(job)));
      if (had) this.list.querySelector(`[data-job="${CSS.escape(had)}"]`)?.focus();
      this.note.textContent = total === 0 ? "Nothing waits." : total > jobs.length ? `The newest ${jobs.length} of ${total}.` : "";
      this.note.hidden = !this.note.textContent;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.note.textContent = error.words;
      this.note.hidden = false;
    }
    if (!document.hidden) this.#timer = setTimeout(() => this.root.isConnected && this.refresh(), EVERY);
  }

  #item(job) {
    const { step, total } = job.progress;
    const share = job.state === "running" && total ? `${Math.round((100 * step) / total)} %` : WORDS[job.state];
    const open = h("button", { type: "button", className: "dk-queue-item", onclick: () => this.app.open(job.id) }, h("span", { className: "dk-queue-prompt" }, job.prompt), h("span", { className: "dk-muted dk-number" }, share));
    open.dataset.job = job.id;
    return h("li", {}, open);
  }
}
