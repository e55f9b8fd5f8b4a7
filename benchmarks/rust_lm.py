"""What an update of the language model costs, against the same decoder made of torch's layers and against its products.

    python benchmarks/rust_lm.py [--rounds N] [--long]

Three measurements, each interleaved in every round on one thread, in CPU seconds; ratios are medians over rounds with
their quartiles.
  update    forward and backward of our decoder of attention (rotary positions, SwiGLU), of a decoder of
            `nn.TransformerEncoderLayer` (learned positions, GELU, a hidden layer half as wide again, so that both
            multiply as much), and the bare matrix products of ours. Both are trained from the same windows with AdamW
            first; their held-out losses stand beside the times.
  decoding  one more token after texts of 256 to 16,384 tokens: attention with a cache, two causal Haar layers.
  Muon      its share of an update of 1,024 tokens, and with --long of 65,536 (a minute more).
Prints tables and writes benchmarks/rust_lm.json. Generated programs are the text: nothing is downloaded.
"""
import json, platform, statistics, time
from itertools import chain
from pathlib import Path

import torch, typer
import torch.nn.functional as F
from torch import nn

from reasonnb.lab.catalogue import resolve
from reasonnb.nn.causal_attention import CausalAttention
from reasonnb.nn.linear import product
from reasonnb.systems.rust_lm.causal_haar import HaarFenwick, HaarShift
from reasonnb.systems.rust_lm.decoding_cost import decode_cost
from reasonnb.systems.rust_lm.language_model import LanguageModel
from reasonnb.systems.rust_lm.optimizing import make_rust_optimizer
from reasonnb.systems.rust_lm.task import build_task

CONTEXTS = (256, 1_024, 4_096, 16_384)


class TorchDecoder(nn.Module):
    "The same decoder from torch's own layers."
    def __init__(self, c, vocab:int):
        super().__init__()
        self.embed, self.place = nn.Embedding(vocab, c.d_model), nn.Embedding(c.context, c.d_model)
        for table in (self.embed, self.place): nn.init.normal_(table.weight, std=.02)
        layer = nn.TransformerEncoderLayer(c.d_model, c.heads, 3 * c.d_ff // 2, dropout=0., activation=F.gelu,
                                           batch_first=True, norm_first=True, bias=False)
        self.layers = nn.TransformerEncoder(layer, c.layers, nn.LayerNorm(c.d_model, bias=False), False)
        self.register_buffer('mask', nn.Transformer.generate_square_subsequent_mask(c.context))

    def forward(self, ids):
        x = self.embed(ids) + self.place.weight[:ids.shape[1]]
        mask = self.mask[:ids.shape[1], :ids.shape[1]]
        return F.linear(self.layers(x, mask=mask, is_causal=True), self.embed.weight)


def loss_of(model, tokens):
    "Mean cross-entropy of a batch of windows, nats per token."
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def products(c, vocab:int, batch:int):
    "Every matrix product of an update, forward and backward, with operands of its own size and nothing between them."
    rows, width = batch * c.context, c.d_model // c.heads
    shapes = c.layers * (4 * [(c.d_model, c.d_model)] + 2 * [(c.d_model, c.d_ff)] + [(c.d_ff, c.d_model)])
    operands = [(torch.randn(rows, a), torch.randn(rows, b), torch.randn(b, a))
                for a, b in {*shapes, (c.d_model, vocab)}]
    found = {(x.shape[1], y.shape[1]): (x, y, w) for x, y, w in operands}
    heads = [torch.randn(batch * c.heads, c.context, n) for n in (width, width, c.context)]
    def run():
        for shape in chain(shapes, [(c.d_model, vocab)]):
            x, y, w = found[shape]
            product(x, w), product(y, w.T), product(y.T, x.T)
        q, k, p = heads
        for _ in range(c.layers):
            for _ in range(2): q @ k.mT, p @ k, p.mT @ k
    return run


def quartiles(values, digits:int=2) -> list[float]: return [round(q, digits) for q in statistics.quantiles(values, n=4)]


def train(model, task, steps:int, lr:float=3e-3) -> float: # nats per token on the held-out windows
    "AdamW at a constant rate on the task's windows."
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, task.batch(step)['tokens']).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
    with torch.no_grad(): return float(loss_of(model, task.held['validation'].windows[:64]))


def update_times(config, rounds:int, steps:int) -> dict:
    "Both decoders trained, then timed in turn with the bare products."
    task = build_task(config)
    torch.manual_seed(0)
    sides = {'ours': LanguageModel(config, task.vocab), 'torch': TorchDecoder(config, task.vocab)}
    losses = {name: round(train(model, task, steps), 3) for name, model in sides.items()}
    tokens = task.batch(steps)['tokens']
    def update(model):
        model.zero_grad()
        loss_of(model, tokens).backward()
    with torch.no_grad(): bare = products(config, task.vocab, config.batch_size)
    calls = {name: (lambda model=model: update(model)) for name, model in sides.items()} | dict(products=bare)
    found = []
    for _ in range(rounds + 1):
        row = {}
        for name, call in calls.items():
            start = time.process_time()
            for _ in range(5): call()
            row[name] = (time.process_time() - start) / 5
        found.append(row)
    found, n = found[1:], tokens[:, 1:].numel()
    params = {name: sum(p.numel() for p in model.parameters()) for name, model in sides.items()}
    return dict(tokens=n, params=params, held_out=losses, updates=steps,
                tokens_per_second={name: round(n / statistics.median(row[name] for row in found)) for name in calls},
                torch_over_ours=quartiles(row['torch'] / row['ours'] for row in found),
                ours_over_products=quartiles(row['ours'] / row['products'] for row in found))


def decoding_times(rounds:int, d_model:int=96, heads:int=4) -> list[dict]:
    "The best of the rounds' medians, milliseconds and kilobytes of a layer and one text."
    longest = 2 * CONTEXTS[-1]
    torch.manual_seed(0)
    mixers = {'attention': CausalAttention(d_model, heads, heads // 2), 'blocks': HaarFenwick(d_model, heads, longest),
              'shifts': HaarShift(d_model, heads, longest)}
    rows = [decode_cost(mixers, CONTEXTS) for _ in range(rounds)]
    best = rows[0].assign(ms_per_token=[min(values) for values in zip(*(row.ms_per_token for row in rows))])
    return best.round(3).to_dict('records')


def muon_share(config, batch:int, rounds:int) -> dict:
    "Time of the optimizer over that of the whole update."
    config = config.replace(batch_size=batch)
    task = build_task(config)
    optimizer, found = make_rust_optimizer(task.model, config), []
    optimizer.set_lr(1e-3)
    for step in range(rounds + 1):
        windows, start = task.batch(step), time.process_time()
        task.model.zero_grad()
        task.backward(windows)
        middle = time.process_time()
        optimizer.apply()
        end = time.process_time()
        found.append((end - middle) / (end - start))
    return dict(tokens=batch * config.context, share=quartiles(found[1:], 4))


def main(rounds:int=9, steps:int=200, long:bool=False):
    "Measure, print, and write benchmarks/rust_lm.json."
    torch.set_num_threads(1)
    config = resolve('rust_generated', 'laptop', mixer='attention', mixer_layers=(), engram_layers=(), kv_heads=4)
    update, decoding = update_times(config, rounds, steps), decoding_times(3)
    muon = [muon_share(config, 16, rounds)]
    if long: muon.append(muon_share(config, 1_024, 2))
    speed, (_, ratio, _), (_, limit, _) = (update[name] for name in (
        'tokens_per_second', 'torch_over_ours', 'ours_over_products'))
    print(f"update: {speed['ours']:,} tokens/s, torch's layers take {ratio:.2f} times as long, the bare products "
          f"{1 / limit:.2f} times; held out {update['held_out']} nats")
    for row in decoding:
        print(f"decoding after {row['context']:6,} tokens: {row['mixer']:9} {row['ms_per_token']:7.3f} ms, "
              f"{row['kilobytes']:9,.1f} kB")
    for row in muon: print(f"Muon and the rest: {row['share'][1]:.1%} of an update of {row['tokens']:,} tokens")
    report = dict(torch=torch.__version__, machine=platform.machine(),
                  capability=torch.backends.cpu.get_cpu_capability(), quartiles='of ratios', update=update,
                  decoding=decoding, muon=muon)
    (Path(__file__).parent/'rust_lm.json').write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__': typer.run(main)
