"""Properties of configs, rows and records that a few examples cannot show."""
import dataclasses
import json
import math
import threading

import pytest
from hypothesis import given, settings, strategies as st

from reasonnb.core.config import Config, UserError, parse_overrides
from reasonnb.core.records import (
    RunFolder,
    append_jsonl,
    atomic,
    make_record,
    plain,
    read_json,
    read_jsonl,
    thin_curve,
    to_json,
    write_json,
)
from reasonnb.core.schedules import lr_at

numbers = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-10**12, 10**12)
row_lists = st.lists(st.fixed_dictionaries({"step": st.integers(0, 10**6), "loss": numbers}), max_size=5)


def config_of(steps, warm, decay, schedule, **rest):
    "Warmup and decay as shares of the steps that there are for them."
    warmup = int(warm * (steps - 1))
    left = steps - warmup
    decay_steps = max(1, int(decay * left)) if schedule == "wsd" else 0
    return Config(steps=steps, warmup=warmup, schedule=schedule, decay=decay_steps, **rest)


configs = st.builds(
    config_of,
    steps=st.integers(1, 500),
    warm=st.floats(0, 1),
    decay=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "cosine", "wsd"]),
    lr=st.floats(1e-6, 1.0),
    lr_floor=st.floats(0, 1),
    decay_shape=st.sampled_from(["cosine", "sqrt"]),
    seed=st.integers(0, 99),
)
leaves = st.none() | st.booleans() | numbers | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@settings(max_examples=60, deadline=None)
@given(rows=row_lists, cut=st.floats(0, 1))
def test_rows_survive_a_tear_at_any_byte(tmp_path_factory, rows, cut):
    path = tmp_path_factory.mktemp("rows") / "m.jsonl"
    for row in rows: append_jsonl(path, row)
    if not rows: return
    data = path.read_bytes()
    kept = data[:int(cut * len(data))]
    path.write_bytes(kept)
    assert read_jsonl(path) == [plain(row) for row in rows[:kept.count(b"\n")]]


@settings(max_examples=100, deadline=None)
@given(value=values)
def test_what_is_written_is_strict_json_and_comes_back(value):
    def refuse(name): raise AssertionError(f"{name} is not JSON")
    assert json.loads(to_json(value), parse_constant=refuse) == plain(value)


@given(length=st.integers(0, 300), n=st.integers(0, 50))
def test_thinned_curve_keeps_both_ends_and_order(length, n):
    rows = list(range(length))
    thin = thin_curve(rows, n)
    assert len(thin) == min(n, length) and thin == sorted(set(thin))
    if n >= 2 and rows: assert (thin[0], thin[-1]) == (rows[0], rows[-1])


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(1, 3000), terms=st.integers(1, 60))
def test_record_stays_small_whatever_is_logged(steps, terms):
    rows = [{"step": s, "kind": "train", **{f"term_{t}": math.pi * s for t in range(terms)}} for s in range(steps)]
    record = make_record(rows, metrics={f"metric_{t}": math.e for t in range(terms)})
    assert len(to_json(record).encode()) <= 20_000


@settings(max_examples=100, deadline=None)
@given(config=configs)
def test_config_survives_json_and_the_command_line(config):
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    def text_of(value): return " ".join(map(str, value)) if isinstance(value, tuple) else value
    typed = " ".join(f"{name}='{text_of(value)}'" for name, value in dataclasses.asdict(config).items())
    again = Config().replace(**parse_overrides(typed))
    assert again == config and again.id == config.id


@settings(max_examples=100, deadline=None)
@given(config=configs)
def test_schedule_warms_up_never_exceeds_the_peak_and_never_rises_again(config):
    rates = [lr_at(step, config) for step in range(config.steps)]
    peak, close = max(config.warmup - 1, 0), 1e-12
    assert rates[:peak + 1] == sorted(rates[:peak + 1])
    assert all(b <= a + close for a, b in zip(rates[peak:], rates[peak + 1:]))
    assert max(rates) <= config.lr + close
    if config.warmup: assert rates[peak] == pytest.approx(config.lr)
    if config.schedule != "constant": assert rates[-1] == pytest.approx(config.lr * config.lr_floor)


def test_record_is_one_line_per_key_and_row(tmp_path):
    write_json(tmp_path / "record.json", {"metrics": {"a": 1.0}, "curve": [{"step": 1}, {"step": 2}]})
    assert (tmp_path / "record.json").read_text().splitlines() == [
        '{',
        ' "metrics": {"a": 1.0},',
        ' "curve": [',
        '  {"step": 1},',
        '  {"step": 2}',
        ' ]',
        '}',
    ]


def test_readers_never_see_half_a_file(tmp_path):
    path, stop, seen = tmp_path / "status.json", threading.Event(), []
    write_json(path, {"n": 0})

    def write():
        for n in range(200): write_json(path, {"n": n, "ballast": "x" * 20_000})
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not stop.is_set(): seen.append(read_json(path)["n"])
    writer.join()
    assert seen == sorted(seen) and list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_mix(tmp_path):
    path = tmp_path / "shared.json"
    texts = [str(i) * 50_000 for i in range(4)]
    threads = [threading.Thread(target=lambda t=t: [write_json(path, t) for _ in range(20)]) for t in texts]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert read_json(path) in texts and list(tmp_path.iterdir()) == [path]


def test_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    actions = [
        lambda: write_json(tmp_path / "file" / "x.json", {}),
        lambda: append_jsonl(tmp_path / "nowhere" / "m.jsonl", {}),
        lambda: RunFolder(tmp_path / "file"),
    ]
    for action in actions:
        with pytest.raises(UserError) as failure: action()
        assert "\n" not in str(failure.value) and "cannot" in str(failure.value)


def test_an_error_of_the_caller_is_not_dressed_up(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with atomic(tmp_path / "x") as file: file.write(b"half"); 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "record.json").write_text('{"a": ')
    with pytest.raises(UserError, match="record.json is not valid JSON"): read_json(tmp_path / "record.json")
    with pytest.raises(UserError, match="does not exist"): read_json(tmp_path / "none.json")


def test_an_evaluation_after_the_checkpoint_is_made_again(tmp_path):
    "The checkpoint of step 4 was written before step 4 was evaluated: that row goes, the training row of step 4 stays."
    folder = RunFolder(tmp_path)
    for step in range(1, 6):
        for kind in ("train", "eval"): folder.log({"step": step, "kind": kind})
    folder.truncate(4, 3)
    steps = {kind: [row["step"] for row in folder.rows() if row["kind"] == kind] for kind in ("train", "eval")}
    assert steps == {"train": [1, 2, 3, 4], "eval": [1, 2, 3]}


def test_a_curve_keeps_five_digits():
    record = make_record([{"step": 123_456, "kind": "train", "loss": 1.23456789, "lr": 0.000123456789}])
    assert record["curve"] == [{"step": 123_456, "kind": "train", "loss": 1.2346, "lr": 0.00012346}]
