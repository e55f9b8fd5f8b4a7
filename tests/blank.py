"The tasks of all systems without their data: a training step needs shapes, not what stands in them."
import torch

from reasonnb.core.gradients import Batch
from reasonnb.sudoku.board import BoardShape
from reasonnb.systems.equilibrium.memory import BlankImages
from reasonnb.systems.lattice.memory import BlankBoards
from reasonnb.systems.looped.task import LoopedTask, SlotTask, build_model


class _Looped:
    def __init__(self, config):
        self.config, self.box, self.model, self.slots = config, BoardShape(*config.box), build_model(config), {}

    def batch(self, step):
        n, cells = self.config.batch_size, self.box.cells
        puzzles, solutions = torch.zeros(n, cells, dtype=torch.uint8), torch.ones(n, cells, dtype=torch.uint8)
        skip = torch.full((n,), self.config.late_iterations[0] if self.config.late_share else 0)
        return Batch(dict(puzzles=puzzles, solutions=solutions, skip=skip), torch.full((n,), float(cells)))


class BlankLooped(_Looped, LoopedTask): "Boards without a clue; as many iterations are skipped as ever can be."
class BlankSlots(_Looped, SlotTask): "The same for boards that stay."


def blank_task(config): # of any system
    "The task of a config, without data."
    name = type(config).__name__
    if name == 'LoopedConfig': return (BlankSlots if config.slots else BlankLooped)(config)
    return dict(LatticeConfig=BlankBoards, EquilibriumConfig=BlankImages)[name](config)
