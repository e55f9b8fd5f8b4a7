"""What a change costs: CPU seconds of an update with it, over those of an update without, for the claims about time.

    python benchmarks/step_times.py [--rounds N] [--steps N] [--only SLUG]

Runs of a sweep share their machine, so their hours say more about the other runs. Here both sides alternate in one
process on one thread, and CPU seconds are counted. Writes data/step_times.csv, which the ledger reads.
"""
import csv, os, tempfile, time
from pathlib import Path

import torch, typer

from reasonnb.core.gradients import Ranks
from reasonnb.core.records import RunFolder
from reasonnb.core.trainer import Run, train_step
from reasonnb.lab.catalogue import resolve, system_of

PAIRS = (('sam_bs512', 'bs512_easy'), ('sam_bs256', 'bs256_easy'), ('sam_post_cosine', 'cosine_no_sam'),
         ('haar_v3', 'baseline_v1'), ('engram_v1', 'baseline_v1'), ('rust_looplm', 'engram_v1'))


def start(slug:str, folder:Path) -> Run:
    "A run of an experiment at scale laptop, before its first update."
    config = resolve(slug, 'laptop')
    run = Run(system_of(slug).build(config), config, folder=RunFolder(folder), device=torch.device('cpu'),
              ranks=Ranks(device=torch.device('cpu')))
    run.model.train()
    return run


def seconds(run:Run, steps:int) -> float: # CPU seconds an update
    "What some updates cost."
    begin = time.process_time()
    for _ in range(steps): train_step(run)
    return (time.process_time() - begin) / steps


def main(rounds:int=8, steps:int=20, only:str=''):
    "Measure all pairs, or those of one left side, and write the table; rows of other pairs stay."
    torch.set_num_threads(1)
    out = Path(__file__).parents[1]/'data'/'step_times.csv'
    pairs = [pair for pair in PAIRS if only in ('', pair[0])]
    with open(out, newline='') as file: kept = list(csv.reader(file))[1:]
    rows = [tuple(row) for row in kept if tuple(row[:2]) in PAIRS and tuple(row[:2]) not in pairs]
    with tempfile.TemporaryDirectory() as folder:
        for left, right in pairs:
            sides = [start(slug, Path(folder)/slug) for slug in (left, right)]
            for run in sides: seconds(run, 3)
            for number in range(rounds):
                ours, theirs = (seconds(run, steps) for run in sides)
                rows.append((left, right, number, f'{ours:.5f}', f'{theirs:.5f}'))
                print(*rows[-1])
    with open(out.with_suffix('.tmp'), 'w', newline='') as file:
        table = csv.writer(file, lineterminator='\n')
        table.writerow(('left', 'right', 'round', 'left_seconds', 'right_seconds'))
        table.writerows(rows)
    os.replace(out.with_suffix('.tmp'), out)


if __name__ == '__main__': typer.run(main)
