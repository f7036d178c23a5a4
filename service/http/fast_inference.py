"""A shortcut for ``/inference``: ordinary requests are answered before they reach FastAPI.

FastAPI's routing, dependencies and validation take several times as long as the policy itself. The route still
documents the endpoint and answers everything else: a request that the shortcut declines reaches it unchanged, so errors
are worded in one place.
"""

from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ServiceError
from service.http.request_bodies import replay
from service.inference.single import LARGE_MODEL_BYTES, infer
from service.models.store import ModelStore
from service.monitoring.prometheus import Metrics
from service.schemas.inference import InferenceRequest


class FastInference:
    """Answers valid observations for small models in memory.

    Belongs right behind ``RequestGuard``, which delivers each body in one piece.

    :param app: The application that answers everything else.
    :param store: The models.
    :param metrics: Measures how long answers take.
    """

    def __init__(self, app: ASGIApp, store: ModelStore, metrics: Metrics) -> None:
        self._app = app
        self._store = store
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] != "http" or scope["path"] != "/inference" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        message = await receive()
        answer = self._answer(message)
        if answer is None:
            await self._app(scope, replay(message, receive), send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def _answer(self, message: Message) -> bytes | None:
        try:
            request = InferenceRequest.model_validate_json(message.get("body", b""))
            model = self._store.get_cached(request.model_name)
            if model is None or model.n_bytes >= LARGE_MODEL_BYTES:
                return None
            arguments = (model, request.observation, request.deterministic, request.action_masks)
            answer = self._metrics.measure_inference(infer, *arguments)
        except (ValidationError, ServiceError):
            return None
        return answer.model_dump_json().encode()
