"""The forkserver removes no temporary folder of another process."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.util import get_temp_dir

from service.workers.forking import find_own_folder


def test_a_process_does_not_take_its_parents_folder_for_its_own() -> None:
    assert find_own_folder() == get_temp_dir()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(get_temp_dir).result() == get_temp_dir(), "it is shared"
        assert pool.submit(find_own_folder).result() is None
