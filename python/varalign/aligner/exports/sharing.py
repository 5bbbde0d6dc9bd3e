"""The methods by which a model is given away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from varalign.aligner.hub_bank import Chosen

if TYPE_CHECKING:
    from varalign.aligner.exports.subject import Subject
    from varalign.encoders.dual_encoder import DualEncoder
    from varalign.options.config import TrainConfig
    from varalign.runs.folder import RunFolder


class Shares:
    """A model that can be written in other formats; the subclass says which model."""

    name: str
    config: TrainConfig
    run: RunFolder | None
    _state: dict[str, Any]

    @property
    def model(self) -> DualEncoder:
        """The whole model."""
        raise NotImplementedError

    @property
    def hub(self) -> Chosen:
        """The hub correction."""
        raise NotImplementedError

    def export(self, out: Path | str, *, to: str = "varalign", with_bank: bool = False) -> dict[str, Any]:
        """Write the model in a format: whole or not at all, and over nothing but an earlier export.

        Args:
            out: the folder.
            to: `varalign`, `sentence-transformers`, `open_clip`, `onnx` or `torch`.
            with_bank: keep the embeddings of training data that a hub correction reads; otherwise their mean and
                covariance take their place.

        Returns:
            `folder`, `target`, `bytes`, `files`, `differences` from this model's vectors, and `notes`.

        Raises:
            DataError: the model has no form in that format, or the folder holds anything else.
            RunFailed: the result's vectors are not the model's.
        """
        from varalign.aligner.exports.writing import check_place, write_export

        check_place(Path(out))  # before the model is opened
        return write_export(self._subject(with_bank), Path(out), to)

    def save_pretrained(
        self, save_directory: Path | str, *, repo_id: str | None = None, push_to_hub: bool = False, **options: Any
    ) -> str | None:
        """Write the model for `from_pretrained` and `varalign.load`, as `export` does.

        Args:
            save_directory: the folder.
            repo_id: the repository, where it is pushed too; None: the folder's name.
            push_to_hub: push it too.
            options: `with_bank`, and those of `push_to_hub`.

        Returns:
            The address of the commit where it was pushed, else None.
        """
        self.export(save_directory, with_bank=bool(options.get("with_bank")))
        return self.push_to_hub(repo_id or Path(save_directory).name, **options) if push_to_hub else None

    def push_to_hub(self, repo_id: str, *, with_bank: bool = False, **options: Any) -> str:
        """Put the model into a repository of the hub, which is made if it is not there.

        Args:
            repo_id: `name` or `owner/name`.
            with_bank: as of `export`.
            options: those of huggingface_hub's `ModelHubMixin.push_to_hub` (`private`, `token`, `branch`,
                `commit_message`, `create_pr`, …).

        Returns:
            The address of the commit.
        """
        from varalign.aligner.exports.repository import Repository
        from varalign.aligner.exports.writing import write_export

        subject = self._subject(with_bank)
        return str(Repository(lambda folder: write_export(subject, folder, "varalign")).push_to_hub(repo_id, **options))

    def _subject(self, with_bank: bool) -> Subject:
        from varalign.aligner.exports.subject import Subject, given_away, whole_on_cpu

        hub = given_away(self.hub, with_bank=with_bank)
        return Subject(whole_on_cpu(self.model), self.name, self.config, hub, self.run, self._state, with_bank)
