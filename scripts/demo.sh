#!/usr/bin/env bash
# Builds agft and runs its demo: the real loop on a simulated server and GPU, for about a minute.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
cargo build --release --locked --bin agft --bin agft-lab
exec "${CARGO_TARGET_DIR:-target}/release/agft" demo "$@"
