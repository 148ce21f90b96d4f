#!/usr/bin/env bash
# Installs the headless browser that the test of the web page drives, and says so. Does nothing where it is in place.
set -euo pipefail

say() { printf 'agft setup: %s\n' "$*" >&2; }

command -v chromedriver >/dev/null && command -v chromium >/dev/null && exit 0

# On Ubuntu the packages of these names install a snap, which does not run in containers.
if ! command -v apt-get >/dev/null || ! grep -qx 'ID=debian' /etc/os-release; then
    say "needed for the test of the web page: chromium and chromedriver of the same version, in the PATH"
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { say "run as root, or install sudo"; exit 1; }
    as_root=(sudo)
fi
say "installing a browser for the test of the web page: chromium chromium-driver"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -q >&2
"${as_root[@]}" apt-get install -q -y --no-install-recommends chromium chromium-driver fonts-dejavu-core >&2
