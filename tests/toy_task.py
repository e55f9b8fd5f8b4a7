"""A task small enough to know by heart: a two-layer network with dropout learns a fixed random map."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from reasonnb.core.config import Config
from reasonnb.core.gradients import Batch


@dataclass(frozen=True, kw_only=True)
class ToyConfig(Config):
    width: int = 16
    dropout: float = 0.1
    explode_at: int = -1  # step whose batch is not finite, -1 = none


class ToyTask:
    def __init__(self, config: ToyConfig):
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = nn.Sequential(nn.Linear(6, config.width), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(config.width, 3))
            self.truth, self.held_out = torch.randn(6, 3), torch.randn(64, 6)

    def batch(self, step: int) -> Batch:
        noise = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        x = torch.randn(self.config.batch_size, 6, generator=noise)
        if step == self.config.explode_at: x[0] = float("inf")
        # weights differ between items, so that a plain mean over micro-batches would be wrong
        return Batch({"x": x, "y": x @ self.truth}, torch.randint(1, 9, (len(x),), generator=noise))

    def backward(self, batch: Batch) -> dict[str, torch.Tensor]:
        error = (self.model(batch["x"]) - batch["y"]).square().mean(1)
        error = (error * batch.weights).sum() / batch.weight
        penalty = 0.01 * sum(p.square().sum() for p in self.model.parameters())
        (error + penalty).backward()
        return {"loss": error + penalty, "error": error, "penalty": penalty}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        torch.rand(5)  # an evaluation that draws noise must not disturb training
        x = self.held_out
        return {"loss": F.mse_loss(self.model(x), x @ self.truth).item(), "norm": self.model[0].weight.norm().item()}

    def describe(self) -> dict:
        return {"data": "random linear map", "protocol": "none", "flop_per_item": 6 * sum(p.numel() for p in self.model.parameters())}
