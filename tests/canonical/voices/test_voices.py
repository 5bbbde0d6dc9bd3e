"""Voices against plain NumPy, the choice of weights on made problems, and the folds of cross-validation."""

from __future__ import annotations

import numpy as np
import torch
from varalign.canonical.maps import Whitening
from varalign.canonical.voices import VOICES
from varalign.canonical.voices.fit import fit_voices
from varalign.canonical.voices.held_out import Scores, best_scale, blocks_of, losses_at
from varalign.canonical.voices.kernel import GAMMA, SMALLEST, Fit
from varalign.canonical.voices.voice_pairs import Pairs, folds
from varalign.canonical.voices.weighing import weigh
from varalign.options.voice_list import FITTED


def made(images: int = 60, captions: int = 2, seed: int = 0, lexical: int = 0) -> Pairs:
    random = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), captions)
    latent = random.normal(size=(images, 4))
    x = latent @ random.normal(size=(4, 9)) + 0.3 * random.normal(size=(images, 9))
    y = latent[owner] @ random.normal(size=(4, 7 + lexical)) + 0.3 * random.normal(size=(len(owner), 7 + lexical))
    x, y = (torch.from_numpy(part.astype(np.float32)) for part in (x, y))
    return Pairs(x, y, torch.from_numpy(owner), lexical)


def kernel_features(rows: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """φ by the definition: k(x, A) V Λ^(−1/2)."""

    def k(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-GAMMA * ((a[:, None] - b[None]) ** 2).sum(2))

    values, vectors = np.linalg.eigh(k(rows[drawn], rows[drawn]))
    kept = values > SMALLEST * values[-1]
    return k(rows, rows[drawn]) @ vectors[:, kept] / np.sqrt(values[kept])


def test_the_kernel_voice_is_the_closed_form_of_kernel_features() -> None:
    pairs = made()
    fit = Fit(pairs, seed=3)
    sides = fit.sides(fit.whitening.solve(ridge=1.0, power=0.75, dimensions=5))
    x, y = pairs.images.double().numpy(), pairs.texts.double().numpy()
    x, y = ((part - part.mean(0)) / np.sqrt(part.var(0).sum()) for part in (x, y))
    everything = (np.arange(len(part)) for part in (x, y))  # fewer rows than anchors: all are anchors
    phi_x, phi_y = (kernel_features(part, rows) for part, rows in zip((x, y), everything, strict=True))
    a, b = phi_x[pairs.owner.numpy()], phi_y
    a, b = a - a.mean(0), b - b.mean(0)
    c_x, c_y, c_xy = a.T @ a / len(a), b.T @ b / len(b), a.T @ b / len(a)

    def root(c: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(c + np.trace(c) / len(c) * np.eye(len(c)))
        return vectors / np.sqrt(values) @ vectors.T

    u, s, vt = np.linalg.svd(root(c_x) @ c_xy @ root(c_y))
    left, right = root(c_x) @ u[:, :5] * s[:5] ** 0.75, root(c_y) @ vt[:5].T * s[:5] ** 0.75
    p, q = (phi_x - phi_x[pairs.owner.numpy()].mean(0)) @ left, (phi_y - phi_y.mean(0)) @ right
    p, q = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (p, q))
    got = sides[0](pairs.images) @ sides[1](pairs.texts).T
    np.testing.assert_allclose(got.numpy(), p @ q.T, atol=2e-3)


def test_the_plain_kernel_does_not_read_lexical_columns() -> None:
    pairs = made(lexical=3)
    other = Pairs(pairs.images, torch.cat([pairs.texts[:, :7], torch.randn(120, 3)], 1), pairs.owner, 3)
    both = [Fit(given) for given in (pairs, other)]
    texts = [fit.sides(fit.whitening.solve(ridge=1.0, power=1.0, dimensions=4))[1](pairs.texts) for fit in both]
    torch.testing.assert_close(*texts)


def test_a_voice_of_noise_gets_no_weight_and_two_that_differ_share_it() -> None:
    torch.manual_seed(0)
    right = torch.eye(200)
    noise = [0.2 * torch.randn(200, 200) for _ in range(3)]
    first, second, none = ([Scores(one)] for one in (0.4 * right + noise[0], 0.4 * right + noise[1], noise[2]))
    found = weigh({"a": first, "b": second, "c": none}, torch.arange(200))
    assert found.weights == {"a": 0.5, "b": 0.5, "c": 0.0}
    alone = weigh({"a": first, "c": none}, torch.arange(200))
    assert alone.weights == {"a": 1.0, "c": 0.0}
    same = weigh({"a": first, "b": first}, torch.arange(200))  # the second adds nothing: the simplest is kept
    assert same.weights == {"a": 1.0, "b": 0.0}


def test_the_scale_is_that_of_the_least_loss() -> None:
    torch.manual_seed(1)
    scored = [Scores(0.3 * torch.eye(50) + 0.1 * torch.randn(50, 50))]
    scale = best_scale(scored)
    grid = [float(losses_at(scored, s).mean()) for s in np.geomspace(1, 100, 400)]
    assert float(losses_at(scored, scale).mean()) <= min(grid) + 1e-4


def test_folds_share_neither_images_nor_texts() -> None:
    pairs = made(40)
    ids, texts = torch.arange(40), torch.arange(80)
    ids[7] = 3  # a copy
    texts[20], texts[50] = texts[4], texts[4]  # one text at three images
    given = Pairs(pairs.images, pairs.texts, pairs.owner, image_ids=ids, text_ids=texts)
    seen = []
    for fitted, held in folds(given, seed=0):
        assert not set(fitted.image_ids.tolist()) & set(held.image_ids.tolist())
        assert not set(fitted.text_ids.tolist()) & set(held.text_ids.tolist())
        assert set(held.owner.tolist()) == set(range(len(held.images)))
        seen += held.image_ids.tolist()
    assert len(seen) >= 39 and len(set(seen)) == len(set(ids.tolist()))


def test_a_text_of_two_images_of_a_block_is_right_for_both() -> None:
    pairs = made(4, 1)
    shared = Pairs(pairs.images, pairs.texts, pairs.owner, text_ids=torch.tensor([0, 1, 0, 3]))
    (block,) = blocks_of(shared)
    assert block.positive is not None
    assert block.positive.int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


def test_cross_validation_reads_its_pairs_alone_and_dev_mode_fits_on_train_alone() -> None:
    pairs, held = made(60), made(60, seed=5)
    found = fit_voices(pairs, voices=["closed-form", "kernel"])
    assert len(found.parts) == 5 and found.settings == "cv"
    assert sum(len(part.held_out.images) for part in found.parts) == 60
    by_dev = fit_voices(pairs, held, voices=["closed-form"])
    trial = by_dev.trials["closed-form"]
    fit = by_dev.mixture.sides["closed-form"]
    from varalign.canonical.voices.closed_form import Fit as Closed

    whitening = Closed(pairs).whitening
    assert isinstance(whitening, Whitening)
    torch.testing.assert_close(fit[0](held.images), trial.solved(whitening).embed_images(held.images))


def test_the_options_know_every_fitted_voice() -> None:
    assert tuple(VOICES) == FITTED
