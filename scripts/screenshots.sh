#!/usr/bin/env bash
# Makes the pictures of the web page in docs/img from a demo run. Takes eleven minutes, until the charts are full;
# AGFT_PICTURES_AFTER_S=60 is quicker. Needs chromium, chromedriver and pngquant (Debian: chromium-driver pngquant).
set -euo pipefail
cd "$(dirname "$0")/.."

AGFT_BROWSER=1 scripts/setup-browser.sh
command -v pngquant >/dev/null || { echo "screenshots: pngquant is missing (Debian: pngquant)" >&2; exit 1; }
if [ -z "${AGFT_BIN:-}" ]; then
    cargo build --release --locked --bin agft --bin agft-lab
    export AGFT_BIN="${CARGO_TARGET_DIR:-$PWD/target}/release/agft"
fi
mkdir -p docs/img
AGFT_PICTURES="$PWD/docs/img" AGFT_PICTURES_AFTER_S="${AGFT_PICTURES_AFTER_S:-640}" \
    cargo test --locked --test page pictures_for_the_documentation -- --ignored --nocapture
for picture in docs/img/page-{light,dark,phone}.png; do
    pngquant --force --skip-if-larger --speed 1 --strip --output "$picture" 128 "$picture" || true
    size=$(stat -c %s "$picture")
    if [ "$size" -ge 200000 ]; then
        echo "screenshots: $picture has $size bytes; 200000 are the limit" >&2
        exit 1
    fi
done
