"""The page: four tabs, of which Gradio makes the frame and the form, and `static/` the rest."""

from __future__ import annotations

import json
from collections.abc import Callable

import gradio as gr
from dreamkit_apps.jobs.settings import Rules
from dreamkit_apps.jobs.store import JobStore
from dreamkit_apps.studio.client import add_endpoints
from dreamkit_apps.studio.form import DEFAULTS, make_form, mounting
from fastapi import Request

TITLE = "DreamKit Studio"


def make_studio(
    store: JobStore,
    rules: Rules,
    *,
    live_path: str | None = "/live",
    user_of: Callable[[Request], str] = lambda request: "local",
) -> gr.Blocks:
    """The interface. It is to be mounted by `mount_studio`, which serves its scripts and styles.

    Args:
        store: the queue.
        rules: what a job may ask for.
        live_path: where live video is; `None` where there is none.
        user_of: who calls, as in `dreamkit_apps.api.make_api`.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as blocks:
        _place("header")
        with gr.Tabs(elem_id="dk-tabs", overflow_behavior="wrap"):
            with gr.Tab("Text to 3D", id="make"):
                _make_tab(store, rules, user_of)
            with gr.Tab("Gallery", id="gallery"):
                _place("gallery")
            with gr.Tab("Compare", id="compare"):
                _place("compare")
            if live_path is not None:
                with gr.Tab("Live", id="live"):
                    _place("live")
        add_endpoints(store, rules, user_of)
    return blocks


def _make_tab(store: JobStore, rules: Rules, user_of: Callable[[Request], str]) -> None:
    with gr.Row(elem_id="dk-make", equal_height=False):
        with gr.Column(scale=1, min_width=300, elem_id="dk-form"):
            fields = make_form(store, rules, user_of)
            _place("queue")
        with gr.Column(scale=3, min_width=320, elem_id="dk-side"):
            _place("job")
            mesh = gr.Model3D(
                None, label="Mesh", interactive=False, height=420, clear_color=(0.0, 0.0, 0.0, 0.0), elem_id="dk-mesh"
            )
    # Pressed and written by our own scripts: what they know reaches Gradio's components this way.
    show = gr.Button("Show the mesh", visible="hidden", elem_id="dk-mesh-button")
    show.click(None, outputs=[mesh], js="() => window.dreamkit.mesh()")
    chosen = gr.Textbox("", visible="hidden", elem_id="dk-fill", label="Settings to fill in")
    fill = gr.Button("Fill in", visible="hidden", elem_id="dk-fill-button")
    defaults = json.dumps(DEFAULTS)
    fill.click(
        None, inputs=[chosen], outputs=list(fields.values()), js=f"(text) => window.dreamkit.form(text, {defaults})"
    )


def _place(name: str) -> None:
    """An empty place that `static/studio.js` fills; what it holds of text is never read as HTML."""
    gr.HTML("", js_on_load=mounting(name), apply_default_css=False, elem_id=f"dk-{name}-place", elem_classes="dk-place")
