"""A run that is stopped between two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from varalign.training.steps.step import TrainingStep


class Killed(BaseException):
    """Ends a run as SIGKILL does, as far as one process can: nothing catches it."""


@pytest.fixture
def killed_after() -> Callable[[int], AbstractContextManager[None]]:
    """`with killed_after(5): train(…)` ends the run when it is about to make its sixth step."""

    @contextmanager
    def killed(steps: int) -> Iterator[None]:
        plain = TrainingStep.__call__

        def dying(self: TrainingStep, inputs: Any) -> Any:
            if self.state.position.step == steps:
                raise Killed
            return plain(self, inputs)

        with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
            patched.setattr(TrainingStep, "__call__", dying)
            yield

    return killed
