"""Speed of a training step of the looped transformer: against a plain encoder loop, and against the device's limit.

    python benchmarks/looped.py [--scale laptop|h200|log] [--device cpu|cuda] [--batch N] [--steps N] [--compile]

Same weights, same arithmetic, same optimizer on both sides; that the losses stay equal over a few steps is asserted.
Both alternate in every round; the ratio is the median over rounds, its spread the quartiles.
A CPU is measured in CPU seconds of one thread, so that other jobs matter little; a GPU in seconds until it is idle.
Prints a table and writes it to benchmarks/looped.json (on a GPU looped.cuda.json).
"""
import copy, gc, json, os, platform, statistics, time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler is talkative
import torch, typer
from torch import nn
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from reasonnb.sudoku.board import BoardShape
from reasonnb.sudoku.generator import generate
from reasonnb.systems.looped.transformer import LoopedTransformer, forward_flop, looped_loss


@dataclass(frozen=True)
class Shape:
    "Size of the network and of a batch."
    box: tuple[int, int]  # rows and columns of a box
    batch: int  # boards in a batch
    d_model: int = 128  # width of a cell's vector
    layers: int = 4  # number of blocks
    heads: int = 4  # number of attention heads
    d_ff: int = 512  # width of the MLP's hidden layer
    iterations: int = 16  # number of iterations of the loop

    def __str__(self):
        n = self.box[0] * self.box[1]
        return f'{n}x{n} batch {self.batch} d_model {self.d_model} x{self.layers} iterations {self.iterations}'

small = partial(Shape, d_model=48, layers=2, heads=3, d_ff=192, iterations=6)
SHAPES = {'laptop': [small((2, 3), 32), small((3, 3), 24)], 'h200': [Shape((3, 3), 2048)],
          'log': [Shape((3, 3), 4096), Shape((3, 3), 2048)]}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of the loss, relative


class EncoderLoop(nn.Module):
    "What one writes first: one-hot digits beside the prediction, a linear layer, `nn.TransformerEncoder`, in a loop."
    def __init__(self, box, s:Shape):
        super().__init__()
        self.digits = box.N
        self.embed, self.position = nn.Linear(2 * box.N + 1, s.d_model), nn.Embedding(3 * box.N, s.d_model)
        layer = nn.TransformerEncoderLayer(s.d_model, s.heads, s.d_ff, dropout=0., activation='relu',
                                           batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, s.layers, enable_nested_tensor=False)
        self.head = nn.Linear(s.d_model, box.N)
        units = box.row, box.col + box.N, box.box + 2 * box.N
        self.register_buffer('units', torch.stack([torch.as_tensor(a.copy()) for a in units]))

    def forward(self, puzzles, iterations):
        given = F.one_hot(puzzles.long(), self.digits + 1).float()
        prediction, logits = given.new_zeros(*puzzles.shape, self.digits), []
        for _ in range(iterations):
            x = self.embed(torch.cat([given, prediction], -1)) + self.position(self.units).sum(0)
            logits.append(self.head(self.encoder(x)))
            prediction = logits[-1].softmax(-1)
        return logits

    @torch.no_grad()
    def take(self, model:LoopedTransformer):
        "The weights of the other side."
        pairs = [(getattr(self, name), getattr(model, name)) for name in ('embed', 'position', 'head')]
        for mine, other in zip(self.encoder.layers, model.blocks, strict=True):
            pairs += [(mine.norm1, other.norm_attention), (mine.norm2, other.norm_mlp), (mine.linear1, other.up),
                      (mine.linear2, other.down), (mine.self_attn.out_proj, other.out)]
            mine.self_attn.in_proj_weight.copy_(other.qkv.weight)
            mine.self_attn.in_proj_bias.copy_(other.qkv.bias)
        for mine, other in pairs:
            for p, q in zip(mine.parameters(), other.parameters(), strict=True):
                p.copy_(q)
        return self


def encoder_loss(logits, puzzles, solutions):
    blank = puzzles == 0
    return sum(F.cross_entropy(each[blank], solutions.long()[blank] - 1) for each in logits) / len(logits)


def our_loss(logits, puzzles, solutions): return looped_loss(logits, puzzles, solutions)['loss']


class Step:
    "One training step of one side, on one fixed batch; keeps its losses."
    def __init__(self, model, forward, loss, puzzles, solutions, iterations, dtype):
        self.forward, self.loss, self.data = forward, loss, (puzzles, solutions)
        self.iterations, self.dtype, self.losses = iterations, dtype, []
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=.1, fused=True)

    def __call__(self):
        torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad()
        device = self.data[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = self.loss(self.forward(self.data[0], self.iterations), *self.data)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.detach())


class Clock:
    "Seconds of a call: of this process on a CPU, until it is idle on a GPU."
    def __init__(self, device): self.cuda = device == 'cuda'
    def now(self):
        if self.cuda: torch.cuda.synchronize()
        return time.perf_counter() if self.cuda else time.process_time()
    def __call__(self, call, n=1):
        start = self.now()
        for _ in range(n):
            call()
        return (self.now() - start) / n


def limit(device, dtype) -> dict[str, float]:
    "FLOP per second of large square matrix products, by library."
    n, repeats = (8192, 20) if device == 'cuda' else (1024, 2)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    calls = {'matmul': lambda: a @ b}
    # MKL leaves AVX-512 unused on some processors, oneDNN does not
    if device == 'cpu' and torch.backends.mkldnn.is_available():
        calls['oneDNN'] = lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, 'none', [], '')
    clock = Clock(device)
    for call in calls.values():
        call()  # warm-up
    return {name: 2 * n**3 / min(clock(call, repeats) for _ in range(7)) for name, call in calls.items()}


KINDS = {'attention': ('scaled_dot_product', 'flash', 'fmha'), 'matmul': ('mm', 'linear_pointwise', 'onednn'),
         'norm': ('layer_norm',), 'activation': ('threshold', 'clamp_min', 'relu'), 'softmax, loss': ('softmax', 'nll'),
         'optimizer': ('adam', 'optimizer', 'foreach'),
         'copies': ('copy', 'cat', 'stack', 'fill', 'empty', 'clone'), 'sums': ('add', 'sum', 'reduce')}


def where_time_goes(step, device,
                    runs:int=10, # number of recorded steps
                    of:int=10, # number of operations listed
                   ) -> tuple[dict, list]: # share by kind of work, the top operations
    "Shares of the time inside operations, each the quickest of a few runs: a run is interrupted now and then."
    def self_time(e): return e.self_device_time_total if device == 'cuda' else e.self_cpu_time_total
    activities = [ProfilerActivity.CPU]
    if device == 'cuda': activities.append(ProfilerActivity.CUDA)
    quickest, calls, kinds = {}, {}, {}
    for _ in range(runs):
        with profile(activities=activities, acc_events=True) as recorded: step()
        for e in recorded.key_averages():
            if e.device_type != DeviceType.CPU: continue  # kernels are counted with their operation
            quickest[e.key], calls[e.key] = min(quickest.get(e.key, float('inf')), self_time(e)), e.count
    total = sum(quickest.values())
    for op, t in quickest.items():
        kind = next((kind for kind, words in KINDS.items() if any(word in op.lower() for word in words)), 'rest')
        kinds[kind] = kinds.get(kind, 0) + t / total
    top = sorted(quickest, key=quickest.get, reverse=True)[:of]
    return ({k: round(v, 3) for k, v in sorted(kinds.items(), key=lambda kv: -kv[1])},
            [dict(op=op[:80], calls=calls[op], share=round(quickest[op] / total, 3)) for op in top])


def race(ours:Step, peer:Step, device, rounds, steps) -> dict:
    "Losses compared over three steps, then interleaved rounds."
    clock = Clock(device)
    for each in (ours, peer):
        each.losses.clear()
        for _ in range(3):
            each()
    pairs = zip(ours.losses, peer.losses, strict=True)
    difference = max(abs(a.item() - b.item()) / b.item() for a, b in pairs)
    assert difference < TOLERANCE[ours.dtype], f'losses differ by {difference:.2g}: {ours.losses} and {peer.losses}'
    seconds = [(clock(ours, steps), clock(peer, steps)) for _ in range(rounds)]
    ratios = [b / a for a, b in seconds]
    low, ratio, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
    return dict(seconds=statistics.median(a for a, _ in seconds),
                peer_seconds=statistics.median(b for _, b in seconds), ratio=round(ratio, 3),
                ratio_quartiles=[round(low, 3), round(high, 3)], loss_difference=float(f'{difference:.2g}'))


def contestants(compiled:bool) -> dict[str, Callable]: # name -> what makes the forward pass of a model
    "Variants of our network: plain; compiled as a whole, block by block, or replayed as a CUDA graph."
    def blocks(model):
        for block in model.blocks:
            block.compile()
        return model
    variants = {'reasonnb': lambda model: model}
    graph = partial(torch.compile, mode='reduce-overhead')
    if compiled:
        variants |= {'reasonnb compiled': torch.compile, 'reasonnb blocks compiled': blocks,
                     'reasonnb CUDA graph': graph}
    return variants


def contest(who, variant, pair, shape:Shape, *, data, device, dtype, rounds, steps, limits) -> tuple[dict, dict|None]:
    "One variant of our network against the encoder loop: its row, and for the plain one where time goes."
    model, encoder = (copy.deepcopy(each) for each in pair)
    row, shares = dict(shape=str(shape), **asdict(shape), who=who, precision=str(dtype).removeprefix('torch.')), None
    flop = 3 * shape.batch * forward_flop(model, shape.iterations)
    def rounded(x): return float(f'{x:.4g}')
    try:
        ours = Step(model, variant(model), our_loss, *data, iterations=shape.iterations, dtype=dtype)
        peer = Step(encoder, encoder, encoder_loss, *data, iterations=shape.iterations, dtype=dtype)
        row |= race(ours, peer, device, rounds=rounds, steps=steps)
        speed = flop / row['seconds']
        row |= dict(puzzles_per_second=rounded(shape.batch / row['seconds']), flop_per_second=rounded(speed),
                    share_of_limit=round(speed / max(limits.values()), 3))
        if who == 'reasonnb': shares = dict(zip(('kinds', 'operations'), where_time_goes(ours, device)))
    except (torch.OutOfMemoryError, RuntimeError) as e:
        row['error'] = f'{type(e).__name__}: {e}'[:300]
    return row, shares


def measure(shape:Shape, device, *, rounds, steps, compiled, limits) -> tuple[list[dict], dict]:
    "All contestants at one shape: a row for each, and where the time of the plain one goes."
    torch.manual_seed(0)
    box, dtype = BoardShape(*shape.box), torch.bfloat16 if device == 'cuda' else torch.float32
    data = [torch.as_tensor(a).to(device) for a in generate(shape.batch, box, seed=0)[:2]]
    model = LoopedTransformer(box, shape.d_model, shape.layers, heads=shape.heads, d_ff=shape.d_ff)
    encoder, model = EncoderLoop(box, shape).take(model).to(device), model.to(device)
    rows, shares = [], None
    for who, variant in contestants(compiled).items():
        row, found = contest(who, variant, (model, encoder), shape, data=data, device=device, dtype=dtype,
                             rounds=rounds, steps=steps, limits=limits)
        rows.append(row)
        shares = shares or found
        torch.compiler.reset()
        gc.collect()  # frees the memory a CUDA graph holds
        if device == 'cuda': torch.cuda.empty_cache()
    return rows, shares


def processor() -> str:
    "The CPU's name, as far as the system tells it."
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    name = names[0] if names else platform.processor()
    return f'{name}, one core, {torch.backends.cpu.get_cpu_capability()}'


def show(row):
    "One line of the table."
    start = f"{row['shape']:42} {row['who']:24}"
    if 'error' in row:
        print(start, row['error'][:80])
        return
    low, high = row['ratio_quartiles']
    print(f"{start} {row['puzzles_per_second']:>9,.0f} puzzles/s  "
          f"{row['ratio']:.2f} x encoder loop [{low:.2f}, {high:.2f}]  "
          f"{row['share_of_limit']:.0%} of the limit  loss differs by {row['loss_difference']:.1g}")


def main(scale:Annotated[Literal['auto', 'laptop', 'h200', 'log'],
                         typer.Option(help='auto: laptop on a CPU, log on a GPU')]='auto',
         device:Annotated[Literal['auto', 'cpu', 'cuda'], typer.Option()]='auto',
         batch:Annotated[int, typer.Option(help='boards a step, 0: those of the scale')]=0,
         steps:Annotated[int, typer.Option(help='training steps in a turn')]=3,
         rounds:Annotated[int, typer.Option(help='turns of each side')]=11,
         compiled:Annotated[bool|None, typer.Option('--compile/--no-compile',
                                                    help='also torch.compile; default: on a GPU only')]=None,
         out:Annotated[Path|None, typer.Option(
             help='default: looped.json beside this file, on a GPU looped.cuda.json')]=None):
    "Speed of a training step of the looped transformer."
    if device == 'auto': device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if scale == 'auto': scale = 'log' if device == 'cuda' else 'laptop'
    if device == 'cpu': torch.set_num_threads(1)
    if compiled is None: compiled = device == 'cuda'
    shapes = list(dict.fromkeys(replace(s, batch=batch or s.batch) for s in SHAPES[scale]))
    dtype = torch.bfloat16 if device == 'cuda' else torch.float32
    limits, rows, shares = limit(device, dtype), [], {}
    print('limit: ' + ', '.join(f'{name} {rate / 1e12:.3g} TFLOP/s' for name, rate in limits.items()))
    for shape in shapes:
        found, time_shares = measure(shape, device, rounds=rounds, steps=steps, compiled=compiled, limits=limits)
        for row in found:
            show(row)
        rows += found
        shares[str(shape)] = time_shares
        if time_shares: print('   ' + ', '.join(f'{kind} {share:.0%}' for kind, share in time_shares['kinds'].items()))
    unit = 'CPU seconds of one core a training step' if device == 'cpu' else 'seconds a training step'
    name = torch.cuda.get_device_name() if device == 'cuda' else processor()
    def rounded(key, value): return float(f'{value:.4g}') if key.endswith('seconds') else value
    report = dict(unit=unit, rounds=rounds, steps=steps, device=name, python=platform.python_version(),
                  versions=dict(torch=torch.__version__, cuda=torch.version.cuda),
                  limit_flop_per_second={k: float(f'{v:.4g}') for k, v in limits.items()},
                  rows=[{k: rounded(k, v) for k, v in row.items()} for row in rows], where_time_goes=shares)
    out = out or Path(__file__).with_suffix('.cuda.json' if device == 'cuda' else '.json')
    temporary = out.with_suffix('.tmp')
    temporary.write_text(json.dumps(report, indent=1) + '\n')
    os.replace(temporary, out)


if __name__ == '__main__': typer.run(main)
