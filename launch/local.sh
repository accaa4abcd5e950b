#!/usr/bin/env bash
# Run a distil-jax command on this host, on one or several of its GPUs.
#
#   launch/local.sh [--dry-run] COMMAND [ARGUMENT ...]
#   launch/local.sh distill --config minilm_l3
#   GPUS=0,1 launch/local.sh distill --config minilm_l3
#
# One process drives all GPUs. On a host with GPUs, training fails without them instead of using the CPU.
#   GPUS       numbers of the GPUs to use, separated by commas; default: all
#   --dry-run  anywhere: print the command instead of running it
set -euo pipefail

dry_run=false
arguments=()
for argument in "$@"; do
  if [[ "$argument" == "--dry-run" ]]; then dry_run=true; else arguments+=("$argument"); fi
done
set -- "${arguments[@]}"
if [[ $# -eq 0 ]]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
fi

command=(distil-jax "$@")
case "$1" in
  pretrain | distill | finetune | study | cache-teacher)
    if [[ " $* " != *" --run.platform"* ]] && nvidia-smi --list-gpus 2>/dev/null | grep GPU >/dev/null; then
      command+=(--run.platform gpu)
    fi
    ;;
esac
if [[ -n "${GPUS-}" ]]; then
  command=(env "CUDA_VISIBLE_DEVICES=$GPUS" "${command[@]}")
fi

if $dry_run; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
