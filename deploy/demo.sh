#!/usr/bin/env bash
# Runs the proxy in front of a stock supervisord on this machine, without Docker, until Ctrl-C.
#
#   deploy/demo.sh [PORT]     PORT: 9001 if it is free, else one that is
#   deploy/demo.sh --help     says this
#
# While it runs, every account of this machine can call the port and run commands as
# you. supervisord comes from PyPI into a virtual environment under target/, everything
# that runs lives in a temporary directory, and both are ended with this script. Of all
# that it makes only the build and the virtual environment stay, both under target/.
set -euo pipefail

SUPERVISOR=4.3.0
PATIENCE=20 # seconds for either process to answer

# The lines above, without the first.
help() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

case ${1:-} in
-h | --help)
    help
    exit
    ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-target}
dir='' daemon='' proxy='' building=''

say() { printf '%s\n' "$*"; }
die() { printf 'demo.sh: %s\n' "$1" >&2; exit "${2:-1}"; }

# Starts a command in a process group of its own: Ctrl-C then reaches this script
# alone, which ends the proxy before the daemon.
background() {
    set -m
    "$@" </dev/null &
    set +m
}

# end PID, or -PID for its whole group
end() {
    local tries
    [ -n "${1#-}" ] && kill -TERM -- "$1" 2>/dev/null || return 0
    for ((tries = 0; tries < 150; tries++)); do
        kill -0 -- "$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL -- "$1" 2>/dev/null || true
}

cleanup() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP # a second Ctrl-C must not leave half of it running
    end "-$building"
    end "$proxy"
    end "$daemon"
    [ -z "$dir" ] || rm -rf "$dir"
    exit "$status"
}
trap cleanup EXIT
trap 'say; say "Stopping."; exit 0' INT TERM HUP

# Long steps run in the background, so that Ctrl-C ends them at once.
run() {
    local status=0
    background "$@"
    building=$!
    wait "$building" || status=$?
    building=
    return "$status"
}

check_tools() {
    local missing=()
    command -v python3 >/dev/null || missing+=("python3 (Debian: apt-get install python3 python3-venv)")
    if [ ! -x "$target/release/twiddler" ]; then
        command -v cargo >/dev/null || missing+=("cargo (https://rustup.rs)")
        command -v cc >/dev/null || missing+=("a C linker (Debian: apt-get install gcc libc6-dev)")
    fi
    [ ${#missing[@]} -eq 0 ] || die "please install: $(printf '%s; ' "${missing[@]}")"
}

free_port() {
    python3 - "$@" <<'PYTHON'
import socket, sys

for port in map(int, sys.argv[1:]):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            continue
        print(s.getsockname()[1])
        sys.exit()
sys.exit(1)
PYTHON
}

choose_port() {
    if [ -n "${1:-}" ]; then
        [[ $1 =~ ^[0-9]{1,5}$ ]] && [ "$1" -le 65535 ] || die "not a port: $1; try --help" 2
        port=$(free_port "$1") || die "port $1 is taken; leave it out and a free one is chosen" 2
    else
        port=$(free_port 9001 0)
        [ "$port" = 9001 ] || say "Port 9001 is taken; using $port."
    fi
}

get_supervisord() {
    if [ -x "$venv/bin/supervisord" ] && [ "$("$venv/bin/supervisord" --version)" = "$SUPERVISOR" ]; then
        return
    fi
    say "Installing supervisor $SUPERVISOR into $venv"
    rm -rf "$venv"
    run python3 -m venv "$venv" >"$dir/venv.log" 2>&1 || {
        cat "$dir/venv.log" >&2
        die "python3 cannot make a virtual environment (Debian: apt-get install python3-venv)"
    }
    run "$venv/bin/pip" install --quiet --disable-pip-version-check "supervisor==$SUPERVISOR" ||
        die "pip could not install supervisor $SUPERVISOR"
}

get_proxy() {
    if command -v cargo >/dev/null; then
        say "Building the proxy: cargo build --release"
        run cargo build --release --locked --bin twiddler || die "the proxy does not build"
    fi
}

configure() {
    mkdir "$dir/conf.d" "$dir/srv" "$dir/log"
    cat >"$dir/supervisord.conf" <<CONF
[supervisord]
logfile=$dir/supervisord.log
pidfile=$dir/supervisord.pid
childlogdir=$dir/log
nodaemon=true
silent=true

[unix_http_server]
file=$dir/supervisor.sock

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://$dir/supervisor.sock

[include]
files=$dir/conf.d/*.conf

[program:clock]
command=sh -c 'while date; do sleep 5; done'
CONF
    cat >"$dir/conf.d/web.conf" <<CONF
[group:web]
programs=api,worker

[program:api]
command=sleep 6000

[program:worker]
command=sleep 6001
CONF
}

daemon_answers() { [ "$("$venv/bin/supervisorctl" -c "$dir/supervisord.conf" pid 2>/dev/null)" = "$daemon" ]; }

# In a subshell, which a connection cut short may end without ending the script.
proxy_answers() (
    exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$port" || exit 1
    printf 'GET /twiddler/health HTTP/1.0\r\n\r\n' >&3
    read -r -t 5 _ status _ <&3
    [ "$status" = 200 ]
)

# wait_for WHAT PID LOG CHECK
wait_for() {
    local until=$((SECONDS + PATIENCE))
    while ! "$4"; do
        if ! kill -0 "$2" 2>/dev/null || [ "$SECONDS" -ge "$until" ]; then
            tail -n 20 "$3" >&2 || true
            die "$1 did not start"
        fi
        sleep 0.2
    done
}

start() {
    # An empty working directory of its own, so that what programs leave lying goes away too.
    cd "$dir/srv"
    background "$venv/bin/supervisord" -c "$dir/supervisord.conf" >"$dir/daemon.out" 2>&1
    daemon=$!
    cd "$OLDPWD"
    wait_for supervisord "$daemon" "$dir/daemon.out" daemon_answers
    background "$target/release/twiddler" serve --config "$dir/supervisord.conf" --listen "127.0.0.1:$port" --allow-open \
        >"$dir/twiddler.log" 2>&1
    proxy=$!
    wait_for "the proxy" "$proxy" "$dir/twiddler.log" proxy_answers
}

explain() {
    cat <<TEXT

supervisord $SUPERVISOR runs with three programs, and the proxy answers on port $port.
While it runs, every account of this machine can call that port and run commands as you.

In another terminal, python3, then:

    import time, xmlrpc.client
    s = xmlrpc.client.ServerProxy('http://localhost:$port')
    s.twiddler.addGroup('dynamic_procs', 999)
    s.twiddler.addProcessToGroup('dynamic_procs', 'ls', {'command': 'ls -l', 'autostart': 'false', 'autorestart': 'false', 'startsecs': '0'})
    s.supervisor.startProcess('dynamic_procs:ls', False)
    while not s.supervisor.readProcessLog('dynamic_procs:ls', 0, 50): time.sleep(0.1)

    print(s.supervisor.readProcessLog('dynamic_procs:ls', 0, 50))
    s.twiddler.removeGroup('dynamic_procs')

Or all of it and more at once, as often as you like:

    python3 deploy/demo.py http://localhost:$port

Edit a file, and only what changed restarts; look at the pids:

    export TWIDDLER_SERVER=http://localhost:$port
    $target/release/twiddler status
    sed -i 's/sleep 6000/sleep 7000/' $dir/conf.d/web.conf
    $target/release/twiddler diff
    $target/release/twiddler update
    $target/release/twiddler status

What supervisorctl shows, through the proxy and past it:

    $venv/bin/supervisorctl -s http://localhost:$port status
    $venv/bin/supervisorctl -c $dir/supervisord.conf status

Logs are in $dir. Ctrl-C ends everything.
TEXT
}

mkdir -p "$target"
target=$(cd "$target" && pwd)
venv=$target/demo-venv
check_tools
choose_port "$@"
# Short on purpose: the path of a unix socket may have about 100 characters.
dir=$(mktemp -d /tmp/twiddler-demo.XXXXXX)
get_supervisord
get_proxy
configure
start
explain
wait -n "$daemon" "$proxy" || true
tail -n 20 "$dir/twiddler.log" >&2
die "the proxy or supervisord ended by itself"
