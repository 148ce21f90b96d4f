#!/usr/bin/env bash
# Runs all tests. On a fresh Debian or Ubuntu machine with Rust it installs first what the build needs.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
# The program and the mock library are started by tests as files: built first, so that no test waits for a build.
cargo build --workspace --locked
cargo test --workspace --locked "$@"
