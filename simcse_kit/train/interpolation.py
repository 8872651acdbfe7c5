"""Between the weights that training began with and those it has come to: what is evaluated and saved may lie there.

Fine-tuning gains on its own data and loses elsewhere; on the straight line between both weights much of the gain
is there before much is lost. Wortsman et al. 2022, WiSE-FT (arXiv:2109.01903), equation 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from simcse_kit.encoder import SentenceEncoder


class Interpolation:
    """Puts an encoder onto the line between its first weights and its present ones, for as long as it is asked to."""

    def __init__(self, encoder: SentenceEncoder, share: float) -> None:
        """Note the encoder's weights as the first ones.

        Args:
            encoder: As opened; a head, which starts at random, is left out.
            share: Of the trained weights, in (0, 1]; that of the first ones is the rest.
        """
        self._share = share
        self._first = {
            name: parameter.detach().clone()
            for name, parameter in encoder.named_parameters()
            if share < 1.0 and not name.startswith("head.")
        }

    @contextmanager
    def applied(self, encoder: SentenceEncoder) -> Iterator[None]:
        """Within this context the encoder has the weights in between; behind it the trained ones, to the bit."""
        parameters = {name: each for name, each in encoder.named_parameters() if name in self._first}
        trained = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        try:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(torch.lerp(self._first[name], parameter, self._share))
            yield
        finally:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(trained[name])
