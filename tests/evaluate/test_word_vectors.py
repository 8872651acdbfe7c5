import gzip

import numpy as np
import pytest

from simcse_kit import UserError
from simcse_kit.data.files import sha256_of_files
from simcse_kit.evaluate.word_vectors import WordVectors, vocabulary_of

TABLE = {
    "the": [0.5, -1.0, 2.0],
    "cat": [1.0, 0.25, -0.125],
    "Cat": [8.0, 8.0, 8.0],
    "café": [0.1, 0.2, 0.3],
    "\u00a0": [7.0, 7.0, 7.0],
}
SENTENCES = ["the Cat", "The CAT sat", "the the cat", "nothing here", "", "Café  \t the", "café\u00a0the"]


def lines(table=TABLE, end=""):
    return [" ".join([word, *map(repr, vector)]) + end for word, vector in table.items()]


def write(path, text):
    content = ("\n".join(text) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def mean_vector(sentence):
    """In a loop; None where no word is known."""
    total, known = [0.0] * 3, 0
    for word in sentence.split():
        for form in (word, word.lower()):
            if form in TABLE:
                total = [a + b for a, b in zip(total, TABLE[form], strict=True)]
                known += 1
                break
    return [value / known for value in total] if known else [0.0] * 3


FORMATS = {
    "glove.txt": lines(),
    "glove.txt.gz": lines(),
    "word2vec.txt": ["5 3", *lines(end=" ")],
    "crawl.vec": ["5 3", *lines()],
    "phrases.txt": [*lines(), ". . . 1 2 3", "at name@domain.com 0.1 0.2 0.3"],
    "repeated.txt": [*lines(), "cat 9 9 9"],
}


@pytest.mark.parametrize("name", FORMATS)
def test_sentences_are_the_mean_of_their_known_words(tmp_path, name):
    path = write(tmp_path / name, FORMATS[name])
    opened = WordVectors.from_file(path)
    vectors = opened.encode(SENTENCES)
    assert (vectors.dtype, vectors.shape, opened.dimension) == (np.float32, (7, 3), 3)
    np.testing.assert_allclose(vectors, [mean_vector(sentence) for sentence in SENTENCES], rtol=1e-6)
    assert vectors[0].tolist() == [4.25, 3.5, 5.0] and not vectors[3].any()
    assert opened.weights_sha256 == sha256_of_files(path)
    assert opened.encode([]).shape == (0, 3)


def test_a_vocabulary_leaves_out_only_what_is_not_looked_up(tmp_path):
    path = write(tmp_path / "glove.txt", [*lines(), *(f"word{i} {i} {i} {i}" for i in range(50))])
    whole = WordVectors.from_file(path)
    part = WordVectors.from_file(path, vocabulary=vocabulary_of(SENTENCES))
    assert (len(whole.words), len(part.words), part.vectors.shape) == (55, 4, (4, 3))
    assert np.array_equal(part.encode(SENTENCES), whole.encode(SENTENCES))
    assert WordVectors.from_file(path, vocabulary=["absent"]).encode(["the cat"]).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([*lines(), "dog 1 2"], r"line 6: a word and 3 finite numbers"),
        ([*lines(), "dog 1 2 3 4"], r"line 6: a word and 3 finite numbers"),
        ([*lines(), "dog 1 x 3"], r"line 6: a word and 3 finite numbers"),
        ([*lines(), "dog 1 nan 3"], r"line 6: a word and 3 finite numbers"),
        ([*lines(), "", "dog 1 2 3"], r"line 6: a word and 3 finite numbers"),
        (["the\t1\t2"], r"line 1: a word and its numbers, separated by spaces"),
        (["6 3", *lines()], r"announces 6 words, but there are 5; is it whole\?"),
        (["5 4", *lines()], r"line 2: a word and 4 finite numbers"),
        (["0 3"], "has no word vectors"),
    ],
)
def test_a_malformed_file_is_one_line_that_says_where(tmp_path, text, message):
    path = write(tmp_path / "vectors.txt", text)
    with pytest.raises(UserError, match=rf"^{path}[^\n]*{message}[^\n]*$"):
        WordVectors.from_file(path)


def test_an_empty_or_missing_file_is_named(tmp_path):
    (tmp_path / "empty.txt").touch()
    for name, message in (("empty.txt", "has no word vectors"), ("missing.txt", "No such file")):
        with pytest.raises(UserError, match=rf"{name}.*{message}"):
            WordVectors.from_file(tmp_path / name)
