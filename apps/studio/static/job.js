// One job, from the queue to its files; or a run whose job nobody knows any more.

import { ask, ApiError, fileJson, fileUrl, jobPath, runPath } from "./api.js";
import { LossChart } from "./chart.js";
import { askForComparison, askForEdit } from "./dialogs.js";
import { button, duration, h, moment } from "./dom.js";
import { Results, splatFile } from "./results.js";
import { Viewer } from "./viewer.js";

const [EVERY, HIDDEN, AFTER_ERROR] = [1000, 5000, 3000]; // milliseconds
const ACTIVE = ["queued", "running", "cancelling"];
const RETRIABLE = ["cancelled", "failed", "quarantined"];
const STATES = {
  queued: ["Waiting", "idle"], running: ["Running", "busy"], cancelling: ["Stopping", "busy"], done: ["Done", "good"],
  cancelled: ["Cancelled", "warn"], failed: ["Failed", "bad"], quarantined: ["Crashed", "bad"],
};

export class JobView {
  #asked = 0; // number of the present question: answers to earlier ones are dropped
  #timer = 0;
  #version = null;
  #settled = false;

  /** `app` is told of changes: `opened({job, run})`, `fill(settings)`, `showMesh(url)`. */
  constructor(root, app) {
    this.app = app;
    this.#build(root);
    this.close();
    document.addEventListener("visibilitychange", () => !document.hidden && this.#settled === false && this.#soon(0));
  }

  #build(root) {
    this.title = h("h2", { className: "dk-prompt" });
    this.chip = h("span", { className: "dk-chip" });
    this.facts = h("p", { className: "dk-muted dk-facts" });
    this.spent = h("p", { className: "dk-muted dk-facts dk-spent dk-number" });
    this.actions = h("div", { className: "dk-row dk-actions" });
    this.problem = h("p", { className: "dk-problem", role: "alert" });
    this.stage = h("span", { className: "dk-stage-name" });
    this.left = h("span", { className: "dk-muted dk-number" });
    this.bar = h("progress", { max: 1, value: 0, "aria-label": "Progress" });
    this.progress = h("div", { className: "dk-progress" }, h("div", { className: "dk-row dk-between" }, this.stage, this.left), this.bar);
    this.notice = h("p", { className: "dk-notice", role: "status" });
    this.head = h("section", { className: "dk-card dk-head" }, h("div", { className: "dk-row dk-between dk-top" }, this.title, this.chip), this.facts, this.spent, this.progress, this.notice, this.problem, this.actions);
    this.viewer = new Viewer();
    this.picture = h("img", { alt: "", hidden: true });
    this.pictureNote = h("p", { className: "dk-veil" }, "The first picture comes with the first step.");
    this.labels = h("div", { className: "dk-pair-labels" }, h("span", {}, "The scene now"), h("span", {}, "What the teacher wants"));
    this.pair = h("section", { className: "dk-card" }, h("h3", {}, "Teacher"), h("div", { className: "dk-pair" }, this.picture, this.pictureNote), this.labels);
    this.chart = new LossChart();
    this.chartCard = h("section", { className: "dk-card" }, this.chart.element);
    this.viewCard = h("section", { className: "dk-card" }, h("h3", {}, "3D view"), this.viewer.element);
    this.live = h("div", { className: "dk-live" }, this.viewCard, h("div", { className: "dk-live-side" }, this.pair, this.chartCard));
    this.results = new Results((url) => this.app.showMesh(url));
    this.empty = h("section", { className: "dk-empty" }, h("h2", {}, "What would you like to see?"), h("p", { className: "dk-muted" }, "Write a sentence, or take one of the examples, and press Generate. You can watch it take shape here, close the page and come back: the job goes on."));
    root.replaceChildren(h("div", { className: "dk-job" }, this.empty, this.head, this.live, this.results.element));
  }

  /** Show nothing. */
  close() {
    this.#begin();
    this.#settled = true;
    for (const part of [this.head, this.live]) part.hidden = true;
    this.empty.hidden = false;
  }

  /** Show a job, `null` for none. */
  openJob(id) {
    if (!id) return this.close();
    this.#begin();
    this.job = id;
    this.#reveal();
    return this.#poll(++this.#asked);
  }

  /** Show a run: as the job that made it, where there is one. */
  async openRun(id) {
    this.#begin();
    const asked = ++this.#asked;
    try {
      const run = await ask(runPath(id));
      const { jobs } = await ask(`/jobs?limit=100&search=${encodeURIComponent(run.prompt.slice(0, 200))}`);
      if (asked !== this.#asked) return;
      const job = jobs.find((item) => item.run === id);
      if (job) {
        this.app.opened({ job: job.id });
        await this.openJob(job.id);
        return;
      }
      this.#reveal();
      await this.#showRun(asked, run);
    } catch (error) {
      this.#explain(asked, error);
    }
  }

  #begin() {
    clearTimeout(this.#timer);
    this.#asked++;
    this.#version = null;
    this.#settled = false;
    this.job = null;
    this.content = null;
    this.results.clear();
    this.viewer.clear("Nothing to see yet.");
    this.chart.update([], 0);
    this.picture.hidden = true;
    this.pictureNote.hidden = false;
    this.problem.textContent = "";
    this.notice.textContent = "";
    this.spent.textContent = "";
    this.actions.replaceChildren();
  }

  #reveal() {
    this.empty.hidden = true;
    this.head.hidden = false;
    this.live.hidden = false;
  }

  #soon(milliseconds) {
    clearTimeout(this.#timer);
    const asked = this.#asked;
    this.#timer = setTimeout(() => this.#poll(asked), milliseconds);
  }

  async #poll(asked) {
    if (asked !== this.#asked || !this.job) return;
    try {
      const job = await ask(jobPath(this.job));
      const files = job.run ? await ask(`${runPath(job.run)}/files`).catch(absent) : [];
      const health = job.state === "queued" ? await ask("/health") : null;
      if (asked !== this.#asked) return;
      this.content = job;
      this.problem.textContent = "";
      this.#showHead(job, health);
      await this.#showState(asked, job, files);
      const isActive = ACTIVE.includes(job.state);
      this.#settled = !isActive;
      if (isActive) this.#soon(document.hidden ? HIDDEN : EVERY);
    } catch (error) {
      this.#explain(asked, error);
    }
  }

  #explain(asked, error) {
    if (!(error instanceof ApiError)) throw error;
    if (asked !== this.#asked) return;
    if (error.status === 404) {
      this.close();
      this.app.opened({});
      this.app.warn(`${error.message} It may have been deleted.`);
      return;
    }
    this.#reveal();
    this.problem.textContent = error.words;
    this.#soon(AFTER_ERROR);
  }

  async #showRun(asked, run) {
    const files = await ask(`${runPath(run.id)}/files`);
    if (asked !== this.#asked) return;
    this.#settled = true;
    this.title.textContent = run.prompt;
    this.#showChip(run.finished ? "done" : "cancelled");
    this.facts.textContent = facts([run.objective, run.scene, run.preset, moment(run.created)]);
    this.progress.hidden = true;
    const settings = { prompt: run.prompt, objective: run.objective, preset: run.preset };
    this.#showActions({ state: "done", kind: run.objective === "compare" ? "compare" : "generate", run: run.id, settings, prompt: run.prompt });
    await this.#showState(asked, { run: run.id, prompt: run.prompt, kind: run.scene ? "generate" : "compare", state: "done", result: {} }, files);
  }

  #showChip(state) {
    [this.chip.textContent, this.chip.dataset.kind] = STATES[state] ?? [state, "idle"];
  }

  #showHead(job, health) {
    const { settings, progress } = job;
    this.title.textContent = job.prompt;
    this.#showChip(job.state);
    const made = settings.stages || facts([settings.objective ?? (settings.objectives ?? []).join(" and "), settings.scene]);
    const seed = job.kind === "compare" ? "" : `seed ${settings.seed}`;
    this.facts.textContent = facts([job.kind === "edit" ? "edit" : "", made, settings.preset, seed, moment(job.created)]);
    this.progress.hidden = !ACTIVE.includes(job.state);
    this.stage.textContent = sentence(job.state === "cancelling" ? "stopping; what there is is kept" : job.state === "queued" ? "waiting" : progress.stage || "starting");
    const known = job.state !== "queued" && progress.total;
    if (known) this.bar.value = Math.min(1, progress.step / progress.total);
    else if (job.state === "queued") this.bar.value = 0;
    else this.bar.removeAttribute("value");
    const left = progress.eta === null || job.state === "queued" ? "" : `about ${duration(progress.eta)} left`;
    this.left.textContent = [known ? `${progress.step} of ${progress.total}` : "", left].filter(Boolean).join(" · ");
    this.notice.textContent = notice(job, health);
    this.notice.dataset.kind = ["failed", "quarantined"].includes(job.state) || (health && !health.workers) ? "bad" : "";
    this.#showActions(job);
  }

  #showActions(job) {
    const key = [job.state, job.run, job.id].join();
    if (this.actions.dataset.key === key && this.actions.children.length) return;
    this.actions.dataset.key = key;
    const isCompare = job.kind === "compare";
    const had = this.actions.contains(document.activeElement);
    this.actions.replaceChildren(
      ...[
        ["queued", "running"].includes(job.state) && button("Cancel", () => this.#act("cancel"), "dk-danger"),
        RETRIABLE.includes(job.state) && button("Retry", () => this.#act("retry"), "dk-primary"),
        job.state === "done" && job.run && !isCompare && button("Edit this", () => this.#edit(job)),
        job.state === "done" && isCompare && button("Open in Compare", () => this.app.openComparison(job.run)),
        !isCompare && button("Compare with another objective", () => this.#compare(job)),
        !isCompare && button("Use these settings", () => this.app.fill(job.settings)),
        job.command && button("Copy as command line", (event) => this.#copy(job.command, event.currentTarget)),
      ].filter(Boolean),
    );
    if (had) this.actions.querySelector("button")?.focus();
  }

  async #act(what) {
    try {
      await ask(`${jobPath(this.job)}/${what}`, { method: "POST" });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.app.warn(error.words);
    }
    this.#soon(0);
  }

  async #edit(job) {
    const made = await askForEdit(job.run, job.prompt);
    if (made) this.app.open(made.id);
  }

  async #compare(job) {
    const made = await askForComparison(job.settings);
    if (made) this.app.open(made.id);
  }

  async #copy(text, pressed) {
    try {
      await navigator.clipboard.writeText(text);
      pressed.textContent = "Copied";
      setTimeout(() => (pressed.textContent = "Copy as command line"), 2000);
    } catch {
      this.notice.textContent = text; // no clipboard without https: to be marked by hand
    }
  }

  async #showState(asked, job, files) {
    const has = (name) => files.some((file) => file.name === name);
    const state = job.run && has("preview/state.json") ? await fileJson(job.run, "preview/state.json") : null;
    if (asked !== this.#asked) return;
    const isActive = ACTIVE.includes(job.state);
    this.live.hidden = job.kind === "compare";
    this.#showPictures(job, state);
    const ended = isActive ? null : splatFile(files);
    if (ended) this.viewer.show(fileUrl(job.run, ended, { version: state?.version ?? 0 }));
    else if (isActive && state?.splats) this.viewer.show(fileUrl(job.run, "preview/scene.splat", { version: state.version }));
    else if (isActive && state) this.viewer.say("This kind of scene has a 3D view when it is done.");
    else if (!isActive) this.viewer.say("Nothing was left to see in 3D.");
    if (isActive) this.results.update(job.run, job.prompt, [], {});
    else if (job.run) this.results.update(job.run, job.prompt, files, job.result?.scores);
  }

  #showPictures(job, state) {
    const isShown = Boolean(state?.view);
    this.pair.hidden = this.chartCard.hidden = !state && !ACTIVE.includes(job.state);
    if (!state) return;
    this.chart.update(state.losses ?? [], state.total);
    const spent = [state.teacher_calls ? `${state.teacher_calls.toLocaleString("en")} teacher calls` : "", state.seconds ? duration(state.seconds) : ""];
    this.spent.textContent = facts(spent);
    if (!isShown || state.version === this.#version) return;
    this.#version = state.version;
    this.picture.src = fileUrl(job.run, "preview/view.png", { version: state.version });
    this.picture.alt = state.target ? `Step ${state.step}: the scene, and what the teacher wants` : `The scene at step ${state.step}`;
    this.picture.hidden = false;
    this.pictureNote.hidden = true;
    this.labels.lastChild.hidden = !state.target;
    this.pair.classList.toggle("dk-single", !state.target);
  }
}

function facts(parts) {
  return parts.filter(Boolean).join(" · ");
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** What a user should know about a job's state. */
function notice(job, health) {
  const words = [job.error, job.hint].filter(Boolean).join(" ");
  if (health && !health.workers) return "No worker is running, so nothing will happen yet. Start one: dreamkit jobs worker";
  if (job.state === "queued") {
    const others = health ? health.jobs.running + health.jobs.queued - 1 : 0;
    return words || (others > 0 ? `${others} other ${others === 1 ? "job waits or runs" : "jobs wait or run"}.` : "A worker takes it in a moment.");
  }
  if (job.state === "cancelled") return "Cancelled. What there was by then is kept; Retry goes on from there.";
  const warnings = (job.result?.warnings ?? []).join(" ");
  return words || warnings;
}

/** No files of a run that is gone. */
function absent(error) {
  if (error.status === 404) return [];
  throw error;
}
