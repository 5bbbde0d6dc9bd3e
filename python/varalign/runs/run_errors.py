"""The two ways in which a run can fail."""

from __future__ import annotations

from varalign.data.errors import DataError


class RunError(DataError):
    """A run folder that is not one, is damaged, or is in use; the message names the path and the mend."""


class RunFailed(RuntimeError):
    """A run that started and cannot go on; the message says why and what to do. The program leaves with code 1."""

    exit_code = 1
