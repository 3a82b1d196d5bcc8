"""The grammar of captions: closed vocabulary, articles, held-out compositions, wordings."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from toy_caches import write_cache

from dreamkit.toyworld.captions import (
    COLOURS,
    FRONTED,
    HELD_OUT,
    MATERIALS,
    OBJECTS,
    PREFIXES,
    RELATIONS,
    SIZES,
    SYNONYMS,
    VIEW_SUFFIXES,
    CaptionWriter,
    Thing,
    composition,
    content_words,
    vocabulary,
    with_article,
)
from dreamkit.toyworld.dataset import ToyWorld

CANONICAL = {synonym: word for word, synonyms in SYNONYMS.items() for synonym in synonyms}
DRAWS = 5000


def words_of(caption: str) -> list[str]:
    return re.findall(r"[a-z]+|[^\sa-z]", caption)


def compositions_of(caption: str) -> list[tuple[str, str]]:
    """Every (colour, object) of a caption, in the words of `COLOURS` and `OBJECTS`: one colour before each object."""
    found = []
    colour = ""
    for word in words_of(caption):
        meaning = CANONICAL.get(word, word)
        if meaning in COLOURS:
            assert not colour, f"two colours for one object in {caption!r}"
            colour = meaning
        elif meaning in OBJECTS:
            found.append((colour, meaning))
            colour = ""
    return found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[list[Thing]], list[str]]:
    """5,000 captions as training draws them, with the things in the picture and the view."""
    world = ToyWorld(write_cache(tmp_path_factory.mktemp("world") / "cache.safetensors", size=4, views=6, pairs=40))
    batch = world.sample(DRAWS, torch.Generator().manual_seed(0))
    return batch.captions, batch.things, batch.views


class TestDrawnCaptions:
    def test_held_out_compositions_never_occur(self, drawn: tuple[list[str], list[list[Thing]], list[str]]) -> None:
        captions, things, _ = drawn
        assert not any(thing.held_out for scene in things for thing in scene)
        assert not {pair for caption in captions for pair in compositions_of(caption)} & set(HELD_OUT)

    def test_they_say_what_is_there(self, drawn: tuple[list[str], list[list[Thing]], list[str]]) -> None:
        for caption, scene, _ in zip(*drawn, strict=True):
            assert compositions_of(caption) == [(thing.colour, thing.name) for thing in scene]
            words = {CANONICAL.get(word, word) for word in words_of(caption)}
            for thing in scene:
                assert thing.material == "plain" or thing.material in words
                assert not thing.size or thing.size in words

    def test_every_other_composition_can_occur(self, drawn: tuple[list[str], list[list[Thing]], list[str]]) -> None:
        seen = {pair for caption in drawn[0] for pair in compositions_of(caption)}
        allowed = {(colour, name) for colour in COLOURS for name in OBJECTS} - set(HELD_OUT)
        assert seen == allowed

    def test_the_vocabulary_is_closed_and_used(self, drawn: tuple[list[str], list[list[Thing]], list[str]]) -> None:
        used = {word for caption in drawn[0] for word in words_of(caption)}
        assert used <= set(vocabulary())
        assert set(content_words()) <= used

    def test_views_are_named_half_of_the_time(self, drawn: tuple[list[str], list[list[Thing]], list[str]]) -> None:
        named = 0
        for caption, _, view in zip(*drawn, strict=True):
            said = [word for word in ("front", "side", "back", "overhead") if word in words_of(caption)]
            assert said in ([], [view])
            named += bool(said)
        assert named / DRAWS == pytest.approx(0.5, abs=0.03)

    def test_every_wording_occurs(self, drawn: tuple[list[str], list[list[Thing]], list[str]]) -> None:
        text = "\n".join(drawn[0])
        for wording in [*filter(None, PREFIXES), *(phrase for ways in RELATIONS.values() for phrase in ways)]:
            assert wording in text
        for suffix in VIEW_SUFFIXES:
            assert suffix.format(view="front") in text
        assert "seen from overhead" in text
        assert "the overhead" not in text

    def test_articles(self, drawn: tuple[list[str], list[list[Thing]], list[str]]) -> None:
        for caption in drawn[0]:
            words = words_of(caption)
            for article, word in pairwise(words):
                if article in ("a", "an"):
                    assert article == ("an" if word[0] in "aeio" else "a"), caption

    def test_materials_and_sizes_vary(self, drawn: tuple[list[str], list[list[Thing]], list[str]]) -> None:
        materials = Counter(thing.material for scene in drawn[1] for thing in scene)
        sizes = Counter(thing.size for scene in drawn[1] for thing in scene)
        assert set(materials) == set(MATERIALS)
        assert set(sizes) == set(SIZES)
        assert materials["plain"] / sum(materials.values()) == pytest.approx(0.625, abs=0.03)

    def test_the_tokenizer_knows_every_word_and_truncates_none(
        self, drawn: tuple[list[str], list[list[Thing]], list[str]]
    ) -> None:
        from dreamkit.training.image_teacher import PROMPT_LENGTH, make_tokenizer

        tokenizer = make_tokenizer()
        encoded = tokenizer(drawn[0])["input_ids"]
        unknown = [caption for caption, ids in zip(drawn[0], encoded, strict=True) if tokenizer.unk_token_id in ids]
        assert unknown == []
        assert max(map(len, encoded)) <= PROMPT_LENGTH

    def test_without_holding_out_all_compositions_occur(self, tmp_path: Path) -> None:
        world = ToyWorld(write_cache(tmp_path / "cache.safetensors", size=4, views=1, pairs=0), hold_out=False)
        batch = world.sample(4000, torch.Generator().manual_seed(0), singles_only=True)
        assert set(HELD_OUT) <= {(scene[0].colour, scene[0].name) for scene in batch.things}


class TestWriter:
    def test_same_seed_same_caption(self) -> None:
        thing = Thing("mug", "blue", "striped", "small")
        one, two = ([self.write(seed, thing) for seed in range(20)] for _ in range(2))
        assert one == two
        assert len(set(one)) > 10

    @staticmethod
    def write(seed: int, thing: Thing) -> str:
        return CaptionWriter(torch.Generator().manual_seed(seed)).caption([thing])

    def test_two_things_in_a_relation(self) -> None:
        writer = CaptionWriter(torch.Generator().manual_seed(0))
        caption = writer.caption([Thing("ball", "red"), Thing("table", "blue")], "on", "side")
        assert compositions_of(caption) == [("red", "ball"), ("blue", "table")]
        assert re.search(r"\bon\b", caption)
        assert "side" in caption

    @pytest.mark.parametrize("material", MATERIALS[1:])
    def test_a_pattern_is_always_said(self, material: str) -> None:
        writer = CaptionWriter(torch.Generator().manual_seed(0))
        phrases = [writer.phrase(Thing("car", "red", material)) for _ in range(100)]
        assert all(any(way in phrase for way in SYNONYMS[material]) for phrase in phrases)


class TestWords:
    def test_article(self) -> None:
        assert with_article("orange fish") == "an orange fish"
        assert with_article("red mug") == "a red mug"
        assert with_article("orange fish", "the") == "the orange fish"
        assert composition("orange", "lamp") == "an orange lamp"
        assert composition("red", "mug") == "a red mug"

    def test_the_world_is_large_enough(self) -> None:
        assert len(OBJECTS) == len(set(OBJECTS)) >= 24
        assert len(FRONTED) >= 12
        assert len(COLOURS) == 12
        assert len(MATERIALS) == 4

    def test_the_objects_exist(self) -> None:
        from dreamkit.toyworld.objects import OBJECT_NAMES, get_object

        assert set(OBJECTS) == set(OBJECT_NAMES)
        assert {name for name in OBJECTS if get_object(name).has_front} == set(FRONTED)

    def test_held_out_names_are_known_and_unique(self) -> None:
        assert len(set(HELD_OUT)) == 20
        assert all(colour in COLOURS and name in OBJECTS for colour, name in HELD_OUT)
        # One colour of an object is held out at most: the others must teach it.
        assert max(Counter(name for _, name in HELD_OUT).values()) == 1

    def test_a_synonym_means_one_thing(self) -> None:
        counts = Counter(synonym for synonyms in SYNONYMS.values() for synonym in synonyms)
        assert max(counts.values()) == 1
        words = {*OBJECTS, *COLOURS, *MATERIALS, *SIZES}
        for word, synonyms in SYNONYMS.items():
            assert word in words
            assert not (set(synonyms) - {word}) & words

    def test_palette_colours_are_apart(self) -> None:
        """Two colours closer than a lamp's tint could not be told apart by any judge."""
        rgb = torch.tensor(list(COLOURS.values()))
        distance = torch.cdist(rgb, rgb) + 9 * torch.eye(len(rgb))
        assert float(distance.min()) > 0.3
        assert bool(((rgb >= 0) & (rgb <= 1)).all())

    def test_vocabulary_is_sorted_and_lower_case(self) -> None:
        words = vocabulary()
        assert words == sorted(set(words))
        assert all(word == word.lower() for word in words)
