"""Several processes and one give the same, through the launchers that users have. Real processes, over gloo."""

import json
import os
import subprocess
import sys

import numpy as np
import probe_training
import pytest
from small_run import ROOT, options

from zegclip.training.evaluate import evaluate

pytestmark = pytest.mark.thorough

PROBE = ROOT / "tests" / "launched" / "probe_training.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]


def launch(*words):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def test_processes_and_passes_train_and_count_as_one_batch_does(clip_folder, tmp_path):
    """Four pictures at once, in two passes of two, and in two processes of two, in double precision."""
    seen = {}
    for processes, passes in ((1, 1), (1, 2), (2, 1)):
        output = tmp_path / f"{processes}_{passes}"
        if processes == 1:
            probe_training.main(str(clip_folder), str(output), str(passes))
        else:
            launch(*TORCHRUN, processes, PROBE, clip_folder, output, passes)
        seen[processes, passes] = json.loads((output / "seen.json").read_text())
    alone, together = seen[1, 1], seen[2, 1]
    assert (alone["processes"], together["processes"]) == (1, 2)
    assert together["wrapper"] == "DistributedDataParallel"
    assert together["spread"] == 0
    # Seven pictures cannot be shared out evenly; none counts twice.
    assert together["counts"] == alone["counts"]
    assert together["figures"] == alone["figures"]
    for other in (together, seen[1, 2]):
        assert len(other["log"]) == 3
        for ours, theirs in zip(other["log"], alone["log"], strict=True):
            assert {"loss_focal", "loss_dice", "loss_ssim", "loss_cross_entropy"} <= ours.keys()
            for name in ours.keys() - {"epoch", "grad_norm"}:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name  # logged in single precision
        # Losses and gradients are neither scaled nor averaged otherwise.
        np.testing.assert_allclose(other["trained"], alone["trained"], rtol=0, atol=1e-12)


EVALUATION = options(num_eval_pictures=5, window_stride=48, use_cpu=True, save_predictions=True)


def test_eval_shares_pictures_out_and_goes_on_after_an_interruption(tmp_path):
    """The launcher's own spelling for several CPU processes, on the embedded model."""
    evaluate(["--output_dir", str(tmp_path / "alone"), *EVALUATION])
    output = tmp_path / "together"
    launch(*ACCELERATE, ROOT / "eval.py", "--output_dir", output, *EVALUATION)
    [folder] = output.glob("eval_*")
    alone = tmp_path / "alone" / folder.name
    # Read as text: figures of classes that no picture has are NaN, which equals nothing.
    assert (folder / "results.json").read_text() == (alone / "results.json").read_text()
    files = sorted((folder / "model").glob("counts-*.jsonl"))
    done = [[json.loads(line)["picture"] for line in path.read_text().splitlines()] for path in files]
    assert done == [[0, 2, 4], [1, 3]]
    predictions = sorted(path.relative_to(folder) for path in folder.glob("model/predictions/*/*.png"))
    assert len(predictions) == 10
    for path in predictions:
        assert (folder / path).read_bytes() == (alone / path).read_bytes()

    # As if killed: one process had done two pictures and was writing a third, the other none.
    lines = files[0].read_text().splitlines()
    files[0].write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])
    files[1].unlink()
    (folder / "results.json").unlink()
    again = launch(sys.executable, ROOT / "eval.py", "--output_dir", output, *EVALUATION)
    assert "2 of 5 pictures" in again
    assert (folder / "results.json").read_text() == (alone / "results.json").read_text()
    done = [json.loads(line)["picture"] for line in files[0].read_text().splitlines() if line.endswith("}")]
    assert done == [0, 2, 1, 3, 4]
