#!/usr/bin/env bash
# Builds web/dist: the page as static files for any host, also below a path (GitHub Pages).
#
# Needs cargo and rustup's wasm target. Takes Debian's brotli where it is missing and it may.
# No wasm-opt: Debian's (108) takes the module and leaves it with the wrong kind of table, so that no page can load it.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
    '') ;;
    -h | --help) sed -n '2,5p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
    *) echo "build.sh: unknown argument $1 (it takes none)" >&2; exit 2 ;;
esac

target_dir="${CARGO_TARGET_DIR:-$PWD/target}"
dist=web/dist
staging=web/dist.new
most_bytes=5000000

# Debian's packages, as root; elsewhere it says what is missing.
need() {
    command -v "$1" >/dev/null && return 0
    if grep -qs '^ID=debian' /etc/os-release && [ "$(id -u)" = 0 ]; then
        DEBIAN_FRONTEND=noninteractive apt-get -y -qq install "$2" >/dev/null 2>&1 ||
            { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -y -qq install "$2" >/dev/null; }
    fi
    command -v "$1" >/dev/null || { echo "build.sh: $1 is missing (Debian: $2): $3" >&2; return 1; }
}

rustup target add wasm32-unknown-unknown >/dev/null 2>&1 || true

echo "module"
cargo build --profile web -p smolforge --target wasm32-unknown-unknown --target-dir "$target_dir/web"
echo "bindings"
cargo build --quiet --manifest-path web/bindgen/Cargo.toml --target-dir "$target_dir/bindgen"
rm -rf "$staging"
mkdir -p "$staging"
"$target_dir/bindgen/debug/bindgen" "$target_dir/web/wasm32-unknown-unknown/web/smolforge.wasm" "$staging"

# Without the module's own call of its static constructors, the linker wraps every export in one: thousands of them
# would run again at every call from JavaScript.
if grep -qa 'command_export' "$staging/smolforge_bg.wasm" "$staging/smolforge.js"; then
    echo "build.sh: the module calls its constructors at every call: main() must refer to __wasm_call_ctors" >&2
    exit 1
fi

cp web/index.html web/worker.js web/manifest.webmanifest web/icon.svg "$staging/"
version=$(cd "$staging" && cat ./* | sha256sum | cut -c 1-16)
sed "s/^const VERSION = .*/const VERSION = '$version';/" web/service-worker.js >"$staging/service-worker.js"

total=0
if need brotli brotli "no .br files are written, and no sizes told"; then
    for file in "$staging"/*.js "$staging"/*.wasm "$staging"/*.html; do
        brotli --best --force --keep "$file"
        gzip -9 --keep "$file"
        case "$file" in *.js | *.wasm) total=$((total + $(stat -c %s "$file.br"))) ;; esac
    done
    printf 'wasm %d bytes, %d with brotli; wasm and JavaScript together %d with brotli (most: %d)\n' \
        "$(stat -c %s "$staging/smolforge_bg.wasm")" "$(stat -c %s "$staging/smolforge_bg.wasm.br")" "$total" "$most_bytes"
    [ "$total" -le "$most_bytes" ] || { echo "build.sh: too large for a page" >&2; exit 1; }
fi
rm -rf "$dist"
mv "$staging" "$dist"
echo "web/dist is ready: smolforge web"
