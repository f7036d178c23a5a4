"""Downloading, exporting and uploading model files."""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from grpo_core.export.policy_file import EXPORT_FORMATS
from service.errors import ConflictError
from service.http import examples
from service.http.file_headers import Part, answer_content, check_change, check_match, choose_part, is_known
from service.http.problems import Refusal, error_response
from service.http.routes.dependencies import CurrentService, ModelNameInPath, errors
from service.schemas.fields import ModelName
from service.schemas.models import ExportFormatName, ModelCard

_FILE_TYPE = "application/zip"
# Neither format has a type of its own.
_EXPORT_TYPE = "application/octet-stream"
_CHUNK_BYTES = 2**18
# How often a file may be replaced while its download begins.
_MAX_REPLACED = 16
_FILE_SCHEMA = {"schema": {"type": "string", "format": "binary"}}
_EXPORT_CONTENT = {_EXPORT_TYPE: _FILE_SCHEMA}
_UPLOAD_BODY = {"required": True, "content": {_FILE_TYPE: _FILE_SCHEMA, "application/octet-stream": _FILE_SCHEMA}}

router = APIRouter(tags=["models"])


@router.get(
    "/models/{model_name}/file",
    response_class=Response,
    responses={
        200: {"content": {_FILE_TYPE: _FILE_SCHEMA}},
        206: {"description": "The part that `Range` asks for.", "content": {_FILE_TYPE: _FILE_SCHEMA}},
        304: {"description": "The file still matches `If-None-Match`."},
        **errors(404, 409, 412, 416),
    },
)
def download_model(model_name: ModelNameInPath, service: CurrentService, request: Request) -> Response:
    """Download a model's file; its SHA-256 is the `ETag`, so `If-None-Match` avoids a second download."""
    for _ in range(_MAX_REPLACED):
        try:
            return _download(model_name, service, request)
        except ConflictError as error:
            if not error.is_passing:
                raise
    return _download(model_name, service, request)


def _download(model_name: str, service: CurrentService, request: Request) -> Response:
    """Answer with a model's file.

    :raises ConflictError: If it cannot be used, or was replaced between the look at it and its opening.
    """
    inspected = service.store.inspect_file(model_name)
    if inspected.model is None:
        raise ConflictError(f"model '{model_name}' is {inspected.status}; only usable files can be downloaded.")
    etag = f'"{inspected.sha256}"'
    name = {"Content-Disposition": f'attachment; filename="{model_name}.zip"'}
    check_match(request, etag)
    if is_known(request, etag):
        return Response(status_code=304, headers={"ETag": etag, **name})
    *_, n_bytes = inspected.signature
    part = choose_part(request, n_bytes, etag)
    if isinstance(part, Refusal):
        return error_response(*part)
    file = service.store.folder.open_file(model_name, inspected.signature)
    return _FileStream(file, part, name)


@router.get(
    "/models/{model_name}/export",
    response_class=Response,
    responses={
        200: {"content": _EXPORT_CONTENT},
        206: {"description": "The part that `Range` asks for.", "content": _EXPORT_CONTENT},
        304: {"description": "The file still matches `If-None-Match`."},
        **errors(404, 409, 412, 413, 416, 501),
    },
)
def export_model(
    model_name: ModelNameInPath,
    service: CurrentService,
    request: Request,
    export_format: Annotated[
        ExportFormatName, Query(alias="format", description="`onnx`, or `torchscript` for libtorch.")
    ] = "onnx",
    action_masks: Annotated[
        bool, Query(description="Whether the policy takes `action_masks` beside every observation.")
    ] = False,
) -> Response:
    """Export a model for programs without this library: observations in, the most likely actions out."""
    export = service.exporter.export(model_name, export_format, action_masks)
    name = {"Content-Disposition": f'attachment; filename="{model_name}{EXPORT_FORMATS[export_format].suffix}"'}
    return answer_content(request, export.content, export.sha256, name, _EXPORT_TYPE)


@router.put(
    "/models/{model_name}/file",
    responses=errors(403, 404, 408, 409, 412, 413, 415, 507),
    openapi_extra={"requestBody": _UPLOAD_BODY},
)
async def upload_model(
    model_name: Annotated[ModelName, Path(description="Name to save it under.", openapi_examples=examples.MODEL)],
    request: Request,
    service: CurrentService,
    overwrite: Annotated[bool, Query(description="Whether to replace an existing model of that name.")] = False,
) -> ModelCard:
    """Upload a model file, downloaded or saved by `GRPO.save`. It is verified; nothing in it is executed."""
    check = partial(check_change, request, partial(service.store.find_file, model_name))
    return await run_in_threadpool(service.replacement.save_upload, model_name, await request.body(), overwrite, check)


class _FileStream(StreamingResponse):
    """Sends a part of a file in chunks, and closes the file even if the client disconnects."""

    def __init__(self, file: BinaryIO, part: Part, headers: dict[str, str]) -> None:
        headers = {**headers, **part.headers, "Content-Length": str(part.n_bytes)}
        super().__init__(_read(file, part), part.status_code, headers, media_type=_FILE_TYPE)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""
        with self._file:
            await super().__call__(scope, receive, send)


def _read(file: BinaryIO, part: Part) -> Iterator[bytes]:
    file.seek(part.start)
    n_left = part.n_bytes
    while n_left and (chunk := file.read(min(n_left, _CHUNK_BYTES))):
        n_left -= len(chunk)
        yield chunk
