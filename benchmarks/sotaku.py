"""Speed of the looped transformer against the script of the log's authors that solves most boards.

    git clone https://github.com/chenglou/sotaku && git -C sotaku checkout 1bbdc32
    python benchmarks/sotaku.py --peer sotaku [--rounds N]

Same weights on both sides: rotary positions, added hidden state, width 128, four layers, 16 iterations, 9x9.
A training step of a batch of 16 without dropout and with the script's dropout of .1, and 64 boards read without
training. Without dropout the losses of three steps and the logits must agree; masks of dropout are each side's own.
Sides alternate; CPU seconds of one thread; ratio = the script's time over ours, median and quartiles over rounds.
Prints a table and writes it to benchmarks/sotaku.json.
"""
import importlib.util, json, os, platform, sys, types
from pathlib import Path
from typing import Annotated

import torch, typer
from torch import nn
import torch.nn.functional as F

from looped import Step, encoder_loss, our_loss, processor
from reasonnb.sudoku.board import BoardShape
from reasonnb.sudoku.generator import generate
from reasonnb.systems.looped.transformer import LoopedTransformer
from rounds import alternate, median, ratio

BOX, WIDTH, ITERATIONS, DROPOUT = BoardShape(3, 3), 128, 16, .1
SCRIPT = 'iters/exp_baseline_lr2e3.py'


def script(checkout:Path) -> types.ModuleType:
    "The authors' script as a module; `datasets`, which it needs for its lists of boards only, may be missing."
    path = checkout / SCRIPT
    if not path.is_file():
        raise typer.BadParameter(f'{path} does not exist; clone https://github.com/chenglou/sotaku there')
    if importlib.util.find_spec('datasets') is None:
        sys.modules['datasets'] = types.SimpleNamespace(load_dataset=None)
    sys.path.insert(0, str(checkout))
    spec = importlib.util.spec_from_file_location('sotaku_script', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Peer(nn.Module):
    "The script's network behind our interface: boards of integers, a number of iterations."
    def __init__(self, module:types.ModuleType, dropout:float):
        super().__init__()
        self.network = module.SudokuTransformer()
        for layer in self.network.layers:
            layer.attn_dropout_p = dropout
            for part in (layer.dropout, layer.dropout1, layer.dropout2):
                part.p = dropout

    def forward(self, puzzles, iterations):
        assert iterations == ITERATIONS, 'the script fixes its number of iterations'
        return self.network(F.one_hot(puzzles.long(), 10).float(), return_all=True)

    @torch.no_grad()
    def take(self, ours:LoopedTransformer):
        "The weights of the other side; the script's one bias more, of the first iteration, stays zero."
        net, weight = self.network, ours.embed.weight
        pairs = [(net.initial_encoder.weight, weight[:, :10]), (net.pred_proj.weight, weight[:, 10:]),
                 (net.pred_proj.bias, ours.embed.bias), (net.output_head.weight, ours.head.weight),
                 (net.output_head.bias, ours.head.bias)]
        net.initial_encoder.bias.zero_().requires_grad_(False)
        for theirs, block in zip(net.layers, ours.blocks, strict=True):
            parts = zip((theirs.q_proj, theirs.k_proj, theirs.v_proj), block.qkv.weight.chunk(3),
                        block.qkv.bias.chunk(3), strict=True)
            for layer, w, b in parts:
                pairs += [(layer.weight, w), (layer.bias, b)]
            layers = [(theirs.norm1, block.norm_attention), (theirs.norm2, block.norm_mlp),
                      (theirs.out_proj, block.out), (theirs.linear1, block.up), (theirs.linear2, block.down)]
            for theirs_part, part in layers:
                pairs += [(theirs_part.weight, part.weight), (theirs_part.bias, part.bias)]
        for p, q in pairs:
            p.copy_(q)
        return self


def sides(module, dropout) -> tuple[LoopedTransformer, Peer]:
    "Both networks with the same weights."
    torch.manual_seed(0)
    ours = LoopedTransformer(BOX, WIDTH, 4, heads=4, d_ff=512, dropout=dropout, recurrence='add', position='rope',
                             input_once=('puzzle',))
    return ours, Peer(module, dropout).take(ours)


def race(ours, peer, rounds) -> dict:
    "Seconds of both sides, and the peer's over ours."
    found = alternate(dict(ours=ours, peer=peer), rounds)
    seconds = {name: float(f'{median(found, name):.4g}') for name in ('ours', 'peer')}
    low, middle, high = ratio(found, 'peer', 'ours')
    return dict(seconds=seconds['ours'], peer_seconds=seconds['peer'], ratio=middle, ratio_quartiles=[low, high])


def training(module, dropout, rounds) -> dict:
    "A training step of 16 boards."
    data = [torch.as_tensor(a) for a in generate(16, BOX, seed=0)[:2]]
    pair = [Step(net, net, loss, *data, iterations=ITERATIONS, dtype=torch.float32)
            for net, loss in zip(sides(module, dropout), (our_loss, encoder_loss), strict=True)]
    for step in pair * 3:
        step()
    difference = max(abs(a - b).item() for a, b in zip(pair[0].losses, pair[1].losses, strict=True))
    if not dropout: assert difference < 1e-4, f'losses differ by {difference:.2g}'
    return dict(work=f'training step, dropout {dropout:g}', boards=16, difference=float(f'{difference:.2g}'),
                **race(*pair, rounds=rounds))


@torch.no_grad()
def reading(module, rounds) -> dict:
    "64 boards, 16 iterations, nothing trained."
    puzzles = torch.as_tensor(generate(64, BOX, seed=1)[0])
    calls = [lambda net=net.eval(): net(puzzles, ITERATIONS) for net in sides(module, 0.)]
    mine, theirs = (torch.stack(list(call())) for call in calls)
    difference = (mine - theirs).abs().max().item()
    assert difference < 1e-4, f'logits differ by {difference:.2g}'
    return dict(work='reading', boards=64, difference=float(f'{difference:.2g}'), **race(*calls, rounds=rounds))


def main(peer:Annotated[Path|None, typer.Option(help='a checkout of https://github.com/chenglou/sotaku')]=None,
         rounds:Annotated[int, typer.Option(min=2, help='turns of each side')]=11,
         out:Annotated[Path, typer.Option(help='file to write')]=Path(__file__).with_suffix('.json')):
    "Speed of the looped transformer against the authors' script."
    if peer is None:
        print('nothing measured: --peer DIR names a checkout of https://github.com/chenglou/sotaku')
        return
    torch.set_num_threads(1)
    module = script(peer)
    rows = [training(module, 0., rounds), training(module, DROPOUT, rounds), reading(module, rounds)]
    for row in rows:
        low, high = row['ratio_quartiles']
        print(f"{row['work']:28} ours {row['boards'] / row['seconds']:6.1f} boards/s, "
              f"theirs {row['boards'] / row['peer_seconds']:6.1f}, ratio {row['ratio']:.2f} [{low:.2f}, {high:.2f}]")
    report = dict(unit='CPU seconds of one core', rounds=rounds, device=processor(), script=SCRIPT,
                  python=platform.python_version(), torch=torch.__version__, rows=rows)
    temporary = out.with_suffix('.tmp')
    temporary.write_text(json.dumps(report, indent=1) + '\n')
    os.replace(temporary, out)


if __name__ == '__main__': typer.run(main)
