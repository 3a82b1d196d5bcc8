// Questions in a window of their own: edit, compare, delete.

import { ask, ApiError } from "./api.js";
import { button, h } from "./dom.js";

let numbers = 0;

/** Ask something; resolves to what `submit()` returned, or `null` if it was put off. An ApiError keeps it open. */
export function question({ title, text = "", fields = [], action, isDanger = false, submit }) {
  return new Promise((resolve) => {
    const id = `dk-dialog-${++numbers}`;
    const problem = h("p", { className: "dk-problem", role: "alert" });
    const go = h("button", { className: `dk-button ${isDanger ? "dk-danger" : "dk-primary"}`, type: "submit" }, action);
    const form = h(
      "form", { className: "dk-dialog-form", method: "dialog" },
      h("h2", { id }, title), text && h("p", { className: "dk-muted" }, text), ...fields, problem,
      h("div", { className: "dk-row dk-end" }, button("Cancel", () => dialog.close()), go),
    );
    const dialog = h("dialog", { className: "dk-dialog", "aria-labelledby": id }, form);
    let result = null;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      go.disabled = true;
      try {
        result = await submit();
        dialog.close();
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        problem.textContent = error.words;
      } finally {
        go.disabled = false;
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(result);
    });
    (document.querySelector(".gradio-container") ?? document.body).append(dialog);
    dialog.showModal();
  });
}

/** A labelled field. */
function labelled(text, input) {
  input.id = `dk-field-${++numbers}`;
  return h("div", { className: "dk-field" }, h("label", { for: input.id }, text), input);
}

/** Ask what a finished run is to become; resolves to the new job or `null`. */
export function askForEdit(run, prompt) {
  const input = h("input", { type: "text", value: prompt, maxLength: 2000, required: true, autocomplete: "off" });
  return question({
    title: "Edit this",
    text: "Say what it should be instead. Only what the words change is changed; the original stays as it is.",
    fields: [labelled("It becomes", input)],
    action: "Start the edit",
    submit: () => ask("/jobs", { method: "POST", body: { kind: "edit", settings: { source: run, prompt: input.value } } }),
  });
}

/** Ask which objectives to set side by side; resolves to the new job or `null`. `settings` are those of a job. */
export async function askForComparison(settings) {
  const known = await ask("/objectives");
  const prompt = h("input", { type: "text", value: settings.prompt ?? "", maxLength: 2000, required: true, autocomplete: "off" });
  const own = settings.objective ?? "sds";
  const boxes = known.map(({ name, about }) => {
    const box = h("input", { type: "checkbox", value: name, checked: name === own });
    return h("label", { className: "dk-choice", title: about }, box, name);
  });
  const chosen = () => boxes.map((label) => label.firstChild).filter((box) => box.checked).map((box) => box.value);
  return question({
    title: "Compare objectives",
    text: "The same prompt and seed for each, and a report at the end. Each takes about as long as a job of its own.",
    fields: [
      labelled("Prompt", prompt),
      h("fieldset", { className: "dk-choices" }, h("legend", {}, "Objectives"), ...boxes),
    ],
    action: "Start the comparison",
    submit: () => {
      const objectives = chosen();
      if (objectives.length < 2) throw new ApiError("Choose at least two.");
      const kept = Object.fromEntries(
        ["preset", "teacher", "steps", "views"].filter((name) => settings[name] != null).map((name) => [name, settings[name]]),
      );
      return ask("/jobs", { method: "POST", body: { kind: "compare", settings: { ...kept, prompt: prompt.value, objectives } } });
    },
  });
}
