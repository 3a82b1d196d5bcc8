"""The form of a new job, and what is done with it: it is checked and queued, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from dreamkit_apps.api import objective_titles
from dreamkit_apps.jobs.settings import EMBEDDED, PRESETS, SCENES, Rules, read_settings
from dreamkit_apps.jobs.store import JobStore
from fastapi import Request

from dreamkit.errors import DreamkitError

DEFAULTS: dict[str, Any] = {
    "prompt": "",
    "negative": "",
    "preset": "draft",
    "objective": "sds",
    "scene": "gaussians",
    "teacher": EMBEDDED,
    "seed": 0,
    "guidance": None,
    "steps": None,
    "views": None,
    "resolution": None,
    "stages": "",
    "options": "",
}
"""Field of a job's settings -> what the form has for it when nothing was chosen, in the form's order."""
_NUMBERS: dict[str, type] = {"seed": int, "guidance": float, "steps": int, "views": int, "resolution": int}
"""Fields of numbers, which the form has as text: Gradio's own fields of numbers turn what is empty into 0."""
MAX_TEXT = 2000
_LONGEST_NUMBER = 40
_LINES = 20
_TITLE = re.compile(r'[A-Z]+ \((?P<authors>[^"]+), "(?P<name>[^":]+)[^"]*".*', re.DOTALL)


def submit(store: JobStore, rules: Rules, values: Mapping[str, Any], user: str) -> dict[str, str]:
    """Queue a job as the form has it.

    Args:
        store: the queue.
        rules: what may be asked for.
        values: field of `DEFAULTS` -> value; nothing of them is trusted.
        user: who asks.

    Returns:
        `{"job": id}`, or `{"error": ..., "hint": ...}` in words for people.
    """
    try:
        settings = read_settings("generate", settings_of(values), rules)
        return {"job": store.submit(settings, user).id}
    except DreamkitError as error:
        return {"error": error.message, "hint": error.hint or ""}


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a job: what the form has, without what was left empty."""
    content: dict[str, Any] = {}
    for name, value in values.items():
        if name == "options" and isinstance(value, str):
            value = [line.strip() for line in value.splitlines()[: _LINES + 1] if line.strip()]
        if name in _NUMBERS and isinstance(value, str):
            value = _number(value, _NUMBERS[name])
        if value not in (None, "", []):
            content[name] = value
    return {"prompt": "", **content}


def _number(text: str, kind: type) -> Any:
    """The number that a text is; a text that is none stays, and is refused with the settings."""
    try:
        return kind(text.strip()) if len(text) < _LONGEST_NUMBER else text[:_LONGEST_NUMBER]
    except ValueError:
        return text.strip()


def make_form(store: JobStore, rules: Rules, user_of: Callable[[Request], str]) -> dict[str, gr.components.Component]:
    """The form's components inside whatever Gradio block is open; returns them by field, in the order of `DEFAULTS`."""
    fields = _main_fields(rules)
    problem = '<p id="dk-form-problem" class="dk-problem" role="alert"></p>'
    button = gr.Button("Generate", variant="primary", elem_id="dk-generate")
    gr.HTML(problem, js_on_load=None, apply_default_css=False, elem_classes="dk-place")
    with gr.Accordion("Advanced", open=False, elem_id="dk-advanced"):
        fields |= _advanced_fields()
    ordered = {name: fields[name] for name in DEFAULTS}
    answer = gr.JSON(visible=False)

    def queue(request: gr.Request, *values: Any) -> dict[str, str]:
        asked = dict(zip(DEFAULTS, values, strict=True))
        return submit(store, rules, asked, user_of(request.request))

    queue.__annotations__["request"] = gr.Request  # Gradio reads it; a string would not do
    gr.on(
        [button.click, fields["prompt"].submit],  # type: ignore[attr-defined]
        queue,
        inputs=list(ordered.values()),
        outputs=[answer],
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="once",
        concurrency_limit=4,
    ).then(None, inputs=[answer], js="(answer) => window.dreamkit.answered(answer)")
    return ordered


def _main_fields(rules: Rules) -> dict[str, gr.components.Component]:
    prompt = gr.Textbox(
        label="Prompt", placeholder="a red mug", lines=1, max_lines=4, max_length=MAX_TEXT, elem_id="dk-prompt",
        info="What to make. The embedded teacher knows toys, animals and things of the house in plain colours.",
    )  # fmt: skip
    gr.HTML("", js_on_load=mounting("examples"), apply_default_css=False, elem_classes="dk-place")
    titles = {name: paper(about) for name, about in objective_titles().items()}
    teachers = {EMBEDDED: "embedded, no download", **dict.fromkeys(rules.teachers, "of this server")}
    negative = gr.Textbox(
        label="Negative prompt", placeholder="what to stay away from", lines=1, max_lines=3, max_length=MAX_TEXT
    )
    fields = {
        "prompt": prompt,
        "negative": negative,
        "preset": _chooser("Preset", PRESETS, "Quality against time."),
        "objective": _chooser("Objective", titles, "How the teacher's opinion becomes a gradient."),
        "scene": _chooser("Scene", SCENES, "What it is made of while it takes shape."),
    }
    with gr.Row(elem_id="dk-last-fields"):
        fields["teacher"] = _chooser("Teacher", teachers, "Whose opinion it is.")
        fields["seed"] = _number_field("Seed", "Repeats a result.", min_width=90)
    return fields


def _chooser(label: str, about: Mapping[str, str], info: str) -> gr.Dropdown:
    """A list of names, each with what it is in a line."""
    names = [(f"{name} · {text}", name) for name, text in about.items()]
    return gr.Dropdown(
        names, value=DEFAULTS[label.lower()], label=label, info=info, min_width=90, elem_classes="dk-chooser"
    )


def _advanced_fields() -> dict[str, gr.components.Component]:
    left_empty = "Empty: as the preset has it."
    return {
        "guidance": _number_field("Guidance", f"1 is none. {left_empty}"),
        "steps": _number_field("Steps", left_empty),
        "views": _number_field("Views", f"Cameras in each step. {left_empty}"),
        "resolution": _number_field("Resolution", f"Pixels of a view's side. {left_empty}"),
        "stages": gr.Textbox(
            label="Stages", placeholder="nerf:sds,mesh:vsd:100", max_length=500, max_lines=1,
            info="Several in a row, SCENE:OBJECTIVE:STEPS; they replace scene and objective.",
        ),
        "options": gr.Textbox(
            label="Options", placeholder="timesteps=uniform", lines=2, max_lines=6, max_length=4000,
            info="Of the objective, NAME=VALUE, one a line.",
        ),
    }  # fmt: skip


def _number_field(label: str, info: str, min_width: int = 160) -> gr.Textbox:
    value = "" if DEFAULTS[label.lower()] is None else str(DEFAULTS[label.lower()])
    return gr.Textbox(
        value,
        label=label,
        info=info,
        max_lines=1,
        max_length=_LONGEST_NUMBER,
        min_width=min_width,
        elem_id=f"dk-{label.lower()}",
    )


def paper(title: str) -> str:
    """The paper of `SDS (Poole et al., "DreamFusion: Text-to-3D", arXiv 1).` in short: DreamFusion (Poole et al.).

    A title of another form stays as it is.
    """
    match = _TITLE.fullmatch(title)
    return title.rstrip(".") if match is None else f"{match['name']} ({match['authors']})"


def mounting(name: str, settings: str = "window.dreamkitPage") -> str:
    """The script that fills one of Gradio's empty places with a part of `static/studio.js`."""
    return f"import({settings}.module).then((page) => page.mount('{name}', element, {settings}));"
