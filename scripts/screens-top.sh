#!/usr/bin/env bash
# Makes docs/img/top-80x24.svg and top-160x50.svg from a demo run of two minutes (or of $1 seconds).
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
moment=$(mktemp)
trap 'rm -f "$moment"' EXIT
# Optimised: the demo runs in real time, and a slow server of its metrics is a slow engine.
cargo build --release --locked --bin agft --bin agft-lab --example top_svg
built="${CARGO_TARGET_DIR:-target}/release"
"$built/agft" demo --seconds "${1:-120}" --save-view "$moment"
mkdir -p docs/img
for size in 80x24 160x50; do
    "$built/examples/top_svg" "$moment" "$size" > "docs/img/top-$size.svg"
    echo "docs/img/top-$size.svg"
done
