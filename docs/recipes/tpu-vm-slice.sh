#!/usr/bin/env bash
# Fine-tunes on a Cloud TPU slice, from a machine with gcloud. NOT RUN by the project: it had no TPU. The commands follow
# Google's documentation of TPU VMs and JAX's of jax.distributed. tests/test_recipes.py runs this script with a gcloud that
# runs the hosts' commands on one machine; tests/run/test_distributed.py tests many processes on CPUs.
#
#   PROJECT=... ZONE=us-west4-a BUCKET=gs://my-bucket ./tpu-vm-slice.sh --config rte --data.source gs://my-bucket/glue
#
# All that follows the script's name goes to `svt-jax train` as it is: lists in quotes, '[-1,-2]', and names with spaces too.
# Every host runs the same command. JAX finds the others from the TPU's metadata, so it needs no --distributed.* keys.
#
# Where it lands: $BUCKET/runs/<name>/ with metrics.jsonl, checkpoints, results.json and report.html. The hosts' output
# comes here, and is added to $NAME.log.
#
# A spot slice may be taken away at any time. Its processes get SIGTERM, save, and exit with 143; without a signal the last
# checkpoint stays. Then this script makes a new slice and starts the same command, which resumes.
set -euo pipefail
: "${PROJECT:?}" "${ZONE:?}" "${BUCKET:?a bucket, as gs://name}"
NAME=${NAME:-svt-jax} TYPE=${TYPE:-v5litepod-16} VERSION=${VERSION:-v2-alpha-tpuv5-lite} PYTHON=${PYTHON:-3.12}
REPOSITORY=${REPOSITORY:-$(git remote get-url origin)} COMMIT=${COMMIT:-$(git rev-parse HEAD)}
TRIES=${TRIES:-20}
place=(--project "$PROJECT" --zone "$ZONE")

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=all --command "$1"
}

make_slice() {
  local state
  state=$(gcloud compute tpus tpu-vm describe "$NAME" "${place[@]}" --format='value(state)' 2> /dev/null) || state=
  case $state in
    READY) return ;;
    '') ;;
    *) gcloud compute tpus tpu-vm delete "$NAME" "${place[@]}" --quiet ;;   # PREEMPTED, TERMINATED
  esac
  # the scope lets the hosts write to the bucket
  gcloud compute tpus tpu-vm create "$NAME" "${place[@]}" --accelerator-type "$TYPE" --version "$VERSION" --spot \
    --scopes https://www.googleapis.com/auth/cloud-platform
}

# uv brings a Python of its own: the images have 3.10 to 3.12
install=$(printf 'set -e
test -x ~/.local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh
test -d svt_jax || git clone %q svt_jax
cd svt_jax && git fetch -q && git checkout -q %q
test -x ~/venv/bin/python || ~/.local/bin/uv venv -q --python %q ~/venv
~/.local/bin/uv pip install -q --python ~/venv/bin/python -e ".[tpu,gcs]"' "$REPOSITORY" "$COMMIT" "$PYTHON")

# --mesh.data 1 --mesh.fsdp -1 divides the parameters over all chips; the default copies them, which is faster while they fit.
train=$(printf '%q ' train --run.output_dir "$BUCKET/runs" --checkpoint.every_steps 500 "$@")

for ((try = 1; try <= TRIES; try++)); do
  status=0
  { make_slice && on_all_hosts "$install" && on_all_hosts "exec ~/venv/bin/svt-jax $train"; } 2>&1 \
    | tee -a "$NAME.log" || status=$?
  case $status in
    0) break ;;
    2 | 3) exit "$status" ;;   # bad input, a store that stayed away, or a number that is not finite: look first
  esac
  echo "try $try of $TRIES ended with status $status" | tee -a "$NAME.log"
done

echo "delete the slice when you are done: gcloud compute tpus tpu-vm delete $NAME --project $PROJECT --zone $ZONE"
exit "$status"
