// A comparison's turntables side by side, turned together.

import { ask, ApiError, fileJson, fileUrl, place, runPath } from "./api.js";
import { askForComparison } from "./dialogs.js";
import { button, duration, h, moment, number } from "./dom.js";

const SHOWN = 64;

export class Comparison {
  #asked = 0;

  /** `app.open(job)` shows a job; `wanted` is the run to begin with, if there is one. */
  constructor(root, app, wanted) {
    this.app = app;
    this.wanted = wanted;
    this.choice = h("select", { "aria-label": "Comparison", onchange: () => this.show(this.choice.value) });
    this.report = h("a", { className: "dk-button", target: "_blank", rel: "noopener" }, "Open its report");
    this.new = button("New comparison", () => this.#make(), "dk-primary");
    this.angle = h("input", { type: "range", min: 0, max: 359, value: 20, "aria-label": "Turn all, degrees", oninput: () => this.#turn() });
    this.degrees = h("output", { className: "dk-number" });
    this.slider = h("div", { className: "dk-row dk-slider" }, h("span", {}, "Turn all"), this.angle, this.degrees);
    this.empty = h("div", { className: "dk-empty" });
    this.cells = h("ul", { className: "dk-cards dk-turns" });
    this.bar = h("div", { className: "dk-row" }, this.choice, this.report, this.new);
    root.replaceChildren(h("div", { className: "dk-compare" }, this.bar, this.slider, this.empty, this.cells));
  }

  /** Show a run. */
  show(run) {
    this.wanted = run;
    return this.refresh();
  }

  /** Look for comparisons again; show the one that is wanted, or the newest. */
  async refresh() {
    const asked = ++this.#asked;
    try {
      const { runs } = await ask("/runs?limit=200&search=compare");
      if (asked !== this.#asked) return;
      const found = runs.filter((run) => run.objective === "compare");
      this.choice.replaceChildren(...found.map((run) => h("option", { value: run.id }, `${run.prompt} · ${moment(run.created)}${run.finished ? "" : " · not finished"}`)));
      const has = found.length > 0;
      for (const part of [this.choice, this.report, this.slider]) part.hidden = !has;
      this.#say(has ? "" : "No comparison yet.", has ? "" : "Set objectives side by side on one prompt: same seed, same steps, and a report with figures.");
      this.cells.replaceChildren();
      if (!has) return;
      this.choice.value = found.some((run) => run.id === this.wanted) ? this.wanted : found[0].id;
      await this.#open(this.choice.value);
    } catch (error) {
      this.#explain(error);
    }
  }

  async #open(run) {
    const asked = ++this.#asked;
    try {
      const files = await ask(`${runPath(run)}/files`);
      const names = files.map((file) => file.name).filter((name) => /^rows\/[^/]+\.json$/.test(name)).slice(0, SHOWN);
      const rows = (await Promise.all(names.map((name) => fileJson(run, name)))).filter(Boolean);
      if (asked !== this.#asked) return;
      const hasReport = files.some((file) => file.name === "report.html");
      this.report.hidden = !hasReport;
      if (hasReport) this.report.href = fileUrl(run, "report.html");
      rows.sort((a, b) => String(a.objective).localeCompare(String(b.objective)) || (a.seed ?? 0) - (b.seed ?? 0));
      const views = new Set(files.map((file) => file.name).filter((name) => name.startsWith("views/")));
      this.cells.replaceChildren(...rows.map((row) => cell(run, row, views.has(`views/${row.key}.webp`))));
      this.slider.hidden = rows.length === 0;
      this.#say(rows.length ? "" : "Nothing is done yet.", rows.length ? "" : "Its turntables appear here one after another.");
      this.#turn();
    } catch (error) {
      this.#explain(error);
    }
  }

  /** Show the picture nearest to the slider's angle in every cell: a strip of all of them, pushed to its place. */
  #turn() {
    const degrees = Number(this.angle.value);
    this.degrees.textContent = `${degrees}°`;
    for (const image of this.cells.querySelectorAll("img")) {
      const count = Math.max(1, Math.round(image.naturalWidth / (image.naturalHeight || 1)));
      const frame = Math.round((degrees / 360) * count) % count;
      image.style.translate = `${(-100 * frame) / count}% 0`;
    }
  }

  async #make() {
    try {
      const job = await askForComparison({ prompt: "", steps: null });
      if (job) this.app.open(job.id);
    } catch (error) {
      this.#explain(error);
    }
  }

  #say(title, text) {
    this.empty.hidden = !title;
    this.empty.replaceChildren(h("h2", {}, title), h("p", { className: "dk-muted" }, text));
  }

  #explain(error) {
    if (!(error instanceof ApiError)) throw error;
    this.#say(error.message, error.hint);
  }
}

function cell(run, row, hasViews) {
  const strip = `${place().studio}/dk/strips/${encodeURIComponent(run)}/${encodeURIComponent(row.key)}`;
  const title = `${row.objective}${row.seed ? `, seed ${row.seed}` : ""}`;
  const image = hasViews && h("img", { alt: `${row.objective}: ${row.prompt}`, src: strip, decoding: "async" });
  image?.addEventListener?.("load", () => image.closest(".dk-compare")?.querySelector("input[type=range]")?.dispatchEvent(new Event("input")));
  const facts = [
    typeof row.r_precision === "number" ? `recognised ${number(100 * row.r_precision)} %` : "",
    typeof row.seconds === "number" ? duration(row.seconds) : "",
    typeof row.teacher_calls === "number" ? `${row.teacher_calls.toLocaleString("en")} calls` : "",
  ];
  return h(
    "li", { className: "dk-card" },
    h("div", { className: "dk-thumb dk-strip" }, image || h("span", { className: "dk-muted" }, row.error ? "Failed" : "No picture")),
    h("h3", { className: "dk-card-title" }, title),
    h("p", { className: "dk-muted dk-card-facts" }, row.error ? String(row.error).slice(0, 300) : facts.filter(Boolean).join(" · ")),
  );
}
