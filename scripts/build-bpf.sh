#!/usr/bin/env bash
# Builds bpf/connections.bpf.o from bpf/connections.bpf.c. The object is in the repository, so a build of agft needs
# no clang; this is for those who change the source (needs: clang libbpf-dev).
#   scripts/build-bpf.sh          builds it
#   scripts/build-bpf.sh --check  builds it elsewhere and fails if it differs from the committed one
set -euo pipefail
cd "$(dirname "$0")/../bpf"

source=connections.bpf.c
object=connections.bpf.o

if ! command -v clang >/dev/null || ! [ -f /usr/include/bpf/bpf_helpers.h ]; then
    echo "build-bpf: clang or libbpf-dev is not installed: $object not built (apt-get install clang llvm libbpf-dev)" >&2
    [ "${1:-}" = --check ] && exit 0
    exit 1
fi
built_with() { clang --version | sed -n 's/.*clang version \([0-9]*\).*/\1/p;q'; }

# x86_64 and aarch64 have the same object: it names no register of either (BPF_PROG takes its arguments from BPF's own
# context), and CO-RE finds the fields.
build() {
    clang -O2 -g -target bpf -mcpu=v3 -Wall -Werror -Wno-unknown-attributes \
        -ffile-prefix-map="$PWD"=. -fdebug-compilation-dir=. \
        -I"/usr/include/$(cc -dumpmachine 2>/dev/null || echo x86_64-linux-gnu)" \
        -c "$source" -o "$1"
    # Debug lines carry paths and are read by nobody; the type information (.BTF) stays.
    "$(command -v llvm-strip || command -v "llvm-strip-$(built_with)")" --strip-debug "$1"
}

if [ "${1:-}" = --check ]; then
    fresh=$(mktemp)
    trap 'rm -f "$fresh"' EXIT
    build "$fresh"
    major=$(built_with)
    # Another compiler writes other instructions: only the same one can repeat the object.
    if [ "$major" != "$(cat connections.bpf.clang)" ]; then
        echo "build-bpf: $object was built by clang $(cat connections.bpf.clang), here is clang $major: builds, not compared" >&2
        exit 0
    fi
    if ! cmp -s "$fresh" "$object"; then
        echo "build-bpf: bpf/$object is not what bpf/$source gives: run scripts/build-bpf.sh and commit" >&2
        exit 1
    fi
    exit 0
fi
build "$object"
built_with > connections.bpf.clang
