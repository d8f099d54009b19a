# The steps of .ci/run, one by one. `just --list` shows them; CI does not need just.

# All of it, as CI does
ci:
    bash .ci/run

# Whether the sources are formatted as `cargo fmt` does
formatting:
    bash .ci/run formatting

# Lints, of tests and benchmarks too
clippy:
    bash .ci/run clippy

# The documentation of the code, with its links
documentation:
    bash .ci/run documentation

# Licences, bans and sources of dependencies, where cargo-deny is installed
dependencies:
    bash .ci/run dependencies

# Programs that some tests need, from Debian's packages (as root)
tools:
    bash .ci/run tools

# All tests; none is left out for want of a program
tests:
    bash .ci/run tests

# The tests about time and memory, with nothing beside them
alone:
    bash .ci/run alone

# The parsers and the call path, a minute each
fuzz:
    bash .ci/run fuzz

# The compose file with real containers (needs Docker)
compose:
    bash .ci/run compose

# Tests whose names contain NAME, as `placement::`
test *NAME:
    cargo test --locked --test it {{NAME}}

# The figures of docs/performance.md; a row's name measures that row alone
bench *ROW:
    cargo bench --bench speed -- {{ if ROW == "" { "" } else { "--row " + ROW } }}
