"""Augmentations inside the encoder: how many are drawn, which may be, how evenly; and their settings."""

import math
import subprocess
import sys
from collections import Counter
from typing import Annotated

import pytest
import torch
from pydantic import Field, TypeAdapter, ValidationError
from scipy.stats import chisquare

from simcse_kit.augment.embedding import (
    EMBEDDING_AUGMENTATIONS,
    ElementDropout,
    EmbeddingSettings,
    FeatureCutoff,
    Shuffle,
    SpanCutoff,
    TokenCutoff,
)

N, TOKENS, WIDTH = 7, 9, 6


def draws(augmentation, times, n=N, tokens=TOKENS, width=WIDTH):
    return [augmentation.draw(n, tokens, width, torch.Generator().manual_seed(seed)) for seed in range(times)]


def marginal_p_value(counts, times, chosen):
    """That each place was among the ``chosen`` equally often; the places of one draw exclude each other."""
    places = len(counts)
    share = chosen / places
    statistic = sum((count - times * share) ** 2 for count in counts) / (times * share * (1 - share))
    return torch.special.gammaincc(
        torch.tensor((places - 1) / 2), torch.tensor(statistic * (places - 1) / places / 2)
    ).item()


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 20])
def test_exactly_so_many_are_cut_and_never_padding(n, rate):
    tokens = n + 3
    for seed in range(5):
        make = torch.Generator().manual_seed(seed)
        token = TokenCutoff(rate=rate).draw(n, tokens, WIDTH, make)
        feature = FeatureCutoff(rate=rate).draw(n, tokens, WIDTH, make)
        element = ElementDropout(rate=rate).draw(n, tokens, WIDTH, make)
        span = SpanCutoff(rate=rate).draw(n, tokens, WIDTH, make)
        assert (token.shape, feature.shape, element.shape) == ((tokens, 1), (1, WIDTH), (tokens, WIDTH))
        assert token.sum() == math.floor(n * rate)
        assert feature.sum() == math.floor(WIDTH * rate)
        assert element.sum() == math.floor(n * WIDTH * rate)
        kept = [place for place in range(n) if not span[place]]
        assert len(kept) == min(n, max(math.floor(n * (1 - rate)), 1))
        assert kept == list(range(kept[0], kept[-1] + 1) if kept else [])
        assert not token[n:].any() and not element[n:].any() and not span[n:].any()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 20])
def test_an_order_moves_no_padding_and_no_kept_special_token(n):
    for seed in range(5):
        for keep_special in (False, True):
            make = torch.Generator().manual_seed(seed)
            order = Shuffle(keep_special=keep_special).draw(n, n + 3, WIDTH, make).tolist()
            assert sorted(order) == list(range(n + 3))
            still = [*range(n, n + 3), *((0, n - 1) if keep_special and n else ())]
            assert [order[place] for place in still] == still


@pytest.mark.parametrize(
    ("augmentation", "chosen", "among"),
    [
        (TokenCutoff(rate=0.45), 3, N),
        (FeatureCutoff(rate=0.45), 2, WIDTH),
        (ElementDropout(rate=0.45), 18, N * WIDTH),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_place_is_cut_equally_often(augmentation, chosen, among):
    """Special tokens included."""
    times = 4000
    counts = sum(mask.int() for mask in draws(augmentation, times)).flatten()[:among].tolist()
    assert sum(counts) == times * chosen
    assert marginal_p_value(counts, times, chosen) > 1e-3


def test_pairs_of_tokens_are_cut_equally_often():
    """So a draw is a uniform one of sets, not a rotation."""
    pairs = Counter(tuple(mask.flatten().nonzero().flatten().tolist()) for mask in draws(TokenCutoff(rate=0.3), 4000))
    assert len(pairs) == math.comb(N, 2)
    assert chisquare(list(pairs.values())).pvalue > 1e-3


def test_every_span_is_kept_equally_often():
    starts = Counter((~mask).flatten().nonzero().flatten().tolist()[0] for mask in draws(SpanCutoff(rate=0.4), 4000))
    assert sorted(starts) == [0, 1, 2, 3]  # of 4 = floor(7 * 0.6) tokens
    assert chisquare(list(starts.values())).pvalue > 1e-3


@pytest.mark.parametrize(("keep_special", "n"), [(False, 4), (True, 6)])
def test_every_order_is_equally_likely(keep_special, n):
    orders = Counter(tuple(order.tolist()) for order in draws(Shuffle(keep_special=keep_special), 4000, n=n))
    assert len(orders) == math.factorial(4)
    assert chisquare(list(orders.values())).pvalue > 1e-3


@pytest.mark.parametrize("kind", EMBEDDING_AUGMENTATIONS.values())
def test_a_draw_is_the_same_whatever_the_padding(kind):
    augmentation = kind(**({} if kind is Shuffle else {"rate": 0.4}))
    for wide, narrow in zip(draws(augmentation, 20, tokens=40), draws(augmentation, 20), strict=True):
        assert torch.equal(wide[: len(narrow)], narrow)
    assert not all(torch.equal(one, draws(augmentation, 1)[0]) for one in draws(augmentation, 20))


def test_settings_are_checked_by_name():
    """As a recipe does: a discriminated union of them, errors with their place."""
    settings = TypeAdapter(Annotated[EmbeddingSettings, Field(discriminator="name")])
    for name, kind in EMBEDDING_AUGMENTATIONS.items():
        rate = {} if name == "shuffle" else {"rate": 0.3}
        made = settings.validate_python({"name": name, **rate})
        assert made == kind(**rate)
        assert settings.validate_python(settings.dump_python(made)) == made
    for wrong, place in [
        ({"name": "token_cutoff", "rate": 1.0}, ("token_cutoff", "rate")),
        ({"name": "feature_cutoff", "rate": -0.1}, ("feature_cutoff", "rate")),
        ({"name": "span_cutoff"}, ("span_cutoff", "rate")),
        ({"name": "shuffle", "rate": 0.1}, ("shuffle", "rate")),
        ({"name": "mixup"}, ()),
    ]:
        with pytest.raises(ValidationError) as caught:
            settings.validate_python(wrong)
        assert [error["loc"] for error in caught.value.errors()] == [place]


def test_the_papers_rates_are_the_defaults():
    assert (TokenCutoff().rate, FeatureCutoff().rate, ElementDropout().rate) == (0.15, 0.2, 0.2)


def test_settings_are_known_without_torch():
    code = "import simcse_kit.augment.embedding, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
