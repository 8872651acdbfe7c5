"""The reference run: losses and gradient norms equal, step by step, those of a naive implementation.

The naive one is built otherwise throughout: no padding and no mask (texts of one length at a time), scores one by one,
clipping and schedule as formulas, a plain optimiser.
"""

import csv
import json
import math
from collections import defaultdict
from itertools import accumulate, islice

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from simcse_kit.locate import locate
from simcse_kit.train.loop import train
from simcse_kit.train.prepare import prepare
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.rundir import RunDirectory

pytestmark = [pytest.mark.reference, pytest.mark.slow]

ROWS, BATCH, STEPS, LENGTH, LR, TEMPERATURE = 320, 16, 20, 32, 5e-5, 0.05
TOLERANCE = 1e-4
RUNS = {
    "pairs": (["sent0", "sent1"], 0.0),
    "triplets": (["sent0", "sent1", "hard_neg"], 0.0),
    "weighted": (["sent0", "sent1", "hard_neg"], math.log(2)),
}


@pytest.fixture(scope="module")
def table(data_dir):
    with (data_dir / "nli" / "nli_triplets.csv").open(newline="", encoding="utf-8") as file:
        return list(islice(csv.DictReader(file), ROWS))


def ours(table, folder, columns, weight, steps=STEPS):
    """Loss and gradient norm of every step as our run notes them."""
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    recipe = Recipe.model_validate(
        {
            "model": {
                "name": "all-MiniLM-L6-v2",
                "pooling": "mean",
                "head": "none",
                "dropout": 0,
                "max_length": LENGTH,
            },
            "data": {"train": str(folder / "rows.csv"), "columns": columns, "shuffle": False},
            "objectives": [{"temperature": TEMPERATURE, "hard_negative_weight": weight}],
            "train": {"batch_size": BATCH, "lr": LR, "max_steps": steps},
            "output_dir": str(folder / "run"),
        }
    )
    train(prepare(recipe), RunDirectory(recipe.output_dir), quiet=True)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    return [(line["loss"], line["grad_norm"]) for line in lines]


def open_plain():
    directory = locate("all-MiniLM-L6-v2")
    model = AutoModel.from_pretrained(directory, dtype=torch.float32, add_pooling_layer=False)
    return model.eval(), AutoTokenizer.from_pretrained(directory)  # eval: no dropout


def plain_views(model, tokenizer, columns):
    """Mean-pooled vectors of columns of texts; texts of one length together, so there is neither padding nor a mask."""
    texts = [text for column in columns for text in column]
    tokens = [tokenizer(text, truncation=True, max_length=LENGTH)["input_ids"] for text in texts]
    words = model.embeddings.word_embeddings(torch.tensor([token for ids in tokens for token in ids]))
    starts = list(accumulate((len(ids) for ids in tokens), initial=0))
    by_length = defaultdict(list)
    for text, ids in enumerate(tokens):
        by_length[len(ids)].append(text)
    found = [None] * len(texts)
    for length, group in by_length.items():
        embedded = torch.stack([words[starts[text] : starts[text] + length] for text in group])
        for text, states in zip(group, model(inputs_embeds=embedded).last_hidden_state, strict=True):
            found[text] = states.mean(dim=0)
    return [found[start : start + len(columns[0])] for start in range(0, len(found), len(columns[0]))]


def loop_loss(views, weight, *, temperature=TEMPERATURE, label=lambda i, n: i, weighted=lambda i, n: n + i):
    """-log of the share of the right candidate, anchor by anchor and score by score."""
    n, losses = len(views[0]), []
    for i, anchor in enumerate(views[0]):
        candidates = [other for view in views[1:] for other in view]
        scores = [anchor.dot(other) / anchor.norm() / other.norm() / temperature for other in candidates]
        if weight:
            scores[weighted(i, n)] = scores[weighted(i, n)] + weight
        losses.append(torch.stack(scores).logsumexp(0) - scores[label(i, n)])
    return torch.stack(losses).mean()


def note_naive(path, table, columns, weight):
    """Loss and gradient norm of every step, by the naive implementation, into a file."""
    model, tokenizer = open_plain()
    noted = []
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, foreach=False)
    for step in range(STEPS):
        rows = table[step * BATCH : (step + 1) * BATCH]
        loss = loop_loss(plain_views(model, tokenizer, [[row[column] for row in rows] for column in columns]), weight)
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(parameter.grad.double().norm().item() ** 2 for parameter in model.parameters()))
        for parameter in model.parameters():
            parameter.grad *= min(1.0, 1.0 / norm)
        optimizer.param_groups[0]["lr"] = LR * (STEPS - step) / STEPS
        optimizer.step()
        noted.append((loss.item(), norm))
    path.write_text(json.dumps(noted))


def agrees(ours, theirs):
    return abs(ours - theirs) < TOLERANCE


@pytest.mark.parametrize("name", RUNS)
def test_every_step_is_that_of_the_naive_implementation(name, table, tmp_path, start):
    beside = start(note_naive, tmp_path / "naive.json", table, *RUNS[name])
    steps = ours(table, tmp_path, *RUNS[name])
    beside.join()
    naive_steps = json.loads((tmp_path / "naive.json").read_text())
    pairs = zip(steps, naive_steps, strict=True)
    for step, ((loss, norm), (naive_loss, naive_norm)) in enumerate(pairs, start=1):
        assert agrees(loss, naive_loss), f"loss of step {step}: {loss} and {naive_loss}"
        assert agrees(norm, naive_norm), f"gradient norm of step {step}: {norm} and {naive_norm}"


@pytest.fixture(scope="module")
def first_step(table, tmp_path_factory):
    """The loss of the first step, and the plain views it is of."""
    columns, weight = RUNS["weighted"]
    ((loss, _),) = ours(table, tmp_path_factory.mktemp("first"), columns, weight, steps=1)
    with torch.no_grad():
        return loss, plain_views(*open_plain(), [[row[column] for row in table[:BATCH]] for column in columns])


@pytest.mark.parametrize(
    ("mutation", "agreed"),
    [
        ({}, True),
        ({"temperature": 0.06}, False),
        ({"weighted": lambda i, n: i}, False),
        ({"weighted": lambda i, n: n + (i + 1) % n}, False),
        ({"label": lambda i, n: n + i}, False),
        ({"label": lambda i, n: (i + 1) % n}, False),
    ],
    ids=[
        "as it is",
        "another temperature",
        "weight on the positive",
        "weight on the negative of another row",
        "negatives in the place of positives",
        "labels shifted",
    ],
)
def test_another_loss_is_told_apart_at_the_first_step(mutation, agreed, first_step):
    loss, views = first_step
    assert agrees(loss, loop_loss(views, RUNS["weighted"][1], **mutation).item()) is agreed
