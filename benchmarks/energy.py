"""What an update through the descent of a board energy costs: by hand, by autograd, and as bare matrix products.

    python benchmarks/energy.py [--rounds N]

Everything is interleaved in every round. An update is the loss of six unrolled steps and its derivative in all
weights: with `autograd` the gradient of the energy is recorded and differentiated twice, `explicit` differentiates the
gradient written by hand once, `tensors` has its derivative by hand as well, `fused` is that in compiled kernels. They
are checked to agree over two steps; over six, an untrained descent is so sensitive that autograd in float32 is half a
per cent away from itself in float64. A step is one gradient, nothing recorded; its products are bare matrix products
of the same sizes. CPU seconds of one thread, so that other jobs matter little; ratios are medians over rounds with
their quartiles.
Prints a table and writes it to benchmarks/energy.json.
"""
import json, platform, statistics, time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch, typer

from reasonnb.sudoku.board import BoardShape
from reasonnb.sudoku.generator import generate
from reasonnb.systems.descent import blocks
from reasonnb.systems.descent.blocks import set_sums
from reasonnb.systems.descent.board_energy import BoardEnergy, energy_flop, logit_gradient
from reasonnb.systems.descent.losses import descent_loss

SIZES = {'4x4': (BoardShape(2, 2), 64), '6x6': (BoardShape(2, 3), 32), '9x9': (BoardShape(3, 3), 8)}


@contextmanager
def without_kernels():
    "Inside, the fused gradient is made of tensor operations."
    kept = blocks._Kernels.applies
    blocks._Kernels.applies = staticmethod(lambda x: False)
    try: yield
    finally: blocks._Kernels.applies = kept


def products(model, box, batch):
    "Matrix products of one gradient, each with operands of its own size and nothing between them."
    x = torch.randn(batch, box.cols, box.rows, box.rows, box.cols, box.N, len(model.head))
    narrow = [part.reshape(-1, x.shape[-1]) for part in (x, *set_sums(x))]
    wide = [torch.randn(len(part), len(model.layers[0].bias)) for part in narrow]
    up, down = model.layers[0].own.detach(), model.layers[0].down.detach()
    def run():
        for _ in model.layers:
            for a, b in zip(narrow, wide): a @ up.T, b @ up
            wide[0] @ down.T, narrow[0] @ down
    return run


def calls(box, batch, steps=6):
    "Name -> computation, and operations of a step; the four updates agree."
    torch.manual_seed(0)
    model = BoardEnergy()
    puzzles, solutions = map(torch.as_tensor, generate(batch, box, seed=0))
    u = .5 * torch.randn(batch, box.cells, box.N)
    def update(way, steps=steps):
        model.zero_grad()
        descent_loss(model, puzzles, solutions, u, box, steps=steps, way=way)['loss'].backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])
    def tensors(**words):
        with without_kernels(): return update('fused', **words)
    made = {way: partial(update, way) for way in ('autograd', 'explicit', 'fused')} | dict(tensors=tensors)
    expected = made['autograd'](steps=2)
    for run in made.values():
        error = (run(steps=2) - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, f'{run} is off by {error:.1e}'
    with torch.no_grad(): condition = model.condition(puzzles, box)
    def step():
        with torch.no_grad(): return logit_gradient(model, condition, u)
    return made | dict(step=step, products=products(model, box, batch)), 2 * energy_flop(model, box) * batch


def measure(name, rounds):
    "Medians over rounds, in which all alternate."
    (box, batch), found = SIZES[name], []
    made, flop = calls(box, batch)
    def clock(call):
        start, repeats = time.process_time(), 5 if call in (made['step'], made['products']) else 1
        for _ in range(repeats): call()
        return (time.process_time() - start) / repeats
    for _ in range(rounds + 1): found.append({name: clock(call) for name, call in made.items()})
    found = found[1:]
    def ratio(a, b): return [round(q, 2) for q in statistics.quantiles([row[a] / row[b] for row in found], n=4)]
    median = {name: statistics.median(row[name] for row in found) for name in made}
    return dict(board=name, batch=batch, milliseconds={name: round(1e3 * t, 2) for name, t in median.items()},
                autograd_over={way: ratio('autograd', way) for way in ('explicit', 'tensors', 'fused')},
                step_over_products=ratio('step', 'products'), gflop_per_second=round(flop / median['step'] / 1e9, 1))


def main(rounds:int=9):
    torch.set_num_threads(1)
    rows = [measure(name, rounds) for name in SIZES]
    for row in rows:
        faster = '   '.join(f'{way} {ratio[1]:.1f}x' for way, ratio in row['autograd_over'].items())
        print(f"{row['board']} x {row['batch']:2}   update against autograd: {faster}   "
              f"step / products {row['step_over_products'][1]:.2f}   {row['gflop_per_second']} GFLOP/s")
    report = dict(torch=torch.__version__, machine=platform.machine(),
                  capability=torch.backends.cpu.get_cpu_capability(), quartiles='of ratios', rows=rows)
    (Path(__file__).parent/'energy.json').write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__': typer.run(main)
