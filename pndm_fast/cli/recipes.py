"""The recipe that an image carries, read to be run again. It comes from a file, so nothing of it is believed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pndm_fast.cli import images
from pndm_fast.cli.errors import UsageError
from pndm_fast.cli.plans import Words
from pndm_fast.cli.words import MOST, check_options
from pndm_fast.plan.numbers import is_integer, is_number

FORMAT = 1
_Rule = tuple[str, Callable[[Any], bool]]


def _count(value: Any) -> bool:
    return is_integer(value) and 1 <= value <= MOST


def _label(value: Any) -> bool:
    return is_integer(value) and value >= 0


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _or_none(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _labels(value: Any) -> bool:
    return _label(value) or (isinstance(value, list) and 0 < len(value) <= MOST and all(map(_label, value)))


def _grid(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() <= {"steps", "nfe"} and all(map(is_integer, value.values()))


def _shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_count, value))


RULES: dict[str, _Rule] = {
    "plan": ("a plan", _or_none(lambda value: isinstance(value, dict))),
    "version": ("text", _text),
    "model": ("text", _text),
    "dtype": ("text", _text),
    "shape": ("[C, H, W]", _or_none(_shape)),
    "null_class": ("a label", _or_none(_label)),
    "on_nan": ("text", _or_none(_text)),
    "solver": ("text", _text),
    "schedule": ("text", _text),
    "prediction": ("text", _text),
    "spacing": ("text", _or_none(_text)),
    "grid": ("steps or nfe", _grid),
    "options": ("an object", lambda value: isinstance(value, dict)),
    "guidance": ("a number", is_number),
    "class": ("a label, labels or null", _or_none(_labels)),
    "seed": ("an integer in [0, 2^64)", lambda value: is_integer(value) and 0 <= value < 2**64),
    "number": ("a number of pictures", _or_none(_count)),
    "batch": ("a number of pictures", _count),
    "place": ("a place in the batch", _or_none(_label)),
}
_MAY_LACK = ("shape", "null_class", "on_nan", "number", "place", "spacing", "plan")
_OF_WORDS = ("schedule", "spacing", "grid", "options")  # those that make a plan; where one is carried it has them not
_FACTS = ("format", "steps", "nfe")  # of the plan, which follow from the rest


class Source(NamedTuple):
    """An image and the recipe in it."""

    path: Path
    recipe: dict[str, Any]

    @property
    def words(self) -> Words:
        """What its plan is asked for by."""
        if self.recipe.get("plan") is not None:
            return Words(prediction=self.recipe["prediction"], options={}, tree=self.recipe["plan"])
        names = ("solver", "schedule", "prediction", "spacing", "options")
        given: dict[str, Any] = {name: self.recipe.get(name) for name in names}
        return Words(**given, **self.recipe["grid"])

    @property
    def one(self) -> bool:
        """Whether it is one picture of a folder, not a sheet or an array."""
        return self.recipe.get("place") is not None


@contextlib.contextmanager
def _reading(name: str | Path) -> Iterator[None]:
    """UsageError where an image cannot be read."""
    text = f"image must be a PNG or NPZ file that can be read, got {name}"
    try:
        yield
    except ImportError as error:
        raise UsageError(str(error)) from error
    except OSError as error:  # Pillow's of another file is long, and names it
        reason = "it is no picture" if "cannot identify" in str(error) else error.strerror or error
        raise UsageError(f"{text}: {reason}") from error
    except Exception as error:  # what Pillow, numpy and zipfile raise of what is not theirs is of many types
        raise UsageError(f"{text}: {error}") from error


def read_pixels(source: Source) -> images.Bytes:
    """An image's bytes.

    Raises:
        UsageError: it ends too early, or has none.
    """
    with _reading(source.path):
        return images.read_pixels(source.path)


def read_source(name: str) -> Source:
    """An image's recipe, of this format and complete.

    Raises:
        UsageError: no image, no recipe, one of another format, or one that is not well formed, naming what of it.
    """
    path = Path(name)
    with _reading(name):
        recipe: Any = images.read_recipe(path)
    if recipe is None:
        raise UsageError(f"image must carry a recipe of `pndm-fast sample`, got {name}, which has none")
    if not isinstance(recipe, dict) or not is_integer(recipe.get("format", 0)):
        raise UsageError(f"the recipe of {name} must be an object with a format")
    made = f"{recipe.get('format', 'none')}, by pndm_fast {recipe.get('version', 'of unknown version')}"
    if recipe.get("format", 0) != FORMAT:
        newer = ": a newer pndm_fast reads it" if recipe.get("format", 0) > FORMAT else ""
        raise UsageError(f"the recipe of {name} must have format {FORMAT}, got {made}{newer}")
    _check(name, recipe)
    return Source(path, recipe)


def _check(name: str, recipe: dict[str, Any]) -> None:
    for key in recipe:
        if key not in RULES and key not in _FACTS:
            raise UsageError(f"the recipe of {name} must have known entries, got {key!r}")
    carried = _OF_WORDS if isinstance(recipe.get("plan"), dict) else ()
    for key in carried:
        if key in recipe:
            raise UsageError(f"the recipe of {name} must have {key!r} or a plan, one of them")
    for key, (rule, holds) in RULES.items():
        if key in carried:
            continue
        if key not in recipe and key not in _MAY_LACK:
            raise UsageError(f"the recipe of {name} must have {key!r}: {rule}")
        if not holds(recipe.get(key)):
            raise UsageError(f"{key} in the recipe of {name} must be {rule}, got {recipe[key]!r:.80}")
    check_options(recipe.get("options", {}))
    number, place, labels = recipe.get("number"), recipe.get("place"), recipe["class"]
    if (number is None) == (place is None):
        raise UsageError(f"the recipe of {name} must have 'number' or 'place', one of them")
    if place is not None and (place >= recipe["batch"] or isinstance(labels, list)):
        raise UsageError(f"the recipe of {name} must have one label, and a place in its batch")
    if number is not None and isinstance(labels, list) != (labels is not None):
        raise UsageError(f"class in the recipe of {name} must be labels or null, got {labels!r}")
    if isinstance(labels, list) and len(labels) != number:
        raise UsageError(f"class in the recipe of {name} must be {number} labels, got {len(labels)}")
