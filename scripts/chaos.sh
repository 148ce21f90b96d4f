#!/usr/bin/env bash
# The real program beside a misbehaving server, driver, disk and operator; invariants checked from outside (tests/chaos).
#   scripts/chaos.sh [--minutes N] [--seed S]     30 minutes, a random seed
# As root the disks are small tmpfs mounts, which can be full or read-only; else they are directories that vanish.
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=30
seed=$((RANDOM * 32768 + RANDOM))
while [ $# -gt 0 ]; do
    case $1 in
        --minutes) minutes=$2 ;;
        --seed) seed=$2 ;;
        *) sed -n '2,4p' "$0" >&2; exit 2 ;;
    esac
    shift 2
done
echo "CHAOS_SEED=$seed, $minutes minutes"
cargo build --locked --workspace
CHAOS_SEED=$seed CHAOS_SECONDS=$((minutes * 60)) cargo test --locked --test chaos -- --nocapture
