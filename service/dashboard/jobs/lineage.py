"""The lineage of a job: the model that it started from, and what became of its own."""

from typing import NamedTuple

from service.dashboard.widgets.html_elements import Text, make_age, make_box, make_link, make_pairs
from service.dashboard.widgets.number_format import format_count
from service.http.browser_rules import DASHBOARD_PATH
from service.jobs.job import Job
from service.jobs.lineage import find_init_model, find_its_model, list_trained_on
from service.jobs.table import JobTable
from service.models.store import ModelStore

# Longer lists are not read.
_MAX_LISTED = 20


class Family(NamedTuple):
    """The models that a job started from and has saved, and the jobs that trained the latter further.

    :param beginning: Name of the first model, perhaps an earlier version by now; None if it is gone, or there was none.
    :param model: Likewise of the second.
    :param jobs: The jobs that trained this model further, and the names of their models.
    """

    beginning: str | None
    model: str | None
    jobs: list[tuple[Job, str | None]]


def find_family(table: JobTable, store: ModelStore, job: Job) -> Family:
    """Find out what became of a job's models and of its checkpoint; this reads the disk."""
    table.check_checkpoint(job)
    onward = [(other, find_its_model(store, other)) for other in list_trained_on(table, job)[:_MAX_LISTED]]
    return Family(find_init_model(store, job), find_its_model(store, job), onward)


def show_lineage(job: Job, store: ModelStore, family: Family) -> None:
    """Show the model that a job started from, its checkpoint, its model, and the jobs that trained that further."""
    status = job.describe()
    with make_box("lineage", "ol"):
        with make_box("", "li"):
            Text("Started from ", "muted")
            _link_beginning(job.config.init_model, family.beginning, store)
        if status.n_restarts:
            Text("Resumed once" if status.n_restarts == 1 else f"Resumed {status.n_restarts} times", tag="li")
        if (kept := status.checkpoint) is not None:
            exact = {
                True: "exactly as if it had not stopped",
                False: "but not exactly as before",
                None: "",
            }[kept.exact]
            with make_box("", "li"):
                Text("Checkpoint ", "muted")
                how = ", ".join(filter(None, ("resuming continues from here", exact)))
                Text(f"at step {format_count(kept.timesteps)}, ")
                make_age(kept.created_at)
                Text(f"; {how}")
        with make_box("", "li"):
            Text("Model ", "muted")
            if status.model_name is None:
                Text("none yet" if not job.status.is_final else "none was saved")
            elif family.model is not None:
                make_link(family.model, f"{DASHBOARD_PATH}/models/{family.model}", "")
            else:
                Text(f"{status.model_name} is gone: {describe_loss(status.model_name, store)}")
        for other, model in family.jobs:
            with make_box("onward", "li"):
                Text("Continued by ", "muted")
                name = other.labels.display_name or other.config.model_name
                make_link(name, f"{DASHBOARD_PATH}/jobs/{other.job_id}", "")
                if model is not None:
                    Text(", model ", "muted")
                    make_link(model, f"{DASHBOARD_PATH}/models/{model}", "")
    if status.sha256 is not None:
        make_pairs({"SHA-256": status.sha256})


def describe_loss(reference: str, store: ModelStore) -> str:
    """Say why a model is gone that a job has saved or began from.

    :param reference: Its name, perhaps with ``@`` and a version or an alias.
    """
    return "it was replaced" if store.exists(reference.partition("@")[0]) else "it was deleted"


def _link_beginning(name: str | None, found: str | None, store: ModelStore) -> None:
    if name is None:
        Text("random weights")
    elif found is not None:
        make_link(found, f"{DASHBOARD_PATH}/models/{found}", "")
    else:
        Text(f"{name}, which is gone: {describe_loss(name, store)}")
