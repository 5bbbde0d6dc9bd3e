"""All named schedules: one in each file, which has the schedule's name and sets `SCHEDULE` to its class.

A new schedule is a new file here; no other file knows its name. Importing this package loads no torch.

`uncertainty`, `imtl`, `imtl-g`, `dwa` and `famo` are other people's multi-task weightings, for comparison, with the two
directions as their tasks. For two tasks each takes a few lines. The libraries of such weightings (torchjd, LibMTL)
compute the gradient of every parameter for every task, which costs a backward pass of the towers per task.
"""

import pkgutil

SCHEDULES = tuple(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))
