#!/usr/bin/env bash
# Exactly what CI runs, in order. `./check.sh --portable` adds the other platforms.
#
# SMOLFORGE_REQUIRE_GPU=1 makes a missing Vulkan driver a failure instead of a skip.
set -euo pipefail
cd "$(dirname "$0")"

portable=false
for argument in "$@"; do
    case "$argument" in
        --portable) portable=true ;;
        -h | --help) sed -n '2,4p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
        *) echo "check.sh: unknown argument $argument (only --portable is known)" >&2; exit 2 ;;
    esac
done

step() {
    printf '\n=== %s (at %d s)\n' "$1" "$SECONDS"
}

skipped() {
    echo "skipped: $1"
    if [ "${SMOLFORGE_REQUIRE_GPU:-0}" = 1 ]; then
        echo "check.sh: SMOLFORGE_REQUIRE_GPU=1, so this is a failure" >&2
        exit 1
    fi
}

# True where wgpu could find a driver: Metal on a Mac, elsewhere the Vulkan loader and a driver's manifest.
has_gpu_driver() {
    [ "$(uname)" != Darwin ] || return 0
    [ -n "$(ldconfig -p 2>/dev/null | grep -F libvulkan.so.1)" ] || return 1
    [ -z "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ] || return 0
    local folder
    for folder in /usr/share/vulkan/icd.d /etc/vulkan/icd.d /usr/local/share/vulkan/icd.d \
        "${XDG_DATA_HOME:-$HOME/.local/share}/vulkan/icd.d"; do
        compgen -G "$folder/*.json" >/dev/null && return 0
    done
    return 1
}

# apt-get without its chatter; what it said is shown only where it failed.
quiet_apt() {
    local log
    log=$(mktemp)
    DEBIAN_FRONTEND=noninteractive apt-get -y -qq "$@" >"$log" 2>&1 || { cat "$log" >&2; rm -f "$log"; return 1; }
    rm -f "$log"
}

# On Debian as root: a C compiler, the Vulkan loader and Mesa's lavapipe, from backports where there are any
# (bookworm's own Mesa is of 2022).
install_debian_packages() {
    local suite ours=/etc/apt/sources.list.d/smolforge-backports.sources
    local release=()
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-none}-backports")
    if ! grep -rqsE --include='*.list' --include='*.sources' "^[^#]*\b$suite\b" /etc/apt/sources.list /etc/apt/sources.list.d/; then
        printf 'Types: deb\nURIs: http://deb.debian.org/debian\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
            "$suite" /usr/share/keyrings/debian-archive-keyring.gpg >"$ours"
    fi
    if ! quiet_apt update -o APT::Update::Error-Mode=any; then
        rm -f "$ours"
        quiet_apt update
    fi
    if apt-cache madison mesa-vulkan-drivers | grep -qF "$suite/"; then
        release=(-t "$suite")
    else
        echo "$suite has no mesa-vulkan-drivers: taking the stock one"
    fi
    command -v cc >/dev/null || quiet_apt install gcc libc6-dev
    has_gpu_driver || quiet_apt install "${release[@]}" libvulkan1 mesa-vulkan-drivers
}

step "C compiler and Vulkan driver"
if has_gpu_driver && command -v cc >/dev/null; then
    echo "present"
elif grep -qs '^ID=debian' /etc/os-release && [ "$(id -u)" = 0 ]; then
    install_debian_packages
fi
command -v cc >/dev/null || { echo "check.sh: a C compiler (cc) is missing" >&2; exit 1; }
if has_gpu_driver; then
    dpkg-query -W mesa-vulkan-drivers libvulkan1 2>/dev/null || true
else
    skipped "no Vulkan driver found (install your vendor's, or Mesa's lavapipe); the GPU half of the tests will not run"
fi

step "cargo fmt"
if cargo fmt --version >/dev/null 2>&1; then
    cargo fmt --all --check
else
    echo "check.sh: rustfmt is missing; rustup component add rustfmt" >&2
    exit 1
fi

step "file sizes and module names"
sources=$(find . \( -name target -o -name 'target-*' -o -name .git -o -name runs -o -name '.venv*' -o -name node_modules \) -prune -o -type f \
    \( -name '*.rs' -o -name '*.wgsl' -o -name '*.py' -o -name '*.sh' -o -name '*.md' \) -print)
long=$(while IFS= read -r file; do
    lines=$(wc -l <"$file")
    if [ "$lines" -gt 600 ]; then echo "$file has $lines lines; 600 is the limit: a concept is missing"; fi
done <<<"$sources")
vague=$(grep -E '/(utils?|common|helpers?|managers?)(\.(rs|wgsl|py)$|/)' <<<"$sources" || true)
if [ -n "$long$vague" ]; then
    [ -z "$long" ] || echo "$long" >&2
    [ -z "$vague" ] || echo "names that say nothing: $vague" >&2
    exit 1
fi
echo "$(wc -l <<<"$sources") files"

step "build"
cargo build --release --workspace --all-targets

step "test"
cargo test --release --workspace

step "clippy"
cargo clippy --release --workspace --all-targets -- -D warnings

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

step "the demo"
demo=$(mktemp -d)
trap 'rm -rf "$demo"' EXIT
cargo run --release -- demo --out "$demo/demo"

step "the browser page"
web/build.sh

step "the browser page in Chromium"
missing=()
command -v chromium >/dev/null || missing+=(chromium)
command -v npm >/dev/null || missing+=(nodejs npm)
if [ "${#missing[@]}" -gt 0 ] && grep -qs '^ID=debian' /etc/os-release && [ "$(id -u)" = 0 ]; then
    quiet_apt install "${missing[@]}" || { quiet_apt update && quiet_apt install "${missing[@]}"; }
    missing=()
fi
if [ "${#missing[@]}" -gt 0 ]; then
    skipped "no ${missing[*]}: the page was built, but nobody has looked at it"
else
    npm ci --silent --no-audit --no-fund --prefix web/test
    CHROMIUM=$(command -v chromium)
    export CHROMIUM
    for part in kernels test faults; do
        node "web/test/$part.mjs" "${CARGO_TARGET_DIR:-target}/release/smolforge" web/dist
    done
fi

if [ "$portable" = true ]; then
    step "portable: targets"
    rustup target add x86_64-pc-windows-gnu aarch64-apple-darwin
    target_dir="${CARGO_TARGET_DIR:-target}/portable"
    for target in x86_64-pc-windows-gnu aarch64-apple-darwin; do
        step "portable: $target"
        cargo check --release --workspace --target "$target" --target-dir "$target_dir"
    done
fi

printf '\ncheck.sh: all green in %d s\n' "$SECONDS"
