#!/usr/bin/env bash
# Installs what a build of agft needs beside Rust, and says so. Does nothing where everything is in place.
set -euo pipefail

say() { printf 'agft setup: %s\n' "$*" >&2; }

if ! command -v cargo >/dev/null; then
    say "Rust is missing: install it from https://rustup.rs (or your distribution), then run this again"
    exit 1
fi

# The archives that .cargo/config.toml links statically, as this machine's C compiler finds them.
has_archives() {
    command -v cc >/dev/null || return 1
    local triple
    triple=$(cc -dumpmachine)
    [ -f "/usr/lib/$triple/openblas-serial/libopenblas.a" ] || return 1
    [ "$(cc -print-file-name=libgfortran.a)" != libgfortran.a ]
}

has_archives && exit 0

if ! command -v apt-get >/dev/null; then
    say "needed: a C compiler, and static archives of OpenBLAS (serial) and libgfortran"
    say "on this distribution, install OpenBLAS with its headers and delete .cargo/config.toml to link it dynamically"
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { say "run as root, or install sudo"; exit 1; }
    as_root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
if ! command -v cc >/dev/null; then
    say "installing a C compiler: build-essential"
    "${as_root[@]}" apt-get update -q >&2
    "${as_root[@]}" apt-get install -q -y --no-install-recommends build-essential >&2
fi
has_archives && exit 0
gcc_major=$(cc -dumpversion | cut -d. -f1)
say "installing static linear algebra: libopenblas-serial-dev libgfortran-$gcc_major-dev"
"${as_root[@]}" apt-get update -q >&2
"${as_root[@]}" apt-get install -q -y --no-install-recommends libopenblas-serial-dev "libgfortran-$gcc_major-dev" >&2
has_archives || { say "the archives are still missing after the installation"; exit 1; }
