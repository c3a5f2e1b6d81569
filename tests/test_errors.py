"""Messages are safe to print; numbers, counts and flags are checked."""

import math

import pytest

from rankdistillm.errors import (
    MOST_QUOTED,
    InputError,
    check_count,
    check_flag,
    check_number,
    printable,
    quoted,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines", r"two\nlines"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\u202eright to left", r"\u202eright to left"),
        ("line\u2028separator", r"line\u2028separator"),
        ("\udcffhalf", r"\udcffhalf"),
        ("wide\u3000space", r"wide\u3000space"),
        ("unassigned\ufdd0", r"unassigned\ufdd0"),
    ],
)
def test_characters_that_a_terminal_cannot_show_are_escaped(text, shown):
    assert printable(text) == shown
    assert str(InputError(text)) == shown
    assert quoted(text) == shown


@pytest.mark.parametrize("text", ["Läufe/é.run", "中文", "👩\u200d🔬", "क्\u200dष", "a b"])
def test_letters_of_all_scripts_and_emoji_are_not_escaped(text):
    assert printable(text) == text


def test_long_values_are_quoted_without_their_middle():
    assert quoted("a" * MOST_QUOTED) == "a" * MOST_QUOTED
    found = quoted("start" + "x" * 1000 + "end")
    assert len(found) == MOST_QUOTED
    assert found.startswith("start")
    assert found.endswith("end")
    assert quoted(("a", 1)) == "('a', 1)"


@pytest.mark.parametrize("value", [math.nan, math.inf, "1", True, None, -0.5])
def test_values_that_are_not_numbers_of_the_range_are_refused(value):
    with pytest.raises(InputError, match=r"^rate=.* is not a number of at least 0"):
        check_number("rate", value, least=0)


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", True, None])
def test_values_that_are_not_counts_are_refused(value):
    with pytest.raises(InputError, match=r"^depth=.* is not a whole number above 0"):
        check_count("depth", value)


def test_a_number_may_be_none_if_it_is_optional():
    check_number("rate", None, above=0, optional=True)
    check_count("depth", None, optional=True)
    with pytest.raises(InputError, match="rate=0 is not a number above 0"):
        check_number("rate", 0, above=0, optional=True)


def test_a_flag_is_true_or_false():
    check_flag("flag", False)
    with pytest.raises(InputError, match="flag=no is neither true nor false"):
        check_flag("flag", "no")
