"""Other people's losses, to compare with: one a file, which is named as the loss is and says `LOSS = ITS_CLASS`.

A new loss is a new file here: nothing else knows its name. Importing this package loads no torch.
"""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varalign.losses.objective import Objective

OTHERS = tuple(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def loss_class(name: str) -> type[Objective]:
    """The class of a loss, one of `OTHERS`; imports its file, and torch with it. ValueError: an unknown name."""
    if name not in OTHERS:
        raise ValueError(f"unknown loss {name!r}; known ones: clip, {', '.join(OTHERS)}")
    loss: type[Objective] = import_module(f"varalign.losses.others.{name.replace('-', '_')}").LOSS
    return loss


def is_directed(name: str) -> bool:
    """Whether a loss has two directions, which a schedule can weight; also for the name of the project's own loss."""
    return name not in OTHERS or loss_class(name).directed


def build_objective(
    name: str, *, images: int, captions: int, strength: float | None = None, steps: int = 1
) -> Objective:
    """The loss of that name; it takes the arguments that its class has and leaves the others.

    Args:
        name: one of `OTHERS`.
        images: images of the data set, for losses that keep a value of each. captions: captions of it.
        strength: the loss's own number; its default if None.
        steps: of the adversarial ones' attack.

    Raises:
        ValueError: an unknown name, a number out of range, or one for a loss that has none.
    """
    loss = loss_class(name)
    options: dict[str, float] = {"images": images, "captions": captions, "steps": steps}
    if strength is not None:
        if loss.strength_range is None:
            raise ValueError(f"loss {name} has no number of its own: leave the strength out")
        low, high = loss.strength_range
        if not low <= strength <= high or (loss.lowest_excluded and strength == low):
            raise ValueError(
                f"loss {name} takes a strength {'above' if loss.lowest_excluded else 'from'} {low:g} to {high:g}"
            )
        options["strength"] = strength
    taken = inspect.signature(loss).parameters
    return loss(**{option: value for option, value in options.items() if option in taken})
