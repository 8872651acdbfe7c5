"""Structurally different implementations to compare with: one row at a time, without padding, in loops."""

import numpy as np

LAYERS = {"last2_mean": -2, "first_last_mean": 1, "first_last_mean_h0": 0}


def pool(pooling, hidden_states, ids, mask_token):
    """Pool one text's states by a pooling of the package.

    Args:
        pooling: its name.
        hidden_states: H_0 ... H_L, each [T, D].
        ids: its T token ids.
        mask_token: the id of the mask token.
    """
    last = np.asarray(hidden_states[-1], dtype=np.float64)
    if pooling in ("cls", "cls_pooler"):
        return last[0]
    if pooling == "mask":
        (position,) = [t for t, token in enumerate(ids) if token == mask_token]
        return last[position]
    if pooling == "max":
        return np.array([max(state[d] for state in last) for d in range(last.shape[1])])
    other = np.asarray(hidden_states[LAYERS[pooling]], dtype=np.float64) if pooling in LAYERS else last
    total = np.zeros(last.shape[1])
    for state, other_state in zip(last, other, strict=True):
        total += 0.5 * state + 0.5 * other_state
    return total / len(ids)


def cosines(a, b):
    """Cosine of each row of ``a`` with the same row of ``b``."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))


def largest_difference(a, b):
    """The largest absolute difference between two arrays of the same shape."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape
    return np.abs(a - b).max()
