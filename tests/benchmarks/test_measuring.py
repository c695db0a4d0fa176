import json
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import measuring

sys.path.pop(0)


def test_steps_take_turns_and_warm_up_is_not_counted():
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    times = measuring.alternate(steps, 3, warm_up=1)
    assert "".join(order) == "abababab"
    assert [len(seconds) for seconds in times.values()] == [3, 3]


def test_times_are_those_of_the_step():
    times = measuring.alternate({"long": lambda: time.sleep(0.05), "short": lambda: None}, 3)
    row = measuring.spread(times["long"])
    assert row["min_ms"] >= 50
    assert row["min_ms"] <= row["median_ms"] <= row["max_ms"]
    assert measuring.ratio(times["long"], times["short"]) > 1
    assert measuring.ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == 3.0  # of turns, not of medians


def test_operations_are_counted_in_attention_too(model):
    linear = torch.nn.Linear(8, 16)
    assert measuring.count_flops(linear, lambda: linear(torch.randn(4, 8))) == 2 * 4 * 8 * 16
    embeds = torch.nn.functional.normalize(torch.randn(3, 32), dim=-1)
    counts = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            counts.append(measuring.count_flops(model, lambda: model(torch.randn(1, 3, 32, 32), class_embeds=embeds)))
        assert model.config._attn_implementation == implementation
    assert counts[0] == counts[1] > 0


def test_the_exponent_is_that_of_a_power():
    sizes = [1, 2, 5, 10]
    assert measuring.exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)


def test_memory_of_a_step_is_what_it_holds_at_its_peak():
    megabytes = measuring.in_own_process(allocate, 200)
    assert 190 < megabytes < 260


def allocate(megabytes):
    return measuring.added_memory(lambda: torch.ones(megabytes * 250_000).sum())


def case(names=(1, 2), device="cpu", fast=True):
    return {"rows": [{"names": names, "fast": fast, "ms": 0.5}, {"ms": 12_345.6}], "device": device}


def other():
    return {}


def test_options_of_a_case_are_its_arguments(tmp_path, monkeypatch, capsys):
    path = tmp_path / "new" / "figures.json"
    words = ["case", "--names", "3", "--no-fast", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", ["script", *words])
    measuring.run_cases("", other, case)
    report = json.loads(path.read_text())
    assert report["rows"][0] == {"names": [3], "fast": False, "ms": 0.5}
    assert {"date", "hardware", "threads", "versions"} <= report.keys()
    assert {"python", "torch", "transformers"} <= report["versions"].keys()
    assert str(Path.home()) not in path.read_text()
    assert "12,346" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["script", "case", "--name", "x"])
    with pytest.raises(SystemExit):
        measuring.run_cases("", other, case)
