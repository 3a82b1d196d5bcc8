"""What is accepted as a prompt, and what a small vocabulary says about it."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamkit.errors import PromptError
from dreamkit.prompts import (
    MAX_PROMPT_LENGTH,
    STOP_WORDS,
    check_prompt,
    clean_prompt,
    content_words_of,
    nearest_words,
    slug,
    view_prompt,
)

VOCABULARY = ["blue", "cube", "duck", "green", "mug", "red", "table"]


class SmallReader:
    """A teacher that knows a few words."""

    def __init__(self, vocabulary=VOCABULARY, dropped=""):
        self.vocabulary = vocabulary
        self.dropped = dropped

    def unknown_words(self, prompt):
        known = {*self.vocabulary, "a", "the", "on"}
        return [word for word in re.findall(r"\w+", prompt) if word.lower() not in known]

    def content_words(self):
        return self.vocabulary

    def dropped_text(self, prompt):
        return self.dropped


class OpenReader(SmallReader):
    """A teacher with an open vocabulary."""

    def unknown_words(self, prompt):
        return []

    def content_words(self):
        return None


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("a red mug", "a red mug"),
        ("  a\tred \n mug ", "a red mug"),
        ("a cafe\u0301 table", "a café table"),
        ("a cafe\u200b\u0301 table", "a café table"),
        ("\ufeffa red\u200b mug", "a red mug"),
        ("一个红色的杯子", "一个红色的杯子"),
        ("чашка, a mug", "чашка, a mug"),
        ("👩\u200d🚀 astronaut", "👩\u200d🚀 astronaut"),
        ("\u0645\u06cc\u200c\u062e\u0648", "\u0645\u06cc\u200c\u062e\u0648"),
    ],
)
def test_prompts_are_normalised(raw, cleaned):
    assert clean_prompt(raw) == cleaned


@pytest.mark.parametrize("raw", ["", "   ", "\n\t", "\u200b"])
def test_empty_prompts_are_refused_unless_allowed(raw):
    with pytest.raises(PromptError, match="empty"):
        clean_prompt(raw)
    assert clean_prompt(raw, allow_empty=True) == ""


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x7f", "\x9b", "\ud800", "\u202e", "\u2066"])
def test_control_characters_are_refused_by_code_and_place(character):
    with pytest.raises(PromptError, match=rf"U\+{ord(character):04X} at position 3"):
        clean_prompt(f"a {character}mug")


def test_long_prompts_are_refused():
    assert clean_prompt("x" * MAX_PROMPT_LENGTH)
    with pytest.raises(PromptError, match=r"10,000 characters; at most 2,000"):
        clean_prompt("a" * 10_000)


@given(st.text(max_size=200))
def test_cleaning_is_stable_and_complete(text):
    try:
        cleaned = clean_prompt(text, allow_empty=True)
    except PromptError:
        return
    assert clean_prompt(cleaned, allow_empty=True) == cleaned
    assert cleaned == " ".join(cleaned.split())
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in cleaned)
    cleaned.encode("utf-8")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a red mug", "a red mug, front view"), ("a red mug.", "a red mug, front view"), ("mug , ", "mug, front view")],
)
def test_view_prompt(prompt, expected):
    assert view_prompt(prompt, "front view") == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red mug", "a-red-mug"),
        ("A Red  Mug!", "a-red-mug"),
        ("a café/../table", "a-cafe-table"),
        ("../../etc/passwd", "etc-passwd"),
        ("con: 100%", "con-100"),
    ],
)
def test_slug(prompt, expected):
    assert slug(prompt) == expected


def test_slug_of_a_prompt_without_letters_is_its_digest():
    assert re.fullmatch(r"prompt-[0-9a-f]{8}", slug("一个红色的杯子"))
    assert slug("一个红色的杯子") != slug("一个蓝色的杯子")


@given(st.text(max_size=300))
def test_slug_is_a_safe_folder_name(text):
    name = slug(text.encode("utf-8", "ignore").decode())
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert len(name) <= 60


def test_long_slugs_end_at_a_word():
    name = slug("a very long prompt " * 20)
    assert len(name) <= 60
    assert set(name.split("-")) == {"a", "very", "long", "prompt"}
    assert len(slug("x" * 500)) == 60


def test_nearest_words():
    assert nearest_words("tabel", VOCABULARY) == ["table"]
    assert nearest_words("ducks", VOCABULARY)[0] == "duck"
    assert nearest_words("MUGS", VOCABULARY)[0] == "mug"
    assert nearest_words("xylophone", VOCABULARY) == []
    assert nearest_words("duck", ["duck", "duct", "duke", "dusk"], n=2)[0] == "duck"
    assert len(nearest_words("duck", ["duck", "duct", "duke", "dusk"], n=2)) == 2
    assert nearest_words("duck", VOCABULARY, n=0) == []


def test_known_prompts_pass_without_a_word():
    assert check_prompt(SmallReader(), "a red mug on the table") == []
    assert check_prompt(SmallReader(), "A RED MUG") == []
    assert check_prompt(OpenReader(), "a baroque zeppelin") == []


def test_unknown_words_are_warned_about_with_neighbours_and_the_way_out():
    (warning,) = check_prompt(SmallReader(), "a red tabel of zinc")
    assert "'tabel' (nearest known: table)" in warning
    assert "'zinc'" in warning
    assert "--teacher PATH|HUB_ID" in warning


@pytest.mark.parametrize("prompt", ["a the on", "un bol rouge", "一个红色的杯子", "!!!", "a zeppelin of zinc"])
def test_prompts_without_a_known_content_word_are_refused(prompt):
    with pytest.raises(PromptError) as caught:
        check_prompt(SmallReader(), prompt)
    assert "blue, cube, duck" in str(caught.value)
    assert "--teacher PATH|HUB_ID" in str(caught.value)


def test_a_part_of_a_hyphenated_word_counts():
    assert isinstance(check_prompt(SmallReader(), "a mug-like thing"), list)


def test_content_words_of_several_words_count_word_by_word():
    assert check_prompt(SmallReader(["traffic light", "traffic", "light"]), "a traffic light") == []


def test_text_beyond_the_window_is_warned_about():
    warnings = check_prompt(OpenReader(dropped="on a table"), "a red mug on a table")
    assert warnings == ["The prompt is longer than this teacher reads; it does not see: 'on a table'."]


def test_content_words_fall_back_to_the_vocabulary_without_stop_words():
    assert content_words_of(["the", "on", "mug", "red", ",", "view", "3"]) == ["mug", "red"]
    assert content_words_of(["the", "mug", "red"], listed=["mug"]) == ["mug"]
    assert {"a", "the", "on", "of"} <= STOP_WORDS
