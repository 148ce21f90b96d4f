#!/usr/bin/env bash
# Tries the package in a clean Debian under a real systemd: install, run, kill, upgrade, remove, purge.
#   sudo scripts/try-package.sh [DIR]     DIR (target/try) keeps the Debian root between calls
# Needs root, debootstrap, and a kernel that allows namespaces. The driver is the mock; no GPU is touched.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" -eq 0 ] || { echo "try-package: run as root: it makes namespaces and a Debian root" >&2; exit 2; }
command -v debootstrap >/dev/null || { echo "try-package: apt install debootstrap" >&2; exit 2; }

dir=${1:-target/try}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
mkdir -p "$dir"
dir=$(realpath "$dir")
root=$dir/root
target=${CARGO_TARGET_DIR:-target}/release
ls dist/*.deb >/dev/null 2>&1 || scripts/package.sh
cargo build --locked --release -p nvml-mock

say() { printf 'try-package: %s\n' "$*"; }
fail() { printf 'try-package: FAILED: %s\n' "$*" >&2; exit 1; }

if [ ! -e "$root/etc/debian_version" ]; then
    say "making a Debian root in $root"
    debootstrap --variant=minbase --include=systemd,dbus,procps bookworm "$root" "$mirror" > "$dir/debootstrap.log"
    # Nobody logs in here.
    for unit in console-getty getty@tty1 systemd-logind; do ln -sf /dev/null "$root/etc/systemd/system/$unit.service"; done
fi

cat > "$dir/boot" <<BOOT
#!/bin/bash
set -e
mount --make-rprivate /
mount --bind $root $root
cd $root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs dev
mkdir dev/pts dev/shm
mknod -m 666 dev/null c 1 3; mknod -m 666 dev/zero c 1 5; mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8; mknod -m 666 dev/urandom c 1 9; mknod -m 666 dev/tty c 5 0
exec env -i container=docker PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . /lib/systemd/systemd --log-target=null
BOOT
chmod +x "$dir/boot"
unshare --fork --kill-child --pid --mount --uts --ipc --cgroup "$dir/boot" > "$dir/boot.log" 2>&1 &
unshare=$!
trap 'kill -9 $unshare 2>/dev/null || true' EXIT
for _ in $(seq 100); do
    init=$(pgrep -P "$unshare" | head -1 || true)
    # Not before it is systemd, in its own root.
    [ -n "$init" ] && [ "$(readlink "/proc/$init/root")" = "$root" ] && break
    sleep 0.1
done
inside() { nsenter -t "$init" -p -m -u -i -C -r -w -- "$@"; }
for _ in $(seq 100); do
    case $(inside systemctl is-system-running 2>/dev/null || true) in running | degraded) break ;; esac
    sleep 0.2
done
inside systemctl is-active --quiet dbus || fail "systemd does not come up; see $dir/boot.log"
say "systemd $(inside systemctl --version | sed -n 's/^systemd \([0-9]*\).*/\1/p') runs"

# What others write while the package comes and goes is not the package's.
files() {
    inside find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /dev -o -path /var/lib/dpkg -o -path /var/log \
        -o -path /var/lib/systemd -o -path /var/cache -o -path /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1 -o -path /opt \) -prune -o -print | sort
}
inside dpkg --purge agft >/dev/null 2>&1 || true
rm -rf "$root"/etc/systemd/system/agft{,-park}.service.d

# The mocked driver, and a page of an idle server.
mkdir -p "$root/opt/engine"
cp "$target/libnvidia_ml.so" "$root/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
cp tests/data/metrics/vllm-0.32.0-idle-after-load.txt "$root/opt/engine/metrics"
rm -f "$root/opt/nvml.state"
"$target/nvml-mock-ctl" create "$root/opt/nvml.state"
chmod 666 "$root/opt/nvml.state"
lock() { "$target/nvml-mock-ctl" show "$root/opt/nvml.state"; }
files > "$dir/before"
# It listens here; the root has no network of its own.
python3 - "$root/opt/engine/metrics" > "$dir/port" <<'PAGE' &
import http.server, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = open(sys.argv[1], "rb").read()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
print(server.server_port, flush=True)
server.serve_forever()
PAGE
engine=$!
trap 'kill -9 $unshare $engine 2>/dev/null || true' EXIT
for _ in $(seq 50); do [ -s "$dir/port" ] && break; sleep 0.1; done
port=$(cat "$dir/port")

begin=$(date +%s.%N)
cp dist/*.deb "$root/opt/agft.deb"
inside dpkg -i /opt/agft.deb
# The mock is a file where the driver would be devices.
for unit in agft agft-park; do
    mkdir -p "$root/etc/systemd/system/$unit.service.d"
    printf '[Service]\nEnvironment=NVML_MOCK_STATE=/opt/nvml.state\nReadWritePaths=/opt\n' > "$root/etc/systemd/system/$unit.service.d/mock.conf"
done
sed -i "s,^  prometheus_url:.*,  prometheus_url: http://127.0.0.1:$port/metrics," "$root/etc/agft/config.yaml"
inside systemctl daemon-reload
inside systemctl is-enabled --quiet agft && fail "the unit is enabled without being asked"
inside systemctl is-enabled --quiet agft-park && fail "the unit of agft park is enabled without being asked"
inside systemctl is-active --quiet agft-park && fail "agft park runs without being asked"
inside systemctl is-enabled --quiet agft-serve && fail "the unit of agft serve is enabled without being asked"
inside systemctl is-active --quiet agft-serve && fail "agft serve runs without being asked"
inside systemctl start agft
inside agft status > "$dir/status"
say "from dpkg -i to the status of the running unit: $(echo "$(date +%s.%N) - $begin" | bc) s"
cat "$dir/status"
inside systemctl is-active --quiet agft || fail "the unit does not run"
inside sh -c 'agft --version && agft check | head -3' || fail "the program does not run"
for file in /usr/share/man/man1/agft.1.gz /usr/share/man/man1/agft-status.1.gz /usr/share/bash-completion/completions/agft \
    /usr/share/zsh/vendor-completions/_agft /usr/share/fish/vendor_completions.d/agft.fish /usr/share/doc/agft/quick-start.md; do
    inside test -s "$file" || fail "$file is missing"
done
inside agft demo --seconds 5 --json > "$dir/demo" || fail "the demo does not run"

locked() { lock | grep -q 'locks [0-9]'; }
for _ in $(seq 50); do locked && break; sleep 0.2; done
locked || { inside agft status; inside journalctl -u agft --no-pager -o cat | tail -20; fail "the idle GPU is not parked"; }
lock
inside systemctl kill --signal=KILL agft
for _ in $(seq 50); do inside journalctl -u agft --no-pager 2>/dev/null | grep -q 'given back\|nothing to give back' && break; sleep 0.2; done
say "killed with its whole control group; what the service manager did:"
inside journalctl -u agft --no-pager -o cat | tail -4
for _ in $(seq 100); do inside systemctl is-active --quiet agft && break; sleep 0.2; done
inside systemctl is-active --quiet agft || fail "not restarted after the kill"

printf '# a line of the operator\n' >> "$root/etc/agft/config.yaml"
pid=$(inside systemctl show -p MainPID --value agft)
new=$dir/newer.deb
rm -f "$new"
deb=$(command -v cargo-deb || echo target/tools/bin/cargo-deb)
"$deb" --no-build --deb-version 99.0 --output "$new" >/dev/null
cp "$new" "$root/opt/agft.deb"
inside dpkg -i --force-confold /opt/agft.deb
inside systemctl is-active --quiet agft || fail "does not run after the upgrade"
[ "$pid" != "$(inside systemctl show -p MainPID --value agft)" ] || fail "the upgrade did not restart it"
grep -q 'a line of the operator' "$root/etc/agft/config.yaml" || fail "the upgrade lost the configuration"
inside test -s /var/lib/agft/models/model_metadata.json || fail "the model is gone after the upgrade"
say "upgraded: restarted, configuration and model kept"

# agft park, which takes the GPU when agft has let go of it.
if inside systemctl start agft-park 2>/dev/null; then fail "agft park took a GPU that agft has"; fi
inside systemctl stop agft
inside systemctl reset-failed agft-park
inside systemctl start agft-park
for _ in $(seq 50); do locked && break; sleep 0.2; done
locked || { inside journalctl -u agft-park --no-pager -o cat | tail -20; fail "agft park does not park the idle GPU"; }
inside systemctl reload agft-park
inside agft status > "$dir/status-park"
cat "$dir/status-park"
grep -q 'PARKED for' "$dir/status-park" || fail "agft park does not show that the GPU is parked"
inside systemctl is-active --quiet agft-park || fail "agft park does not run after a reload"
inside systemctl stop agft-park
locked && fail "agft park has ended and a clock is locked"
say "agft park: started, parked, reloaded, stopped"

mkdir -p "$root/etc/agft/instances"
printf -- '- {name: sleeper, command: sleep 1000, gpus: none}\n' > "$root/etc/agft/instances/a.yaml"
inside systemctl start agft-serve
for _ in $(seq 50); do
    inside agft instances ls > "$dir/instances" 2>&1 && grep -q 'sleeper.*ready' "$dir/instances" && break
    sleep 0.2
done
grep -q 'sleeper.*ready' "$dir/instances" || { cat "$dir/instances" >&2; fail "agft serve runs no instance"; }
inside agft instances disable sleeper > /dev/null
inside systemctl stop agft-serve
rm -r "$root/etc/agft/instances"
say "agft serve: started, listed, disabled, stopped"

inside dpkg --remove agft
inside test -e /usr/bin/agft && fail "removed, but the program is there"
inside test -s /etc/agft/config.yaml || fail "removing took the configuration"
"$target/nvml-mock-ctl" show "$root/opt/nvml.state" > "$dir/after-remove"
rm -r "$root"/etc/systemd/system/agft{,-park}.service.d
inside dpkg --purge agft
files > "$dir/after"
if ! diff "$dir/before" "$dir/after" > "$dir/left"; then
    cat "$dir/left" >&2
    fail "purge leaves files"
fi
inside test -e /run/agft && fail "purge leaves /run/agft"
cat "$dir/after-remove" | head -5
say "removed and purged: nothing is left"
