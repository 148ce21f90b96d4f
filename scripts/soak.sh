#!/usr/bin/env bash
# The real program for long, at a fast tick: resident memory and file sizes must stay where they are (tests/soak.rs).
#   scripts/soak.sh [--minutes N] [--tick-ms T]     60 minutes at 30 ms, ten times the default rate
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=60
tick_ms=30
while [ $# -gt 0 ]; do
    case $1 in
        --minutes) minutes=$2 ;;
        --tick-ms) tick_ms=$2 ;;
        *) sed -n '2,3p' "$0" >&2; exit 2 ;;
    esac
    shift 2
done
cargo build --locked --workspace
SOAK_SECONDS=$((minutes * 60)) SOAK_TICK_MS=$tick_ms \
    cargo test --locked --test soak -- --ignored --nocapture --exact memory_and_files_stay_where_they_are
