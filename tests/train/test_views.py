"""A recipe's views: what each block of the merged batch is, against forwards made one at a time."""

import pytest
import torch

from simcse_kit.errors import UserError
from simcse_kit.tokenization import TemplateTokenizer
from simcse_kit.train import views as views_module
from simcse_kit.train.loop import train
from simcse_kit.train.prepare import open_encoder, prepare
from simcse_kit.train.rows import TrainingRows
from simcse_kit.train.rundir import RunDirectory
from simcse_kit.train.views import MergedForward, Views
from simcse_kit.train.weighted import WeightedObjectives

ROWS = TrainingRows((["a cat", "red ball dog", "the man plays the guitar"], ["the door", "letter", "a red street"]))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pairs(recipe, **changes):
    return recipe(data__columns=["a", "p"], **changes)


def merged(content, encoder, views, second=None):
    objective = WeightedObjectives(content, width=encoder.dimension)
    return MergedForward(content, encoder, views, objective, second=second)


def forward(content, seed=1, rows=ROWS, second=False):
    """The vectors of a training forward, by text and view, with what it was given."""
    encoder, views = open_encoder(content).train(), Views(content)
    other = open_encoder(content).train() if second else None
    model = merged(content, encoder, views, other).train()
    batch = views.collate(TemplateTokenizer(encoder.tokenizer), rows, [2, 0, 1], generator())
    torch.manual_seed(seed)
    vectors, losses = model([batch])
    assert not losses
    return encoder, views.arrange(vectors), batch.ids, batch.mask


def test_blocks_are_the_views_of_the_first_text_then_those_of_the_next(recipe):
    content = pairs(recipe, views=[{}, {"text": {"name": "delete_one_word"}}], objectives=[{"name": "nt_xent"}])
    encoder, views = open_encoder(content), Views(content)
    ids, mask = views.collate(TemplateTokenizer(encoder.tokenizer), ROWS, [2, 0, 1], generator())[:2]
    draw = generator()
    deleted = [view.blocks[1].augment([texts[row] for row in (2, 0, 1)], draw) for view, texts in
               zip((views, views), ROWS.texts, strict=True)]  # fmt: skip
    expected = [ROWS.texts[0][row] for row in (2, 0, 1)] + deleted[0]
    expected += [ROWS.texts[1][row] for row in (2, 0, 1)] + deleted[1]
    assert [row[:n].tolist() for row, n in zip(ids, mask.sum(1), strict=True)] == encoder.tokenize(expected)
    assert all(len(new.split()) == max(len(old.split()) - 1, 1) for new, old in
               zip(deleted[0], (ROWS.texts[0][row] for row in (2, 0, 1)), strict=True))  # fmt: skip
    assert not any((row[n:] != encoder.pad_id).any() for row, n in zip(ids, mask.sum(1), strict=True))


def test_texts_are_cut_where_the_recipe_says(recipe):
    content = pairs(recipe, model__max_length=4)
    ids = Views(content).collate(TemplateTokenizer(open_encoder(content).tokenizer), ROWS, [2], generator()).ids
    assert ids.shape == (2, 4)


def test_by_default_all_views_share_one_forward_and_two_of_a_text_differ_by_their_masks(recipe, files):
    content = recipe(data={"train": str(files / "texts.txt")}, model__dropout=0.3)
    _, ((one, two),), _, _ = forward(content, rows=TrainingRows(ROWS.texts[:1]))
    assert (one - two).abs().max() > 1e-3


def test_rows_in_groups_of_like_length_give_the_vectors_and_gradients_of_one_padded_batch(recipe, monkeypatch):
    monkeypatch.setattr(views_module, "CPU_TOKEN_BUDGET", 12)
    content = pairs(recipe, model__dropout=0.0)
    encoder, by_text, ids, mask = forward(content)
    encoder._passes._can_pack = False
    calls = []
    hook = encoder.backbone.register_forward_pre_hook(
        lambda module, inputs, named: calls.append(named["input_ids"].shape), with_kwargs=True
    )
    views = Views(content)
    batch = views.collate(TemplateTokenizer(encoder.tokenizer), ROWS, [2, 0, 1], generator())
    grouped = torch.cat(merged(content, encoder, views)([batch])[0])
    hook.remove()
    assert len(calls) > 2 and sum(rows * tokens for rows, tokens in calls) < ids.numel()
    whole = encoder(ids, mask)
    torch.testing.assert_close(grouped, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(grouped, torch.cat([views[0] for views in by_text]), rtol=0, atol=1e-6)
    weight = encoder.backbone.embeddings.word_embeddings.weight
    one, other = (torch.autograd.grad(vectors.sin().sum(), weight)[0] for vectors in (grouped, whole))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_view_without_dropout_is_the_vector_of_evaluation_and_the_other_keeps_its_dropout(recipe, files):
    views = [{}, {"dropout": False}]
    content = recipe(data={"train": str(files / "texts.txt")}, model__dropout=0.3, views=views)
    encoder, ((dropped, clean),), ids, mask = forward(content, rows=TrainingRows(ROWS.texts[:1]))
    assert all(module.training for module in encoder.modules())
    encoder.eval()
    whole = encoder(ids[3:], mask[3:])
    torch.testing.assert_close(clean, whole, rtol=0, atol=1e-5)
    assert (dropped - whole).abs().max() > 1e-3


def test_a_view_with_the_same_mask_is_the_first_view_and_takes_no_forward(recipe, files):
    content = recipe(data={"train": str(files / "texts.txt")}, model__dropout=0.3, views=[{}, {"dropout": "same"}])
    _, ((one, two),), ids, _ = forward(content, rows=TrainingRows(ROWS.texts[:1]))
    assert one is two and len(ids) == 3


def test_an_embedding_augmentation_changes_its_own_view_alone(recipe, files):
    views = [{"embedding": {"name": "feature_cutoff", "rate": 0.5}}, {}]
    content = recipe(data={"train": str(files / "texts.txt")}, model__dropout=0.0, views=views)
    encoder, ((cut, clean),), ids, mask = forward(content, rows=TrainingRows(ROWS.texts[:1]))
    encoder.eval()
    whole = encoder(ids[3:], mask[3:])
    torch.testing.assert_close(clean, whole, rtol=0, atol=1e-6)
    assert (cut - whole).abs().max() > 1e-3


def test_a_second_encoder_sees_what_is_not_the_anchor_and_is_trained_by_itself(recipe):
    content = pairs(recipe, train__encoders=2, model__dropout=0.0, objectives=[{"name": "info_nce"}])
    encoder, ((anchor,), (positive,)), ids, mask = forward(content, second=True)
    words = encoder.backbone.embeddings.word_embeddings.weight
    (gradient,) = torch.autograd.grad(positive.sum(), [words], allow_unused=True)
    assert gradient is None
    torch.testing.assert_close(anchor, encoder(ids, mask).chunk(2)[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(positive, encoder(ids, mask).chunk(2)[1], rtol=0, atol=1e-6)  # still equal weights

    prepared = prepare(content)
    before = [one.state_dict() for one in (prepared.encoder, prepared.second)]
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in before]
    train(prepared, RunDirectory(content.output_dir), quiet=True)
    for encoder, state in zip((prepared.encoder, prepared.second), before, strict=True):
        assert any(not torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
    name = "backbone.embeddings.word_embeddings.weight"
    assert not torch.equal(prepared.encoder.state_dict()[name], prepared.second.state_dict()[name])


def test_what_an_augmentation_lacks_is_said_when_it_is_opened(recipe):
    text = {"name": "synonym", "wordnet": "nowhere"}
    content = pairs(recipe, views=[{}, {"text": text}], objectives=[{"name": "nt_xent"}])
    with pytest.raises(UserError, match="nowhere"):
        Views(content)


def states_from(encoder, ids, mask, embeddings):
    """Mean-pooled states of given embedding outputs, by a hook of its own."""
    hook = encoder.backbone.embeddings.register_forward_hook(lambda module, inputs, output: embeddings)
    states = encoder.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    hook.remove()
    return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


@pytest.mark.parametrize("of", ["labels", "views"])
def test_an_adversarial_view_moves_the_first_views_embeddings_to_where_the_loss_is_higher(recipe, of):
    content = recipe(
        data__columns=["a", "p", "label"],
        data__convert="nli_pairs",
        model__dropout=0.0,
        views=[{}, {"embedding": {"name": "adversarial", "noise_norm": 0.3, "of": of}}],
        objectives=[{"name": "softmax"}, {"name": "nt_xent", "weight": 0.15}],
    )
    encoder, views = open_encoder(content).train(), Views(content)
    objective = WeightedObjectives(content, width=encoder.dimension)
    rows = TrainingRows(ROWS.texts, torch.tensor([0, 2, 1]))
    batch = views.collate(TemplateTokenizer(encoder.tokenizer), rows, [2, 0, 1], generator())
    vectors, _ = MergedForward(content, encoder, views, objective)([batch])
    (premise, moved_premise), (_, moved_hypothesis) = views.arrange(vectors)
    assert encoder.backbone.embeddings.word_embeddings.weight.grad is None

    texts = list(zip(batch.ids.chunk(4)[::2], batch.mask.chunk(4)[::2], strict=True))
    embeddings = [encoder.backbone.embeddings(ids).detach().requires_grad_() for ids, _ in texts]
    clean = [states_from(encoder, *text, one) for text, one in zip(texts, embeddings, strict=True)]
    torch.testing.assert_close(premise, clean[0], rtol=0, atol=1e-5)
    if of == "labels":
        loss = objective.objectives["softmax"](clean, torch.tensor([1, 0, 2]))["softmax"]
    else:
        loss = sum(objective.objectives["nt_xent"]([one, one.detach()])["nt_xent"] for one in clean)
    gradients = torch.autograd.grad(loss, embeddings)
    for text, one, gradient, moved in zip(texts, embeddings, gradients, (moved_premise, moved_hypothesis), strict=True):
        expected = states_from(encoder, *text, one + 0.3 * gradient / (gradient.norm(dim=-1, keepdim=True) + 1e-10))
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)
    assert (moved_premise - premise).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert", "mpnet", "roberta"])
def test_the_template_bias_of_each_view_is_what_its_mask_is_without_a_text_to_attend_to(
    recipe, files, tiny_checkpoint, family
):
    other = 'The sentence : "{text}" means {mask}.'
    content = recipe(
        data={"train": str(files / "texts.txt")},
        model={
            "name": str(tiny_checkpoint(family)),
            "pooling": "mask",
            "template": 'This sentence of "{text}" means {mask}.',
            "remove_template_bias": True,
            "dropout": 0.0,
            "max_length": 60,
        },
        views=[{}, {"template": other}],
    )
    encoder, ((one, two),), ids, mask = forward(content, rows=TrainingRows(ROWS.texts[:1]))
    start = encoder.tokenizer.convert_ids_to_tokens(int(ids[0, 0]))
    templates = [content.model.template] * 3 + [other] * 3
    for place, (vector, template) in enumerate(zip([*one, *two], templates, strict=True)):
        n = int(mask[place].sum())
        row = ids[place, :n]
        before = len(encoder.tokenizer.tokenize(start + template.partition("{text}")[0].strip()))
        behind = template.partition("{text}")[2].replace(" {mask}", encoder.tokenizer.mask_token)
        after = len(encoder.tokenizer.tokenize(behind.strip())) + 1
        seen = torch.ones(1, n, dtype=torch.long)
        where = row.tolist().index(encoder.tokenizer.mask_token_id)
        whole = encoder.backbone(input_ids=row[None], attention_mask=seen).last_hidden_state[0, where]
        seen[0, before : n - after] = 0
        bare = encoder.backbone(input_ids=row[None], attention_mask=seen).last_hidden_state[0, where]
        torch.testing.assert_close(vector, encoder.head(whole - bare), rtol=0, atol=1e-5)
        assert (whole - bare).abs().max() > 1e-2


def test_masked_tokens_are_an_objective_beside_others_or_alone(recipe, files, run, lines, tmp_path):
    beside = recipe(objectives=[{"name": "info_nce"}, {"name": "mlm", "weight": 0.1, "rate": 0.4}])
    run(beside)
    for line in lines(beside):
        assert line["loss"] == pytest.approx(line["terms"]["info_nce"] + 0.1 * line["terms"]["mlm"], rel=1e-5)
    alone = recipe(
        data={"train": str(files / "texts.txt")},
        objectives=[{"name": "mlm", "rate": 0.4}],
        train__epochs=30,
        train__lr=3e-3,
        output_dir=str(tmp_path / "alone"),
    )
    run(alone)
    losses = [line["terms"]["mlm"] for line in lines(alone)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
