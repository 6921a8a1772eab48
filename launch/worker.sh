#!/usr/bin/env bash
# What a TPU VM does with the tree that was copied to it; launch/tpu.py calls this on every worker, over ssh.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: worker.sh setup BUCKET [judges]     mount the bucket, install this tree and its packages; judges: what lpo-eval reads code with, too
       worker.sh install [judges]          only install
       worker.sh start FILE PROGRAM ...    run a program of ours in the background, as exec does. ~/FILE says what the job is: the same job is stopped
                                           first where it still runs, another one isn't (busy)
       worker.sh exec PROGRAM ...          run it in the bucket's directory; @tree/ in front of an argument stands for this tree
       worker.sh follow [LINES]            print its log, from LINES before the end, until it is over
       worker.sh state                     its job, and: running, over CODE, or none
       worker.sh stop                      let it save, and end it

All but exec end with a line `worker.sh: WORD ...` that says how it went: gcloud doesn't return the exit code of every worker.
USAGE
}

tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
bucket_dir=$HOME/lpo-bucket # the job's working directory: relative paths are the bucket's
venv=$tree/.venv            # with the tree: one that is installed later doesn't touch what runs from this one
state=$HOME/lpo-state       # job, log, pid and exit code

report() { echo "worker.sh: $*"; }

setup() {
  mkdir -p "$bucket_dir" "$state"
  echo "gs://$1/models" >"$state/models"
  if ! mountpoint --quiet "$bucket_dir"; then
    command -v gcsfuse >/dev/null || install_gcsfuse
    # No caching of what exists: each worker must see at once what another one has written.
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$1" "$bucket_dir"
  fi
  install "${@:2}"
}

install() {
  # The image's own Python may be too old; uv brings the version that the pins were tested with.
  export PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  [[ -x $venv/bin/python ]] || uv venv --python 3.11 "$venv"
  uv pip install --quiet --python "$venv/bin/python" -r "$tree/requirements.txt" 'jax[tpu]'
  uv pip install --quiet --python "$venv/bin/python" --no-deps --editable "$tree"
  if [[ ${1:-} == judges ]]; then # Semgrep's pins are others'; judges/semgrep.py looks for it there
    [[ -x $venv/semgrep/bin/python ]] || uv venv --python 3.11 "$venv/semgrep"
    uv pip install --quiet --python "$venv/semgrep/bin/python" -r "$tree/requirements-semgrep.txt"
  fi
  report ready
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.gpg release
  release=$(lsb_release --codename --short)
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo gpg --dearmor --yes --output "$key"
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$release main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list
  # A machine that has just started holds apt's lock for its own upgrades.
  sudo apt-get -o DPkg::Lock::Timeout=300 --quiet --quiet update
  sudo apt-get -o DPkg::Lock::Timeout=300 --quiet --quiet --yes install gcsfuse
}

# After a reboot the number may be another program's.
running() { [[ -s $state/pid ]] && grep --quiet --text worker.sh "/proc/$(<"$state/pid")/cmdline" 2>/dev/null; }

# Two terminals may start one job at once: one after another.
start() {
  local told=$HOME/$1
  shift
  exec 9>"$state/lock"
  flock 9
  if running; then
    if ! cmp --silent "$told" "$state/job.json"; then
      report busy
      return
    fi
    stop
  fi
  rm -f "$state/code" "$state/pid"
  cp "$told" "$state/job.json"
  # In a session of its own it outlives this ssh connection.
  setsid bash "${BASH_SOURCE[0]}" run "$@" </dev/null >"$state/log" 2>&1 9>&- &
  until [[ -s $state/pid ]]; do sleep 0.1; done
  report started
}

# A process whose peers are gone waits for them; give it a minute to save, then end it.
stop() {
  local group second
  running || return 0
  group=$(<"$state/pid")
  kill -TERM -- "-$group" || return 0
  for ((second = 0; second < 60; second++)); do
    kill -0 -- "-$group" 2>/dev/null || return 0
    sleep 1
  done
  kill -KILL -- "-$group" || true
}

run() {
  echo $$ >"$state/pid.new" && mv "$state/pid.new" "$state/pid"
  trap : TERM # the program's to obey; this shell waits for its exit code
  local code=0
  bash "${BASH_SOURCE[0]}" exec "$@" || code=$?
  echo "$code" >"$state/code"
}

in_bucket() {
  if [[ -f $HOME/.lpo-hf-token ]]; then export HF_TOKEN_PATH=$HOME/.lpo-hf-token; fi
  # In the environment, where only this user's programs can see it.
  if [[ -f $HOME/.lpo-api-key ]]; then LPO_API_KEY=$(<"$HOME/.lpo-api-key") && export LPO_API_KEY; fi
  # Models of the hub are fetched into the bucket, once, and read from there (lpo fetch --help).
  if [[ -f $state/models ]]; then LPO_MODELS=$(<"$state/models") && export LPO_MODELS; fi
  cd "$bucket_dir"
  local program=$1
  shift
  exec "$venv/bin/$program" "${@/#@tree/$tree}"
}

follow() {
  [[ ! -s $state/pid ]] || tail --lines="${1:-+1}" --follow --pid="$(<"$state/pid")" "$state/log"
  report_state
}

report_state() {
  if [[ -s $state/code ]]; then
    report over "$(<"$state/code")"
  elif running; then
    report running
  else
    report none
  fi
}

case ${1:-} in
  setup | install | start | run | follow | stop) "$@" ;;
  exec) shift && in_bucket "$@" ;;
  state)
    if [[ -s $state/job.json ]]; then report job "$(<"$state/job.json")"; fi
    report_state
    ;;
  *) usage && exit 2 ;;
esac
