"""A client that replaces, uploads, asks and deletes models without end, and checks every answer."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import requests

from tests.support import PATIENCE_SECONDS

_TYPE = {"Content-Type": "application/zip"}


class Churn:
    """Changes models as long as it is told to, and notes each answer that is wrong.

    :param url: The server.
    :param files: Model files, and the answer of each to the observation.
    :param observation: What each is asked.
    """

    def __init__(self, url: str, files: Mapping[bytes, str], observation: list[float]) -> None:
        self.n_answers = 0
        self.wrong: list[str] = []
        self._url, self._files, self._observation = url, files, observation
        self._session = requests.Session()
        self._round = 0

    def go_round(self) -> None:
        """Replace a model, and upload, ask and delete another."""
        self._round += 1
        name, (content, expected) = f"churn-{self._round}", list(self._files.items())[self._round % len(self._files)]
        for target in ("swap", name):
            path = f"/models/{target}/file?overwrite=true"
            self._expect(self._send("PUT", path, data=content, headers=_TYPE), 200, '"loaded"')
            self._expect(self._ask(target), 200, expected)
        self._expect(self._send("DELETE", f"/models/{name}"), 200, "deleted")
        self._expect(self._ask(name), 404, "no model")
        self._expect(self._send("GET", "/models"), 200, '"swap"')

    def _ask(self, name: str) -> requests.Response:
        return self._send("POST", "/inference", json={"model_name": name, "observation": self._observation})

    def _send(self, method: str, path: str, **arguments: Any) -> requests.Response:
        return self._session.request(method, self._url + path, timeout=PATIENCE_SECONDS, **arguments)

    def _expect(self, response: requests.Response, status: int, text: str) -> None:
        self.n_answers += 1
        if response.status_code != status or text not in response.text:
            self.wrong.append(f"{response.request.method} {response.url}: {response.status_code} {response.text[:200]}")

    def close(self) -> None:
        """Close the connection."""
        self._session.close()


@contextmanager
def churn(url: str, files: Mapping[bytes, str], observation: list[float]) -> Iterator[Churn]:
    """Let models be changed in a thread until the context ends."""
    client, over = Churn(url, files, observation), threading.Event()

    def work() -> None:
        while not over.is_set():
            try:
                client.go_round()
            except requests.RequestException as error:
                client.wrong.append(repr(error)[:200])
                return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield client
    finally:
        over.set()
        thread.join()
        client.close()
