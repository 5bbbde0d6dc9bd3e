"""The schedules that have a name: one a file, which is named as the schedule is and says `SCHEDULE = ITS_CLASS`.

A new schedule is a new file here: nothing else knows its name. Importing this package loads no torch.

`uncertainty`, `imtl`, `imtl-g`, `dwa` and `famo` are other people's multi-task weightings, to compare with: the two
directions are their two tasks. For two tasks each is a line or two; libraries of them (torchjd, LibMTL) take the
gradient of every parameter for every task, a backward pass of the towers each.
"""

import pkgutil

SCHEDULES = tuple(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))
