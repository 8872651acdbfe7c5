"""From text files to a directory of tokens: documents shuffled, a vocabulary learned, some documents held out."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simcse_kit.data.documents import document_file, document_lines, documents_of
from simcse_kit.data.overlap import fingerprints, write_fingerprints
from simcse_kit.data.readers import data_sha256, expand
from simcse_kit.data.tokens import LARGEST_VOCABULARY, TokenRecord, TokenWriter, vocabulary_sha256, write_record
from simcse_kit.data.vocabulary import character_counts, learn_vocabulary
from simcse_kit.errors import UserError
from simcse_kit.output import check_new_directory, new_directory
from simcse_kit.progress import progress_display

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Documents tokenised at a time, by all cores at once.
_BLOCK = 512
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+")


def prepare_tokens(
    sources: Sequence[str],
    output: Path,
    *,
    vocabulary_size: int,
    tokenizer: str | None = None,
    held_out: float = 0.01,
    seed: int = 42,
    quiet: bool = False,
) -> TokenRecord:
    """Write a directory of tokens, whole or not at all.

    The text is held in memory once, as UTF-8.

    Args:
        sources: ``.txt`` files (or globs), also compressed: a paragraph a line, a blank line ends a document.
        output: A directory, new or empty.
        vocabulary_size: Of the vocabulary that is learned from the documents to train on, if ``tokenizer`` is None.
        tokenizer: A model whose tokenizer is used instead, by name as for ``SentenceEncoder.from_pretrained``.
        held_out: The share of documents that nothing is trained on, in [0, 1).
        seed: Of the documents' order, the first of which are held out.
        quiet: Show no progress.

    Raises:
        UserError: If a file cannot be read, there are too few documents, or the vocabulary does not fit.
    """
    check_new_directory(output)
    paths = list(map(document_file, expand(sources)))
    opened = None if tokenizer is None else _fitting_tokenizer(tokenizer)
    if opened is None and vocabulary_size > LARGEST_VOCABULARY:
        raise UserError(_too_large(vocabulary_size))
    with progress_display(quiet=quiet) as display:
        bar = display.add_task("Reading", total=None, note="documents")
        documents = []
        # As bytes all characters take the least memory.
        for lines in documents_of(document_lines(paths)):
            documents.append("\n".join(lines).encode())
            display.advance(bar)
        random.Random(seed).shuffle(documents)
        aside = _held_out(len(documents), held_out)

        def texts(title: str, start: int) -> Iterator[str]:
            display.reset(bar, total=len(documents) - start, description=title)
            for document in documents[start:]:
                yield document.decode()
                display.advance(bar)

        if opened is None:
            characters = character_counts(texts("Counting", aside))
            opened = learn_vocabulary(texts("Learning the vocabulary", aside), characters, vocabulary_size)
        with new_directory(output) as directory:
            directory.mkdir()
            opened.save_pretrained(directory)
            record = _write(directory, texts("Tokenising", 0), aside, opened, data_sha256(sources), seed)
    return record


def _write(
    directory: Path,
    texts: Iterator[str],
    aside: int,
    tokenizer: PreTrainedTokenizerBase,
    sources: dict[str, str],
    seed: int,
) -> TokenRecord:
    """Tokenise documents, the first ``aside`` of which are held out, and write what a directory of tokens holds."""
    first, last = tokenizer("")["input_ids"]
    train, held_out = (TokenWriter(directory, name, last) for name in ("train", "held_out"))
    seen = []
    for number, block in enumerate(_blocks(texts, aside)):
        held = number == 0 and aside > 0
        ids = tokenizer(
            [document.replace("\n", " ") for document in block],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # it would warn of texts longer than a model takes, and these are cut into rows later
        )["input_ids"]
        (held_out if held else train).add(ids)
        if not held:
            seen.append(fingerprints([[text for document in block for text in _paragraphs_and_sentences(document)]]))
    write_fingerprints(directory, np.concatenate(seen), None)
    record = TokenRecord(
        train=train.finish(),
        held_out=held_out.finish(),
        vocabulary_size=len(tokenizer),
        vocabulary_sha256=vocabulary_sha256(tokenizer),
        first=first,
        last=last,
        sources=sources,
        seed=seed,
    )
    write_record(directory, record)
    return record


def _blocks(texts: Iterator[str], aside: int) -> Iterator[list[str]]:
    """The first ``aside`` texts, if that is any, and the others in blocks."""
    size, block = aside or _BLOCK, list[str]()
    for text in texts:
        block.append(text)
        if len(block) == size:
            yield block
            size, block = _BLOCK, []
    if block:
        yield block


def _paragraphs_and_sentences(document: str) -> Iterator[str]:
    """What an evaluation might share with a document: its paragraphs, and the sentences of those that have several."""
    for paragraph in document.split("\n"):
        sentences = _SENTENCE_END.split(paragraph)
        yield from [paragraph, *(sentences if len(sentences) > 1 else ())]


def _held_out(documents: int, share: float) -> int:
    """How many documents are held out: at least one, where any are to be."""
    if not documents:
        raise UserError("there is no text in the files")
    count = max(1, round(share * documents)) if share else 0
    if documents <= count:
        raise UserError(
            f"the text has {documents} documents, of which {count} would be held out; a blank line ends a document, "
            "and --held-out 0 holds none out"
        )
    return count


def _fitting_tokenizer(name: str) -> PreTrainedTokenizerBase:
    from simcse_kit.tokenization import open_tokenizer

    tokenizer = open_tokenizer(name)
    size = max(tokenizer.get_vocab().values()) + 1  # with the gaps that some have
    if size > LARGEST_VOCABULARY:
        raise UserError(f"--tokenizer {name}: {_too_large(size)}")
    if tokenizer.mask_token_id is None or len(tokenizer("")["input_ids"]) != 2:
        raise UserError(f"--tokenizer {name}: needs a mask token and one token at each end of a text, as BERT's")
    return tokenizer


def _too_large(size: int) -> str:
    return f"a vocabulary of {size:,} does not fit the 16 bits of a token id; {LARGEST_VOCABULARY:,} is the most"
