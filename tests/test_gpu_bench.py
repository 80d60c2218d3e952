"""train/gpu.py: one command for a GPU, which is tried here on tiny models on the CPU."""

import torch

from train import bench


def test_each_optimizer_has_a_row_for_each_model_with_its_trials_and_a_floor_that_counts_them(capsys):
    assert bench.main(["gpu", "--tiny", "--modes=float32", "--rounds=2", "--warmup=3"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[0] for row in rows] == ["tiny encoder"] * 5 + ["tiny decoder"] * 5
    names = ["AdamW, fused", "the default", "a search at every step", "SaLSA", "Schedule-Free AdamW"]
    assert [row[2] for row in rows] == names * 2
    for row in rows:
        ratio, floor, trials, calls = (float(row[j]) for j in (4, 5, 6, 7))
        assert calls >= 1
        assert (floor > 1) == (trials > 0)
        if row[2] == "AdamW, fused":
            assert (ratio, floor, trials) == (1, 1, 0)
        if row[2] == "a search at every step":
            assert trials >= 1


def test_without_a_gpu_the_answer_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["gpu"]) == 2
    assert capsys.readouterr().err == (
        "error: torch sees no CUDA device here; allowed: a machine with one, or --tiny on the CPU\n"
    )
    assert bench.main(["gpu", "--modes=int8"]) == 2
    assert "unknown mode 'int8'; allowed: float32; bfloat16" in capsys.readouterr().err
