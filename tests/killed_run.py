"""Train the toy task and kill it with SIGKILL, again and again, until it gets through.

Reads scenarios from stdin as JSON, {run_dir: [overrides, moment, ...]}, and prints {run_dir: number of kills}.
A moment is `step:37` (after update 37), `file:4` (before the 4th file of this attempt takes its place),
`file:-4` (right after it), or `time:0.3` (seconds after the start).
"""
import json
import os
import signal
import sys
import time

import torch
import torch._dynamo  # noqa: F401, the first update imports it, which takes seconds: once here, not in each attempt

from toy_task import train


def attempt(run_dir, overrides, moment):
    "One life of the run, with its end."
    torch.set_num_threads(1)
    kind, _, value = moment.partition(":")
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    replace, count = os.replace, 0

    def replace_and_die(source, target):
        nonlocal count
        count += 1
        if count == int(value): die()
        replace(source, target)
        if count == -int(value): die()

    if kind == "file": os.replace = replace_and_die
    train(run_dir, overrides, on_step=lambda step, terms: die() if kind == "step" and step == int(value) else None)


def kills(run_dir, overrides, *moments):
    "All lives of a run; how many of them ended by a kill."
    count = 0
    for moment in [*moments, ""]:
        child = os.fork()  # torch is imported once, for all attempts
        if child == 0:
            status = 1
            try: attempt(run_dir, overrides, moment); status = 0
            finally: os._exit(status)
        if moment.startswith("time:"):
            time.sleep(float(moment[5:]))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status): count += 1
        elif status: sys.exit(f"{run_dir}: attempt {moment!r} failed")
    return count


if __name__ == "__main__":
    print(json.dumps({run_dir: kills(run_dir, *rest) for run_dir, rest in json.load(sys.stdin).items()}))
