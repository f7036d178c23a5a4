"""Downloading and uploading model files."""

from functools import partial
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from service.errors import ConflictError
from service.http import examples
from service.http.routes.dependencies import CurrentService, ModelNameInPath, errors
from service.models.card import make_card
from service.schemas.fields import ModelName
from service.schemas.models import ModelCard

_FILE_TYPE = "application/zip"
_CHUNK_BYTES = 2**18
_FILE_SCHEMA = {"schema": {"type": "string", "format": "binary"}}
_UPLOAD_BODY = {"required": True, "content": {_FILE_TYPE: _FILE_SCHEMA, "application/octet-stream": _FILE_SCHEMA}}

router = APIRouter(tags=["models"])


@router.get(
    "/models/{model_name}/file",
    response_class=Response,
    responses={
        200: {"content": {_FILE_TYPE: _FILE_SCHEMA}},
        304: {"description": "The file still matches `If-None-Match`."},
        **errors(400, 401, 404, 409, 422),
    },
)
def download_model(model_name: ModelNameInPath, service: CurrentService, request: Request) -> Response:
    """Download a model's file; its SHA-256 is the `ETag`, so `If-None-Match` avoids a second download."""
    inspected = service.store.inspect_file(model_name)
    if inspected.model is None:
        raise ConflictError(f"model '{model_name}' is {inspected.status}; only usable files can be downloaded.")
    headers = {"ETag": f'"{inspected.sha256}"', "Content-Disposition": f'attachment; filename="{model_name}.zip"'}
    if _is_known(request.headers.get("if-none-match", ""), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    *_, n_bytes = inspected.signature
    file = service.store.folder.open_file(model_name, inspected.signature)
    return _FileStream(file, {**headers, "Content-Length": str(n_bytes)})


@router.put(
    "/models/{model_name}/file",
    responses=errors(400, 401, 403, 408, 409, 413, 415, 422, 429, 507),
    openapi_extra={"requestBody": _UPLOAD_BODY},
)
async def upload_model(
    model_name: Annotated[ModelName, Path(description="Name to save it under.", openapi_examples=examples.MODEL)],
    request: Request,
    service: CurrentService,
    overwrite: Annotated[bool, Query(description="Whether to replace an existing model of that name.")] = False,
) -> ModelCard:
    """Upload a model file, downloaded or saved by `GRPO.save`. It is verified; nothing in it is executed."""
    await run_in_threadpool(service.save_upload, model_name, await request.body(), overwrite)
    return await run_in_threadpool(make_card, service.store, model_name)


class _FileStream(StreamingResponse):
    """Sends a file in chunks, and closes it even if the client disconnects."""

    def __init__(self, file: BinaryIO, headers: dict[str, str]) -> None:
        super().__init__(iter(partial(file.read, _CHUNK_BYTES), b""), headers=headers, media_type=_FILE_TYPE)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""
        with self._file:
            await super().__call__(scope, receive, send)


def _is_known(if_none_match: str, etag: str) -> bool:
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in known or "*" in known
