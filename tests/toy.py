"""A repository in miniature for tests: its own log, its own system, a job notebook; no torch, so a run takes seconds.

`trouble` makes a run go wrong on purpose: 'error' raises, 'kill' ends the kernel by SIGKILL the first time,
'always_kill' every time, 'wrong_id' leaves somebody else's record, 'diverge' a record of a run that blew up.
"""
import atexit, json, os, subprocess, sys, tempfile, time
from functools import cache
from pathlib import Path
import psutil

SECTIONS = """log,order,section,slug,kind,question,change,base,finding
toy_log,1,Start,start,run,Does it go down at all?,"Gradient descent on x*x",,It does.
toy_log,2,Fast,fast,experiment,Is a larger rate faster?,Rate 0.1 to 0.3,start,"Yes, by far."
toy_log,3,Faster,faster,ablation,And larger still?,Rate 0.3 to 0.45,fast,Yes.
toy_log,4,Twin,twin,experiment,Again?,The same once more,fast,Same.
toy_log,5,Later,not_yet,experiment,What next?,Momentum,fast,
toy_log,6,Ideas,a_plan,plan,,Try the Newton step,fast,
"""

SYSTEM = '''
import json, os, signal, time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from reasonnb.core.config import Config, Experiment, System, UserError

@dataclass(frozen=True, kw_only=True)
class ToyConfig(Config):
    "Gradient descent on x*x."
    rate: float = 0.1
    pause: float = 0.0  # seconds a step takes
    data: str = ''  # a file that must be there
    trouble: Literal['', 'error', 'kill', 'always_kill', 'wrong_id', 'diverge'] = ''

def fit(config, run_dir, log='', experiment='', scale='', run_id=''):
    "Descend, with a checkpoint at each step; a checkpoint in the folder is continued."
    folder = Path(run_dir)
    if config.data and not Path(config.data).exists():
        raise UserError(f"no data file {config.data}; generate it or set data=")
    saved = folder / 'checkpoint.pt'
    step, x = json.loads(saved.read_text()) if saved.exists() else (0, 1.0 + config.seed)
    start = step
    while step < config.steps:
        step, x = step + 1, x - config.rate * 2 * x
        time.sleep(config.pause)
        row = {'step': step, 'kind': 'train', 'loss': x * x}
        with open(folder / 'metrics.jsonl', 'a') as file: file.write(json.dumps(row) + '\\n')
        part = folder / 'checkpoint.tmp'
        part.write_text(json.dumps([step, x]))
        os.replace(part, saved)
        if step == 3 and config.trouble == 'error': raise ValueError('the toy broke\\nand says more')
        killed = config.trouble == 'always_kill' or config.trouble == 'kill' and start == 0
        if step == 3 and killed: os.kill(os.getpid(), signal.SIGKILL)
    bad = config.trouble == 'diverge'
    record = dict(
        id='f' * 12 if config.trouble == 'wrong_id' else run_id or config.id,
        log=log,
        experiment=experiment,
        scale=scale,
        seed=config.seed,
        config=config.to_dict(),
        metrics={'loss': x * x} | ({'diverged': 1.0} if bad else {}),
        best={},
        curve=[],
        params=1,
        data='none',
        protocol='none',
        flop_per_item=4,
        versions={},
        device='cpu',
        seconds=0.1,
        steps=step,
        start=start,
        finished='2026-01-01T00:00:00+00:00',
    )
    (folder / 'record.json').write_text(json.dumps(record))
    if bad: raise UserError('loss not finite')

EXPERIMENTS = (
    Experiment('start'),
    Experiment('fast', 'start', {'rate': 0.3}, {'laptop': {'steps': 400}}),
    Experiment('faster', 'fast', {'rate': 0.45}),
    Experiment('twin', 'fast'),
    Experiment('ours', 'faster', {'rate': 0.49}, note='not in the log'),
)
SYSTEM = System('toy', ('toy_log',), ToyConfig, {'smoke': {'steps': 5}, 'laptop': {'steps': 50}}, EXPERIMENTS,
    build=None, job='jobs/toy.ipynb', metrics={'loss': 'loss'})
'''

PARAMETERS = """experiment: str = 'start'  # slug
scale: str = 'smoke'
seed: int = 0
overrides: str = ''  # 'rate=0.2 steps=20'
run_dir: str = ''  # '' = a temporary folder
run_id: str = ''  # given by the driver"""

JOB = """import os, tempfile
from reasonnb.lab.runs import plan
from toy_system import fit
threads, gpu, backend = map(os.environ.get, ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES', 'MPLBACKEND'))
print('threads', threads, 'gpu', gpu, 'backend', backend)
run = plan(experiment, scale, seed, overrides)
fit(run.config, run_dir or tempfile.mkdtemp(), run.log, experiment, scale, run_id)"""


def notebook(*cells):
    "A notebook of code cells given as (source, tags)."
    made = []
    for i, (source, tags) in enumerate(cells):
        metadata = {'tags': tags} if tags else {}
        cell = dict(cell_type='code', id=f'cell{i}', source=source, metadata=metadata, outputs=[], execution_count=None)
        made.append(cell)
    kernel = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    return json.dumps({'cells': made, 'metadata': kernel, 'nbformat': 4, 'nbformat_minor': 5})


def make_root(path):
    "Write the miniature repository into an empty folder."
    path = Path(path)
    (path / 'nbs' / 'jobs').mkdir(parents=True)
    (path / 'data' / 'logs').mkdir(parents=True)
    (path / 'settings.ini').write_text('[DEFAULT]\nlib_name = reasonnb\n')
    (path / 'data' / 'logs' / 'sections.csv').write_text(SECTIONS)
    (path / 'toy_system.py').write_text(SYSTEM)
    (path / 'nbs' / 'jobs' / 'toy.ipynb').write_text(notebook((PARAMETERS, ['parameters']), (JOB, [])))
    (path / 'nbs' / 'jobs' / 'both.yaml').write_text('experiments: [start, fast]\nscales: [smoke]\nseeds: [0, 1]\n')
    return path


REPO = Path(__file__).resolve().parents[1]


@cache
def shared_root():
    "One miniature repository for all tests that run in this process (its module can only be imported once)."
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    sys.path.insert(0, folder.name)
    return make_root(folder.name).resolve()


def environment(root):
    "Environment variables that make `reasonnb` and its kernels see a miniature repository."
    return {'REASONNB_ROOT': str(root), 'REASONNB_SYSTEMS': 'toy_system', 'PYTHONPATH': f'{root}{os.pathsep}{REPO}'}


def start_cli(root, *words, **more):
    "`reasonnb ...` in a process of its own, in the miniature repository."
    command = [sys.executable, '-c', 'from reasonnb.lab.cli import app; app()', *words]
    hidden = ('MPLBACKEND', 'RAY_ADDRESS', 'REASONNB_SLOTS', 'CUDA_VISIBLE_DEVICES')
    env = {name: value for name, value in os.environ.items() if name not in hidden} | environment(root) | more
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=root, env=env, text=True, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)


def cli(root, *words, **more):
    "Exit code, standard output and standard error of `reasonnb ...`."
    process = start_cli(root, *words, **more)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


FORKS = """import gc, importlib, os, sys
place, cases = sys.argv[1], eval(sys.argv[2])
for module in sys.argv[3:]: importlib.import_module(module)
from reasonnb.lab.cli import app
gc.freeze()  # or each fork, as it ends, goes through all that is imported, and copies it
for number, (words, stream) in enumerate(cases):
    child = os.fork()
    if child == 0:
        reader, writer = os.pipe()
        os.close(reader)
        out = writer if stream == 'gone' else os.open(stream or f'{place}/{number}.out', os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(os.open(f'{place}/{number}.err', os.O_WRONLY | os.O_CREAT), 2)
        sys.argv = ['reasonnb', *words]
        app()
        sys.exit('the command did not end')
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)  # a fork would write what is left in the buffer once more
"""


def each(root, *cases, env=None, needed=()):
    """Exit code, standard output and standard error of many commands.

    Each runs in a fork of one process that has imported the package, and the modules they all need. A case is (words,
    what stands for standard output): a file to write into, or 'gone' for a pipe whose reader has closed it.
    """
    env = os.environ | (env or environment(root))
    env |= {'PYTHONUNBUFFERED': ''}  # what is left in a buffer must not fail at the end
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, '-c', FORKS, place, repr(cases), *needed]
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        def said(name): return path.read_text() if (path := Path(place)/name).exists() else ''
        codes = [int(code) for code in done.stdout.split()]
        return [(code, said(f'{number}.out'), said(f'{number}.err')) for number, code in enumerate(codes)]


def until(condition, seconds=40):
    "Wait for a condition; fail when it takes too long."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.05)


def kernels(folder):
    "Processes that still work on a run folder: the job process and its kernel."
    children = [process for process in psutil.process_iter() if str(folder) in ' '.join(_words(process))]
    return children + [kernel for child in children for kernel in child.children(recursive=True)]


def _words(process):
    try: return process.cmdline()
    except psutil.Error: return []


def enter(folder):
    "Make a toy repository and work in it, as the library notebooks do; `leave` ends it."
    make_root(folder)
    path = os.pathsep.join([str(folder), str(REPO)])
    os.environ.update(REASONNB_ROOT=str(folder), REASONNB_SYSTEMS='toy_system', PYTHONPATH=path)
    sys.modules.pop('toy_system', None)  # of another toy repository in this process
    sys.path.insert(0, str(folder))


def leave(folder):
    "Back to the real repository."
    for name in ('REASONNB_ROOT', 'REASONNB_SYSTEMS', 'PYTHONPATH'): os.environ.pop(name, None)
    sys.modules.pop('toy_system', None)
    sys.path.remove(str(folder))
