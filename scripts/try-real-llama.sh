#!/usr/bin/env bash
# Runs `agft serve` and agft beside a real llama-server, without a GPU: llama.cpp's CPU build serves a tiny model of
# random weights, and a mock of the NVIDIA driver stands in for the GPUs. Then checks what both did.
#
# Not part of CI: the first run downloads about 100 MB and compiles llama-server, 10 to 20 minutes on one core; each run
# takes about three minutes.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/try-real-llama.sh [--setup-only] [--binaries DIR] [DIRECTORY]

  --setup-only     make llama-server and the model, then stop
  --binaries DIR   use agft, agft-serve, nvml-mock-ctl and libnvidia_ml.so in DIR, and build none of them
  DIRECTORY        for llama-server, the model and the last run's files (default ~/.cache/agft/real-llama);
                   a llama-server that is there is not built again

JOBS=N compiles llama-server with N jobs at once (1). Needs Linux on x86-64, python3 with venv, a C++ compiler, and
cargo without --binaries.
TEXT
}

SOURCE=llama-cpp-python==0.3.36 # its source package on PyPI carries llama.cpp whole
TOOLS='cmake==4.4.5 ninja==1.13.2 gguf==0.19.0 scikit-build-core==1.1.2'

setup_only='' binaries='' dir=''
while [ $# -gt 0 ]; do
    case $1 in
        --setup-only) setup_only=yes ;;
        --binaries) binaries=${2:?--binaries needs a directory}; shift ;;
        -h | --help) usage; exit ;;
        -*) usage >&2; exit 64 ;;
        *) [ -z "$dir" ] || { usage >&2; exit 64; }; dir=$1 ;;
    esac
    shift
done

root=$(cd "$(dirname "$0")/.." && pwd)
tools=$root/scripts/real-llama
dir=${dir:-${XDG_CACHE_HOME:-$HOME/.cache}/agft/real-llama}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
llama=$dir/llama-server
export PYTHONDONTWRITEBYTECODE=1

say() { printf '%s\n' "== $*" >&2; }
die() { printf 'try-real-llama.sh: %s\n' "$*" >&2; exit 1; }

set_up() {
    if [ "$(cat "$dir/venv/agft-ready" 2>/dev/null)" != "$TOOLS" ]; then
        say "installing cmake, ninja and gguf into $dir/venv"
        python3 -m venv --clear "$dir/venv"
        # shellcheck disable=SC2086 # a list of words
        "$dir/venv/bin/pip" install --quiet --disable-pip-version-check $TOOLS
        printf '%s\n' "$TOOLS" >"$dir/venv/agft-ready"
    fi
    [ -x "$llama" ] || build_llama
    if [ ! -e "$dir/tiny.gguf" ]; then
        say "making the model"
        "$dir/venv/bin/python" "$tools/make_model.py" "$dir/tiny.gguf"
    fi
}

# In the unfinished directory, so that an interrupted build goes on where it stopped.
build_llama() {
    local unfinished=$dir/unfinished source
    local -x PATH=$dir/venv/bin:$PATH
    mkdir -p "$unfinished"
    if [ ! -e "$unfinished/source/ready" ]; then
        say "getting the source of $SOURCE"
        rm -rf "$unfinished/source"
        mkdir "$unfinished/source"
        # Without isolation pip builds no cmake and no ninja of its own to read the package's metadata.
        pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation \
            --no-binary llama-cpp-python --dest "$unfinished" "$SOURCE"
        tar -xzf "$unfinished"/llama_cpp_python-*.tar.gz -C "$unfinished/source" --strip-components=1
        "$dir/venv/bin/python" "$tools/scrape_is_work.py" "$unfinished/source/vendor/llama.cpp"
        touch "$unfinished/source/ready"
    fi
    source=$unfinished/source/vendor/llama.cpp
    say "building llama-server (10 to 20 minutes at one job; log: $unfinished/build.log)"
    {
        cmake -S "$source" -B "$unfinished/build" -G Ninja \
            -DCMAKE_BUILD_TYPE=None -DCMAKE_C_FLAGS=-O1 -DCMAKE_CXX_FLAGS=-O1 -DBUILD_SHARED_LIBS=OFF \
            -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
            -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DGGML_OPENMP=OFF &&
            nice -n 19 cmake --build "$unfinished/build" --parallel "${JOBS:-1}" --target llama-server
    } >"$unfinished/build.log" 2>&1 || { tail -n 20 "$unfinished/build.log" >&2; die "llama-server was not built"; }
    mv "$unfinished/build/bin/llama-server" "$llama"
    rm -rf "$unfinished"
}

exec 9>"$dir/lock"
flock --nonblock 9 || die "another run uses $dir"
set_up
[ -z "$setup_only" ] || { say "ready in $dir"; exit; }
if [ -z "$binaries" ]; then
    cargo build --release --manifest-path "$root/Cargo.toml" -p agft -p agft-serve -p nvml-mock
    binaries=${CARGO_TARGET_DIR:-$root/target}/release
fi
for file in agft agft-serve nvml-mock-ctl libnvidia_ml.so; do
    [ -e "$binaries/$file" ] || die "$binaries/$file is missing"
done
rm -rf "$dir/run"
mkdir "$dir/run"
say "running (files: $dir/run)"
exec "$dir/venv/bin/python" "$tools/check.py" --llama-server "$llama" --model "$dir/tiny.gguf" \
    --binaries "$binaries" --run "$dir/run"
