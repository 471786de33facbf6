import threading

import pytest

from kit.deploy.submission.background import DEPTH, BackgroundWriter, read_ahead


def test_items_come_in_order_and_at_most_a_few_are_read_ahead():
    read: list[int] = []
    for number, (item, twice) in enumerate(read_ahead(lambda n: (read.append(n), 2 * n)[1], range(10))):
        assert (item, twice) == (number, 2 * number)
        assert len(read) <= number + 1 + DEPTH
    assert read == list(range(10))


def test_the_next_item_is_read_while_one_is_worked_on():
    """Item 1 is read although the work on item 0 does not end before."""
    seen = threading.Event()

    def read(number: int) -> int:
        if number == 1:
            seen.set()
        return number

    for _, number in read_ahead(read, range(3)):
        if number == 0:
            assert seen.wait(10)


def test_what_cannot_be_read_raises_in_its_turn():
    def read(number: int) -> int:
        if number == 2:
            raise ValueError(number)
        return number

    got: list[int] = []
    with pytest.raises(ValueError, match="2"):
        for _, number in read_ahead(read, range(5)):
            got.append(number)
    assert got == [0, 1]


def test_a_reader_that_is_left_stops():
    read: list[int] = []
    for _ in read_ahead(lambda n: read.append(n), range(1000)):
        break
    assert len(read) <= 2 + DEPTH
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_calls_run_in_order_and_all_have_run_in_the_end():
    done: list[int] = []
    with BackgroundWriter() as behind:
        for number in range(20):
            behind(lambda number=number: done.append(number))
            assert len(behind.waiting) <= DEPTH
    assert done == list(range(20))


def test_what_a_call_raises_comes_out():
    def fail() -> None:
        raise OSError("full")

    done: list[int] = []
    with pytest.raises(OSError, match="full"), BackgroundWriter() as behind:
        behind(fail)
        behind(lambda: done.append(1))
    assert done == [1]


def test_calls_are_finished_when_the_block_fails():
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), BackgroundWriter() as behind:
        behind(lambda: done.append(1))
        raise KeyboardInterrupt
    assert done == [1]
