"""The hub correction as a file of its own, for formats that have vectors and no scores."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save

from varalign.aligner.exports.subject import Subject
from varalign.data.files import write_atomically

FILE = "hub_correction.safetensors"
FORMULAS = {
    "variance": "g @ mean + tau / 2 * ((g @ covariance) * g).sum(1)",
    "centroids": "torch.logsumexp(tau * g @ queries.T + log_shares, 1) / tau",
    "bank": "(torch.logsumexp(tau * g @ queries.T, 1) - math.log(len(queries))) / tau",
}
"""b of unit vectors g (N, D), by the form of the bank."""


def write_hub_file(subject: Subject, folder: Path) -> list[str]:
    """Write the correction, if there is one; returns what the reader must know of it."""
    found = subject.hub.correction
    if found is None:
        return []
    tensors = {
        f"{side}.{name}": tensor.cpu().contiguous()
        for side, bank in (("images", found.texts), ("texts", found.images))
        for name, tensor in bank.tensors.items()
    }
    about = {"form": found.form, "source": found.source, "tau": str(found.tau), "b": FORMULAS[found.form]}
    write_atomically(folder / FILE, save(tensors, metadata=about))
    return [
        f"This format has no scores, so the hub correction lies beside it in {FILE}: b(g) = {FORMULAS[found.form]} for "
        f"unit vectors g, tau = {found.tau:.6g}, by the tensors images.* where g are images and texts.* where they are "
        "texts; the corrected score is [q, 1] · [g, −b(g)]."
    ]
