#!/usr/bin/env bash
# Runs all tests. On a fresh Debian or Ubuntu machine with Rust it installs first what the build needs; with
# AGFT_BROWSER=1 also the browser that the test of the web page wants, on Debian.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
if [ "${AGFT_BROWSER:-}" = 1 ]; then
    scripts/setup-browser.sh
fi
# The program and the mock library are started by tests as files: built first, so that no test waits for a build.
cargo build --workspace --locked
cargo test --workspace --locked "$@"
