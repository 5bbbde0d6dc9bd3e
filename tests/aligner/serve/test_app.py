"""The routes of `varalign serve`, and what hostile requests get: a 4xx in JSON that says why, and nothing else."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import varalign
from PIL import Image
from varalign.aligner.folder_gallery import FolderGallery
from varalign.aligner.folder_search import FolderSearch, open_search
from varalign.aligner.gallery_file import write_folder
from varalign.data.images import decode_image
from varalign.data.readers.reading import Reading

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
from fastapi.testclient import TestClient
from varalign.aligner.serve import limits
from varalign.aligner.serve.app import build_app

HOSTILE = "<img src=x onerror=alert(1)> & \u202e $x$"


@pytest.fixture(scope="module")
def folder(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures, a copy, names and a caption that are hostile, a link out, and one that will be exchanged."""
    place = tmp_path_factory.mktemp("served") / "pictures"
    place.mkdir()
    for number in range(10):
        shutil.copy(image_folder / "Images" / f"{number:03}.jpg", place)
    shutil.copy(place / "000.jpg", place / "zz copy.jpg")
    shutil.copy(image_folder / "Images" / "040.jpg", os.path.join(os.fsencode(place), b"\xff<b>.jpg"))
    (place / "exchanged.jpg").write_bytes((image_folder / "Images" / "041.jpg").read_bytes())
    (place / "gone.jpg").write_bytes((image_folder / "Images" / "042.jpg").read_bytes())
    (place.parent / "secret.jpg").write_bytes((image_folder / "Images" / "043.jpg").read_bytes())
    (place / "link.jpg").symlink_to(place.parent / "secret.jpg")
    lines = (image_folder / "captions.txt").read_text().splitlines()[1:19:2]  # the first caption of 000.jpg to 008.jpg
    (place.parent / "captions.csv").write_text("\n".join(["image,caption", *lines, f'009.jpg,"{HOSTILE}"']) + "\n")
    return place


@pytest.fixture(scope="module")
def search(searched_run: Path, folder: Path) -> FolderSearch:
    reading = Reading(captions=str(folder.parent / "captions.csv"))
    found = open_search(varalign.load(searched_run, device="cpu"), folder, reading, lambda line: None, own=True)
    (folder / "exchanged.jpg").unlink()
    (folder / "exchanged.jpg").symlink_to(folder.parent / "secret.jpg")
    (folder / "gone.jpg").unlink()
    return found


@pytest.fixture(scope="module")
def client(search: FolderSearch) -> Iterator[TestClient]:
    with TestClient(build_app(search, frozenset({"testserver"})), raise_server_exceptions=False) as found:
        yield found


def results(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return list(answer.json()["results"])


def knn(client: TestClient, **fields: Any) -> list[dict[str, Any]]:
    """As clip-retrieval's own client sends it: every field, and no type of content."""
    sent = {"text": None, "image": None, "image_url": None, "embedding_input": None, "deduplicate": True}
    sent |= {"use_safety_model": True, "use_violence_detector": True, "indice_name": "pictures", "use_mclip": False}
    sent |= {
        "aesthetic_score": 9,
        "aesthetic_weight": 0.5,
        "modality": "image",
        "num_images": 4,
        "num_result_ids": 3000,
    }
    answer = client.post("/knn-service", content=json.dumps({**sent, **fields}))
    assert answer.status_code == 200, answer.text
    return list(answer.json())


def test_both_interfaces_answer_what_the_model_says(client: TestClient, search: FolderSearch, folder: Path) -> None:
    model, gallery = search.model, search.gallery
    kept = [row for row, copy in enumerate(gallery.copies) if not copy]
    assert gallery.prior is not None
    scores = gallery.vectors[kept].astype(np.float32) @ model.embed_texts(["a red square"])[0] - gallery.prior[kept]
    best = [kept[place] for place in np.argsort(-scores, kind="stable")[:4]]
    found = knn(client, text="a red square")
    assert [hit["id"] for hit in found] == best
    assert [hit["similarity"] for hit in found] == pytest.approx(np.sort(scores)[::-1][:4].tolist(), abs=1e-5)
    assert [hit["image_path"] for hit in found] == [gallery.names[row] for row in best]
    assert set(found[0]) == {"id", "image_path", "caption", "similarity"}
    own = results(client.post("/search", data={"text": "a red square", "top": 4}))
    assert [{name: hit[name] for name in found[0]} for hit in own] == found

    image = (folder / "003.jpg").read_bytes()
    for given in (base64.b64encode(image).decode(), "data:image/jpeg;base64," + base64.encodebytes(image).decode()):
        found = knn(client, image=given)
        assert found[0]["image_path"] == "003.jpg" and found[0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert results(client.post("/search", files={"image": ("x", image)}))[0]["image_path"] == "003.jpg"
    vector = (3 * model.embed_images([folder / "003.jpg"])[0]).tolist()
    assert [hit["id"] for hit in knn(client, embedding_input=vector)] == [hit["id"] for hit in found]


def test_captions_are_found_by_image_and_by_text(client: TestClient, search: FolderSearch) -> None:
    assert search.captions is not None
    vectors, prior = search.captions.embedded
    assert prior is not None
    image = search.like(3).vector
    scores = vectors @ image - prior
    found = results(client.post("/search", data={"image_id": 3, "find": "captions", "top": 5}))
    assert [hit["similarity"] for hit in found] == pytest.approx(np.sort(scores)[::-1][:5].tolist(), abs=1e-5)
    caption = search.captions.texts[4]
    text = knn(client, text=caption, modality="text", num_images=1)
    assert text == [{"id": 4, "image_path": "004.jpg", "caption": caption, "similarity": pytest.approx(1)}]
    shown = results(client.post("/search", data={"text": HOSTILE, "find": "captions", "top": 1}))
    assert shown[0]["caption"] == HOSTILE and shown[0]["image_id"] == search.gallery.rows["009.jpg"]


def test_more_like_this_is_neither_the_image_nor_its_copy(client: TestClient, search: FolderSearch) -> None:
    row = search.gallery.rows["zz copy.jpg"]
    found = results(client.post("/search", data={"image_id": row}))
    assert {"000.jpg", "zz copy.jpg"}.isdisjoint(hit["image_path"] for hit in found)
    assert len(found) == len(search.gallery.names) - 2
    everything = knn(client, text="square", num_images=100, deduplicate=False)
    assert len(everything) == len(search.gallery.names) == len(knn(client, text="square", num_images=100)) + 1


def test_images_are_small_jpegs(client: TestClient, search: FolderSearch) -> None:
    row = next(row for row, name in enumerate(search.gallery.names) if name.endswith("<b>.jpg"))
    answer = client.get(f"/images/{row}?side=16")
    assert answer.headers["content-type"] == "image/jpeg" and answer.headers["x-content-type-options"] == "nosniff"
    assert decode_image(answer.content).shape == (16, 16, 3)
    hit = next(hit for hit in results(client.post("/search", data={"text": "a"})) if hit["id"] == row)
    assert client.get("/" + hit["image"]).status_code == 200


def test_about_and_the_page(client: TestClient) -> None:
    about = client.get("/about").json()
    assert about["folder"] == "pictures" and about["images"] == 14 and about["captions"] == 10
    assert client.get("/indices-list").json() == ["pictures"]
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert "//" not in page.text.replace("// ", ""), "nothing from elsewhere"
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
    assert "/knn-service" in client.get("/openapi.json").json()["paths"]


def png(width: int, height: int) -> bytes:
    """A PNG that says it has this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def picture() -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(written, "PNG")
    return written.getvalue()


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


KNN = {"modality": "image", "num_images": 3}
NO_PLACE = ("POST", "/knn-service")
REQUESTS: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("GET", "/../../../etc/passwd", {}, 404, "Not Found"),
    ("GET", "/images/..%2f..%2f..%2fetc%2fpasswd", {}, 404, "Not Found"),
    ("GET", "/images/%252e%252e%252fsecret.jpg", {}, 404, "Not Found"),
    ("GET", "/images/%2e%2e/secret.jpg", {}, 404, "Not Found"),
    ("GET", "/images/secret.jpg", {}, 422, "image_id"),
    ("GET", "/images/1%00.jpg", {}, 422, "image_id"),
    ("GET", "/images/-1", {}, 404, "no image -1"),
    ("GET", "/images/99999999999999999999999999", {}, 404, "no image 9999"),
    ("GET", "/images/" + "9" * 5000, {}, 422, "image_id"),
    ("GET", "/images/1?side=100000", {}, 422, "side"),
    ("GET", "/images/1?side=0", {}, 422, "side"),
    ("GET", "/images/EXCHANGED", {}, 404, "'exchanged.jpg' is gone"),
    ("GET", "/images/GONE", {}, 404, "'gone.jpg' is gone"),
    ("DELETE", "/knn-service", {}, 405, "Method Not Allowed"),
    ("GET", "/about", {"headers": {"host": "evil.example"}}, 400, "not 'evil.example'"),
    ("GET", "/about", {"headers": {"host": "evil.example:testserver"}}, 400, "this server is not"),
    (*NO_PLACE, {"content": b"{"}, 422, "Invalid JSON"),
    (*NO_PLACE, {"content": b"\xff\xfe"}, 422, "Invalid JSON"),
    (*NO_PLACE, {"content": b"[" * 100_000}, 422, "Invalid JSON"),
    (*NO_PLACE, {"json": [1]}, 422, "object"),
    (*NO_PLACE, {"json": KNN}, 422, "one of text, image"),
    (*NO_PLACE, {"json": {**KNN, "text": "a", "image": "b"}}, 422, "one of text, image"),
    (*NO_PLACE, {"json": {**KNN, "text": " \t"}}, 422, "text"),
    (*NO_PLACE, {"json": {**KNN, "text": "a" * 2001}}, 422, "text"),
    (*NO_PLACE, {"content": b'{"text": "\\ud800"}'}, 422, "Invalid JSON"),
    (*NO_PLACE, {"json": {**KNN, "text": ["a"]}}, 422, "text"),
    (*NO_PLACE, {"json": {**KNN, "text": "a", "modality": "audio"}}, 422, "modality"),
    (*NO_PLACE, {"json": {**KNN, "text": "a", "num_images": 0}}, 422, "num_images"),
    (*NO_PLACE, {"json": {**KNN, "text": "a", "num_images": 10**30}}, 422, "num_images"),
    (*NO_PLACE, {"content": b'{"text": "a", "num_images": 1e999}'}, 422, "num_images"),
    (*NO_PLACE, {"json": {**KNN, "text": "a", "indice_name": "../other"}}, 404, "indice_name"),
    (*NO_PLACE, {"json": {**KNN, "image_url": "http://169.254.169.254/"}}, 422, "fetches nothing"),
    (*NO_PLACE, {"json": {**KNN, "image_url": "file:///etc/passwd"}}, 422, "fetches nothing"),
    (*NO_PLACE, {"json": {**KNN, "image": "not base64!"}}, 422, "base64"),
    (*NO_PLACE, {"json": {**KNN, "image": "bildé"}}, 422, "base64"),
    (*NO_PLACE, {"json": {**KNN, "image": encoded(b"no picture")}}, 422, "image: "),
    (*NO_PLACE, {"json": {**KNN, "image": encoded(b"<svg xmlns='http://www.w3.org/2000/svg'/>")}}, 422, "image: "),
    (*NO_PLACE, {"json": {**KNN, "image": encoded(picture()[:60])}}, 422, "image: "),
    (*NO_PLACE, {"json": {**KNN, "image": encoded(png(60_000, 60_000))}}, 422, "image: "),
    (*NO_PLACE, {"json": {**KNN, "image": encoded(png(9_000, 9_000))}}, 422, "image: "),
    (*NO_PLACE, {"json": {**KNN, "embedding_input": [1.0, 2.0]}}, 422, "embedding_input"),
    (*NO_PLACE, {"json": {**KNN, "embedding_input": [0.0] * 16}}, 422, "embedding_input"),
    (*NO_PLACE, {"json": {**KNN, "embedding_input": [1e308] * 16}}, 422, "embedding_input"),
    (*NO_PLACE, {"content": b'{"embedding_input": [NaN]}'}, 422, ""),
    (*NO_PLACE, {"content": b"x", "headers": {"content-length": str(10**9)}}, 413, "at most"),
    (*NO_PLACE, {"content": b"x", "headers": {"content-length": "-5"}}, 413, "at most"),
    ("POST", "/search", {}, 422, "one of text, image and image_id"),
    ("POST", "/search", {"data": {"text": "a", "image_id": 1}}, 422, "one of text, image and image_id"),
    ("POST", "/search", {"data": {"image_id": 10**9}}, 404, "no image"),
    ("POST", "/search", {"data": {"image_id": -1}}, 422, "image_id"),
    ("POST", "/search", {"data": {"text": "a", "top": 10**9}}, 422, "top"),
    ("POST", "/search", {"data": {"text": "a", "find": "passwords"}}, 422, "find"),
    ("POST", "/search", {"files": {"image": ("../../x.png", b"no picture")}}, 422, "image: "),
    ("POST", "/search", {"files": {"text": ("x", b"a")}}, 422, "text"),
    ("POST", "/search", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "oundary"),
]


@pytest.mark.parametrize(
    ("method", "path", "given", "status", "says"), REQUESTS, ids=[f"{n}" for n in range(len(REQUESTS))]
)
def test_a_hostile_request_gets_a_clear_4xx(
    client: TestClient, search: FolderSearch, folder: Path, method: str, path: str, given: Any, status: int, says: str
) -> None:
    for name in ("exchanged", "gone"):
        path = path.replace(name.upper(), str(search.gallery.rows[f"{name}.jpg"]))
    answer = client.request(method, path, **given)
    assert answer.status_code == status, answer.text[:300]
    assert list(answer.json()) == ["error"] and says in answer.json()["error"]
    assert str(folder.parent) not in answer.text and "Traceback" not in answer.text and len(answer.text) < 6000


def ask(chunks: list[bytes], *, stall: bool = False) -> tuple[int, dict[str, Any]]:
    """The status and the answer of the guard to a body that comes in pieces without a length."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if stall:
            await asyncio.sleep(60)
        raise AssertionError("no such request reaches a route")

    async def receive() -> dict[str, Any]:
        if not chunks:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": chunks.pop(), "more_body": bool(chunks) or not stall}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(limits.Guard(app, None)({"type": "http", "headers": []}, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_a_body_without_a_length_is_limited() -> None:
    status, said = ask([b"x" * (1 << 20)] * 17)
    assert status == 413 and "16,777,216" in said["error"]


def test_a_body_that_never_ends_and_an_answer_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.02)
    monkeypatch.setattr(limits, "ANSWER_SECONDS", 0.02)
    status, said = ask([b"x"])
    assert status == 408 and "not complete after 0.02 seconds" in said["error"]
    status, said = ask([b"x"], stall=True)
    assert status == 503 and "no answer after 0.02 seconds" in said["error"]


def test_a_fault_of_the_server_is_an_answer_without_its_text(
    client: TestClient, search: FolderSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.model, "encode", lambda given: 1 / 0)
    answer = client.post("/search", data={"text": "a"})
    assert answer.status_code == 500 and answer.json() == {
        "error": "ZeroDivisionError: a fault of the server, whose log says more"
    }


def test_names_of_the_host() -> None:
    named = {
        "localhost": "localhost",
        "LOCALHOST:80": "localhost",
        "[::1]:80": "[::1]",
        "[::1]": "[::1]",
        "": "",
        ":80": "",
    }
    assert {host: limits._name(host) for host in named} == named


def test_a_gallery_file_is_served_as_its_folder(client: TestClient, search: FolderSearch, tmp_path: Path) -> None:
    assert isinstance(search.gallery, FolderGallery)
    written = write_folder(search.model, search.gallery, tmp_path / "g.safetensors")
    with TestClient(build_app(FolderSearch(search.model, written), frozenset({"testserver"}))) as other:
        for data in ({"text": "a red square", "top": "4"}, {"image_id": "3", "top": "4"}):
            found, expected = (results(each.post("/search", data=data)) for each in (other, client))
            assert [hit["similarity"] for hit in found] == [hit["similarity"] for hit in expected]
            assert [hit["image_path"] for hit in found] == [hit["image_path"] for hit in expected]
        assert found[0]["image"].endswith(f"?v={written.key[:16]}")
        assert other.get("/" + found[0]["image"]).content == client.get("/" + expected[0]["image"]).content
        assert other.get("/about").json()["images"] == len(search.gallery.names)
