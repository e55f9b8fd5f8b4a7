"""What one iteration of the energy transformer costs, against its bare matrix products and against autograd.

    python benchmarks/equilibrium.py [--rounds N]

Three computations, interleaved in every round: the field as the package writes it, its matrix products alone (same
shapes, same layouts, nothing between them), and minus the gradient of the energy by autograd. The first and the third
are asserted to agree. CPU seconds of one thread, so that other jobs matter little; ratios are medians over rounds with
their quartiles.
Prints a table and writes it to benchmarks/equilibrium.json.
"""
import json, platform
from pathlib import Path

import torch, typer
import torch.nn.functional as F

from reasonnb.systems.equilibrium.energy import EnergyTransformer
from rounds import alternate, median, ratio

SHAPES = {  # name -> images in a batch, arguments of the network
    'digits': (128, {}),
    'mnist': (256, dict(image=(1, 28, 28), patch=10, stride=6, width=64, heads=4, size=16, hidden=256))}


def sides(kind:str, batch:int, network:dict) -> dict: # name -> call
    "The three computations, on one random state."
    torch.manual_seed(0)
    model = EnergyTransformer(attention=kind, **network)
    u = model.drive(torch.rand(batch, *model.patches.image)).detach()
    h = torch.randn_like(u)
    memories, tokens = model.parts[-1], u.shape[1]
    hidden = torch.randn(batch, tokens, memories.weight.shape[0])
    if kind != 'none':
        attention = model.parts[0]
        size, many = attention.size, batch * attention.heads
        q, k, p, m = (torch.randn(many, *s) for s in ((tokens, size), (tokens, size), (tokens, tokens), (size, size)))
        both = torch.randn(batch, tokens, len(attention.weight))

    def products():
        if kind != 'none': F.linear(h, attention.weight), both @ attention.weight
        if kind == 'softmax': torch.bmm(k, q.mT), torch.bmm(p.mT, k), torch.bmm(p, q)
        if kind == 'linear': torch.bmm(k.mT, q), torch.bmm(k, m), torch.bmm(q, m.mT)
        F.linear(h, memories.weight, memories.bias), hidden @ memories.weight

    def autograd():
        with torch.enable_grad():
            g = model.activate(h).detach().requires_grad_()
            return u - torch.autograd.grad(sum(part.energy(g) for part in model.parts).sum(), g)[0]
    torch.testing.assert_close(autograd(), model.field(h, u), rtol=1e-5, atol=1e-5)
    return dict(field=lambda: model.field(h, u), products=products, autograd=autograd)


@torch.no_grad()
def measure(kind:str, shape:str, rounds:int, repeats:int=20) -> dict:
    "Medians over rounds, in which the three alternate."
    calls = sides(kind, *SHAPES[shape])
    found = alternate(calls, rounds, repeats)
    return dict(attention=kind, shape=shape, microseconds={name: round(1e6 * median(found, name)) for name in calls},
                field_over_products=ratio(found, 'field', 'products'),
                autograd_over_field=ratio(found, 'autograd', 'field'))


def main(rounds:int=15):
    torch.set_num_threads(1)
    rows = [measure(kind, shape, rounds) for kind in ('softmax', 'linear', 'none') for shape in SHAPES]
    for row in rows:
        print(f"{row['attention']:8} {row['shape']:7} field {row['microseconds']['field']:6} us"
              f"   / products {row['field_over_products'][1]:.2f}"
              f"   autograd / field {row['autograd_over_field'][1]:.2f}")
    report = dict(torch=torch.__version__, machine=platform.machine(),
                  capability=torch.backends.cpu.get_cpu_capability(), quartiles='of ratios', rows=rows)
    (Path(__file__).parent/'equilibrium.json').write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__': typer.run(main)
