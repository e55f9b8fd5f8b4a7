"""Data parallelism with real processes: two ranks must train like one."""
import atexit
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reasonnb.core.config import UserError
from reasonnb.core.records import RunFolder, read_json
from toy_task import ToyTask, train

HERE = Path(__file__).parent
QUIET = "parallel=true dropout=0.0 steps=20 batch_size=25"  # 25 items: shards of 13 and 12
SCENARIOS = {
    "plain": "eval_every=10",
    "pieces": "accumulate=3 eval_every=10",
    "sam": "sam_rho=0.05 ema=0.9 eval_every=10",
    "stopped": "patience=1 lr=0.0 eval_every=5",
    "crash": "eval_every=10",  # this and what follows: interrupted once, then started again
    "signal": "eval_every=10",
    "evaluation": "eval_every=0",
}


def child(root):
    "What each process does."
    torch.set_num_threads(1)
    rank, evaluate = int(os.environ["RANK"]), ToyTask.evaluate
    for name, overrides in SCENARIOS.items():
        def disturb(step, terms):
            if name == "crash" and step == 13: raise SystemError("crash")
            if name == "signal" and step == 13 and rank == 1:  # told only one of them
                signal.raise_signal(signal.SIGINT)
        if name == "evaluation": ToyTask.evaluate = lambda self: 1 / 0
        try: train(root / name, f"{QUIET} {overrides}", on_step=disturb)
        except (SystemError, KeyboardInterrupt, ZeroDivisionError, UserError) as e:
            (root / f"{name}-{rank}").write_text(type(e).__name__)
            ToyTask.evaluate = evaluate
            train(root / name, f"{QUIET} {overrides}")
    record = train(root / "dropout", "parallel=true steps=10")
    (root / f"seen-{rank}.json").write_text(json.dumps(record))
    (root / f"threads.{rank}").write_text(threads())


def threads():
    "Names of this process' threads."
    return " ".join(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))


def at_exit(root):
    "Threads of the network that are left when the processes have left each other."
    (root / f"left.{os.environ['RANK']}").write_text(threads())


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    "All scenarios, trained by two processes."
    root = tmp_path_factory.mktemp("ranks")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, str(HERE / "test_parallel.py"), str(root)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "REASONNB_PROGRESS": "off"}
    done = subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_ranks_train_like_one(name, two_ranks, tmp_path):
    alone = train(tmp_path, f"{QUIET} {SCENARIOS[name]}")
    together = read_json(two_ranks / name / "record.json")
    assert together["steps"] == alone["steps"]
    assert together["metrics"] == pytest.approx(alone["metrics"], rel=1e-5)
    for mine, theirs in zip(together["curve"], alone["curve"], strict=True):
        assert mine.pop("kind") == theirs.pop("kind")
        assert (mine.pop("items_per_second", 0) > 0) == (theirs.pop("items_per_second", 0) > 0)
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-6)
    a, b = (torch.load(folder / "checkpoint.pt", weights_only=True)["model"] for folder in (two_ranks / name, tmp_path))
    for key in a: torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)


def test_the_interruptions_took_place(two_ranks):
    seen = {path.name: path.read_text() for path in two_ranks.glob("*-[01]")}
    assert seen == {
        "crash-0": "SystemError",
        "crash-1": "SystemError",
        "signal-0": "KeyboardInterrupt",
        "signal-1": "KeyboardInterrupt",
        "evaluation-0": "ZeroDivisionError",
        "evaluation-1": "UserError",
    }


def test_only_the_main_process_writes(two_ranks):
    steps = [(row["kind"], row["step"]) for row in RunFolder(two_ranks / "plain").rows()]
    assert len(steps) == len(set(steps)) == 20 + 3


def test_every_process_gets_the_record(two_ranks):
    seen = [json.loads((two_ranks / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert seen[0] == seen[1] == read_json(two_ranks / "dropout" / "record.json")


def test_processes_have_their_own_dropout(two_ranks):
    first, second = torch.load(two_ranks / "dropout" / "checkpoint.pt", weights_only=True)["noise"]
    assert not torch.equal(first["torch"], second["torch"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_connections_are_closed_before_python_ends(two_ranks):
    "A thread of theirs that outlives the interpreter aborts the process now and then, after all work is done."
    for rank in (0, 1):
        assert "gloo" in (two_ranks / f"threads.{rank}").read_text()
        assert "gloo" not in (two_ranks / f"left.{rank}").read_text()


def test_torchrun_without_a_parallel_task_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were started but the task trains in one"): train(tmp_path)


if __name__ == "__main__":
    atexit.register(at_exit, Path(sys.argv[1]))  # the first to register is the last to run
    child(Path(sys.argv[1]))
