"""The trainer under fire: kills, signals, full disks; what needs processes and so does not fit into a notebook."""
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from reasonnb.core.config import UserError
from reasonnb.core import trainer
from reasonnb.core.gradients import Ranks
from reasonnb.core.guards import TrainingError, alarms
from reasonnb.core.records import RunFolder, read_json
from reasonnb.core.trainer import Run, fit, train_row, train_step
from toy_task import ToyConfig, ToyTask, same, train

HERE = Path(__file__).parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "REASONNB_PROGRESS": "off"}
# steps at which the whole curve fits into a record: which rows are kept must not hang on a few bytes
ALL_STATE = "ema=0.9 accumulate=2 sam_rho=0.05 optimizer=muon schedule=cosine warmup=10 steps=110"


pytestmark = pytest.mark.usefixtures('one_thread')


def ignore_interrupts():
    "What `python train.py &` in a script does to its child."
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def start(*args, **options):
    command = [sys.executable, *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=HERE, env=ENV, stdout=pipe, stderr=pipe, text=True, **options)


def weights(path):
    state = torch.load(path, weights_only=True)["model"]
    return torch.cat([tensor.flatten().double() for tensor in state.values()])


# an attempt goes on from the last checkpoint, so it still passes a later step
STEPS = sorted(random.sample(range(1, 120), 4))
FILES = [f"file:{place}" for place in (1, -1, 2, -2, 3, -3, 5, -5)]
SCENARIOS = {  # name -> overrides, moments, least number of kills that makes it a test
    "random steps": ("", [f"step:{step}" for step in STEPS], 4),
    "every kind of state": (ALL_STATE, ["step:7", "step:33", "step:101"], 3),
    "around every write": ("checkpoint_every=15", FILES, 7),
    "random moments": ("steps=400", [f"time:{random.uniform(0.05, 1.0):.3f}" for _ in range(3)], 0),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    "All scenarios, in one process that imports torch once: folder and number of kills of each."
    root = tmp_path_factory.mktemp("killed")
    process = start("killed_run.py", stdin=subprocess.PIPE)
    todo = {str(root / name): [overrides, *moments] for name, (overrides, moments, _) in SCENARIOS.items()}
    out, err = process.communicate(json.dumps(todo), timeout=240)
    assert process.returncode == 0, err
    return {Path(folder).name: (Path(folder), kills) for folder, kills in json.loads(out).items()}


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_run_ends_with_the_same_bits(name, killed, tmp_path):
    print(name, SCENARIOS[name])  # shown by pytest when the test fails
    folder, kills = killed[name]
    assert kills >= SCENARIOS[name][2]
    assert same(read_json(folder / "record.json"), train(tmp_path, SCENARIOS[name][0]))
    for file in ("checkpoint.pt", "best.pt"):
        assert torch.equal(weights(folder / file), weights(tmp_path / file))
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("number, before", [
    (signal.SIGINT, None),
    (signal.SIGTERM, None),
    (signal.SIGINT, ignore_interrupts),
    (signal.SIGTERM, ignore_interrupts),
])
def test_told_to_stop_saves_this_very_step(tmp_path, number, before):
    overrides = "steps=20000 eval_every=0"
    process = start("toy_task.py", tmp_path / "run", *overrides.split(), preexec_fn=before)
    folder = RunFolder(tmp_path / "run")
    deadline = time.time() + 60
    while not folder.rows() and time.time() < deadline: time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -number, err
    state = folder.load(folder.checkpoint)
    assert 0 < state["now"]["step"] < 20000 and not folder.record.exists()
    said = f"stopped after update {state['now']['step']} of 20000, which is saved in {folder.path}"
    assert said in err.splitlines()[-1]
    # rows up to the checkpoint are all there, none after it
    assert 0 <= state["now"]["step"] - folder.rows()[-1]["step"] < 100


@pytest.mark.parametrize("overrides", ["", ALL_STATE])
def test_stopped_in_process_resumes_to_the_same_bits(tmp_path, overrides):
    whole = train(tmp_path / "whole", overrides)
    def interrupt(step, terms): return signal.raise_signal(signal.SIGINT) if step == 33 else None
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", overrides, on_step=interrupt)
    assert RunFolder(tmp_path / "run").load(tmp_path / "run" / "checkpoint.pt")["now"]["step"] == 33
    assert same(train(tmp_path / "run", overrides), whole)


def full_disk_after(monkeypatch, writes):
    real, count = os.fsync, 0

    def fsync(descriptor):
        nonlocal count
        count += 1
        if count > writes: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("writes", range(2, 7))
def test_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch, writes):
    whole = train(tmp_path / "whole", "")
    with monkeypatch.context() as patch:
        full_disk_after(patch, writes)
        with pytest.raises(UserError, match="No space left on device") as failure: train(tmp_path / "run", "")
        assert "\n" not in str(failure.value)
    assert same(train(tmp_path / "run", ""), whole)


def test_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        ballast = disk / "ballast"
        def fill(step, terms):
            if step == 50:
                with pytest.raises(OSError), open(ballast, "wb", buffering=0) as file:
                    while file.write(b"0" * 512): pass
        with pytest.raises(UserError, match="No space left on device"): train(disk / "run", "", on_step=fill)
        folder = RunFolder(disk / "run")
        assert folder.load(folder.checkpoint)["now"]["step"] == 40
        ballast.unlink()
        assert same(train(disk / "run", ""), train(tmp_path / "whole", ""))
    finally: subprocess.run(["umount", disk], check=True)


def test_poisoned_update_leaves_no_trace(tmp_path):
    with pytest.raises(TrainingError, match="update 71: loss.* not finite"): train(tmp_path / "run", "explode_at=70")
    folder = RunFolder(tmp_path / "run")
    assert folder.load(folder.checkpoint)["now"]["step"] == 60
    assert torch.isfinite(weights(folder.checkpoint)).all()
    assert all(value is not None for row in folder.rows() for value in row.values())
    record = read_json(folder.record)
    assert record["metrics"]["diverged"] == 1 and record["steps"] == 70
    with pytest.raises(TrainingError): train(tmp_path / "run", "explode_at=70")  # tried again, not taken for finished


def test_resuming_another_config_is_refused_by_name(tmp_path):
    with pytest.raises(SystemError): train(tmp_path / "run", "", on_step=crash_at(70))
    with pytest.raises(UserError, match="holds a run with steps=120, not 240"): train(tmp_path / "run", "steps=240")
    with pytest.raises(UserError, match="holds a run with lr=0.01, not 0.1"): train(tmp_path / "run", "lr=0.1")


def crash_at(at):
    def crash(step, terms):
        if step == at: raise SystemError("crash")
    return crash


def test_failing_evaluation_keeps_the_training(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", "eval_every=0")
    with monkeypatch.context() as patch:
        patch.setattr(ToyTask, "evaluate", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError): train(tmp_path / "run", "eval_every=0")
    steps = []
    assert same(train(tmp_path / "run", "eval_every=0", on_step=lambda step, terms: steps.append(step)), whole)
    assert steps == []


def test_best_checkpoint_has_the_averaged_weights_of_its_step(tmp_path):
    "The loss falls, so the best step is a late one, at which averaged and plain weights differ."
    record = train(tmp_path / "run", "ema=0.9 best_metric=loss")
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    rows = [row for row in RunFolder(tmp_path / "run").rows() if row["kind"] == "eval"]
    row, = [row for row in rows if row["step"] == best["step"]]
    assert best["step"] == record["best"]["step"] > 0
    assert row["loss"] == record["best"]["value"] == min(row["loss"] for row in rows)
    assert best["model"]["0.weight"].norm().item() == row["norm"]


def test_a_train_row_is_the_mean_over_its_updates(tmp_path):
    seen = []
    train(tmp_path / "run", "steps=400 eval_every=0", on_step=lambda step, terms: seen.append(terms["loss"].item()))
    rows = [row for row in RunFolder(tmp_path / "run").rows() if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(2, 401, 2))
    assert [row["loss"] for row in rows] == pytest.approx([sum(seen[i:i + 2]) / 2 for i in range(0, 400, 2)])


class Observed(ToyTask):
    "Has a test of its own, draws a number with every gradient, and keeps the weights at which it was asked for one."
    def __init__(self, config):
        super().__init__(config)
        self.drawn, self.asked = [], []

    def backward(self, batch):
        self.drawn.append(torch.rand(()).item())
        self.asked.append(torch.nn.utils.parameters_to_vector(self.model.parameters()).detach())
        return super().backward(batch)

    def test(self): return self.evaluate()


def test_averaged_weights_are_evaluated_and_tested(tmp_path):
    config = ToyConfig(steps=20, ema=0.9)
    record = fit(Observed(config), config, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    averaged, last = state["ema"]["shadow"][0].norm().item(), state["model"]["0.weight"].norm().item()
    evaluated = RunFolder(tmp_path).rows()[-1]["norm"]
    assert record["metrics"]["norm"] == evaluated == averaged != last


def test_dropout_follows_the_seed_of_the_config(tmp_path):
    def losses(seed, dropout):
        "Weights and batches of seed 0 whatever the seed of the run is."
        task = ToyTask(ToyConfig(steps=3, dropout=dropout))
        record = fit(task, task.config.replace(seed=seed), tmp_path / f"{seed} {dropout}")
        return [row["loss"] for row in record["curve"]]
    assert losses(0, 0.0) == losses(1, 0.0)
    assert losses(0, 0.1) != losses(1, 0.1)


def test_both_gradients_of_sam_see_the_same_noise(tmp_path):
    config = ToyConfig(steps=3, sam_rho=0.05, accumulate=2)
    task = Observed(config)
    fit(task, config, tmp_path)
    updates = [task.drawn[i:i + 4] for i in range(0, 12, 4)]  # two pieces of the batch at the weights, two uphill
    assert all(drawn[:2] == drawn[2:] for drawn in updates)
    assert len(set(task.drawn)) == 6  # other noise for each piece and update


def test_the_average_is_taken_after_the_update(tmp_path):
    task = Observed(ToyConfig(steps=1, ema=0.9))
    fit(task, task.config, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    before, after = task.asked[0][:96], state["model"]["0.weight"].flatten()  # the first layer
    assert torch.allclose(state["ema"]["shadow"][0].flatten(), 0.9 * before + 0.1 * after)


def test_sam_goes_uphill_by_rho_over_all_parameters_together(tmp_path):
    task = Observed(ToyConfig(steps=1, sam_rho=0.05))
    fit(task, task.config, tmp_path)
    here, uphill = task.asked
    assert (uphill - here).norm().item() == pytest.approx(0.05, rel=1e-4)


def test_patience_counts_evaluations_since_the_best(tmp_path):
    measured = iter([5.0, 4.0, 6.0, 3.0, 6.0, 7.0, 1.0])  # at updates 0, 10, 20, ...
    class Scripted(ToyTask):
        def evaluate(self): return {"loss": next(measured)}
    config = ToyConfig(steps=200, eval_every=10, patience=2)
    record = fit(Scripted(config), config, tmp_path)
    assert record["steps"] == 50 and record["best"] == {"metric": "loss", "value": 3.0, "step": 30}


def test_the_logged_norm_is_that_before_clipping(tmp_path):
    curves = [train(tmp_path / f"{clip}", f"steps=1 clip={clip}")["curve"] for clip in (0, 0.001)]
    free, clipped = ([row["grad_norm"] for row in curve if row["kind"] == "train"] for curve in curves)
    assert free == clipped and free[0] > 0.001


def test_an_alarm_keeps_the_update_at_which_it_first_rang(tmp_path):
    assert train(tmp_path, "steps=10 loss_floor=1000")["alarms"] == {"leak": 1}


def test_one_collapsed_variance_rings_among_others():
    config = ToyConfig(variance_floor=0.1)
    assert alarms({"loss": 1.0, "variance_a": 0.5, "variance_b": 0.0}, config) == ["collapse"]
    assert alarms({"loss": 1.0, "variance_a": 0.5, "variance_b": 0.2}, config) == []


def test_each_row_has_the_pace_of_its_own_updates(tmp_path):
    run = Run(ToyTask(ToyConfig()), ToyConfig(), folder=RunFolder(tmp_path), device=torch.device("cpu"), ranks=Ranks())
    rows = [train_row(run, train_step(run), busy=0.01) for _ in range(3)]
    assert [row["items_per_second"] for row in rows] == [2400.0] * 3


def test_an_evaluation_that_no_checkpoint_holds_is_written_once(tmp_path, monkeypatch):
    "Stopped between the update and its evaluation, then again between the evaluation and its checkpoint."
    whole = train(tmp_path / "whole", "")
    def interrupt(step, terms): return signal.raise_signal(signal.SIGINT) if step == 40 else None
    with pytest.raises(KeyboardInterrupt): train(tmp_path / "run", "", on_step=interrupt)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save", lambda run: 1 / 0)
        with pytest.raises(ZeroDivisionError): train(tmp_path / "run", "")
    assert RunFolder(tmp_path / "run").rows()[-1]["kind"] == "eval"
    assert same(train(tmp_path / "run", ""), whole)


def test_second_process_in_a_folder_is_refused(tmp_path):
    process = start("toy_task.py", tmp_path / "run", "steps=100000", "eval_every=0")
    try:
        deadline = time.time() + 60
        while not RunFolder(tmp_path / "run").rows() and time.time() < deadline: time.sleep(0.02)
        with pytest.raises(UserError, match="another process is training"):
            train(tmp_path / "run", "steps=100000 eval_every=0")
    finally:
        process.kill()
        process.communicate()


def test_progress_is_plain_lines_when_nobody_watches(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("reasonnb.core.records.Reporter.__init__.__defaults__", (0.0,))
    monkeypatch.setenv("REASONNB_PROGRESS", "lines")
    train(tmp_path / "run", "steps=20")
    shown = capsys.readouterr()
    assert shown.out == "" and "step 20/20 train loss " in shown.err and "\r" not in shown.err
    monkeypatch.setenv("REASONNB_PROGRESS", "off")
    train(tmp_path / "silent", "steps=20")
    assert capsys.readouterr() == ("", "")


def test_wandb_mirror_offline_changes_nothing(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    whole = train(tmp_path / "whole", "steps=40")
    monkeypatch.setenv("REASONNB_WANDB", "offline")
    monkeypatch.setenv("WANDB_MODE", "disabled")  # our switch decides
    assert same(train(tmp_path / "run", "steps=40"), whole)
    (mirrored,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.time() + 30  # W&B's own process writes the file, a little later on a busy machine
    while b"train/penalty" not in mirrored.read_bytes() and time.time() < deadline: time.sleep(0.1)
    assert b"train/penalty" in mirrored.read_bytes()
    monkeypatch.setenv("REASONNB_WANDB", "yes")
    with pytest.raises(UserError, match="expected 'off', 'offline' or 'online'"): train(tmp_path / "typo", "steps=40")


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_model_learns_the_same(tmp_path):
    plain = train(tmp_path / "a", "steps=10 dropout=0.0")
    compiled = train(tmp_path / "b", "steps=10 dropout=0.0 compile=true")
    assert compiled["metrics"]["loss"] == pytest.approx(plain["metrics"]["loss"], rel=1e-4)
    names = [set(torch.load(tmp_path / run / "best.pt", weights_only=True)["model"]) for run in ("b", "a")]
    assert names[0] == names[1]
