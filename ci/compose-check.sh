#!/usr/bin/env bash
# Builds the images, brings docker-compose.yml up under a project name of its own,
# runs the demo client against it, restarts either container and runs it again, and
# takes everything down. Where no Docker engine answers it says so and succeeds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PATIENCE=120 # seconds for a container to become healthy
BUILD_SECONDS=1200

say() { printf 'compose-check: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

if ! timeout 20 docker info >/dev/null 2>&1; then
    say "skipped: no Docker engine answers"
    exit 0
fi
if docker compose version >/dev/null 2>&1; then
    tool=(docker compose)
elif command -v docker-compose >/dev/null; then
    tool=(docker-compose)
else
    die "a Docker engine answers, but neither 'docker compose' nor docker-compose is installed"
fi

project=twiddler-check-$$
compose() { "${tool[@]}" --project-name "$project" "$@" </dev/null; }

cleanup() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP
    if [ "$status" -ne 0 ]; then
        say "failed; the containers and their last words:" >&2
        compose ps >&2 || true
        compose logs --no-color --tail=100 >&2 || true
    fi
    rm -f "$output"
    compose --profile demo down --volumes --remove-orphans --timeout 15 >/dev/null 2>&1 ||
        say "could not take down project $project" >&2
    exit "$status"
}

free_port() {
    local port
    for ((port = 19001; port < 19100; port++)); do
        # Nobody listens where nobody accepts.
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    die "no free port from 19001 to 19099"
}

health() {
    local container
    container=$(compose ps --quiet "$1")
    docker inspect --format '{{.State.Health.Status}}' "$container" 2>/dev/null
}

is_healthy() { [ "$(health "$1")" = healthy ]; }

# Asked through the published port, as a user would; in a subshell, which a connection
# cut short may end without ending the script.
answers() (
    exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$TWIDDLER_PORT" || exit 1
    printf 'GET /twiddler/health HTTP/1.0\r\n\r\n' >&3
    read -r -t 5 _ status _ <&3
    [ "$status" = 200 ]
)

# wait_until WHAT COMMAND...
wait_until() {
    local what=$1 until=$((SECONDS + PATIENCE))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$until" ] || die "not within $PATIENCE s: $what"
        sleep 0.5
    done
}

restart() {
    local service
    for service in "$@"; do
        say "restarting $service"
        compose restart --timeout 15 "$service" >/dev/null 2>&1
    done
    wait_until "the proxy answers after a restart of $*" answers
}

client() { timeout --foreground 120 "${tool[@]}" --project-name "$project" run --rm -T client http://twiddler:9001 "$@" </dev/null; }

in_container() { compose exec -T "$@"; }

# What the compose file promises of the proxy's container, and what the session left.
look_inside() {
    [ "$(in_container twiddler id -u)" -ne 0 ] || die "the proxy runs as root"
    # Anybody may write in /tmp, unless the root file system is read-only.
    if in_container twiddler touch /tmp/probe 2>/dev/null; then
        die "the proxy's root file system can be written to"
    fi
    in_container supervisord supervisorctl status >"$output" || true # 3 when some process is not running
    grep -q '^dynamic_procs:ls  *EXITED' "$output" || {
        cat "$output" >&2
        die "supervisorctl on the daemon's own socket does not show dynamic_procs:ls"
    }
    [ -z "$(in_container supervisord sh -c 'ls /etc/supervisor/conf.d')" ] ||
        die "a generated file was left in the include directory"
}

status=0
ci/stand-in-images.sh || status=$?
if [ "$status" -eq 3 ]; then
    say "skipped: the base images are not here, and cannot be pulled or made"
    exit 0
fi
[ "$status" -eq 0 ] || exit "$status"

TWIDDLER_PORT=$(free_port)
export TWIDDLER_PORT
output=$(mktemp)
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say "building the images"
timeout --foreground "$BUILD_SECONDS" "${tool[@]}" --project-name "$project" --profile demo build </dev/null >"$output" 2>&1 || {
    tail -n 60 "$output" >&2
    die "the images do not build"
}

say "starting the daemon and the proxy, on port $TWIDDLER_PORT"
compose up -d >"$output" 2>&1 || { cat "$output" >&2; die "they do not start"; }
wait_until "supervisord is healthy" is_healthy supervisord
wait_until "twiddler is healthy" is_healthy twiddler
wait_until "the published port answers" answers

client
client
client --keep
look_inside

restart twiddler
client --restarted
client

restart supervisord
client

restart supervisord twiddler
client

restart twiddler supervisord
client --keep
look_inside

say "passed"
