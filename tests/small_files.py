"""Small training files for the tests."""

import csv
import random

from simcse_kit.data.sts import SUBSETS

# Words that the tokenizers of the tiny checkpoints know.
WORDS = ["man", "guitar", "street", "children", "red", "ball", "cat", "door", "garden", "letter", "dog", "boats"]


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_stsb(folder, pairs=24, seed=1):
    """STS-B of made-up pairs as SentEval has it, ``sts-{train,dev,test}.csv`` in a folder."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        texts = [[" ".join(draw.choices(WORDS, k=4)) for _ in range(2)] for _ in range(pairs)]
        rows = [f"g\tf\ty\t{i}\t{draw.uniform(0, 5):.2f}\t{a}\t{b}" for i, (a, b) in enumerate(texts)]
        (folder / f"sts-{split}.csv").write_text("\n".join(rows) + "\n")


def write_senteval(folder, pairs=9, seed=8):
    """The seven STS tasks of made-up pairs, as many in each subset, as SentEval has them in a folder."""
    draw = random.Random(seed)
    texts = [
        f"{draw.choice(WORDS)} {draw.choice(WORDS)}\t{draw.choice(WORDS)} {draw.choice(WORDS)}" for _ in range(pairs)
    ]
    scores = [f"{draw.uniform(1, 5):.1f}" for _ in texts]
    for year, subsets in SUBSETS.items():
        place = folder / "STS" / f"{year}-en-test"
        place.mkdir(parents=True)
        for subset in subsets:
            draw.shuffle(scores)
            (place / f"STS.input.{subset}.txt").write_text("\n".join(texts) + "\n")
            (place / f"STS.gs.{subset}.txt").write_text("\n".join(scores) + "\n")
    write_stsb(folder / "STS" / "STSBenchmark", pairs)
    (folder / "SICK").mkdir()
    rows = [f"{i}\t{text}\t{score}\tNEUTRAL" for i, (text, score) in enumerate(zip(texts, scores, strict=True))]
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    (folder / "SICK" / "SICK_test_annotated.txt").write_text("\n".join([header, *rows]) + "\n")
