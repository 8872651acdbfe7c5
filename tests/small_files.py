"""Small training files for the tests."""

import csv
import random

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
