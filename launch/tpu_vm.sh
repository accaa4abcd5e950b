#!/usr/bin/env bash
# Run a distil-jax command on all workers of a TPU VM slice. It runs on when the connection is lost.
#
#   TPU=NAME ZONE=ZONE [PROJECT=ID] [SETUP=COMMAND] launch/tpu_vm.sh [--keep] [--dry-run] COMMAND [ARGUMENT ...]
#   TPU=NAME ZONE=ZONE launch/tpu_vm.sh --follow | --status | --stop
#   TPU=v5e-16 ZONE=us-west4-a SETUP='source venv/bin/activate' \
#     launch/tpu_vm.sh distill --config distilbert_base_uncased --run.output /mnt/shared/distilbert
#
# Every worker starts the same command, detached, and JAX finds the others. distil_jax must be installed on all of them,
# from a checkout that each has:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='cd CHECKOUT && pip install ".[tpu]"'
# The run's and the corpus's folders must be on storage that all workers share. The log is ~/.distil_jax/log on each worker.
#   TPU, ZONE, PROJECT  the slice, as gcloud names it
#   SETUP               run on each worker before, for instance to activate an environment, or to install everything
#   --follow            show the log of the first worker, until Ctrl-C; the run is not touched
#   --status            a line for each worker: running, or the status that the command ended with
#   --stop              SIGTERM to the command: it saves its state and ends; the same command continues
#   --keep              stay here and look every minute; where the slice was preempted, create it again as a spot slice
#                       of type ACCELERATOR with software VERSION, and start the command again: it continues
#   --dry-run           anywhere: print the commands instead of running them
set -euo pipefail

dry_run=false action=start keep=false
arguments=()
for argument in "$@"; do
  case "$argument" in
    --dry-run) dry_run=true ;;
    --keep) keep=true ;;
    --follow | --status | --stop) action="${argument#--}" ;;
    *) arguments+=("$argument") ;;
  esac
done
if [[ -z "${TPU-}" || -z "${ZONE-}" || ($action == start && ${#arguments[@]} -eq 0) ]]; then
  echo "usage: TPU=NAME ZONE=ZONE launch/tpu_vm.sh [--dry-run] COMMAND [ARGUMENT ...], see the top of $0" >&2
  exit 2
fi
if $keep && [[ -z "${ACCELERATOR-}" || -z "${VERSION-}" ]]; then
  echo "--keep creates the slice again: set ACCELERATOR (such as v5litepod-16) and VERSION (such as v2-alpha-tpuv5-lite)" >&2
  exit 2
fi

place=("$TPU" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})

tpu_vm() {
  local command=(gcloud compute tpus tpu-vm "$@")
  if $dry_run; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}"
  fi
}

on_workers() { tpu_vm ssh "${place[@]}" "--worker=$1" "--command=$2"; }

start() {
  local remote=(distil-jax "${arguments[@]}") quoted program
  case "${arguments[0]}" in
    pretrain | distill | finetune | study | cache-teacher)
      if [[ " ${arguments[*]} " != *" --run.platform"* ]]; then
        remote+=(--run.platform tpu)
      fi
      ;;
  esac
  printf -v quoted '%q ' "${remote[@]}" # the remote shell splits it
  printf -v program '%q' "trap : TERM; ${SETUP:+$SETUP && }${quoted% }; echo \$? > ~/.distil_jax/status"
  on_workers all "mkdir -p ~/.distil_jax && cd ~ && \
if kill -0 \$(cat .distil_jax/pid 2>/dev/null) 2>/dev/null; then echo 'a command is running; see --status' >&2; exit 1; fi; \
rm -f .distil_jax/status; nohup setsid bash -c $program > .distil_jax/log 2>&1 < /dev/null & echo \$! > ~/.distil_jax/pid"
}

state_of_slice() { gcloud compute tpus tpu-vm describe "${place[@]}" "--format=value(state)" 2>/dev/null || echo MISSING; }

# The statuses of all workers, as soon as all have ended; else nothing.
ended() {
  local lines
  lines="$(on_workers all "$status_line" 2>/dev/null)" || return 0
  [[ "$lines" == *running* ]] || echo "$lines"
}

# shellcheck disable=SC2016 # the worker's shell expands it
status_line='cd ~/.distil_jax && if kill -0 $(cat pid) 2>/dev/null; then echo "$(hostname): running"; '
status_line+='else echo "$(hostname): ended with status $(cat status 2>/dev/null || echo unknown)"; fi'

watch_slice() {
  local state lines looks=0
  while true; do
    sleep "${POLL_SECONDS:-60}"
    state="$(state_of_slice)"
    case "$state" in
      READY)
        lines="$(ended)"
        if [[ "$lines" == *"status 143"* && $((looks++)) -lt 3 ]]; then
          continue # SIGTERM comes before the slice is gone
        elif [[ -n "$lines" ]]; then
          echo "$lines"
          [[ "$lines" != *"status "[1-9]* && "$lines" != *unknown* ]]
          return
        fi
        ;;
      PREEMPTED | TERMINATED | MISSING)
        echo "the slice $TPU is $state; creating it again" >&2
        [[ $state == MISSING ]] || tpu_vm delete "${place[@]}" --quiet
        until tpu_vm create "${place[@]}" "--accelerator-type=$ACCELERATOR" "--version=$VERSION" --spot; do
          echo "no capacity for $ACCELERATOR; trying again" >&2
          sleep "${POLL_SECONDS:-60}"
        done
        start
        looks=0
        ;;
    esac
  done
}

case "$action" in
  start)
    start
    if $keep && $dry_run; then
      tpu_vm create "${place[@]}" "--accelerator-type=$ACCELERATOR" "--version=$VERSION" --spot
    elif $keep; then
      watch_slice
    elif ! $dry_run; then
      echo "started on all workers; watch it with: TPU=$TPU ZONE=$ZONE launch/tpu_vm.sh --follow" >&2
    fi
    ;;
  follow) on_workers 0 'tail -n 50 -f ~/.distil_jax/log' ;;
  status) on_workers all "$status_line" ;;
  stop) on_workers all "pkill -TERM -s \$(cat ~/.distil_jax/pid) -f distil-jax" ;;
esac
