"""Muon: momentum whose update of every weight matrix is made orthogonal, with AdamW for the rest.

A denoiser that has to remember a thousand pictures by name learns rare associations in fewer steps this way; the
orthogonalisation costs a fixed amount a step whatever the batch. Method and coefficients: Keller Jordan, "Muon".
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum; a convolution's kernel counts as the matrix [out, in * height * width]."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; the step's size is that of an AdamW step of the same learning rate."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1))
                size = 0.2 * max(update.shape) ** 0.5
                parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * size)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrix to [rows, columns], roughly, by Newton-Schulz iterations."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether Muon takes the parameter: hidden weights, no embeddings, no first or last convolution."""
    return parameter.ndim >= 2 and not any(part in name for part in ("embed", "conv_in", "conv_out"))
