from cramer_peft.recsys.requests.heard import Heard, HeardPart, heard_line

COMEDY = HeardPart("funny", "attribute", True, "comedy")
TOY_STORY = HeardPart("like toy story", "title", True, "Toy Story (1995)")
NINETIES = HeardPart("from the 90s", "number", True, "year 1990 to 1999")
HORROR = HeardPart("horror", "attribute", False, "horror")


def test_a_line_says_what_is_wanted_unwanted_and_missed() -> None:
    heard = Heard((COMEDY, TOY_STORY, HORROR, NINETIES), ("blorp",))
    expected = "wanted: comedy; like Toy Story (1995); year 1990 to 1999 · unwanted: horror · not understood: blorp"
    assert str(heard) == expected


def test_what_is_not_there_is_not_said() -> None:
    assert str(Heard((COMEDY,))) == "wanted: comedy"
    assert str(Heard((HORROR,))) == "unwanted: horror"
    assert str(Heard((HORROR,), ("blorp", "frob"))) == "unwanted: horror · not understood: blorp, frob"


def test_nothing_understood() -> None:
    assert str(Heard()) == "nothing understood"
    assert str(Heard((), ("blorp",))) == "nothing understood · not understood: blorp"


def test_an_unsure_part_is_marked() -> None:
    assert str(Heard((HeardPart("heat", "title", True, "Heat (1995)", 0.4),))) == "wanted: perhaps like Heat (1995)"


def test_it_is_one_line_whatever_the_titles_hold() -> None:
    assert "\n" not in str(Heard((HeardPart("x", "title", True, "Two\nLines"),), ("a\nb",)))


def test_a_line_of_nothing_says_what_follows() -> None:
    assert heard_line(Heard((COMEDY,), ("blorp",))) == "wanted: comedy · not understood: blorp"
    assert heard_line(Heard()) == "nothing understood: the list is the one without a request"
    assert heard_line(Heard((), ("a\nb", "c"))) == "nothing understood (a b, c): the list is the one without a request"
