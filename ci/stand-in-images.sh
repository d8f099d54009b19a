#!/usr/bin/env bash
# Makes local stand-ins for the public base images of this repository's Dockerfiles,
# for machines where a Docker engine runs but no image registry can be reached.
#
#   ci/stand-in-images.sh           make what is missing and cannot be pulled
#
# An image that is present is left alone, one that can be pulled is pulled. What
# remains is built from Debian packages and from this machine's own Rust toolchain,
# and carries the machine's certificates and its settings for apt, cargo and pip, so
# that builds inside it reach the package sources that the machine itself reaches.
# Stand-ins are for local use: do not push them anywhere. Exits with 3 when one is
# needed and only root could make it.
set -euo pipefail
umask 022

DEBIAN=debian:bookworm-slim
RUST=rust:1-bookworm
PYTHON=python:3.11-slim-bookworm
LABEL=supervisor-twiddler.stand-in=true
PULL_SECONDS=300
# The three stand-ins take about 1.3 GB, their making some more.
NEEDED_MB=4000

say() { printf 'stand-in-images: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

work=
cleanup() {
    # debootstrap leaves /proc or /sys mounted when it is interrupted.
    if [ -n "$work" ] && [ -d "$work/root" ]; then
        umount "$work/root/proc" "$work/root/sys" 2>/dev/null || true
    fi
    [ -z "$work" ] || rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

have() { docker image inspect "$1" >/dev/null 2>&1; }

# True when the image is here after all; else says why a stand-in is needed.
have_or_pull() {
    local image=$1 reason
    if have "$image"; then
        say "$image is present"
        return 0
    fi
    if reason=$(timeout "$PULL_SECONDS" docker pull --quiet "$image" 2>&1); then
        say "$image pulled"
        return 0
    fi
    say "$image cannot be pulled (${reason##*$'\n'}); making a stand-in"
    return 1
}

need_space() {
    local dir free
    for dir in "${TMPDIR:-/tmp}" "$(docker info --format '{{.DockerRootDir}}')"; do
        [ -d "$dir" ] || continue
        free=$(df -Pm "$dir" | awk 'NR == 2 { print $4 }')
        [ "$free" -ge "$NEEDED_MB" ] || die "$dir has $free MB free, $NEEDED_MB MB are needed"
    done
}

need_debootstrap() {
    if [ "$(id -u)" -ne 0 ]; then
        say "a stand-in for $DEBIAN is made by debootstrap, which needs root" >&2
        exit 3
    fi
    command -v debootstrap >/dev/null && return
    command -v apt-get >/dev/null || die "debootstrap is missing: install it first"
    say "installing debootstrap"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
}

# The machine's package sources for bookworm, one "URI SUITE" a line.
apt_sources() {
    apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        awk '$2 ~ /^bookworm(-updates|-security)?$/ && !seen[$0]++'
}

# Files that every stand-in gets, under $work/etc as they shall stand in /etc.
machine_settings() {
    local bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
    mkdir -p "$work/etc/ssl/certs" "$work/etc/apt/apt.conf.d" "$work/cargo"
    if [ -r "$bundle" ]; then
        cp -L "$bundle" "$work/etc/ssl/certs/ca-certificates.crt"
    fi
    apt-config dump --format '%f "%v";%n' Acquire |
        grep -E '^Acquire::(http|https|Retries|Check-|Force|Max-)' >"$work/etc/apt/apt.conf.d/90machine" || true
    local conf
    for conf in "${PIP_CONFIG_FILE:-}" ~/.config/pip/pip.conf ~/.pip/pip.conf /etc/pip.conf; do
        if [ -f "$conf" ]; then cp "$conf" "$work/etc/pip.conf"; break; fi
    done
    for conf in "${CARGO_HOME:-$HOME/.cargo}"/config.toml "${CARGO_HOME:-$HOME/.cargo}"/config; do
        if [ -f "$conf" ]; then cp "$conf" "$work/cargo/config.toml"; break; fi
    done
}

make_debian() {
    need_debootstrap
    local sources mirror
    sources=$(apt_sources)
    mirror=$(awk '$2 == "bookworm" { print $1; exit }' <<<"$sources")
    say "$DEBIAN: debootstrap, about half a minute"
    # Without a mirror of this machine's own, debootstrap takes its default.
    debootstrap --variant=minbase bookworm "$work/root" ${mirror:+"$mirror"} >"$work/debootstrap.log" 2>&1 || {
        tail -n 20 "$work/debootstrap.log" >&2
        die "debootstrap failed"
    }
    cp -R "$work/etc/." "$work/root/etc/"
    if [ -n "$mirror" ]; then
        awk '{ print "deb", $1, $2, "main" }' <<<"$sources" >"$work/root/etc/apt/sources.list"
    fi
    rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/* \
        "$work"/root/var/log/bootstrap.log "$work"/root/usr/share/{doc,info,locale,man}/* \
        "$work"/root/etc/resolv.conf "$work"/root/etc/hostname
    tar -C "$work/root" -c . |
        docker import --change "LABEL $LABEL" --change 'CMD ["bash"]' - "$DEBIAN" >/dev/null
    rm -rf --one-file-system "$work/root"
}

# Builds the context that arrives on standard input.
build() {
    docker build --tag "$1" - >"$work/build.log" 2>&1 || {
        tail -n 30 "$work/build.log" >&2
        die "building $1 failed"
    }
}

make_rust() {
    local sysroot
    command -v rustc >/dev/null || die "a stand-in for $RUST needs a Rust toolchain on this machine"
    sysroot=$(rustc --print sysroot)
    if [ "$sysroot" = /usr ] || [ ! -x "$sysroot/bin/cargo" ]; then
        die "a stand-in for $RUST needs a toolchain in a directory of its own, as rustup installs it; found $sysroot"
    fi
    say "$RUST: $(rustc --version) of this machine and Debian's gcc"
    cat >"$work/Dockerfile" <<DOCKERFILE
FROM $DEBIAN
LABEL $LABEL
RUN apt-get update \\
 && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev \\
 && rm -rf /var/lib/apt/lists/*
ENV CARGO_HOME=/usr/local/cargo
COPY etc/ /etc/
COPY cargo/ /usr/local/cargo/
COPY bin/ /usr/local/bin/
COPY lib/ /usr/local/lib/
DOCKERFILE
    # Straight from the toolchain into the engine: no second copy on disk.
    tar -c --exclude=lib/rustlib/src \
        -C "$work" Dockerfile etc cargo -C "$sysroot" bin/cargo bin/rustc lib | build "$RUST"
}

make_python() {
    say "$PYTHON: Debian's Python 3.11 and pip"
    # A virtual environment in /usr/local gives python and pip where the public image
    # has them, and lets pip install without Debian's guard for system packages.
    cat >"$work/Dockerfile" <<DOCKERFILE
FROM $DEBIAN
LABEL $LABEL
RUN apt-get update \\
 && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \\
 && rm -rf /var/lib/apt/lists/* \\
 && python3 -m venv /usr/local
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
COPY etc/ /etc/
CMD ["python3"]
DOCKERFILE
    tar -c -C "$work" Dockerfile etc | build "$PYTHON"
}

make_image() {
    local image=$1
    shift
    have_or_pull "$image" && return
    need_space
    if [ -z "$work" ]; then
        work=$(mktemp -d "${TMPDIR:-/tmp}/stand-in-images.XXXXXX")
        machine_settings
    fi
    "$@"
    say "$image made"
}

docker info >/dev/null 2>&1 || die "no Docker engine answers"
make_image "$DEBIAN" make_debian
make_image "$RUST" make_rust
make_image "$PYTHON" make_python
