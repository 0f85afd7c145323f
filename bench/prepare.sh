# Sourced by the other scripts: python.sh, and the program as $binary.
source bench/python.sh
cargo build --release --workspace # one package alone would have other features of burn, and compile it again
binary="${CARGO_TARGET_DIR:-target}/release/smolforge"
