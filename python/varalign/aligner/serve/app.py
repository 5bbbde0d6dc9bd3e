"""The routes of `varalign serve`: the page, its own interface, and clip-retrieval's `POST /knn-service`."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, File, Form, HTTPException, Query, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException as AnyHTTPException

from varalign.aligner import folder_search
from varalign.aligner.folder_search import FolderSearch, Found, query_of
from varalign.aligner.serve.limits import MOST_PIXELS, MOST_RESULTS, MOST_TEXT, Guard, Json
from varalign.data.errors import DataError, shown
from varalign.data.images import decode_image
from varalign.pictures.page import small_jpeg

_PAGE = Path(__file__).with_name("search.html")
_SIDE = 320
_PICTURES_AT_ONCE = 2  # each may take 200 MB while it is decoded

Text = Annotated[str, Field(max_length=MOST_TEXT)]
Count = Annotated[int, Field(ge=1, le=MOST_RESULTS)]


class KnnRequest(BaseModel):
    """What clip-retrieval's clients send; other fields of theirs, `use_safety_model` for one, have no effect here."""

    text: Text | None = None
    image: str | None = Field(None, description="an image file, base64")
    image_url: str | None = Field(None, description="refused: this server fetches nothing")
    embedding_input: list[float] | None = Field(None, description="a vector of the model's own space")
    modality: Literal["image", "text"] = Field("image", description="find images, or captions")
    num_images: Count = 40
    indice_name: str | None = Field(None, description="empty, or what /indices-list says")
    deduplicate: bool = Field(False, description="leave out images with the same bytes as another")


def build_app(search: FolderSearch, hosts: frozenset[str] | None) -> Guard:
    """The application: routes within the limits.

    Args:
        search: what is served.
        hosts: names by which it may be asked for; None: by any.
    """
    app = FastAPI(title="varalign", docs_url=None, redoc_url=None)  # both pages would load scripts from elsewhere
    gallery, name = search.gallery, search.gallery.folder.name
    tower, pictures = threading.Lock(), threading.BoundedSemaphore(_PICTURES_AT_ONCE)
    page = _PAGE.read_bytes()
    policy = _policy(page.decode())
    if search.captions is not None:
        search.captions.embedded  # noqa: B018  (before two threads can ask for it)

    def vector_of(text: str | None, image: bytes | None) -> folder_search.Query:
        """The query of a text or of an image file's bytes."""
        if text is not None:
            if not text.strip() or _broken(text):
                raise HTTPException(422, "text: wanted words in valid Unicode")
            with tower:
                return query_of(search.model, text)
        assert image is not None
        try:
            decode_image(image, MOST_PIXELS)
            with tower:
                return query_of(search.model, image)
        except ValueError as error:
            raise HTTPException(422, f"image: {error}") from None

    def found(query: folder_search.Query, captions: bool, top: int, *, copies: bool = False) -> list[Found]:
        if not captions:
            return search.images(query, top, copies=copies)
        try:
            return search.texts(query, top)
        except DataError as error:
            raise HTTPException(404, str(error)) from None

    @app.get("/", include_in_schema=False)
    def home() -> Response:
        return Response(page, media_type="text/html", headers={"content-security-policy": policy})

    @app.get("/about")
    def about() -> Response:
        """What is searched: names of the model and of the folder, numbers of images and captions."""
        captions = 0 if search.captions is None else len(search.captions.texts)
        return Json({"model": search.model.name, "folder": name, "images": len(gallery.names), "captions": captions})

    @app.get("/indices-list")
    def indices() -> Response:
        """As clip-retrieval: the name that `indice_name` may have."""
        return Json([name])

    @app.get("/images/{image_id}")
    def image(image_id: int, side: Annotated[int, Query(ge=16, le=1600)] = _SIDE) -> Response:
        """A JPEG of an image, at most `side` pixels wide and high."""
        if not 0 <= image_id < len(gallery.names):
            raise HTTPException(404, f"no image {image_id}; there are {len(gallery.names):,}, from 0")
        try:
            with pictures:
                jpeg = small_jpeg(gallery.read(image_id), side, max_pixels=MOST_PIXELS)
        except (ValueError, OSError, MemoryError):
            raise HTTPException(404, f"{shown(gallery.names[image_id])} is gone or cannot be shown") from None
        return Response(jpeg, media_type="image/jpeg")

    @app.post("/search")
    def find(
        text: Annotated[Text | None, Form()] = None,
        image: Annotated[UploadFile | None, File()] = None,
        image_id: Annotated[int | None, Form(ge=0)] = None,
        find: Annotated[Literal["images", "captions"], Form()] = "images",
        top: Annotated[Count, Form()] = 24,
    ) -> Response:
        """Search by one of a text, an image file and an image that was found (`image_id`).

        Answers with `milliseconds` and `results`, best first: `id`, `image_path`, `caption` and `similarity` as
        `/knn-service`, and `image_id` and `image`, the number and the URL of the image, null where it is not here.
        """
        if sum(given is not None for given in (text, image, image_id)) != 1:
            raise HTTPException(422, "wanted one of text, image and image_id")
        begin = time.perf_counter()
        if image_id is None:
            query = vector_of(text, None if image is None else image.file.read())
        elif image_id < len(gallery.names):
            query = search.like(image_id)
        else:
            raise HTTPException(404, f"no image {image_id}; there are {len(gallery.names):,}, from 0")
        results = [
            {**_plain(hit), "image_id": hit.image, "image": url(hit)} for hit in found(query, find == "captions", top)
        ]
        return Json({"milliseconds": round(1000 * (time.perf_counter() - begin), 1), "results": results})

    def url(hit: Found) -> str | None:
        """With a part of the file's digest: another file of the same number is another URL to a browser's cache."""
        return None if hit.image is None else f"images/{hit.image}?v={gallery.version(hit.image)}"

    @app.post("/knn-service", openapi_extra={"requestBody": {"content": {"application/json": {"schema": _schema()}}}})
    async def knn(request: Request) -> Response:
        """As clip-retrieval: the best images, or captions, as a list of `id`, `image_path`, `caption`, `similarity`."""
        return await run_in_threadpool(nearest, await request.body())

    def nearest(body: bytes) -> Response:
        try:
            asked = KnnRequest.model_validate_json(body)  # whatever type the body is said to have, as clip-retrieval
        except ValidationError as error:
            raise HTTPException(422, _told(error.errors())) from None
        if asked.image_url:
            raise HTTPException(422, "image_url: this server fetches nothing; send the file itself, base64, as image")
        if asked.indice_name not in (None, "", name):
            raise HTTPException(404, f"indice_name: there is {name!r} alone")
        given = [part for part in (asked.text, asked.image, asked.embedding_input) if part]
        if len(given) != 1:
            raise HTTPException(422, "wanted one of text, image (base64) and embedding_input")
        if asked.embedding_input:
            query = folder_search.Query(_unit(asked.embedding_input, gallery.vectors.shape[1]), "image")
        else:
            query = vector_of(asked.text or None, _bytes(asked.image) if asked.image else None)
        hits = found(query, asked.modality == "text", asked.num_images, copies=not asked.deduplicate)
        return Json([_plain(hit) for hit in hits])

    @app.exception_handler(AnyHTTPException)
    async def refused(_: Request, error: AnyHTTPException) -> Response:
        return Json({"error": str(error.detail)}, error.status_code, error.headers)  # type: ignore[arg-type]

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return Json({"error": _told(error.errors())}, 422)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return Json({"error": f"{type(error).__name__}: a fault of the server, whose log says more"}, 500)

    return Guard(app, hosts)


def _plain(hit: Found) -> dict[str, Any]:
    return {"id": hit.row, "image_path": hit.name, "caption": hit.caption, "similarity": hit.score}


def _schema() -> dict[str, Any]:
    return KnnRequest.model_json_schema()


def _told(errors: Any) -> str:
    """The first three errors of a check, without the values that were sent."""
    said = [f"{'.'.join(str(part) for part in error['loc'] if part != 'body')}: {error['msg']}" for error in errors[:3]]
    return "; ".join(line.removeprefix(": ") for line in said)


def _broken(text: str) -> bool:
    """Whether a text holds halves of surrogate pairs, which are no characters."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _bytes(image: str) -> bytes:
    """The bytes of an image as clip-retrieval's clients send it: base64, with or without `data:image/png;base64,`."""
    try:
        return base64.b64decode(re.sub(r"\s", "", re.sub(r"^data:[\w/+.-]*;base64,", "", image)), validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(422, "image: wanted the bytes of an image file in base64") from None


def _unit(values: list[float], width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(D,) float32 of unit length."""
    vector = np.array(values, np.float64)
    with np.errstate(over="ignore"):
        norm = np.linalg.norm(vector)
    if len(vector) != width or not np.isfinite(norm) or norm == 0:
        raise HTTPException(422, f"embedding_input: wanted {width} finite numbers that are not all 0")
    return (vector / norm).astype(np.float32)


def _policy(page: str) -> str:
    """The page's content security policy: its own style and script, and nothing from elsewhere."""

    def digest(element: str) -> str:
        inside = re.search(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
        assert inside is not None
        return base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()

    return (
        f"default-src 'none'; style-src 'sha256-{digest('style')}'; script-src 'sha256-{digest('script')}'; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
