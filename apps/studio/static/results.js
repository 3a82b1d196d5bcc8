// What a run has left: film, contact sheet, mesh, scores, files.

import { fileUrl } from "./api.js";
import { bytes, button, h, number } from "./dom.js";

const SHEET = "renders/contact_sheet.png";
const FILM = "renders/turntable.mp4";
const MESH = "exports/mesh.glb";
const SPLATS = ["exports/scene.splat", "preview/scene.splat", "exports/scene.ply"];
const ABOUT = {
  ".ply": "Gaussians, for splat viewers", ".splat": "Gaussians, small, for web viewers", ".glb": "mesh, for games and printing",
  ".obj": "mesh", ".mp4": "film", ".png": "pictures", ".html": "report", ".csv": "table",
};
const SCORES = {
  r_precision: ["Recognised", "share of views in which the judge picks this prompt among others", true],
  object: ["Object", "share of views in which the object is the one asked for", true],
  colour: ["Colour", "share of views in which the colour is the one asked for", true],
  janus: ["Repeated faces", "share of views with a face where none belongs; 0 % is best", true],
};

/** The 3D file to look at among the files of a run, `null` if there is none. */
export function splatFile(files) {
  return SPLATS.find((name) => files.some((file) => file.name === name)) ?? null;
}

/** The parts of the page that show what is left. `showMesh(url)` is asked to show a mesh, or none (""). */
export class Results {
  #shown = "";

  constructor(showMesh) {
    this.showMesh = showMesh;
    this.film = h("video", { controls: true, loop: true, muted: true, playsInline: true, preload: "auto", "aria-label": "Turntable film" });
    this.sheet = h("img", { alt: "", className: "dk-sheet", decoding: "async" });
    this.filmCard = card("Turntable", this.film);
    this.sheetCard = card("Eight views", this.sheet);
    this.scores = h("dl", { className: "dk-scores" });
    this.scoreCard = card("Scores", this.scores);
    this.files = h("ul", { className: "dk-files" });
    this.fileCard = card("Downloads", this.files);
    this.meshButton = button("Show the mesh", () => this.#mesh());
    this.meshCard = card("Mesh", h("p", { className: "dk-muted" }, "Triangles with colours, as in the .glb file."), this.meshButton);
    this.report = h("a", { className: "dk-button dk-primary", target: "_blank", rel: "noopener" }, "Open the report");
    this.reportCard = card("Report", h("p", { className: "dk-muted" }, "Figures and turntables of every objective."), h("div", { className: "dk-row" }, this.report));
    this.element = h("div", { className: "dk-results" }, this.filmCard, this.sheetCard, this.reportCard, this.scoreCard, this.fileCard, this.meshCard);
    this.clear();
  }

  /** Nothing is left. */
  clear() {
    this.#shown = "";
    this.run = null;
    this.element.hidden = true;
    this.film.removeAttribute("src");
    this.sheet.removeAttribute("src");
    this.showMesh("");
  }

  /** Show what there is. `files` as the API lists them, `scores` of a job's result. */
  update(run, prompt, files, scores = {}) {
    const key = JSON.stringify([run, files, scores]);
    if (key === this.#shown) return;
    if (run !== this.run) this.showMesh("");
    this.#shown = key;
    this.run = run;
    const has = (name) => files.some((file) => file.name === name);
    const version = (name) => files.find((file) => file.name === name)?.size ?? 0;
    show(this.filmCard, has(FILM));
    if (has(FILM)) set(this.film, fileUrl(run, FILM, { version: version(FILM) }));
    show(this.sheetCard, has(SHEET));
    if (has(SHEET)) set(this.sheet, fileUrl(run, SHEET, { version: version(SHEET) }));
    this.sheet.alt = `Eight views of: ${prompt}`;
    show(this.meshCard, has(MESH));
    show(this.reportCard, has("report.html"));
    if (has("report.html")) this.report.href = fileUrl(run, "report.html");
    this.#showScores(scores);
    this.#showFiles(run, files);
    this.element.hidden = [...this.element.children].every((child) => child.hidden);
  }

  #mesh() {
    this.showMesh(fileUrl(this.run, MESH));
  }

  #showScores(scores) {
    const rows = Object.entries(SCORES).filter(([name]) => typeof scores?.[name] === "number");
    show(this.scoreCard, rows.length > 0);
    this.scores.replaceChildren(
      ...rows.map(([name, [title, about]]) =>
        h("div", { title: about }, h("dt", {}, title), h("dd", {}, `${number(100 * scores[name])} %`), h("dd", { className: "dk-muted dk-about" }, about)),
      ),
    );
  }

  #showFiles(run, files) {
    const ending = (name) => /\.[a-z0-9]+$/.exec(name)?.[0] ?? "";
    const offered = files.filter(({ name }) => /^(exports|renders)\//.test(name) || name === "preview/scene.splat" || /^[^/]+\.(html|csv)$/.test(name));
    show(this.fileCard, offered.length > 0);
    this.files.replaceChildren(
      ...offered.map(({ name, size }) => {
        const link = h("a", { href: fileUrl(run, name, { download: true }), download: name.split("/").at(-1) }, name.replace(/^(exports|renders|preview)\//, ""));
        return h("li", {}, link, h("span", { className: "dk-muted" }, ABOUT[ending(name)] ?? ""), h("span", { className: "dk-muted dk-number" }, bytes(size)));
      }),
    );
  }
}

function card(title, ...children) {
  return h("section", { className: "dk-card" }, h("h3", {}, title), ...children);
}

function show(element, isShown) {
  element.hidden = !isShown;
}

/** A source, only where it is another one: a film would begin anew. */
function set(element, url) {
  if (element.getAttribute("src") !== url) element.setAttribute("src", url);
}
