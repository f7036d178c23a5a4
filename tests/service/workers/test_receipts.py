"""What is taken and what is written of a task's reports."""

import pytest

from service.workers.receipts import Receipts


def test_a_report_is_taken_once_and_written_later() -> None:
    receipts = Receipts(attempt=2, n_taken=4)
    assert (receipts.attempt, receipts.n_taken, receipts.n_written, receipts.age_seconds) == (2, 4, 4, 0.0)
    with receipts.take(6, 2.5):
        assert receipts.age_seconds == 2.5
    assert (receipts.n_taken, receipts.n_written, receipts.age_seconds) == (6, 4, 0.0)
    receipts.note_written(6)
    assert receipts.n_written == 6


def test_one_that_cannot_be_noted_counts_as_taken() -> None:
    receipts = Receipts()
    with pytest.raises(KeyError), receipts.take(1, 9.0):
        raise KeyError
    assert (receipts.n_taken, receipts.age_seconds) == (1, 0.0)
