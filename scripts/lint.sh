#!/usr/bin/env bash
# Everything that is checked beside the tests; continuous integration runs exactly this.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
if command -v cargo-deny >/dev/null; then
    cargo deny --workspace check bans licenses sources
    # Advisories come over the network, and count where that is.
    if cargo deny fetch db 2>/dev/null; then
        cargo deny --workspace check advisories
    else
        echo "lint: the advisory database cannot be fetched: advisories not checked" >&2
    fi
else
    echo "lint: cargo-deny is not installed: licences, bans and sources not checked (cargo install cargo-deny)" >&2
fi
long=$(git ls-files '*.rs' | xargs wc -l | awk '$2 != "total" && $1 > 600 { print $2 " has " $1 " lines" }')
if [ -n "$long" ]; then
    printf 'lint: a file holds one idea in at most 600 lines:\n%s\n' "$long" >&2
    exit 1
fi
# The fuzz targets are a workspace of their own, which no other command here looks at.
if ! cargo metadata --locked --manifest-path fuzz/Cargo.toml --format-version 1 >/dev/null; then
    echo "lint: fuzz/Cargo.lock is stale: cp Cargo.lock fuzz/ && cargo metadata --manifest-path fuzz/Cargo.toml >/dev/null" >&2
    exit 1
fi
scripts/build-bpf.sh --check
cargo run --quiet --locked --bin agft -- check-config config/config.yaml
