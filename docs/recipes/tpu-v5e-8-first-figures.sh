#!/usr/bin/env bash
# The figures to take first on one host with eight TPU v5e chips, about 40 minutes. NOT RUN by the project: it had no TPU.
# Run it in a clone, in an environment with `pip install -e '.[tpu]'`. Weights and tokens are random, but for the last part.
#
#   OUT=~/figures ./docs/recipes/tpu-v5e-8-first-figures.sh
#   OUT=~/figures MODEL=/data/MiniLM GLUE=/data/glue ./docs/recipes/tpu-v5e-8-first-figures.sh
set -euo pipefail
OUT=${OUT:?a folder for the figures}
mkdir -p "$OUT"

# 1. One chip: is it right, how long takes an SVT by solver (here `auto` takes `shifted`), a step, a compilation.
TPU_VISIBLE_DEVICES=0 TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=1,1,1 \
  python -m benchmarks.accelerator --output "$OUT/one-chip.jsonl" | tee "$OUT/one-chip.txt"

# 2. Eight chips: the same run on three meshes. Loss curves must agree to rounding, since all have eight groups; the
#    examples a second say what each division costs. docs/scaling.md has what the compiler counts.
for mesh in "8 1 1" "1 8 1" "2 2 2"; do
  read -r data fsdp tensor <<< "$mesh"
  python train.py --run.output_dir "$OUT/runs" --run.name "mesh-$data-$fsdp-$tensor" --data.groups 8 \
    --mesh.data "$data" --mesh.fsdp "$fsdp" --mesh.tensor "$tensor" --optim.batch_size 64
done

# 3. A real task, if there are weights and data: seconds from the command to the score, cold and with full caches.
if [ -n "${MODEL:-}" ] && [ -n "${GLUE:-}" ]; then
  python -m benchmarks.time_to_score --model "$MODEL" --source "$GLUE" --tasks cola rte | tee "$OUT/time-to-score.txt"
fi
