#!/usr/bin/env bash
# What one GPU makes of it, in nine minutes: tasks a second by batch, evaluation, shares of the roofline, images a second of
# WRN-28-10 with its share of the bfloat16 peak, and where the host holds the device up. Numbers go to OUT (default: gpu/), one
# JSON file a case. On a CPU, to see that all of it runs, with a folder of 40 classes of
# eight images each: TINY=FOLDER benchmarks/gpu.sh
# ORIGINAL=CHECKOUT puts the authors' SIB beside ours.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu}
mkdir -p "$out"
python=${PYTHON:-python}
if [ -n "${TINY:-}" ]; then
    device=cpu steps="2 4" large="4" bnn="8" few=2 network="--backbone conv4-64 --image-size 16 --batch 4" images=8
else
    device=cuda steps="1 8 16 64 256 1024" large="256 4096" bnn="512 4096" few=40 images=64
    network="--backbone wrn-28-10 --image-size 84 --batch 64 256"
fi

case_of() { # seconds it may take, then the case and its options
    local limit=$1 name=$2
    shift 2
    echo "== $name"
    timeout "$limit" "$python" -m benchmarks "$name" --device "$device" --json "$out/$name.json" "$@" || echo "$name: exit code $?"
}

[ "$device" = cuda ] && nvidia-smi --query-gpu=name,clocks.sm,power.limit,memory.total --format=csv
case_of 120 pretrain-step --rounds "$few" $network
case_of 90 sib-step --rounds "$few" --batch $steps ${ORIGINAL:+--original "$ORIGINAL"}
case_of 60 evaluation --rounds "$few" ${ORIGINAL:+--original "$ORIGINAL"}
case_of 90 roofline --rounds "$few" --batch $large
case_of 60 bnn-step --rounds "$few" --batch $bnn
# a whole run, whose stages' seconds are in metrics.json: does the host keep the device busy from end to end?
echo "== svi_sib"
timeout 110 "$python" -m inference.svi_sib --device "$device" --progress false --out "$out/run-$(date +%s)" --batch "$images" \
    ${TINY:+--data folder --root "$TINY" --image-size 16 --queries 3 --epochs 1 --generations 1 --tasks 16 --validations 1 --validation-tasks 6 --test-tasks 6} || echo "svi_sib: exit code $?"
