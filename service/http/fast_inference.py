"""A shortcut for ``/inference``: ordinary requests are answered in front of everything else.

FastAPI's routing, dependencies and validation, and one layer after the other for ids, headers and checks, take several
times as long as the policy itself. Here one place does the work of all, by the same rules. Whatever it does not answer
with an action goes the ordinary way as if nothing had been, so errors are worded in one place.
"""

import asyncio
import time
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.context import REQUEST_ID
from service.errors import ServiceError
from service.http.access_log import RequestLog
from service.http.browser_rules import list_headers
from service.http.limits.bodies import has_body, replay
from service.http.request_guard import RequestRules
from service.inference.infer import LARGE_MODEL_BYTES, encode, infer
from service.models.store import ModelStore
from service.monitoring.prometheus import Metrics
from service.schemas.fields import check_action_masks, check_observation

_PATH = "/inference"
# Many clients send the body a moment after the head. Slower ones are left to the guard, which sets them a deadline.
_PATIENCE_SECONDS = 0.1


class _Fields(msgspec.Struct, forbid_unknown_fields=True):
    """``InferenceRequest``, partly checked: the rest follows later."""

    model_name: str
    observation: Any
    deterministic: bool = True
    action_masks: Any = None


class FastInference:
    """Answers valid observations for small models in memory.

    :param app: The application that answers everything else.
    :param rules: What requests have to be like.
    :param store: The models.
    :param metrics: Measures how long answers take.
    :param log: Gives requests their ids, and records them.
    """

    def __init__(self, app: ASGIApp, rules: RequestRules, store: ModelStore, metrics: Metrics, log: RequestLog) -> None:
        self._app = app
        self._rules = rules
        self._store = store
        self._metrics = metrics
        self._log = log
        self._decode = msgspec.json.Decoder(_Fields).decode
        self._headers = [(b"content-type", b"application/json"), *list_headers(_PATH)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        begun = time.perf_counter()
        if scope["type"] != "http" or scope["path"] != _PATH or scope["method"] != "POST" or scope.get("root_path"):
            await self._app(scope, receive, send)
            return
        headers = dict(reversed(scope["headers"]))  # the first of each name
        # Answers to pages get more headers, and a query is refused.
        if (
            b"origin" in headers
            or scope["query_string"]
            or not has_body(headers)
            or self._rules.check(scope, headers) is not None
        ):
            await self._app(scope, receive, send)
            return
        message = await _receive_soon(receive)
        if message is None:
            await self._app(scope, receive, send)
            return
        try:
            arrived = time.perf_counter()
            answer = self._answer(message)
        except Exception as error:  # a bug; raised again where the guard reads the body, and reported there
            await self._app(scope, _fail(error), send)
            return
        if answer is None:
            await self._app(scope, replay(message, receive), send)
            return
        now = time.perf_counter()
        self._metrics.note_answer(now - arrived, now - begun)
        request_id = self._log.ids.choose(headers.get(b"x-request-id"))
        if self._log.is_complete:
            REQUEST_ID.set(request_id)
            self._log.write("POST", _PATH, 200, now - begun)
        length, name = (b"content-length", b"%d" % len(answer)), (b"x-request-id", request_id.encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length, *self._headers, name]})
        await send({"type": "http.response.body", "body": answer})

    def _answer(self, message: Message) -> bytes | None:
        """Return the answer to a request with this body; None if it has not arrived whole or is not ordinary."""
        body = message.get("body", b"")
        if message.get("more_body") or not 0 < len(body) <= self._rules.body_rule.max_bytes:
            return None
        try:
            fields = self._decode(body)
            model = self._store.get_recently_checked(fields.model_name)
            if model is None or model.n_bytes >= LARGE_MODEL_BYTES:
                return None
            masks = None if fields.action_masks is None else check_action_masks(fields.action_masks)
            return encode(infer(model, check_observation(fields.observation), fields.deterministic, masks))
        except (msgspec.DecodeError, ValueError, RecursionError, ServiceError):
            return None


async def _receive_soon(receive: Receive) -> Message | None:
    """Return the next message if it is there or comes soon; if not, None, and nothing has been taken."""
    waiting = receive().__await__()
    try:
        next(waiting)
    except StopIteration as arrived:  # it had nothing to wait for, and needs no timer
        message: Message = arrived.value
        return message
    waiting.close()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await receive()
    except TimeoutError:
        return None


def _fail(error: Exception) -> Receive:
    async def receive() -> Message:
        raise error

    return receive
