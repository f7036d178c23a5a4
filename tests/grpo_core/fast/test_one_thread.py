"""Trainings that overlap in time leave the process the threads that it had."""

from threadpoolctl import ThreadpoolController, threadpool_limits

from grpo_core.fast.one_thread import OneThread


def count_threads() -> set[int]:
    return {pool["num_threads"] for pool in ThreadpoolController().select(user_api="blas").info()}


def test_the_last_to_leave_gives_the_threads_back() -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        one_thread = OneThread(ThreadpoolController().select(user_api="blas"))
        assert count_threads() == {2}
        one_thread.__enter__()
        one_thread.__enter__()
        assert count_threads() == {1}
        one_thread.__exit__(None, None, None)
        assert count_threads() == {1}, "somebody still trains"
        one_thread.__exit__(None, None, None)
        assert count_threads() == {2}
