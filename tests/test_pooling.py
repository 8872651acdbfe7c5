import naive
import numpy as np
import pytest
import torch

from simcse_kit.pooling import POOLINGS, masked_max, masked_mean

LENGTHS = [5, 1, 7, 3]
MASK_TOKEN = 9


@pytest.fixture(scope="module")
def batch():
    """Hidden states H_0 ... H_4 [B, T, D] with garbage in the padding, token ids and attention mask."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), max(LENGTHS), 6)
    # Negative throughout, so that a maximum which looked at zeroed padding would be found out.
    hidden = [torch.randn(shape, generator=generator) - 5.0 for _ in range(5)]
    ids = torch.randint(10, 50, shape[:2], generator=generator)
    ids[torch.arange(len(LENGTHS)), torch.tensor(LENGTHS) - 1] = MASK_TOKEN
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)).long()
    for states in hidden:
        states[mask == 0] = 1e6
    return hidden, ids, mask


@pytest.mark.parametrize("name", POOLINGS)
def test_poolings_equal_loops_over_unpadded_rows(name, batch):
    hidden, ids, mask = batch
    counted = mask * (ids == MASK_TOKEN) if name == "mask" else mask
    pooled = POOLINGS[name](hidden, counted)
    for row, length in enumerate(LENGTHS):
        states = [layer[row, :length].numpy() for layer in hidden]
        expected = naive.pool(name, states, ids[row, :length].tolist(), MASK_TOKEN)
        np.testing.assert_allclose(pooled[row], expected, rtol=1e-5)


@pytest.mark.parametrize("name", POOLINGS)
def test_layer_weights_say_what_is_averaged(name, batch):
    hidden, _, mask = batch
    weights = POOLINGS[name].layer_weights(num_layers=4)
    average = sum(weight * states for weight, states in zip(weights, hidden, strict=True)) / sum(weights)
    torch.testing.assert_close(POOLINGS[name](hidden, mask), POOLINGS[name].reduce(average, mask))


def test_on_a_single_layer_first_and_last_are_the_same(batch):
    hidden, _, mask = batch
    torch.testing.assert_close(POOLINGS["first_last_mean"](hidden[:2], mask), masked_mean(hidden[1], mask))
    assert POOLINGS["first_last_mean"].layer_weights(1) == [0.0, 2.0]


def test_means_of_low_precision_are_rounded_once():
    states = torch.randn(4, 100, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    mask = torch.ones(4, 100)
    mean = masked_mean(states, mask)
    assert mean.dtype == torch.bfloat16
    assert torch.equal(mean, masked_mean(states.float(), mask).bfloat16())


def test_a_row_without_tokens_has_the_mean_zero():
    states, mask = torch.full((2, 3, 4), 7.0), torch.tensor([[0, 0, 0], [1, 1, 0]])
    assert masked_mean(states, mask).tolist() == [[0.0] * 4, [7.0] * 4]


def test_the_maximum_gives_its_gradient_to_tokens_alone():
    states = torch.tensor([[[1.0], [3.0], [9.0]]], requires_grad=True)
    masked_max(states, torch.tensor([[1, 1, 0]])).sum().backward()
    assert states.grad.flatten().tolist() == [0.0, 1.0, 0.0]
