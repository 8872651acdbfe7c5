"""The built-in scenes: counts, splits, the language of the sentences, and scores that a person would give."""

import re
from functools import cache
from random import Random

import pytest
from scipy.stats import spearmanr

from simcse_kit.data.scenes import scene_pairs, scene_sentences, scene_triplets
from simcse_kit.data.scenes.grammar import Wording, templates
from simcse_kit.data.scenes.lexicon import concepts, events
from simcse_kit.data.scenes.meaning import Participant, Scene, score
from simcse_kit.data.scenes.morphology import (
    article,
    past,
    past_participle,
    pluralize,
    present_participle,
    third_person,
)
from simcse_kit.data.scenes.sampling import Sampler
from simcse_kit.errors import UserError

SPLITS = ("train", "dev", "test")


@cache
def rows(split):
    return scene_sentences(split), scene_triplets(split), scene_pairs(split)


@cache
def sentences(split):
    """Every sentence that a split shows anywhere."""
    plain, triplets, pairs = rows(split)
    return {*plain, *(text for row in triplets for text in row), *(text for row in pairs for text in row[:2])}


def words(text):
    return set(re.findall(r"[\w'-]+", text.lower()))


# Data sets


@pytest.mark.parametrize(
    ("split", "counts"),
    [("train", (24_000, 10_000, 10_000)), ("dev", (2_000, 1_000, 1_000)), ("test", (2_000, 1_000, 1_500))],
)
def test_sizes_and_distinctness(split, counts):
    assert tuple(map(len, rows(split))) == counts
    assert tuple(len(set(part)) for part in rows(split)) == counts


def test_sentences_of_triplets_and_pairs_differ():
    assert all(len(set(row)) == 3 for split in SPLITS for row in rows(split)[1])
    assert all(first != second for split in SPLITS for first, second, _ in rows(split)[2])


@pytest.mark.parametrize("make", [scene_sentences, scene_triplets, scene_pairs])
def test_deterministic_by_seed_and_limit_is_a_prefix(make):
    assert make("dev", seed=3, limit=40) == make("dev", seed=3, limit=60)[:40]
    assert set(make("dev", seed=3, limit=40)) != set(make("dev", seed=4, limit=40))
    assert make("dev", limit=0) == []


@pytest.mark.parametrize("make", [scene_sentences, scene_triplets, scene_pairs])
def test_unknown_split_is_the_users_mistake(make):
    with pytest.raises(UserError, match="no split 'validation'; choose one of train, dev, test"):
        make("validation")


def test_splits_share_no_sentence():
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not sentences(one) & sentences(other)


def test_most_of_the_tests_constructions_and_many_of_its_words_are_unseen_in_training():
    seen = {template.text for template in templates("train")}
    unseen = [template.text not in seen for template in templates("test")]
    assert sum(unseen) / len(unseen) >= 0.8
    vocabulary = {split: set().union(*map(words, sentences(split))) for split in ("train", "test")}
    assert len(vocabulary["test"] - vocabulary["train"]) / len(vocabulary["test"]) > 0.4


def test_word_overlap_hardly_tells_the_score():
    def dice(first, second):
        return 2 * len(words(first) & words(second)) / (len(words(first)) + len(words(second)))

    overlap, gold = zip(*((dice(first, second), gold) for first, second, gold in rows("test")[2]), strict=True)
    assert abs(100 * spearmanr(overlap, gold).statistic) <= 40
    assert set(gold) == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}


# Language


def test_orthography():
    for text in sorted(sentences("train") | sentences("dev") | sentences("test")):
        assert re.fullmatch(r"[A-Z][\w' ,-]*\w\.", text), text
        assert "  " not in text and " ," not in text, text
        assert not re.search(r"\b(?!on on\b)(\w+) \1\b", text, flags=re.I), text  # "was turned on on Monday" is right


def test_articles_follow_the_sound():
    for text in sorted(sentences("train") | sentences("dev") | sentences("test")):
        for word in re.findall(r"\b[Aa] (\w+)", text):
            assert word[0] not in "aeiou" or word in {"used", "uniform"}, text
        for word in re.findall(r"\b[Aa]n (\w+)", text):
            assert word[0] in "aeiou" or word == "hour", text


def test_number_agrees():
    plural = r"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|many|several) (?:\w+ )?\w+"
    for text in sorted(sentences("train") | sentences("dev") | sentences("test")):
        assert not re.match(rf"(?:The )?{plural} (?:is|was|has|does|isn't|wasn't|doesn't)\b", text, flags=re.I), text
        assert not re.match(r"(?:An?|The) (?:boy|girl|nurse|doctor|farmer) (?:are|were|have|do|don't)\b", text), text


@pytest.mark.parametrize(
    ("verb", "forms"),
    [
        ("stop", "stops stopped stopped stopping"),
        ("bake", "bakes baked baked baking"),
        ("carry", "carries carried carried carrying"),
        ("tie up", "ties up|tied up|tied up|tying up"),
        ("visit", "visits visited visited visiting"),
        ("forget", "forgets forgot forgotten forgetting"),
        ("free", "frees freed freed freeing"),
        ("go into", "goes into|went into|gone into|going into"),
        ("overtake", "overtakes overtook overtaken overtaking"),
        ("push", "pushes pushed pushed pushing"),
        ("obey", "obeys obeyed obeyed obeying"),
        ("fix", "fixes fixed fixed fixing"),
        ("have", "has had had having"),
    ],
)
def test_verbs_are_inflected(verb, forms):
    expected = forms.split("|") if "|" in forms else forms.split()
    assert [third_person(verb), past(verb), past_participle(verb), present_participle(verb)] == expected


def test_nouns_and_articles():
    assert [pluralize(noun) for noun in ("box", "lady", "boy", "bus", "horse")] == [
        "boxes",
        "ladies",
        "boys",
        "buses",
        "horses",
    ]
    assert [article(phrase) for phrase in ("old man", "used car", "hour ago", "uniform", "uncle")] == [
        "an", "a", "an", "a", "an",
    ]  # fmt: skip


# Meaning: scores that a person would give


def concept(name, kind=None):
    return next(c for c in concepts() if c.words[0] == name and (kind is None or kind in c.kinds))


def event(name):
    return next(e for split in SPLITS for e in events(split) if e.name == name)


def someone(noun, quantity="one", modifier=None):
    return Participant(concept(noun), concept(quantity), concept(modifier) if modifier else None)


def scene(agent, verb, patient=None, recipient=None, *, tense="past", negated=False, **details):
    who = [
        someone(*part) if isinstance(part, tuple) else part and someone(part) for part in (agent, patient, recipient)
    ]
    return Scene(event(verb), tense, *who, negated=negated, **{k: concept(v) for k, v in details.items()})


DEVOUR = scene("boy", "devour", ("apple", "two"), place="in the kitchen", time="yesterday")
CHASE = scene("dog", "chase", "cat")
SELL = scene("farmer", "sell", "horse", "chef")


@pytest.mark.parametrize(
    ("expected", "first", "second"),
    [
        (5, DEVOUR, DEVOUR),
        (5, scene("boy", "devour", "apple", negated=True), scene("boy", "devour", "apple", negated=True)),
        # The boy devoured two apples in the kitchen yesterday. The child ate some fruit indoors.
        (4, DEVOUR, DEVOUR.but(event=DEVOUR.event.general)),
        (4, DEVOUR, DEVOUR.but(agent=someone("child"))),
        (4, DEVOUR, DEVOUR.but(agent=someone("person"), patient=someone("piece of fruit", "some"))),
        (4, DEVOUR, DEVOUR.but(place=concept("indoors"), time=None)),
        (4, DEVOUR, DEVOUR.but(agent=None)),
        (4, CHASE, scene("dog", "chase", ("cat", "one", "white"))),
        # One circumstance: a number, a sort, when, where, how, with what.
        (3, DEVOUR, DEVOUR.but(patient=someone("apple", "three"))),
        (3, DEVOUR, DEVOUR.but(place=concept("in the garden"))),
        (3, DEVOUR, DEVOUR.but(time=concept("last week"))),
        (3, DEVOUR, DEVOUR.but(tense="future", time=concept("tomorrow"))),
        (3, scene("chef", "peel", "carrot", manner="quickly"), scene("chef", "peel", "carrot", manner="slowly")),
        (3, scene(("man", "one", "young"), "run"), scene(("man", "one", "old"), "run")),
        (3, scene("boy", "open", "door", negated=True), scene("boy", "close", "door")),
        # The heart: who, to whom, what, whether; or several circumstances.
        (2, CHASE, scene("cat", "chase", "dog")),
        (2, CHASE, scene("dog", "chase", "cat", negated=True)),
        (2, CHASE, scene("dog", "chase", "rabbit")),
        (2, CHASE, scene("goat", "chase", "cat")),
        (2, SELL, scene("chef", "sell", "horse", "farmer")),
        (2, SELL, scene("farmer", "sell", "table", "chef")),
        (2, scene("boy", "open", "door"), scene("boy", "close", "door")),
        (2, scene("boy", "be taller than", "girl"), scene("girl", "be taller than", "boy")),
        (2, DEVOUR, DEVOUR.but(patient=someone("apple", "three"), place=concept("in the garden"))),
        # The same topic, or the same thing; the same event of others.
        (1, CHASE, scene("horse", "bite", "woman")),
        (1, CHASE, scene("cat", "chase", "dog", negated=True)),
        (1, CHASE, scene("goat", "chase", "rabbit")),
        (1, scene("man", "sell", "table", "woman"), scene("carpenter", "repair", "table")),
        # Nothing in common, though the words may be.
        (0, CHASE, scene("dog", "sleep")),
        (0, scene("man", "hug", "woman", time="yesterday"), scene("man", "peel", "potato", time="yesterday")),
    ],
)
def test_scores_are_those_of_a_person(expected, first, second):
    assert score(first, second) == expected
    assert score(second, first) == expected


@pytest.mark.parametrize("split", SPLITS)
def test_changes_have_the_effect_they_are_named_for(split):
    sampler = Sampler(split, Random(7))
    allowed = {name: {3.0} for name in ("quantity", "modifier", "tense", "detail")}
    allowed |= {name: {2.0} for name in ("denial", "opposite", "roles", "participant")}
    allowed |= {"event": {1.0}, "topic": {0.0, 1.0}, "implied": {4.0}}
    for name, change in {**sampler.changes, "implied": sampler.imply}.items():
        scenes = [sampler.scene() for _ in range(300)]
        scores = {score(original, changed) for original in scenes if (changed := change(original))}
        assert scores and scores <= allowed[name], name


def test_the_same_scene_in_every_construction():
    said = {
        template.fill(scene("farmer", "sell", "horse", "chef"), ChooseFirst())
        for template in templates("train")
        if template.suits(scene("farmer", "sell", "horse", "chef"))
    }
    assert said == {
        "The farmer sold the horse to the chef.",
        "The horse was sold to the chef by the farmer.",
        "The chef bought the horse from the farmer.",
        "The chef was sold the horse by the farmer.",
        "It was the farmer who sold the horse to the chef.",
        "There was a farmer selling the horse to the chef.",
    }


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (scene("dog", "chase", "cat", tense="present", negated=True), "The dog is not chasing the cat."),
        (scene(("dog", "two"), "chase", ("cat", "three"), tense="future"), "The two dogs will chase the three cats."),
        (scene(("boy", "two"), "be taller than", "girl", tense="present"), "The two boys are taller than the girl."),
        (scene("woman", "love", "man", tense="present", negated=True), "The woman does not love the man."),
        (
            scene("chef", "peel", "orange", instrument="with a knife", time="yesterday"),
            "The chef peeled the orange with a knife yesterday.",
        ),
    ],
)
def test_plain_sentences(told, sentence):
    assert templates("train")[0].fill(told, ChooseFirst()) == sentence


def test_a_paraphrase_uses_other_words_where_it_can():
    told = scene("doctor", "sell", "car", "mother", time="yesterday")
    wording = Wording(Random(1))
    first = templates("train")[0].fill(told, wording)
    again = templates("train")[0].fill(told, wording)
    other = templates("train")[0].fill(told, Wording(Random(2), avoid=wording))
    assert first == again
    assert words(first) & words(other) <= {"a", "the", "sold", "to", "yesterday"}


class ChooseFirst(Wording):
    """A wording without chance."""

    def __init__(self):
        super().__init__(Random(0))

    def choose(self, what, options):
        return options[0]
