"""A batch is answered like its observations one by one, or refused as a whole."""

import io
import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fastapi.testclient import TestClient
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from msgspec import to_builtins

from service.errors import InvalidFieldsError, InvalidRequestError, TooLargeError
from service.inference import infer as inference
from service.inference.batch import answer_array, answer_json, read_array
from service.inference.infer import TOO_LARGE_NUMBERS, infer
from service.models.served import ServedModel
from service.schemas.fields import MAX_BATCH_ITEMS
from service.settings import Settings
from tests.models import make_model
from tests.service.inference.test_infer import CAR, make_opinionated_model, serve_model, serve_policy, to_plain
from tests.support import PROBLEM_FIELDS

CARTPOLE = np.random.default_rng(0).uniform(-2.0, 2.0, (40, 4)).astype(np.float32)
JSON = {"content-type": "application/json"}
ARRAY = {"content-type": "application/octet-stream"}
ARRAYS = {**ARRAY, "accept": "application/octet-stream"}


@pytest.fixture
def served(client: TestClient, settings: Settings) -> TestClient:
    """A client of a service with a policy for CartPole, ``m``."""
    make_opinionated_model("CartPole-v1").save(settings.models_dir / "m.zip")
    return client


def to_npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def answer(model: ServedModel, observations: list[Any], **fields: Any) -> list[dict[str, Any]]:
    body = json.dumps({"model_name": "m", "observations": observations, **fields}).encode()
    answers: list[dict[str, Any]] = json.loads(answer_json(body, lambda _: model))["answers"]
    return answers


def assert_same_answers(batch: list[dict[str, Any]], singles: list[dict[str, Any]]) -> None:
    """Compare with a tolerance: a batch's sums are rounded in another order than a single row's."""
    assert len(batch) == len(singles)
    for one, other in zip(batch, singles, strict=True):
        assert one.keys() == other.keys()
        assert np.allclose(one["action"], other["action"], atol=1e-5)
        assert one["value"] == pytest.approx(other["value"], abs=1e-4)
        if one["action_probs"] is None:
            assert other["action_probs"] is None
        else:
            assert np.allclose(np.hstack(one["action_probs"]), np.hstack(other["action_probs"]), atol=1e-5)


class TestJson:
    def test_answers_are_those_of_single_requests_in_order(self, served: TestClient) -> None:
        request = {"model_name": "m", "observations": CARTPOLE.tolist()}
        response = served.post("/inference/batch", json=request)
        singles = [served.post("/inference", json={"model_name": "m", "observation": o.tolist()}) for o in CARTPOLE]
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert_same_answers(response.json()["answers"], [single.json() for single in singles])
        assert {answer["action"] for answer in response.json()["answers"]} == {0, 1}

    @pytest.mark.parametrize("space", [CAR, *CAR.spaces.values()], ids=str)
    @pytest.mark.parametrize(
        "action_space",
        [spaces.Discrete(3), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(2), spaces.Box(-1.0, 1.0, (2, 2))],
        ids=str,
    )
    def test_every_space_is_answered(self, space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        model = serve_policy(space, action_space)
        space.seed(0)
        observations = [to_plain(space.sample()) for _ in range(5)]
        singles = [to_builtins(infer(model, observation, deterministic=True)) for observation in observations]
        assert_same_answers(answer(model, observations), singles)

    def test_more_rows_than_pass_at_once_are_answered_in_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inference, "_MAX_ACTIVATIONS", 64 * 7)  # forty rows in six passes
        model = serve_model(make_opinionated_model("CartPole-v1"))
        singles = [to_builtins(infer(model, observation.tolist(), deterministic=True)) for observation in CARTPOLE]
        assert_same_answers(answer(model, CARTPOLE.tolist()), singles)

    def test_each_row_is_drawn_for_itself(self) -> None:
        model = serve_model(make_opinionated_model("CartPole-v1"))
        observation = [0.5, 0.2, -0.05, 0.1]
        answers = answer(model, [observation] * 4000, deterministic=False)
        prob = answers[0]["action_probs"][1]
        n_ones = sum(answer["action"] for answer in answers)
        assert abs(n_ones - 4000 * prob) < 5 * np.sqrt(4000 * prob * (1 - prob))
        assert 0 < n_ones < 4000

    @pytest.mark.parametrize(
        "observation",
        [
            [0.1, 0.0, 0.05],
            [[0.1, 0.0, 0.05, 0.0]],
            [],
            1.0,
            None,
            "[0, 0, 0, 0]",
            {},
            {"x": [0.0, 0.0, 0.0, 0.0]},
            [True, 0.0, 0.0, 0.0],
            [1e39, 0.0, 0.0, 0.0],
            [10**400, 0, 0, 0],
            [[0, 0], [0]],
            [[[[[0]]]]],
            [0] * 65_537,
        ],
        ids=lambda observation: str(observation)[:30],
    )
    def test_an_item_that_does_not_fit_has_the_error_of_a_single_request(
        self, served: TestClient, observation: Any
    ) -> None:
        single = served.post("/inference", json={"model_name": "m", "observation": observation})
        assert single.status_code in (400, 422)
        request = {"model_name": "m", "observations": [[0, 0, 0, 0], observation, [0.1, 0.0, 0.05, 0.0]]}
        answers = served.post("/inference/batch", json=request).json()["answers"]
        assert answers[1] == {"error": single.json()["detail"]}
        assert [answer.keys() for answer in answers[::2]] == [{"action", "action_probs", "value"}] * 2

    @pytest.mark.parametrize("mask", [[0, 0], [1], [2, 0], "10", [[1], [1]], [None, 1]], ids=str)
    def test_a_mask_that_does_not_fit_has_the_error_of_a_single_request(self, served: TestClient, mask: Any) -> None:
        item = {"model_name": "m", "observation": [0.0] * 4, "action_masks": mask}
        detail = served.post("/inference", json=item).json()["detail"]
        request = {"model_name": "m", "observations": [[0.0] * 4] * 2, "action_masks": [mask, None]}
        answers = served.post("/inference/batch", json=request).json()["answers"]
        assert answers[0] == {"error": detail}
        assert "action" in answers[1]

    def test_masks_rule_actions_out_row_by_row(self) -> None:
        model = serve_model(make_opinionated_model("CartPole-v1"))
        free = answer(model, CARTPOLE.tolist())
        masks = [[0, 1], [1, 0], None, [True, True]] * 10
        answers = answer(model, CARTPOLE.tolist(), action_masks=masks)
        assert [a["action"] for a in answers[::4]] == [1] * 10
        assert [a["action"] for a in answers[1::4]] == [0] * 10
        assert_same_answers([*answers[2::4], *answers[3::4]], [*free[2::4], *free[3::4]])

    def test_numbers_too_large_for_the_network_are_refused_row_by_row(self) -> None:
        model = serve_policy(spaces.Box(-1.0, 1.0, (2,)), spaces.Box(-1.0, 1.0, (1,)))
        for weight, bias in model.actor.policy_layers + model.actor.value_layers:
            weight.flags.writeable = bias.flags.writeable = True
            bias.fill(0.0)
            # Of one sign: whether infinities of both meet depends on the order in which a processor adds up.
            weight.fill(1e38)
        refused, answered = answer(model, [[3e38, 3e38], [0.0, 0.0]])
        assert refused == {"error": TOO_LARGE_NUMBERS}
        assert answered["value"] == 0.0

    def test_the_schema_is_held(self, served: TestClient) -> None:
        good = {"model_name": "m", "observations": [[0.0] * 4]}
        changes: list[dict[str, Any]] = [
            {"observations": []},
            {"observations": 1},
            {"observations": None},
            {"model_name": "../m"},
            {"model_name": 5},
            {"deterministic": 1},
            {"action_masks": [None, None]},
            {"action_masks": []},
            {"extra": 1},
        ]
        for change in changes:
            response = served.post("/inference/batch", json={**good, **change})
            assert response.status_code == 422, change
            assert response.json().keys() == PROBLEM_FIELDS | {"errors"}

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b"\xff\xfe", b'{"model_name": "\\ud800"}', b"[" * 100_000, b'{"a": ' + b"9" * 5000]
    )
    def test_what_is_no_json_object_is_a_validation_error(self, served: TestClient, body: bytes) -> None:
        response = served.post("/inference/batch", content=body, headers=JSON)
        assert response.status_code == 422
        assert response.json().keys() == PROBLEM_FIELDS | {"errors"}
        assert len(response.text) < 500

    def test_a_model_that_never_was_is_not_found(self, served: TestClient) -> None:
        request = {"model_name": "none", "observations": [[0.0] * 4]}
        assert served.post("/inference/batch", json=request).status_code == 404

    def test_more_observations_than_the_schema_says_are_too_many(self) -> None:
        model = serve_policy(spaces.Discrete(2), spaces.Discrete(2))
        assert len(answer(model, [0] * 100)) == 100
        with pytest.raises(TooLargeError, match=f"at most {MAX_BATCH_ITEMS} observations"):
            answer(model, [0] * (MAX_BATCH_ITEMS + 1))

    def test_fewer_observations_are_taken_where_each_answer_is_long(self) -> None:
        model = serve_policy(spaces.Discrete(2), spaces.Discrete(2**15))
        with pytest.raises(TooLargeError, match="at most 64 observations"):
            answer(model, [0] * 65)


class TestArrays:
    def test_answers_are_those_of_single_requests_in_order(self, served: TestClient) -> None:
        response = served.post("/inference/batch?model_name=m", content=to_npy(CARTPOLE), headers=ARRAY)
        singles = [served.post("/inference", json={"model_name": "m", "observation": o.tolist()}) for o in CARTPOLE]
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert_same_answers(response.json()["answers"], [single.json() for single in singles])

    def test_actions_alone_come_as_an_array_where_one_is_asked_for(self, served: TestClient) -> None:
        content = to_npy(CARTPOLE)
        response = served.post("/inference/batch?model_name=m", content=content, headers=ARRAYS)
        answers = served.post("/inference/batch?model_name=m", content=content, headers=ARRAY).json()["answers"]
        actions = np.load(io.BytesIO(response.content), allow_pickle=False)
        assert response.headers["content-type"] == "application/octet-stream"
        assert actions.tolist() == [answer["action"] for answer in answers]

    @pytest.mark.parametrize(
        ("accept", "kind"),
        [
            ("APPLICATION/Octet-Stream", "application/octet-stream"),
            ("text/html, application/octet-stream; q=0.5", "application/octet-stream"),
            ("application/json;q=0.5, application/octet-stream", "application/octet-stream"),
            ("application/octet-stream;q=0", "application/json"),
            ("application/octet-stream;q=0.5, application/json", "application/json"),
            ("application/octet-streams", "application/json"),
            ("application/octet-stream;q=much", "application/octet-stream"),
            ("application/octet-stream;q=0.5, */*", "application/json"),
            ("application/octet-stream;q=0.5, application/*", "application/json"),
            ("application/octet-stream;q=0.5, application/*;q=0.1, */*", "application/octet-stream"),
            ("application/octet-stream, */*", "application/octet-stream"),
            ("application/json;q=0.5, */*", "application/octet-stream"),
            ("application/json;q=0, */*;q=0.1", "application/octet-stream"),
            ("application/octet-stream;q=0, */*", "application/json"),
            ("application/json, text/plain, */*", "application/json"),
            ("application/*", "application/json"),
            ("*/*", "application/json"),
        ],
    )
    def test_the_header_accept_is_weighed(self, served: TestClient, accept: str, kind: str) -> None:
        headers = {**ARRAY, "accept": accept}
        response = served.post("/inference/batch?model_name=m", content=to_npy(CARTPOLE), headers=headers)
        assert (response.status_code, response.headers["content-type"]) == (200, kind)

    def test_actions_are_drawn_if_the_query_says_so(self, served: TestClient) -> None:
        content = to_npy(np.tile(np.array([0.5, 0.2, -0.05, 0.1]), (400, 1)))
        url = "/inference/batch?model_name=m&deterministic=false"
        actions = np.load(io.BytesIO(served.post(url, content=content, headers=ARRAYS).content))
        assert set(actions.tolist()) == {0, 1}

    @pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "<i8", ">u2", "|i1"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_numbers_of_any_kind_are_taken(self, dtype: str, order: Any) -> None:
        model = serve_model(make_opinionated_model("CartPole-v1"))
        array = np.arange(12).reshape(3, 4).astype(dtype, order)
        batch = answer_array(to_npy(array), "m", lambda _: model, deterministic=True, as_array=False)
        singles = [to_builtins(infer(model, row, deterministic=True)) for row in np.arange(12).reshape(3, 4).tolist()]
        assert_same_answers(json.loads(batch)["answers"], singles)

    @pytest.mark.parametrize("space", list(CAR.spaces.values()), ids=str)
    def test_every_space_without_keys_is_answered(self, space: spaces.Space[Any]) -> None:
        model = serve_policy(space, spaces.MultiDiscrete([3, 2]))
        space.seed(0)
        array = np.array([space.sample() for _ in range(4)])
        batch = json.loads(answer_array(to_npy(array), "m", lambda _: model, deterministic=True, as_array=False))
        singles = [to_builtins(infer(model, row, deterministic=True)) for row in array.tolist()]
        assert_same_answers(batch["answers"], singles)

    def test_images_may_have_their_channels_last(self) -> None:
        model = serve_policy(spaces.Box(0, 255, (3, 4, 5), np.uint8), spaces.Discrete(3))
        images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), np.uint8)
        answers = [
            answer_array(to_npy(array), "m", lambda _: model, deterministic=True, as_array=False)
            for array in (images, images.transpose(0, 2, 3, 1))
        ]
        assert answers[0] == answers[1]

    @pytest.mark.parametrize(
        ("array", "said"),
        [
            (np.zeros((2, 3)), r"of shape \[4\], but got \[3\]"),
            (np.zeros(4), r"of shape \[4\], but got \[\]"),
            (np.zeros((1, 2, 4)), r"of shape \[4\], but got \[2, 4\]"),
        ],
    )
    def test_a_wrong_shape_is_refused_with_both_shapes(self, array: Any, said: str) -> None:
        model = serve_model(make_model("CartPole-v1"))
        with pytest.raises(InvalidRequestError, match=said):
            answer_array(to_npy(array), "m", lambda _: model, deterministic=True, as_array=True)

    def test_keys_need_json(self) -> None:
        with pytest.raises(InvalidRequestError, match="send them as JSON"):
            answer_array(
                to_npy(np.zeros((1, 2))), "m", lambda _: serve_policy(CAR, spaces.Discrete(2)), True, as_array=True
            )

    def test_too_many_rows_are_refused(self) -> None:
        model = serve_policy(spaces.Discrete(2), spaces.Discrete(2))
        with pytest.raises(TooLargeError):
            answer_array(to_npy(np.zeros(MAX_BATCH_ITEMS + 1, np.int8)), "m", lambda _: model, True, as_array=True)

    def test_the_model_is_named_in_the_query(self, served: TestClient) -> None:
        content = to_npy(CARTPOLE)
        for query, status_code in (
            ("", 422),
            ("?model_name=../m", 422),
            ("?model_name=none", 404),
            ("?model_name=m&deterministic=perhaps", 422),
        ):
            response = served.post(f"/inference/batch{query}", content=content, headers=ARRAY)
            assert response.status_code == status_code, query
            assert isinstance(response.json()["detail"], str)


def make_header(text: str, version: bytes = b"\x01\x00") -> bytes:
    text += "\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode("latin-1")


HOSTILE = {
    "nothing": b"",
    "no magic": b"PK\x03\x04" + bytes(200),
    "magic alone": b"\x93NUMPY",
    "version 2": make_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", b"\x02\x00") + bytes(4),
    "version 9": make_header("{}", b"\x09\x00"),
    "header cut": b"\x93NUMPY\x01\x00\xff\x03{'descr'",
    "long header": make_header(" " * 2000),
    "no literal": make_header("__import__('os').system('true')"),
    "nested": make_header("(" * 900),
    "no dict": make_header("[1, 2]"),
    "python 2": make_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1L,)}") + bytes(4),
    "huge": make_header("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 4)}") + bytes(16),
    "overflow": make_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**64}, {2**64})}}"),
    "negative": make_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4)}") + bytes(16),
    "no rows": make_header("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4)}"),
    "no axes": make_header("{'descr': '<f4', 'fortran_order': False, 'shape': ()}") + bytes(4),
    "many axes": make_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1)}") + bytes(4),
    "flags": make_header("{'descr': '|b1', 'fortran_order': False, 'shape': (1, 4)}") + bytes(4),
    "objects": make_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + bytes(8),
    "records": make_header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}") + bytes(4),
    "subarrays": make_header("{'descr': ('<f4', (4,)), 'fortran_order': False, 'shape': (1,)}") + bytes(16),
    "text": make_header("{'descr': '<U1', 'fortran_order': False, 'shape': (1,)}") + bytes(4),
    "dates": make_header("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,)}") + bytes(8),
    "complex": make_header("{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}") + bytes(8),
    "long double": make_header("{'descr': '<f16', 'fortran_order': False, 'shape': (1,)}") + bytes(16),
    "another length": to_npy(CARTPOLE).replace(b"v\x00", b"u\x00", 1),
    "many digits": make_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'1' * 900},), }}") + bytes(4),
    "digits without end": make_header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1" * 900),
    "too short": to_npy(CARTPOLE)[:-1],
    "too long": to_npy(CARTPOLE) + b"\x00",
    "a pickle": to_npy(np.zeros(3)).replace(b"'<f8'", b"'|O' "),
    "nan": to_npy(np.array([[0, 0, 0, np.nan]])),
    "infinity": to_npy(np.array([[0, 0, 0, -np.inf]], np.float16)),
    "beyond 32 bits": to_npy(np.array([[0, 0, 0, 1e39]])),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_array_of_finite_numbers_is_a_validation_error(served: TestClient, body: bytes) -> None:
    response = served.post("/inference/batch?model_name=m", content=body, headers=ARRAY)
    assert response.status_code == 422
    assert response.json().keys() == PROBLEM_FIELDS | {"errors"}
    assert len(response.text) < 500


@given(st.binary(max_size=200), st.integers(0, 140), st.sampled_from([b"", to_npy(CARTPOLE), to_npy(np.zeros(3))]))
def test_no_array_breaks_the_reader(noise: bytes, place: int, body: bytes) -> None:
    mutant = body[:place] + noise + body[place + len(noise) :]
    try:
        array = read_array(mutant)
    except InvalidFieldsError:
        return
    assert array.nbytes <= len(mutant)
    assert np.isfinite(array).all()


@given(st.text(max_size=120))
def test_no_header_breaks_the_reader(text: str) -> None:
    body = make_header(text.encode("latin-1", "replace").decode("latin-1")) + bytes(16)
    with pytest.raises(InvalidFieldsError):
        read_array(body)


class TestLimits:
    @pytest.mark.parametrize("overrides", [{"max_batch_bytes": 4096, "max_body_bytes": 1024}])
    def test_batches_have_a_size_of_their_own(self, served: TestClient) -> None:
        for n_rows, status_code in ((200, 200), (300, 413)):  # 16 bytes each
            content = to_npy(np.zeros((n_rows, 4), np.float32))
            response = served.post("/inference/batch?model_name=m", content=content, headers=ARRAY)
            assert response.status_code == status_code
        assert response.json()["detail"] == "the body is larger than 4096 bytes."
        too_large = json.dumps({"model_name": "m", "observation": [0.0] * 400})
        assert served.post("/inference", content=too_large, headers=JSON).status_code == 413

    def test_arrays_are_taken_nowhere_else(self, served: TestClient) -> None:
        for path in ("/inference", "/train", "/inference/batch/"):
            assert served.post(path, content=to_npy(CARTPOLE), headers=ARRAY).status_code == 415
        response = served.post("/inference/batch", content=b"{}", headers={"content-type": "text/plain"})
        assert response.status_code == 415
        assert "application/octet-stream" in response.json()["detail"]


def test_the_documented_limit_is_the_one_that_is_held(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/inference/batch"]["post"]
    content = operation["requestBody"]["content"]
    assert content["application/json"]["schema"]["properties"]["observations"]["maxItems"] == MAX_BATCH_ITEMS
    assert content["application/octet-stream"]["schema"] == {"type": "string", "format": "binary"}
    assert {"application/json", "application/octet-stream"} <= operation["responses"]["200"]["content"].keys()
    assert {parameter["name"] for parameter in operation["parameters"]} == {"model_name", "deterministic"}


def test_pendulum_actions_stay_within_their_bounds() -> None:
    model = serve_model(make_model("Pendulum-v1"))
    array = np.zeros((500, 3), np.float32)
    content = answer_array(to_npy(array), "m", lambda _: model, deterministic=False, as_array=True)
    actions = np.load(io.BytesIO(content))
    assert actions.shape == (500, 1)
    assert np.abs(actions).max() <= 2.0
    assert gym.make("Pendulum-v1").action_space.contains(actions[0])
