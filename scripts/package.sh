#!/usr/bin/env bash
# Builds what is released, into dist/: agft_VERSION_ARCH.deb, agft-VERSION-TARGET.tar.gz, SHA256SUMS.
# Installs cargo-deb under target/tools if it is missing. scripts/try-package.sh tries the package in a clean Debian root.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
cargo build --locked --release
target=${CARGO_TARGET_DIR:-target}/release
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
triple=$(rustc -vV | sed -n 's/^host: //p')
# The date of the sources, so that the same sources give the same files.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH

made=target/package
rm -rf "$made"
mkdir -p "$made/man" "$made/completions" dist
"$target/agft" man-pages "$made/man"
gzip -9n "$made"/man/*.1
for program in agft agft-serve; do
    "$target/$program" completions bash > "$made/completions/$program.bash"
    "$target/$program" completions zsh > "$made/completions/_$program"
    "$target/$program" completions fish > "$made/completions/$program.fish"
done
# The unit of the repository is for /usr/local; a package lives in /usr.
sed -e 's,/usr/local/bin/agft,/usr/bin/agft,; s,/usr/local/share,/usr/share,' -e '1,5d' deploy/agft.service > "$made/agft.service"
sed -e 's,/usr/local/bin/agft,/usr/bin/agft,; s,/usr/local/share,/usr/share,' -e '1,/^$/d' deploy/agft-park.service > "$made/agft-park.service"
sed -e 's,/usr/local/bin/agft,/usr/bin/agft,; s,/usr/local/share,/usr/share,' -e '1,/^$/d' deploy/agft-serve.service > "$made/agft-serve.service"
# Relative paths are for a source tree; an installed agft has one place, wherever it is called from.
sed -e 's,^  dir: "logs" ,  dir: "/var/lib/agft/logs" ,' -e 's,^  save_dir: "data/models" ,  save_dir: "/var/lib/agft/models" ,' \
    -e 's,^  dir: "experiment" ,  dir: "/var/lib/agft/experiment" ,' config/config.yaml > "$made/config.yaml"
[ "$(grep -c /var/lib/agft "$made/config.yaml")" -eq 3 ]
"$target/agft" check-config "$made/config.yaml" > /dev/null
# Links as they are where the files end up.
cp -r docs "$made/docs"
sed -i -e 's,](\.\./config/config\.yaml),](/etc/agft/config.yaml),g' -e 's,](\.\./deploy/\(agft[a-z-]*\.service\)),](/usr/lib/systemd/system/\1),g' "$made"/docs/*.md
gzip -9nc CHANGELOG.md > "$made/changelog.gz"

deb=$(command -v cargo-deb || echo target/tools/bin/cargo-deb)
if [ ! -x "$deb" ]; then
    echo "agft package: installing cargo-deb under target/tools" >&2
    cargo install cargo-deb --locked --root target/tools
fi
rm -f dist/*.deb dist/*.tar.gz dist/SHA256SUMS
"$deb" --no-build --output dist/

bundle=agft-$version-$triple
mkdir -p "$made/$bundle"
cp -r "$target/agft" "$target/agft-lab" "$target/agft-serve" config/config.yaml README.md CHANGELOG.md LICENSE-* deploy docs "$made/man" "$made/completions" "$made/$bundle/"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
    -C "$made" -cf - "$bundle" | gzip -9n > "dist/$bundle.tar.gz"
(cd dist && sha256sum -- *.deb *.tar.gz > SHA256SUMS && cat SHA256SUMS)
