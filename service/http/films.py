"""Films as answers: their parameters, and the parts that a player asks for."""

from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response

from service.http.file_headers import answer_content
from service.models.playing.play import FILM_STEPS, FilmOrder
from service.models.playing.player import MEDIA_TYPES, Film
from service.schemas.fields import MAX_FILM_STEPS, MAX_PLAY_SEED
from service.schemas.models import VideoFormat

_CONTENT = {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in MEDIA_TYPES.values()}
FILM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": _CONTENT},
    206: {"description": "The part that `Range` asks for.", "content": _CONTENT},
    304: {"description": "The film still matches `If-None-Match`."},
}


async def _read_order(
    video_format: Annotated[VideoFormat, Query(alias="format", description="`gif` loops; `mp4` is smaller.")] = "gif",
    seed: Annotated[int, Query(ge=0, le=MAX_PLAY_SEED, description="Seed of the episode.")] = 0,
    deterministic: Annotated[bool, Query(description="Take the most likely actions instead of sampling them.")] = True,
    max_steps: Annotated[int, Query(ge=1, le=MAX_FILM_STEPS, description="Most steps of the episode.")] = FILM_STEPS,
) -> FilmOrder:
    return FilmOrder(video_format, seed, deterministic, max_steps)


OrderedFilm = Annotated[FilmOrder, Depends(_read_order)]


def answer_film(request: Request, film: Film, more_headers: dict[str, str] | None = None) -> Response:
    """Answer with a film, or with the part of it that was asked for."""
    headers = {"X-Episode-Reward": str(film.reward), "X-Episode-Length": str(film.n_steps), **(more_headers or {})}
    return answer_content(request, film.content, film.digest, headers, film.media_type)
