from cramer_peft.encoders import words_of
from cramer_peft.recsys.requests.title_cues import _plain_cue, cue_before
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES


def test_the_cheap_look_overlooks_no_cue() -> None:
    texts = [text for family in TRAIN_TEMPLATES.values() for text in family[::7]]
    texts += [f"{start} the movie {end}" for start in ("i loved", "something like", "as in") for end in ("x", "y")]
    found = 0
    for text in texts:
        words = words_of(text)
        for place in range(len(words)):
            cue = cue_before(words, place)
            if not {"'", "’", '"'} & set(words):
                assert cue == _plain_cue(" ".join(words[max(0, place - 14) : place]))
                found += cue.strength > 0
    assert found > 100
