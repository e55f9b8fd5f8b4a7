"""What an update of the convolutional network costs, against its bare convolutions and, if given, a peer's code.

    python benchmarks/convolution.py [--peer DIR] [--rounds N]

An update is three phases and the gradient of symmetric equilibrium propagation, every phase with all its iterations.
The convolutions alone are those of the iterations, same shapes and layouts, nothing between them. DIR is a checkout of
https://github.com/Laborieux-Axel/Equilibrium-Propagation (measured at commit 93660ed): the same network with the
weights copied across, the same tangent, the same images, iterations and phases; the states must agree to 1e-5. All are
interleaved in every round; CPU seconds of one thread, so that other jobs matter little; ratios are medians over rounds
with their quartiles.
Prints a table and, with a peer, writes it to benchmarks/convolution.json.
"""
import importlib, json, platform, sys
from pathlib import Path
from types import ModuleType

import torch, typer

from reasonnb.systems.equilibrium.convolution import ConvHopfield
from reasonnb.systems.equilibrium.estimators import Phases, Problem, estimate
from rounds import alternate, median, ratio

IMAGE, KERNEL, BETA = (1, 28, 28), 5, .5
SIZES = (  # channels, images in a batch, iterations of the free phase and of each nudged one
    ((16, 32), 64, 16, 6), ((16, 32), 16, 16, 6), ((32, 64, 128), 64, 40, 15))


class Peer:
    "Laborieux's code as its `train` calls it, with the weights of one of our networks."
    def __init__(self, folder:Path, model:ConvHopfield):
        sys.path.insert(0, str(folder))
        for name in ('torchvision', 'torchvision.transforms'):  # imported there and not used by a network
            sys.modules.setdefault(name, ModuleType(name))
        self.code, layers = importlib.import_module('model_utils'), len(model.shapes)
        self.net = self.code.P_CNN(
            IMAGE[1], [IMAGE[0], *(shape[0] for shape in model.shapes)], [KERNEL] * layers, [2] * layers, [10],
            self.code.make_pools('i' * layers), [KERNEL // 2] * layers, activation=model.activate, softmax=True)
        self.cost = torch.nn.CrossEntropyLoss(reduction='none')
        weights = [model.first.weight, *(link.weight for link in model.links), model.readout.weight]
        with torch.no_grad():
            for ours, bias, theirs in zip(weights, [*model.bias, model.readout.bias], self.net.synapses):
                theirs.weight.copy_(ours)
                theirs.bias.copy_(bias.flatten())

    def update(self, images, labels, free, nudged) -> list: # states after each phase
        "Three phases, the predictions and the gradient."
        net, copy = self.net, self.code.copy
        def run(state, iterations, beta): return net(images, labels, state, iterations, beta=beta, criterion=self.cost)
        rest = run(net.init_neurons(len(images), images.device), free, 0.)
        kept = copy(rest)
        with torch.no_grad():
            scores = net.synapses[-1](rest[-1].view(len(images), -1))
            (scores.softmax(1).argmax(1) == labels).sum().item()
        near, far = copy(run(rest, nudged, BETA)), copy(run(copy(kept), nudged, -BETA))
        net.compute_syn_grads(images, labels, near, far, (BETA, -BETA), self.cost)
        return [kept, near, far]


def sides(channels, batch, free, nudged, folder) -> dict: # name -> call
    "What is compared, on random images."
    torch.manual_seed(0)
    model = ConvHopfield(IMAGE, channels, KERNEL)
    for bias in model.bias:
        torch.nn.init.normal_(bias, std=.1)
    images, labels = torch.rand(batch, *IMAGE), torch.randint(10, (batch,))
    phases = Phases(beta=BETA, damping=1., iterations=free, tolerance=0., nudged_iterations=nudged)
    maps = [torch.rand(batch, *shape).to(memory_format=torch.channels_last) for shape in model.shapes]

    def update():
        model.zero_grad(set_to_none=True)
        estimate(model, images, labels, 'ep_symmetric', phases)

    @torch.no_grad()
    def convolutions():
        for _ in range(free + 2 * nudged):
            for k, link in enumerate(model.links):
                link.up(maps[k]), link.down(maps[k + 1], model.shapes[k])

    found = dict(update=update, convolutions=convolutions)
    if not folder: return found
    peer, problem = Peer(folder, model), Problem(model, images, labels, phases)
    states = [problem.free.state, *problem.nudged(model.nudged, [BETA, -BETA])]
    for ours, theirs in zip(states, peer.update(images, labels, free, nudged)):
        for a, b in zip(model.maps(model.activate(ours)), theirs):
            torch.testing.assert_close(a, b.detach(), rtol=0, atol=1e-5)
    return found | dict(peer=lambda: peer.update(images, labels, free, nudged))


def measure(channels, batch, free, nudged, folder, rounds) -> dict:
    "Medians over rounds, in which all alternate."
    calls = sides(channels, batch, free, nudged, folder)
    repeats = max(1, 256 // (batch * (channels[0] // 16) ** 2))
    found = alternate(calls, rounds, repeats)
    row = dict(channels=channels, batch=batch, iterations=[free, nudged],
               milliseconds={name: round(1e3 * median(found, name), 1) for name in calls},
               update_over_convolutions=ratio(found, 'update', 'convolutions'))
    return row | dict(peer_over_update=ratio(found, 'peer', 'update')) if folder else row


def main(peer: Path = None, rounds: int = 15):
    torch.set_num_threads(1)
    if not peer: print('no --peer DIR: our own update only, and convolution.json stays as it is')
    rows = []
    for size in SIZES:
        row = measure(*size, peer, rounds)
        rows.append(row)
        ms, bare = row['milliseconds'], row['update_over_convolutions'][1]
        line = f"{'-'.join(map(str, row['channels'])):9} batch {row['batch']:3}  update {ms['update']:7} ms"
        line += f'   / convolutions {bare:.2f}'
        if peer: line += '   peer / update {1:.2f} [{0:.2f}, {2:.2f}]'.format(*row['peer_over_update'])
        print(line, flush=True)
    if not peer: return
    report = dict(torch=torch.__version__, machine=platform.machine(),
                  capability=torch.backends.cpu.get_cpu_capability(), quartiles='of ratios', rows=rows)
    Path(__file__).with_suffix('.json').write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__': typer.run(main)
