#!/usr/bin/env bash
# The figures of docs/performance.md that need a GPU, in a few minutes; reports in benchmarks/results.
# DEVICE=cpu BATCHES=1 BATCH=1 PICTURES=2 RESULTS=outputs tries the script without one.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda}
results=${RESULTS:-benchmarks/results}

# Inference: all methods, compiled and not, and the best name of each pixel.
python benchmarks/speed.py inference --device "$device" --dtypes bfloat16 "bfloat16 compiled" --names 20 171 \
    --batches ${BATCHES:-1 8 32} --no-peers --output "$results/inference_$device.json"
# Training: names of VOC's and COCO-Stuff's seen classes; memory and synchronizations of a step.
python benchmarks/speed.py training_step --device "$device" --dtypes bfloat16 --names 15 156 --batch "${BATCH:-16}" \
    --output "$results/training_step_$device.json"
# Pictures a second of segmentation and evaluation, with reading and writing.
python benchmarks/commands.py end_to_end --pictures "${PICTURES:-60}" "${PICTURES:-60}" --device "$device" \
    --output "$results/end_to_end_$device.json"
