"""Small training files for the tests."""

import csv

# Words that the tokenizers of the tiny checkpoints know.
WORDS = ["man", "guitar", "street", "children", "red", "ball", "cat", "door", "garden", "letter", "dog", "boats"]


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path
