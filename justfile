# The steps of .ci/run, one by one. `just --list` shows them; CI does not need just.

# All of it, as CI does
ci:
    bash .ci/run

# Format, lint, documentation
lint:
    cargo fmt --check
    cargo clippy --all-targets --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked

# All tests, or those whose names contain NAME
test *NAME:
    cargo test --locked {{NAME}}

# The parsers and the call path, for so many times two seconds each
fuzz EFFORT="30":
    TEST_EFFORT={{EFFORT}} cargo test --locked --profile fuzz --test fuzz

# The figures of docs/performance.md; a row's name measures that row alone
bench *ROW:
    cargo bench --bench speed -- {{ if ROW == "" { "" } else { "--row " + ROW } }}

# Licences, duplicate crates and sources of dependencies (needs cargo-deny)
deny:
    cargo deny check

# The compose file with real containers (needs Docker)
compose:
    bash ci/compose-check.sh
