#!/usr/bin/env bash
# Kills the real daemon (or its process group) N times at random moments, and says how long its clocks stayed locked.
#   scripts/kill-test.sh [N]     200 by default; about 1.5 s each
set -euo pipefail
cd "$(dirname "$0")/.."

KILLS=${1:-200} cargo test --locked --test guardian -- --ignored --nocapture --exact many_kills
