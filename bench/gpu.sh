#!/usr/bin/env bash
# Tests and benchmarks on a machine that has a GPU with its driver and nothing else: no Rust, no clone, no network.
#
#   bench/gpu.sh pack FOLDER                    where Rust is: builds the programs and puts them, with this script, into FOLDER
#   FOLDER/gpu.sh run [DEVICE] [RESULTS]        where the GPU is: runs them on DEVICE (0, radeon, a UUID; by default the first GPU)
#                                               and writes to RESULTS (by default FOLDER/results)
#
# RESULTS gets a page YYYY-MM-DD-DEVICE.md for bench/results of the repository, and a log of each step. The exit code is 0 only if every
# step passed. STERNA_GPU_QUICK=1 leaves out the benchmarks but for the row `vulkan`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() { sed -n '4,7p' "$0" >&2; exit 2; }

# The tests that go along, of the packages sterna-vulkan and sterna.
tests=(conformance parts imports vulkan failing_calls random_ops hmm torture)

# The programs of a cargo call, as `name path`, from its messages.
programs() { sed -n 's/.*"target":{[^}]*"name":"\([^"]*\)".*"executable":"\([^"]*\)".*/\1 \2/p'; }

pack() {
    local folder=$1
    mkdir -p "$folder"
    folder=$(cd "$folder" && pwd)
    cd "$here/.."
    {
        cargo build --release --locked -p sterna-bench -p sterna-samples --bins --message-format=json | programs
        cargo test --no-run --locked -p sterna -p sterna-vulkan "${tests[@]/#/--test=}" --message-format=json | programs
    } | sort -u >"$folder/programs"
    while read -r name path; do
        case " ${tests[*]} sterna-bench tour " in
        *" $name "*) ;;
        *) case $name in 0?_*) ;; *) continue ;; esac ;;
        esac
        install -m 755 "$path" "$folder/$name"
        # Names of functions stay, lines go.
        strip --strip-debug "$folder/$name" 2>/dev/null || true
    done <"$folder/programs"
    rm "$folder/programs"
    for name in sterna-bench 01_hello "${tests[@]}"; do
        [ -x "$folder/$name" ] || { echo "cargo built no $name" >&2; exit 1; }
    done
    git describe --always --dirty >"$folder/commit" 2>/dev/null || echo unknown >"$folder/commit"
    install -m 755 "$here/gpu.sh" "$folder/gpu.sh"
    du -sh "$folder"
}

step() {
    local name=$1 limit=$2 begin=$SECONDS verdict=passed
    shift 2
    printf '== %s\n' "$name"
    if ! timeout --kill-after=10 "$limit" "$@" >"$results/$name.log" 2>&1 </dev/null; then
        verdict=FAILED
        failed=$((failed + 1))
        tail -n 30 "$results/$name.log"
    fi
    local skips
    skips=$(grep -c 'SKIP ' "$results/$name.log" || true)
    printf '| %s | %s | %s | %s s |\n' "$name" "$verdict" "$skips" $((SECONDS - begin)) >>"$table"
    printf '   %s, %s s\n' "$verdict" $((SECONDS - begin))
}

run() {
    local device=${1:-} table page name
    results=${2:-$here/results}
    mkdir -p "$results"
    results=$(cd "$results" && pwd)
    cd "$results"
    unset STERNA_HOST_FAULTS STERNA_DEVICE_MEMORY STERNA_POLICY STERNA_CPU_WORKERS STERNA_PAGE_TABLE
    export STERNA_DEVICE=vulkan${device:+:$device} STERNA_VULKAN_TEST=$device STERNA_PIPELINE_CACHE=$results/cache RUST_BACKTRACE=1
    # What is asked for that does not exist is answered with what there is.
    devices=$(STERNA_DEVICE='vulkan:?' "$here/01_hello" 2>&1 | sed -n 's/.*there are: //p' | sed -n 1p || true)
    [ -n "$devices" ] || { STERNA_DEVICE='vulkan:?' "$here/01_hello" || true; exit 1; }
    printf 'devices: %s\n' "$devices"
    if [ -z "$device" ]; then
        # The tests take a number; the first GPU has the lowest, and software drivers come last.
        export STERNA_VULKAN_TEST=0
    fi
    table=$results/table
    rm -f "$results"/*.log
    : >"$table"
    failed=0

    step hello 60 "$here/01_hello"
    [ "$failed" = 0 ] || { echo "nothing runs on \`$STERNA_DEVICE\`" >&2; exit 1; }
    local tested=(env -u STERNA_DEVICE STERNA_REQUIRE=vulkan,fixed)
    for name in conformance parts imports; do step "$name" 300 "${tested[@]}" "$here/$name" --nocapture; done
    step vulkan 600 "${tested[@]}" "$here/vulkan" --nocapture --test-threads=1
    step failing_calls 600 "${tested[@]}" "$here/failing_calls" --nocapture
    step random_ops 600 "${tested[@]}" "$here/random_ops" on_vulkan --nocapture
    step hmm 600 "${tested[@]}" STERNA_HMM_KIND=Vulkan "$here/hmm" conformance --nocapture
    step torture 600 "${tested[@]}" STERNA_TORTURE_SECONDS=30 "$here/torture" nothing_is_lost_on_vulkan --nocapture
    for sample in 02_own_kernel 03_pagerank 04_hubble 05_heat; do
        if [ -x "$here/$sample" ]; then step "$sample" 300 "$here/$sample"; fi
    done
    only=()
    if [ "${STERNA_GPU_QUICK:-}" = 1 ]; then only=(--only vulkan); fi
    step bench 900 env -u STERNA_DEVICE "$here/sterna-bench" "${only[@]}"

    # The entry of the list that was asked for, or the first: its name without number and kind.
    name=$(tr ';' '\n' <<<"$devices" | grep -iF -m1 -- "${device:-vulkan:0}" || sed 's/;.*//' <<<"$devices")
    name=$(sed 's/^ *vulkan:[0-9]* (//; s/, [^,]*)$//' <<<"$name" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' '-' | cut -c1-40 | sed 's/^-//; s/-$//')
    page=$results/$(date -u +%Y-%m-%d)-${name:-gpu}.md
    {
        printf '# sterna on Vulkan, %s\n\nCommit %s; Linux %s; asked for `%s`. Devices: %s.\n\n' "$(date -u +%Y-%m-%d)" \
            "$(cat "$here/commit")" "$(uname -r)" "$STERNA_DEVICE" "$devices"
        printf '| step | result | skipped | time |\n|---|---|---|---|\n'
        cat "$table"
        printf '\n## Skipped\n\n```text\n'
        sed -n 's/^.*\(SKIP .*\)$/\1/p' "$results"/*.log | sort | uniq -c
        printf '```\n\n'
        # The table of the benchmarks, one level down.
        sed -n 's/^#/##/; /^##/,$p' "$results/bench.log" | grep -v '^\[' || true
    } >"$page"
    rm "$table"
    echo "written to $page; $failed steps failed"
    [ "$failed" = 0 ]
}

case ${1:-} in
pack) [ $# = 2 ] || usage; pack "$2" ;;
run) [ $# -le 3 ] || usage; run "${2:-}" "${3:-}" ;;
*) usage ;;
esac
