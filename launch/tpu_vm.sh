#!/usr/bin/env bash
# Run a distil-jax command on all workers of a TPU VM slice.
#
#   TPU=NAME ZONE=ZONE [PROJECT=ID] [SETUP=COMMAND] launch/tpu_vm.sh [--dry-run] COMMAND [ARGUMENT ...]
#   TPU=v5e-16 ZONE=us-west4-a SETUP='source venv/bin/activate' \
#     launch/tpu_vm.sh distill --config distilbert_base_uncased --run.output /mnt/shared/distilbert
#
# Every worker starts the same command and JAX finds the others. distil_jax must be installed on all of them, from a
# checkout that each has:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='cd CHECKOUT && pip install ".[tpu]"'
# The run's and the corpus's folders must be on storage that all workers share.
#   TPU, ZONE, PROJECT  the slice, as gcloud names it
#   SETUP               run on each worker before, for instance to activate an environment
#   --dry-run           print the command instead of running it
set -euo pipefail

dry_run=false
if [[ "${1-}" == "--dry-run" ]]; then
  dry_run=true
  shift
fi
if [[ $# -eq 0 || -z "${TPU-}" || -z "${ZONE-}" ]]; then
  echo "usage: TPU=NAME ZONE=ZONE launch/tpu_vm.sh [--dry-run] COMMAND [ARGUMENT ...], see the top of $0" >&2
  exit 2
fi

remote=(distil-jax "$@")
case "$1" in
  pretrain | distill | finetune)
    if [[ " $* " != *" --run.platform"* ]]; then
      remote+=(--run.platform tpu)
    fi
    ;;
esac
printf -v quoted '%q ' "${remote[@]}"  # the remote shell splits it
command=(gcloud compute tpus tpu-vm ssh "$TPU" "--zone=$ZONE")
if [[ -n "${PROJECT-}" ]]; then
  command+=("--project=$PROJECT")
fi
command+=(--worker=all "--command=${SETUP:+$SETUP && }${quoted% }")

if $dry_run; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
