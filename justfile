# Shortcuts; the logic is in xtask and .ci/run.

# List what there is.
default:
    @just --list

# Build the program.
build:
    cargo build --release

# Unit, property and lab tests (lab tests need root or user namespaces).
test *ARGS:
    cargo test --workspace {{ARGS}}

# Formatting, lints, layering, documentation.
lint:
    cargo fmt --all -- --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo xtask layers
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Licences, banned crates, sources.
deny:
    cargo deny --log-level error check bans licenses sources

# Show Warren at work on this machine.
demo:
    cargo run --release -- demo

# One link beside other VPNs, on this machine.
bench *ARGS:
    cargo xtask bench link {{ARGS}}

# Everything the continuous integration runs.
ci:
    .ci/run
