// Past runs, the newest first.

import { ask, ApiError, fileUrl, runPath } from "./api.js";
import { question } from "./dialogs.js";
import { button, h, moment } from "./dom.js";

const PAGE = 24;
const PATIENCE = 250; // milliseconds after the last letter

export class Gallery {
  #asked = 0;
  #count = 0;

  /** `app.openRun(id)` and `app.openComparison(id)` show one. */
  constructor(root, app) {
    this.app = app;
    this.search = h("input", { type: "search", placeholder: "a red mug, vsd, nerf …", maxLength: 200, autocomplete: "off", "aria-label": "Search the gallery" });
    this.total = h("p", { className: "dk-muted", role: "status" });
    this.list = h("ul", { className: "dk-cards" });
    this.more = button("Show more", () => this.#load(false));
    this.empty = h("div", { className: "dk-empty" });
    root.replaceChildren(h("div", { className: "dk-gallery" }, h("div", { className: "dk-row dk-between" }, this.search, this.total), this.empty, this.list, this.more));
    let timer = 0;
    this.search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.refresh(), PATIENCE);
    });
  }

  /** Look again. */
  refresh() {
    return this.#load(true);
  }

  async #load(isNew) {
    const asked = ++this.#asked;
    const offset = isNew ? 0 : this.#count;
    const words = this.search.value.trim();
    try {
      const { runs, total } = await ask(`/runs?limit=${PAGE}&offset=${offset}&search=${encodeURIComponent(words)}`);
      if (asked !== this.#asked) return;
      const cards = runs.map((run) => this.#card(run));
      if (isNew) this.list.replaceChildren(...cards);
      else this.list.append(...cards);
      this.#count = offset + runs.length;
      this.#say(total, words);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (asked === this.#asked) this.empty.replaceChildren(h("h2", {}, "The gallery can't be shown."), h("p", { className: "dk-muted" }, error.words), button("Try again", () => this.refresh()));
      this.empty.hidden = false;
    }
  }

  #say(total, words) {
    this.more.hidden = this.#count >= total;
    this.total.textContent = total === 0 ? "" : `${total.toLocaleString("en")} ${total === 1 ? "run" : "runs"}`;
    this.empty.hidden = total > 0;
    this.empty.replaceChildren(
      ...(words
        ? [h("h2", {}, "Nothing fits."), h("p", { className: "dk-muted" }, `No run has “${words}” in its prompt, objective or scene.`)]
        : [h("h2", {}, "Nothing here yet."), h("p", { className: "dk-muted" }, "What you make in the tab Text to 3D is kept here.")]),
    );
  }

  #card(run) {
    const isComparison = run.objective === "compare";
    const picture = run.preview
      ? h("img", { src: fileUrl(run.id, run.preview), alt: "", loading: "lazy", decoding: "async", className: "dk-first-of-sheet" })
      : h("span", { className: "dk-muted" }, isComparison ? "Comparison" : run.finished ? "No picture" : "Not finished");
    const open = h(
      "button", { className: "dk-card-open", type: "button", onclick: () => (isComparison ? this.app.openComparison(run.id) : this.app.openRun(run.id)) },
      h("span", { className: "dk-thumb" }, picture),
      h("span", { className: "dk-card-title" }, run.prompt),
      h("span", { className: "dk-muted dk-card-facts" }, [run.objective, run.scene, run.preset].filter(Boolean).join(" · ")),
      h("span", { className: "dk-muted dk-card-facts" }, moment(run.created)),
    );
    const remove = button("Delete", () => this.#delete(run, item), "dk-small");
    remove.setAttribute("aria-label", `Delete ${run.prompt}, ${moment(run.created)}`);
    const item = h("li", { className: "dk-card dk-run" }, open, remove);
    return item;
  }

  async #delete(run, item) {
    const isDone = await question({
      title: "Delete this run?",
      text: `“${run.prompt}”, ${moment(run.created)}. All its files go, and they can't be brought back.`,
      action: "Delete",
      isDanger: true,
      submit: async () => {
        await ask(runPath(run.id), { method: "DELETE" });
        return true;
      },
    });
    if (!isDone) return;
    const next = item.nextElementSibling ?? item.previousElementSibling;
    item.remove();
    (next?.querySelector("button") ?? this.search).focus();
    this.app.deleted(run.id);
    this.refresh();
  }
}
