#!/usr/bin/env bash
# Fine-tunes on a Cloud TPU slice, from a machine with gcloud. NOT RUN by the project: it had no TPU. The commands follow
# Google's documentation of TPU VMs and JAX's of jax.distributed; tests/run/test_distributed.py tests many processes on CPUs.
#
# Every host of the slice runs the same command. JAX finds the others from the TPU's metadata, so it needs no --distributed.* keys.
# All hosts must share the output folder, and its file system must rename a folder as one act. NFS does (here Filestore), a
# bucket does not. Each host reads its own rows of each batch; the first writes the folder, Orbax saves from all.
#
# A spot slice that is taken away sends SIGTERM first: the run saves and exits with 143. Run the script again to resume.
#
#   PROJECT=... ZONE=us-west4-a NFS=10.0.0.2:/runs ./tpu-vm-slice.sh --config configs/rte.yaml --data.source /mnt/runs/glue
set -euo pipefail
: "${PROJECT:?}" "${ZONE:?}" "${NFS:?}"
NAME=${NAME:-svt-jax} TYPE=${TYPE:-v5litepod-16} VERSION=${VERSION:-v2-alpha-tpuv5-lite} REPOSITORY=${REPOSITORY:-$(git remote get-url origin)}
COMMIT=${COMMIT:-$(git rev-parse HEAD)}

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --project "$PROJECT" --zone "$ZONE" --worker=all --command "$1"
}

if ! gcloud compute tpus tpu-vm describe "$NAME" --project "$PROJECT" --zone "$ZONE" > /dev/null 2>&1; then
  gcloud compute tpus tpu-vm create "$NAME" --project "$PROJECT" --zone "$ZONE" --accelerator-type "$TYPE" \
    --version "$VERSION" --spot
fi

on_all_hosts "set -e
  test -d svt_jax || git clone '$REPOSITORY' svt_jax
  cd svt_jax && git fetch -q && git checkout -q '$COMMIT'
  python3 -c 'import sys; assert sys.version_info >= (3, 11), \"the image needs Python 3.11 or later\"'
  python3 -m venv ~/venv && ~/venv/bin/pip install -q -e . 'jax[tpu]'
  sudo mkdir -p /mnt/runs
  sudo apt-get -q install -y nfs-common > /dev/null
  mountpoint -q /mnt/runs || sudo mount -t nfs '$NFS' /mnt/runs"

# --mesh.data 1 --mesh.fsdp -1 divides the parameters over all chips; the default copies them, which is faster while they fit.
on_all_hosts "cd svt_jax && exec ~/venv/bin/python train.py --run.output_dir /mnt/runs --checkpoint.every_steps 500 $*"

echo "delete the slice when you are done: gcloud compute tpus tpu-vm delete $NAME --project $PROJECT --zone $ZONE"
