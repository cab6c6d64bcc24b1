"""Everything that was opened is closed after every error."""

import pytest

from fastrl.closing import Closing, build_all, close_all, closed_after


class Held(Closing):
    """Is open until it is closed, which may fail."""

    open: list[str] = []  # noqa: RUF012

    def __init__(self, name, fails=False):
        self.name, self.fails = name, fails
        self.open.append(name)

    def close(self):
        self.open.remove(self.name)
        if self.fails:
            raise OSError(self.name)


@pytest.fixture(autouse=True)
def _nothing_is_left_open():
    yield
    assert not Held.open


def test_block_closes_what_it_was_entered_with():
    with Held("a") as held:
        assert held.open == ["a"]


def test_all_are_closed_where_some_cannot_be():
    with pytest.raises(OSError, match="a"):
        close_all([Held("a", fails=True), Held("b"), Held("c", fails=True)])


@pytest.mark.parametrize("fails", [False, True])
def test_what_ended_a_block_goes_before_what_closing_raises(fails):
    with pytest.raises(LookupError), closed_after(Held("a", fails)):
        raise LookupError
    with closed_after(Held("a")):
        pass


def test_those_that_were_built_are_closed_where_the_next_one_fails():
    def built():
        yield Held("a")
        yield Held("b")
        raise ValueError("no c")

    with pytest.raises(ValueError, match="no c"):
        build_all(built())


def test_what_was_built_is_returned_in_order():
    held = build_all(Held(name) for name in "ab")
    assert [each.name for each in held] == ["a", "b"]
    close_all(held)
