"""Gradio's theme in the colours of `theme.css`, which live video and the login page have too."""

from __future__ import annotations

import re
from pathlib import Path

import gradio as gr

_THEME = Path(__file__).parents[1] / "theme.css"
_ROOT = re.compile(r"^:root[^{]*\{[^}]*\}", re.MULTILINE)
_COLOURS = {
    "body_background_fill": "bg",
    "body_text_color": "text",
    "body_text_color_subdued": "muted",
    "background_fill_primary": "surface",
    "background_fill_secondary": "raised",
    "border_color_accent": "accent",
    "border_color_accent_subdued": "border",
    "border_color_primary": "border",
    "color_accent": "accent",
    "color_accent_soft": "accent-soft",
    "link_text_color": "accent",
    "link_text_color_active": "accent",
    "link_text_color_hover": "accent-hover",
    "link_text_color_visited": "accent",
    "block_background_fill": "surface",
    "block_border_color": "border",
    "block_info_text_color": "muted",
    "block_label_background_fill": "surface",
    "block_label_border_color": "border",
    "block_label_text_color": "muted",
    "block_title_text_color": "text",
    "panel_background_fill": "surface",
    "panel_border_color": "border",
    "accordion_text_color": "text",
    "checkbox_background_color": "raised",
    "checkbox_background_color_focus": "raised",
    "checkbox_background_color_hover": "raised",
    "checkbox_background_color_selected": "accent",
    "checkbox_border_color": "muted",
    "checkbox_border_color_focus": "accent",
    "checkbox_border_color_hover": "accent",
    "checkbox_border_color_selected": "accent",
    "checkbox_label_background_fill": "raised",
    "checkbox_label_background_fill_hover": "raised",
    "checkbox_label_background_fill_selected": "accent-soft",
    "checkbox_label_border_color": "border",
    "checkbox_label_border_color_hover": "accent",
    "checkbox_label_border_color_selected": "accent",
    "checkbox_label_text_color": "text",
    "checkbox_label_text_color_selected": "text",
    "error_background_fill": "bad-soft",
    "error_border_color": "bad",
    "error_text_color": "bad",
    "error_icon_color": "bad",
    "input_background_fill": "raised",
    "input_background_fill_focus": "raised",
    "input_background_fill_hover": "raised",
    "input_border_color": "border",
    "input_border_color_focus": "accent",
    "input_border_color_hover": "accent",
    "input_placeholder_color": "muted",
    "loader_color": "accent",
    "slider_color": "accent",
    "button_primary_background_fill": "accent",
    "button_primary_background_fill_hover": "accent-hover",
    "button_primary_border_color": "accent",
    "button_primary_border_color_hover": "accent-hover",
    "button_primary_text_color": "on-accent",
    "button_primary_text_color_hover": "on-accent",
    "button_secondary_background_fill": "raised",
    "button_secondary_background_fill_hover": "raised",
    "button_secondary_border_color": "border",
    "button_secondary_border_color_hover": "accent",
    "button_secondary_text_color": "text",
    "button_secondary_text_color_hover": "text",
}
"""Gradio's variable -> our colour, which is light or dark by itself."""
_PLAIN = {
    "body_text_size": "15px",
    "block_border_width": "0px",
    "block_padding": "0px",
    "block_radius": "var(--dk-radius-small)",
    "block_shadow": "none",
    "block_info_text_size": "13px",
    "block_title_text_size": "14px",
    "block_title_text_weight": "600",
    "input_radius": "var(--dk-radius-small)",
    "input_padding": "9px 11px",
    "input_shadow": "none",
    "input_shadow_focus": "none",
    "layout_gap": "16px",
    "form_gap_width": "0px",
    "button_large_radius": "var(--dk-radius-small)",
    "button_primary_shadow": "none",
    "button_secondary_shadow": "none",
    "shadow_drop": "none",
    "shadow_drop_lg": "none",
    "shadow_inset": "none",
}


def theme_variables() -> str:
    """The colours, sizes and fonts of `theme.css`, without its rules for plain elements, which are Gradio's here."""
    return "\n".join(_ROOT.findall(_THEME.read_text(encoding="utf-8")))


def make_theme() -> gr.themes.Base:
    """The theme; its fonts are those of the system: none is loaded."""
    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]
    theme = gr.themes.Base(font=fonts, font_mono=["ui-monospace", "monospace"])
    colours = {name: f"var(--dk-{colour})" for name, colour in _COLOURS.items()}
    dark = {f"{name}_dark": value for name, value in colours.items()}
    return theme.set(**colours, **{name: dark[name] for name in dark if hasattr(theme, name)}, **_PLAIN)
