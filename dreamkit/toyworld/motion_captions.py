"""What captions say about motion: the words of the moving toy world."""

from __future__ import annotations

import re

from dreamkit.toyworld.captions import COLOURS, PREFIXES, SYNONYMS, CaptionWriter, vocabulary
from dreamkit.toyworld.motion_config import MOTION_MATERIALS, MOTION_OBJECTS
from dreamkit.toyworld.motion_scripts import Script

_PHRASES: dict[tuple[str, bool], tuple[str, ...]] = {
    ("still", False): ("{a}", "{a}", "{a} standing still", "{a} standing still", "{a} stands still", "{a} not moving"),
    ("spinning", False): ("{a} spinning", "{a} spinning", "{a} spins", "{a} rotating", "{a} turning around"),
    ("rolling", False): ("{a} rolling", "{a} rolls", "{a} rolling back and forth", "{a} rolls back and forth"),
    ("rolling", True): ("{a} rolling {to}", "{a} rolling {to}", "{a} rolls {to}", "{a} moving {to}"),
    ("sliding", False): ("{a} sliding", "{a} slides", "{a} sliding back and forth", "{a} moving back and forth"),
    ("sliding", True): ("{a} sliding {to}", "{a} slides {to}", "{a} moving {to}", "{a} moves {to}"),
    ("bouncing", False): ("{a} bouncing", "{a} bouncing", "{a} bounces", "{a} bouncing up and down", "{a} jumping"),
    ("circling", False): ("{a} circling", "{a} moving in a circle", "{a} moves in a circle", "{a} orbiting"),
    ("entering", True): ("{a} enters from the {way}", "{a} entering from the {way}", "{a} comes in from the {way}"),
    ("leaving", True): ("{a} leaves {to}", "{a} leaving {to}", "{a} exits {to}"),
    ("passing", True): ("{a} and {b} pass each other", "{a} and {b} passing each other", "{a} passes {b}"),
}
"""(Motion, whether it has a direction) -> wordings."""
_TOWARDS = ("to the {way}", "to the {way}", "{way}")
_CAMERA: dict[str, tuple[str, ...]] = {
    "orbits": ("the camera orbits {to}", "the camera orbits {to}", "camera orbiting {to}", "the camera circles {to}"),
    "dollies in": ("the camera dollies in", "the camera moves in", "the camera moves closer", "camera zooming in"),
    "dollies out": ("the camera dollies out", "the camera moves out", "the camera moves away", "camera zooming out"),
    "pans": ("the camera pans {to}", "the camera pans {to}", "camera panning {to}", "the camera turns {to}"),
}
_PREFIXES = (*PREFIXES, "", "", "a video of ", "a clip of ")


class MotionWriter(CaptionWriter):
    """Writes captions of scripts with varied wording.

    Args:
        generator: source of every choice.
    """

    def clip(self, script: Script, name_camera: bool) -> str:
        """A caption of a script.

        Args:
            script: what happens.
            name_camera: whether to tell what the camera does; of a static one nothing is told.
        """
        phrases = [self.phrase(thing) for thing in script.things]
        template = self.choose(_PHRASES[script.motion, script.direction != ""])
        text = template.format(a=phrases[0], b=phrases[-1], to=self._towards(script.direction), way=script.direction)
        if name_camera and script.camera_move != "static":
            text = f"{text}, {self._camera(script.camera_move)}"
        return self.choose(_PREFIXES) + text

    def _towards(self, way: str) -> str:
        return self.choose(_TOWARDS).format(way=way)

    def _camera(self, move: str) -> str:
        kind, _, way = move.partition(" ")
        template = self.choose(_CAMERA[move if move in _CAMERA else kind])
        return template.format(to=self._towards(way))


def _words(*texts: str) -> set[str]:
    """Words of templates, without their fields."""
    return {word for text in texts for word in re.findall(r"[a-z]+", re.sub(r"{\w+}", " ", text))}


def _motion_words() -> set[str]:
    phrases = [text for group in (*_PHRASES.values(), *_CAMERA.values()) for text in group]
    return _words(*phrases, *_TOWARDS, "left right")


def motion_vocabulary() -> list[str]:
    """Every word and punctuation mark that a caption can hold, with those of the pictures' captions, sorted."""
    return sorted({*vocabulary(), *_motion_words(), *_words(*_PREFIXES)})


def motion_content_words() -> list[str]:
    """Words that carry meaning in a prompt: objects, colours, materials, motions, directions, the camera's moves."""
    named = {*MOTION_OBJECTS, *COLOURS, *MOTION_MATERIALS}
    named = named.union(*(SYNONYMS[word] for word in named if word in SYNONYMS))
    function = {"a", "and", "the", "to", "from", "in", "each", "other", "not", "up", "down", "out", "around"}
    return sorted(named | (_motion_words() - function))
