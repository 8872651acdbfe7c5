"""What can be measured, by name: sentence encoders, and the baselines that stand beside them in the papers' tables.

- ``MODEL``: a sentence encoder (a directory, a packaged model's name or a hub id);
- ``words:FILE``: the average of word vectors in text format;
- ``random:MODEL`` or ``random:MODEL@SEED``: MODEL's architecture and tokenizer, with fresh weights;
- ``cross-encoder:MODEL``: a model that scores pairs and has no vectors, so for STS tasks alone.

A directory of exactly the name given is always a sentence encoder, as it is everywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from simcse_kit.errors import UserError
from simcse_kit.locate import locate

if TYPE_CHECKING:
    import torch

    from simcse_kit.encoder import SentenceEncoder
    from simcse_kit.evaluate.cross_encoder import PairScorer
    from simcse_kit.evaluate.word_vectors import WordVectors

    System: TypeAlias = SentenceEncoder | WordVectors | PairScorer

WORDS, RANDOM, CROSS_ENCODER, ENCODER = "words", "random", "cross-encoder", "encoder"
DEFAULT_SEED = 42

_NAME = re.compile(rf"({WORDS}|{RANDOM}|{CROSS_ENCODER}):(.*)", re.DOTALL)
_SEED = re.compile(r"(.+)@(\d+)", re.DOTALL)


class SystemName(NamedTuple):
    """A system's name, taken apart.

    Attributes:
        kind: ``WORDS``, ``RANDOM``, ``CROSS_ENCODER`` or ``ENCODER``.
        model: The file or the model it is made from.
        seed: Of random weights; of the other kinds without meaning.
    """

    kind: str
    model: str
    seed: int = DEFAULT_SEED


def parse_system(name: str) -> SystemName:
    """Take a system's name apart.

    Raises:
        UserError: If a prefix stands alone.
    """
    found = _NAME.fullmatch(name)
    if not found or Path(name).expanduser().is_dir():
        return SystemName(ENCODER, name)
    kind, model = found.groups()
    if not model:
        raise UserError(f"{name} names nothing behind the colon; write {kind}:{'FILE' if kind == WORDS else 'MODEL'}")
    seeded = _SEED.fullmatch(model)
    if kind == RANDOM and seeded:
        return SystemName(kind, seeded.group(1), int(seeded.group(2)))
    return SystemName(kind, model)


def check_system(
    name: str,
    *,
    pooling: str | None = None,
    max_length: int | None = None,
    dtype: str | torch.dtype | None = None,
    allow_pickle: bool = False,
) -> None:
    """See that a system's files are there and its options apply to it, before anything long begins.

    Files that are not on this machine are fetched. The options are those of ``open_system``.

    Raises:
        UserError: If files are found nowhere, or an option does not apply.
    """
    kind, model, _ = parse_system(name)
    _check_options(name, kind, pooling=pooling, max_length=max_length, dtype=dtype)
    if kind != WORDS:
        locate(model, allow_pickle=allow_pickle)
    elif not Path(model).expanduser().is_file():
        raise UserError(f"{name}: there is no file {model} (looked for in {Path.cwd()})")


def open_system(
    name: str,
    *,
    pooling: str | None = None,
    max_length: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    vocabulary: Collection[str] | None = None,
    allow_pickle: bool = False,
) -> System:
    """Open a system by its name.

    Args:
        name: As in the module's table.
        pooling: As for ``SentenceEncoder.from_pretrained``; word vectors and cross-encoders have none to choose.
        max_length: Tokens a text (cross-encoder: a pair) is cut to. None: as the model says. Not for word vectors.
        device: Where it runs; word vectors have no use for it.
        dtype: Of the weights. None: float32. Not for word vectors.
        vocabulary: The only words whose vectors are needed (see ``word_vectors.vocabulary_of``). None: all.
        allow_pickle: Open pickled weights of an encoder, or of the one whose weights are drawn anew.

    Returns:
        The system; its ``source`` is the name. All but a ``PairScorer`` encode sentences.

    Raises:
        UserError: If it is found nowhere or cannot be opened, or an option does not apply to it.
    """
    kind, model, seed = parse_system(name)
    system: System
    _check_options(name, kind, pooling=pooling, max_length=max_length, dtype=dtype)
    if kind == WORDS:
        from simcse_kit.evaluate.word_vectors import WordVectors

        system = WordVectors.from_file(model, vocabulary=vocabulary)
    elif kind == CROSS_ENCODER:
        from simcse_kit.evaluate.cross_encoder import PairScorer

        system = PairScorer.from_pretrained(model, max_length=max_length, device=device, dtype=dtype)
    elif kind == RANDOM:
        system = random_encoder(
            model,
            seed,
            pooling=pooling,
            max_length=max_length,
            device=device,
            dtype=dtype,
            allow_pickle=allow_pickle,
        )
    else:
        from simcse_kit.encoder import SentenceEncoder

        system = SentenceEncoder.from_pretrained(
            model, pooling=pooling, max_length=max_length, device=device, dtype=dtype, allow_pickle=allow_pickle
        )
    system.source = name
    return system


def random_encoder(
    name: str,
    seed: int = DEFAULT_SEED,
    *,
    pooling: str | None = None,
    max_length: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    allow_pickle: bool = False,
) -> SentenceEncoder:
    """A model's architecture and tokenizer with fresh weights: what is left of a figure without any training.

    Args:
        name: The model; of its weights nothing is left.
        seed: Of the weights, which are drawn as transformers initialises the architecture, the same on every device.
        pooling: As for ``SentenceEncoder.from_pretrained``, like the rest.
        max_length: Tokens a text is cut to.
        device: Where it runs.
        dtype: Of the weights.
        allow_pickle: As there.
    """
    import torch

    from simcse_kit.backbone import parse_device
    from simcse_kit.encoder import SentenceEncoder

    place = parse_device(device)
    encoder = SentenceEncoder.from_pretrained(
        name, pooling=pooling, max_length=max_length, device="cpu", dtype=dtype, allow_pickle=allow_pickle
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fresh = type(encoder.backbone)(encoder.backbone.config)
        encoder.backbone.load_state_dict(fresh.state_dict())
        for layer in encoder.dense.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.reset_parameters()
    encoder.weight_files = []
    return encoder.to(place)


def _check_options(
    name: str, kind: str, *, pooling: str | None, max_length: int | None, dtype: str | torch.dtype | None
) -> None:
    """Refuse an option that a kind of system does not have."""
    if kind == WORDS:
        from simcse_kit.evaluate.word_vectors import WordVectors

        other_pooling = None if pooling == WordVectors.pooling else pooling
        _refuse(name, "word vectors have", pooling=other_pooling, max_length=max_length, dtype=dtype)
    elif kind == CROSS_ENCODER:
        _refuse(name, "a cross-encoder has", pooling=pooling)


def _refuse(name: str, it_has: str, **options: object) -> None:
    for option, value in options.items():
        if value is not None:
            raise UserError(f"{name}: {it_has} no {option} to choose ({value}); leave the option out")
