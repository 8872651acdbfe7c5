"""Synonym replacement with a small WordNet, written here in the real file format, and with the system's."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from simcse_kit.augment.synonyms import WordNet, find_wordnet, synonym_replacement
from simcse_kit.augment.text import open_text_augmentation
from simcse_kit.errors import UserError

SYNSETS = {
    "noun": [
        ["car", "auto", "motor_car"],
        ["dog", "domestic_dog"],
        ["dog", "Frank", "hot_dog"],
        ["March", "Mar"],
        ["march", "walk"],
        ["UN", "United_Nations"],
        ["thing"],
        ["inch", "in"],
        ["Dog", "Sirius"],
        ["snow", *(f"white{number}" for number in range(17))],  # the count of 18 is hexadecimal in the file
    ],
    "verb": [["walk", "go"], ["dog", "chase", "track"]],
    "adj": [["alone(p)", "lonely(a)"], ["Quiet", "still"]],
    "adv": [["quickly", "fast"]],
}


def write_wordnet(directory):
    """Write data files as wndb(5WN) describes them: licence, then synsets with pointers, frames and a gloss."""
    directory.mkdir(parents=True)
    for part, synsets in SYNSETS.items():
        lines = ["  1 This software and database is provided as is; (c) a 03 n 02 nobody 0 nothing 0  "]
        for synset in synsets:
            lemmas = " ".join(f"{lemma} {number:x}" for number, lemma in enumerate(synset))
            kind, frames = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}[part], " 01 + 02 00" * (part == "verb")
            offset = sum(len(line) + 1 for line in lines)
            pointer = f"001 @ {offset:08} {kind} 0000"
            lines.append(
                f'{offset:08} 03 {kind} {len(synset):02x} {lemmas} {pointer}{frames} | what it is; "a car 0"  '
            )
        (directory / f"data.{part}").write_text("\n".join(lines) + "\n", encoding="ascii")
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_wordnet(tmp_path_factory.mktemp("wordnet") / "dict")


@pytest.fixture(scope="module")
def wordnet(directory):
    return WordNet(directory)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("car", ["auto", "motor car"]),
        ("motor", []),
        ("dog", ["Frank", "chase", "domestic dog", "hot dog", "track"]),
        ("Dog", ["Frank", "Sirius", "chase", "domestic dog", "hot dog", "track"]),
        ("DOG", ["Frank", "chase", "domestic dog", "hot dog", "track"]),
        ("dogs", []),
        ("march", ["walk"]),
        ("March", ["Mar", "walk"]),
        ("walk", ["go", "march"]),
        ("UN", ["United Nations"]),
        ("un", []),
        ("thing", []),
        ("alone", ["lonely"]),
        ("in", []),
        ("quickly", ["fast"]),
        ("nobody", []),
        ("snow", sorted(f"white{number}" for number in range(17))),
        ("", []),
    ],
)
def test_synonyms_of_all_senses_by_spelling(wordnet, word, expected):
    assert list(wordnet.synonyms(word)) == expected


def test_one_word_is_replaced_as_in_the_paper(wordnet):
    generator, number = seeded(3), 1200
    drawn = Counter(
        synonym_replacement("The (Car)  thing, in UN DOGS alone.", generator, wordnet=wordnet) for _ in range(number)
    )
    shares = {
        "The (Auto) thing, in UN DOGS alone.": 1 / 6,
        "The (Motor car) thing, in UN DOGS alone.": 1 / 6,
        "The (Car) thing, in UNITED NATIONS DOGS alone.": 1 / 3,
        "The (Car) thing, in UN DOGS lonely.": 1 / 3,
    }
    assert set(drawn) == set(shares)
    assert chisquare([drawn[text] for text in shares], [number * share for share in shares.values()]).pvalue > 1e-4


@pytest.mark.parametrize(("rate", "replaced"), [(0.0, 0), (0.2, 1), (0.25, 2), (0.5, 3), (0.99, 4)])
def test_a_rate_counts_all_words_and_replaces_those_it_can(wordnet, rate, replaced):
    for seed in range(30):
        words = synonym_replacement("car and UN and car and", seeded(seed), wordnet=wordnet, rate=rate)
        assert words.count("and") == 3
        assert sum(words.count(new) for new in ("auto", "motor car", "UNITED NATIONS")) == min(replaced, 3)


@pytest.mark.parametrize("text", ["", "  ", "the thing", "dogs, in"])
def test_a_text_without_synonyms_stays(wordnet, text):
    assert synonym_replacement(text, seeded(0), wordnet=wordnet) == text


def test_the_generator_decides_everything(directory):
    augment = open_text_augmentation("synonym", rate=0.5, wordnet=str(directory))
    texts = ["the dog and the car walk quickly and the dog is alone"] * 10
    generator = seeded(8)
    before = generator.get_state()
    first = augment(texts, generator)
    assert len(set(first)) > 5
    assert augment(texts, generator) != first
    assert open_text_augmentation("synonym", rate=0.5, wordnet=str(directory))(texts, seeded(8)) == first
    assert augment(texts, generator.set_state(before)) == first


def test_the_environment_says_where_wordnet_is(directory, tmp_path, monkeypatch):
    monkeypatch.setenv("WNHOME", str(directory.parent))
    monkeypatch.delenv("WNSEARCHDIR", raising=False)
    assert find_wordnet() == directory
    elsewhere = write_wordnet(tmp_path / "elsewhere")
    monkeypatch.setenv("WNSEARCHDIR", str(elsewhere))
    assert find_wordnet() == elsewhere
    assert find_wordnet(str(directory)) == directory
    (elsewhere / "data.adv").unlink()
    with pytest.raises(UserError, match=r"no WordNet in .*elsewhere \(it has no data.adv\); .* wordnet-base"):
        find_wordnet()


@pytest.mark.parametrize("line", ["<html>", "00001740 03 n zz entity 0 003", "00001740 03 n 02 one 0"])
def test_a_file_of_another_format_is_refused(tmp_path, line):
    broken = write_wordnet(tmp_path / "broken")
    with (broken / "data.verb").open("a", encoding="ascii") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"data\.verb, line 4: no line of a WordNet database"):
        WordNet(broken)


@pytest.mark.skipif(
    not (Path("/usr/share/wordnet/data.noun").is_file() or "WNSEARCHDIR" in os.environ), reason="no WordNet here"
)
def test_the_real_wordnet():
    wordnet = WordNet(find_wordnet())
    assert {"auto", "automobile", "machine", "motorcar", "railway car", "gondola"} <= set(wordnet.synonyms("car"))
    assert {"City of Light", "French capital"} <= set(wordnet.synonyms("Paris"))
    assert wordnet.synonyms("paris") == ()
    assert {"alive", "awake"} <= set(wordnet.synonyms("alert"))  # "alert 0 alive(p) 0 awake(p) 0" in the file
