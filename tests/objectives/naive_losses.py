"""Every objective a second time: its formula in loops over numbers, its closed form, and what leaves it unchanged."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from simcse_kit.objectives import OBJECTIVES
from simcse_kit.objectives.settings import SECTIONS

ALPHA = math.log(2)


def dot(u, v):
    return sum(a * b for a, b in zip(u, v, strict=True))


def cosine(u, v):
    return dot(u, v) / math.sqrt(dot(u, u)) / math.sqrt(dot(v, v))


def distance(u, v, kind):
    return 1 - cosine(u, v) if kind == "cosine" else math.dist(u, v)


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def surprise(own, candidates):
    """-log of the probability of one logit among the candidates, itself included."""
    return math.log(sum(math.exp(each) for each in candidates)) - own


def info_nce(
    anchor,
    positive,
    *negatives,
    temperature=0.05,
    hard_negative_weight=0.0,
    similarity="cosine",
    symmetric=False,
):
    """Equations 1 and 5 of the SimCSE paper; alpha stands where its equation 8 has it."""
    alike = {"cosine": cosine, "dot": dot}[similarity]
    total = 0.0
    for i, query in enumerate(anchor):
        own, others = math.exp(alike(query, positive[i]) / temperature), 0.0
        for j in range(len(anchor)):
            others += math.exp(alike(query, positive[j]) / temperature)
            for negative in negatives:
                alpha = math.exp(hard_negative_weight) if i == j else 1.0
                others += alpha * math.exp(alike(query, negative[j]) / temperature)
        total -= math.log(own / others)
    forward = total / len(anchor)
    if not symmetric:
        return forward
    return (forward + info_nce(positive, anchor, temperature=temperature, similarity=similarity)) / 2


def nt_xent(first, second, temperature=0.1, reduction="mean"):
    """ConSERT's code: the cross-entropies of both views, added, each row's candidates in two blocks."""
    total = 0.0
    for own, other in ((first, second), (second, first)):
        for i, query in enumerate(own):
            across = [cosine(query, each) / temperature for each in other]
            within = [cosine(query, each) / temperature for j, each in enumerate(own) if j != i]
            total += surprise(across[i], across + within) / len(own)
    return total if reduction == "sum" else total / 2


def bilinear_info_nce(anchor, positive, matrix):
    scores = [[sum(u[k] * dot(row, v) for k, row in enumerate(matrix)) for v in positive] for u in anchor]
    return mean(surprise(row[i], row) for i, row in enumerate(scores))


def consistency(first, second, temperature=0.05):
    total = 0.0
    for i in range(len(first)):
        others = [j for j in range(len(first)) if j != i]
        p, q = (
            [math.exp(-surprise(own, logits)) for own in logits]
            for logits in ([cosine(view[i], view[j]) / temperature for j in others] for view in (first, second))
        )
        total += sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(p, q, strict=True)) / 2
    return total / len(first)


def softmax(u, v, labels, weight, bias, features=("u", "v", "|u-v|")):
    total = 0.0
    for a, b, label in zip(u, v, labels, strict=True):
        parts = {
            "u": list(a),
            "v": list(b),
            "|u-v|": [abs(x - y) for x, y in zip(a, b, strict=True)],
            "u*v": [x * y for x, y in zip(a, b, strict=True)],
            "max(u,v)^2": [max(x, y) ** 2 for x, y in zip(a, b, strict=True)],
        }
        inputs = [number for name in features for number in parts[name]]
        logits = [dot(row, inputs) + offset for row, offset in zip(weight, bias, strict=True)]
        total += surprise(logits[label], logits)
    return total / len(labels)


def cosine_regression(u, v, gold, max_score=5.0):
    return mean((cosine(a, b) - score / max_score) ** 2 for a, b, score in zip(u, v, gold, strict=True))


def triplet(anchor, positive, negative, margin=1.0, **options):
    kind = options.get("distance", "euclidean")
    rows = zip(anchor, positive, negative, strict=True)
    return mean(max(distance(a, p, kind) - distance(a, n, kind) + margin, 0) for a, p, n in rows)


def margin_contrastive(u, v, labels, margin=1.0, **options):
    total = 0.0
    for a, b, similar in zip(u, v, labels, strict=True):
        apart = distance(a, b, options.get("distance", "euclidean"))
        total += apart**2 / 2 if similar else max(margin - apart, 0) ** 2 / 2
    return total / len(labels)


def rank(similarity, gold, scale):
    total = 1.0
    for i, high in enumerate(gold):
        for j, low in enumerate(gold):
            if high > low:
                total += math.exp(scale * (similarity[j] - similarity[i]))
    return math.log(total)


def cosent(u, v, gold, scale=20.0):
    return rank([cosine(a, b) for a, b in zip(u, v, strict=True)], gold, scale)


def angle(u, v, gold, scale=20.0):
    """As the published code computes it: the quotient of complex numbers, divided by that of their lengths."""
    similarity = []
    for a, b in zip(u, v, strict=True):
        half = len(a) // 2
        z, w = ([complex(x[k], x[k + half]) for k in range(half)] for x in (a, b))
        length_z, length_w = (math.sqrt(sum(abs(each) ** 2 for each in x)) for x in (z, w))
        quotient = sum(x * y.conjugate() for x, y in zip(z, w, strict=True)) / length_w**2
        quotient /= length_z / length_w
        similarity.append(abs(quotient.real + quotient.imag))
    return rank(similarity, gold, scale)


def ordered(gold):
    return sum(high > low for high in gold for low in gold)


@dataclass(frozen=True)
class Spec:
    """What is known of an objective.

    Attributes:
        naive: its formula, of the views and labels as lists, with its options and parameters as keywords.
        cases: number of views and options.
        equal: from rows, labels, options, number of views and parameters to the loss of equal vectors.
        keeps: which of ``CHANGES`` leave it as it is; all others do change it.
        closed: the cases for which ``equal`` holds; all, if there are none.
        variants: options with which something else leaves it as it is, and what.
    """

    naive: Callable
    cases: list[tuple[int, dict]]
    equal: Callable
    keeps: set[str]
    closed: list[tuple[int, dict]] = field(default_factory=list)
    variants: list[tuple[dict, set[str]]] = field(default_factory=list)


def equal_info_nce(rows, views, hard_negative_weight=0.0, symmetric=False, **_):
    forward = math.log(rows + (views - 2) * (rows - 1 + math.exp(hard_negative_weight)))
    return (forward + math.log(rows)) / 2 if symmetric else forward


DIRECTIONS = {"order of rows", "lengths", "opposite scales", "rotation", "phases"}
DISTANCES = {"order of rows", "rotation", "phases", "shift"}
DOT_PRODUCTS = {"order of rows", "opposite scales", "rotation", "phases"}
SPECS = {
    "info_nce": Spec(
        info_nce,
        [
            (2, {}),
            (2, {"temperature": 0.5}),
            (2, {"symmetric": True}),
            (3, {}),
            (3, {"hard_negative_weight": ALPHA}),
            (3, {"temperature": 0.2, "hard_negative_weight": -ALPHA, "symmetric": True}),
            (4, {}),
            (4, {"hard_negative_weight": ALPHA}),
            (2, {"similarity": "dot", "temperature": 1.0}),
            (4, {"similarity": "dot", "temperature": 2.0, "hard_negative_weight": ALPHA, "symmetric": True}),
        ],
        equal_info_nce,
        DIRECTIONS,
        variants=[({"similarity": "dot", "temperature": 1.0}, DOT_PRODUCTS)],
    ),
    "nt_xent": Spec(
        nt_xent,
        [(2, {}), (2, {"temperature": 0.5}), (2, {"reduction": "sum"})],
        lambda rows, reduction="mean", **_: math.log(2 * rows - 1) * (2 if reduction == "sum" else 1),
        DIRECTIONS | {"swap"},
    ),
    "bilinear_info_nce": Spec(
        bilinear_info_nce,
        [(2, {})],
        lambda rows, **_: math.log(rows),
        {"order of rows", "opposite scales"},
    ),
    "consistency": Spec(
        consistency,
        [(2, {}), (2, {"temperature": 0.5})],
        lambda **_: 0.0,
        DIRECTIONS | {"swap"},
    ),
    "softmax": Spec(
        softmax,
        [
            (2, {}),
            (2, {"features": ("|u-v|",)}),
            (2, {"features": ("u", "v", "|u-v|", "max(u,v)^2")}),
            (2, {"features": ("u*v", "v", "u")}),
        ],
        lambda labels, bias, **_: mean(surprise(bias[label], bias) for label in labels),
        {"order of rows"},
        closed=[(2, {"features": ("|u-v|",)})],
    ),
    "cosine_regression": Spec(
        cosine_regression,
        [(2, {}), (2, {"max_score": 1.0})],
        lambda labels, max_score=5.0, **_: mean((1 - gold / max_score) ** 2 for gold in labels),
        DIRECTIONS | {"swap"},
    ),
    "triplet": Spec(
        triplet,
        [(3, {}), (3, {"margin": 0.0}), (3, {"margin": 5.0}), (3, {"margin": 0.1, "distance": "cosine"})],
        lambda margin=1.0, **_: margin,
        DISTANCES,
        variants=[({"distance": "cosine"}, DIRECTIONS)],
    ),
    "margin_contrastive": Spec(
        margin_contrastive,
        [(2, {}), (2, {"margin": 4.0}), (2, {"distance": "cosine"})],
        lambda labels, margin=1.0, **_: margin**2 / 2 * mean(1 - label for label in labels),
        DISTANCES | {"swap"},
        variants=[({"distance": "cosine"}, DIRECTIONS | {"swap"})],
    ),
    "cosent": Spec(
        cosent,
        [(2, {}), (2, {"scale": 1.0})],
        lambda labels, **_: math.log(1 + ordered(labels)),
        DIRECTIONS | {"swap", "range of the golds"},
    ),
    "angle": Spec(
        angle,
        [(2, {}), (2, {"scale": 1.0})],
        lambda labels, **_: math.log(1 + ordered(labels)),
        (DIRECTIONS | {"range of the golds"}) - {"rotation"},
    ),
}
EVERY_CASE = [(name, *case) for name, spec in SPECS.items() for case in spec.cases]
CLOSED_FORMS = [(name, *case) for name, spec in SPECS.items() for case in spec.closed or spec.cases]
VARIANTS = [
    (name, options, keeps) for name, spec in SPECS.items() for options, keeps in [({}, spec.keeps), *spec.variants]
]


def draw(views, rows, width=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator, dtype=dtype) for _ in range(views)]


def draw_labels(name, rows, seed=0):
    """Labels of an objective's kind: class ids, golds in half points (with ties), or None."""
    section, generator = SECTIONS[name], torch.Generator().manual_seed(seed)
    if section.labels == "class":
        return torch.randint(section.num_classes, (rows,), generator=generator)
    return torch.randint(11, (rows,), generator=generator) / 2 if section.labels == "score" else None


def make(name, options, width=6, seed=0, dtype=torch.float64):
    """An objective whose parameters, if it has any, are random."""
    module = OBJECTIVES[name](**options, **({"width": width} if SECTIONS[name].learned else {}))
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return module.to(dtype)


def parameters_of(module):
    return {name.removeprefix("classifier."): each.tolist() for name, each in module.named_parameters()}


def _change_rows(views, labels, seed):
    order = torch.randperm(len(views[0]), generator=torch.Generator().manual_seed(seed))
    return [view[order] for view in views], labels if labels is None else labels[order]


def _change_phases(views, seed):
    """Turn every complex dimension (first half real, second imaginary) by an angle of its own."""
    half = views[0].shape[1] // 2
    turns = torch.polar(torch.ones(half, dtype=torch.float64), 3 * draw(1, 1, width=half, seed=seed)[0][0])
    turned = [torch.complex(view[:, :half], view[:, half:]) * turns for view in views]
    return [torch.cat([view.real, view.imag], dim=1) for view in turned]


def _lengths(view, seed):
    return view * (draw(1, len(view), width=1, seed=seed)[0].abs() + 0.1)


# What may be done to views and labels: (views, labels, seed) -> (views, labels).
CHANGES = {
    "order of rows": _change_rows,
    "lengths": lambda views, labels, seed: ([_lengths(view, seed + i) for i, view in enumerate(views)], labels),
    "opposite scales": lambda views, labels, seed: ([views[0] * 3, *(view / 3 for view in views[1:])], labels),
    "rotation": lambda views, labels, seed: (
        [view @ torch.linalg.qr(draw(1, view.shape[1], seed=seed)[0]).Q for view in views],
        labels,
    ),
    "phases": lambda views, labels, seed: (_change_phases(views, seed), labels),
    "shift": lambda views, labels, seed: ([view + draw(1, 1, seed=seed)[0] for view in views], labels),
    "swap": lambda views, labels, seed: ([views[1], views[0], *views[2:]], labels),
    "range of the golds": lambda views, labels, seed: (views, labels.exp()),
}
