"""A task small enough to know by heart: a network with dropout learns a fixed random map.

As a script, train it as a user would:  python toy_task.py RUN_DIR [name=value ...]
"""
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from reasonnb.core.config import Config, parse_overrides
from reasonnb.core.gradients import Batch
from reasonnb.core.trainer import fit


@dataclass(frozen=True, kw_only=True)
class ToyConfig(Config):
    steps: int = 120
    batch_size: int = 24
    lr: float = 0.01
    eval_every: int = 20
    device: str = "cpu"
    dropout: float = 0.1
    parallel: bool = False
    explode_at: int = -1  # update whose batch is not finite, -1 = none


class ToyTask:
    def __init__(self, config: ToyConfig):
        self.config, self.parallel = config, config.parallel
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = nn.Sequential(
                nn.Linear(6, 16),
                nn.BatchNorm1d(16),
                nn.ReLU(),
                nn.Dropout(config.dropout),
                nn.Linear(16, 16),
                nn.ReLU(),
                nn.Linear(16, 3),
            )
            if config.parallel: self.model[1] = nn.Identity()  # batch statistics of a shard are not those of the batch
            self.truth, self.held_out = torch.randn(6, 3), torch.randn(64, 6)

    def batch(self, step: int) -> Batch:
        noise = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        x = torch.randn(self.config.batch_size, 6, generator=noise)
        if step == self.config.explode_at: x[0] = float("inf")
        # weights differ between items, so that a plain mean over pieces would be wrong
        return Batch({"x": x, "y": torch.tanh(x @ self.truth)}, torch.randint(1, 9, (len(x),), generator=noise))

    def backward(self, batch: Batch) -> dict[str, torch.Tensor]:
        error = (self.model(batch["x"]) - batch["y"]).square().mean(1)
        error = (error * batch.weights).sum() / batch.weight
        penalty = 0.01 * sum(p.square().sum() for p in self.model.parameters())
        (error + penalty).backward()
        return {"loss": error + penalty, "error": error, "penalty": penalty}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        torch.rand(5)  # an evaluation that draws must not disturb the training
        x = self.held_out
        loss = F.mse_loss(self.model(x), torch.tanh(x @ self.truth))
        return {"loss": loss.item(), "norm": self.model[0].weight.norm().item()}

    def describe(self) -> dict:
        return {"data": "random map", "flop_per_item": 6 * sum(p.numel() for p in self.model.parameters())}


def train(run_dir, overrides: str = "", **options) -> dict:
    "Train the toy task in a folder."
    config = ToyConfig().replace(**parse_overrides(overrides))
    return fit(ToyTask(config), config, run_dir, **options)


def same(a: dict, b: dict) -> bool:
    "Whether two records tell of the same training, bit for bit; speed and dates apart."
    def outcome(record):
        rows = [{k: v for k, v in row.items() if k != "items_per_second"} for row in record["curve"]]
        return rows, [record[k] for k in ("metrics", "best", "steps", "alarms", "config")]
    return outcome(a) == outcome(b)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], " ".join(sys.argv[2:]))
