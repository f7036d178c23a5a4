"""What became of a job's model."""

from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.dashboard.jobs.lineage import describe_loss, find_family
from tests.models import make_model
from tests.service.models.test_replacement import upload
from tests.support import train_to_end

JOB = {"env_name": "CartPole-v1", "total_timesteps": 64, "n_steps": 64, "n_eval_episodes": 0}


def test_a_job_knows_its_model_wherever_it_is_and_who_was_trained_on_it(client: TestClient, app: FastAPI) -> None:
    registry, store = app.state.service.registry, app.state.service.store
    first = registry.get(train_to_end(client, **JOB, model_name="base")["job_id"])
    assert find_family(registry, store, first) == (None, "base", [])
    second = registry.get(train_to_end(client, **JOB, init_model="base", model_name="onward")["job_id"])
    # Of the same name, but another file.
    other = make_model("CartPole-v1", 3).to_bytes(env_name="CartPole-v1")
    upload(client, other, "base", overwrite=True)
    train_to_end(client, **JOB, init_model="base", model_name="stranger", seed=1)
    assert find_family(registry, store, first) == (None, "base@1", [(second, "onward")])
    # By its file: the name is another model's by now.
    assert find_family(registry, store, second).beginning == "base@1"
    client.delete("/models/base")
    assert find_family(registry, store, first) == (None, None, [(second, "onward")])
    assert find_family(registry, store, second).beginning is None
    assert describe_loss("base", store) == describe_loss("base@prod", store) == "it was deleted"
    upload(client, other, "base")
    assert find_family(registry, store, first).model is None
    assert describe_loss("base", store) == describe_loss("base@prod", store) == "it was replaced"
    client.delete(f"/training/{second.job_id}")
    assert find_family(registry, store, first) == (None, None, [])
