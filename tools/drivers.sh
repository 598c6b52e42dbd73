#!/usr/bin/env bash
# The tests that use Vulkan, over every software driver, with the mechanisms for host faults that this user may have; then again under
# the validation layers. Each test takes all page tables that its driver has, and says which it leaves out.
#
#   tools/drivers.sh [--as-is] FOLDER [DRIVER...]    lavapipe (installed by tools/lavapipe.sh), plain (tools/lavapipe-plain.sh),
#                                                    swiftshader (tools/swiftshader.sh); by default all. The latter two, and the newer
#                                                    layer, are put into FOLDER if they are not there yet, unless --as-is is said
#
# A driver or layer that cannot be had is skipped aloud, unless STERNA_REQUIRE names it (`layers` for both layers). Prints one line a
# run: what passed, how long it took, and what was left out.
set -euo pipefail
cd "$(dirname "$0")/.."
as_is=no
if [ "${1:-}" = --as-is ]; then as_is=yes && shift; fi
[ $# -ge 1 ] || { sed -n '5,7p' "$0" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
drivers=("$@")
[ $# -gt 0 ] || drivers=(lavapipe plain swiftshader)
required=,${STERNA_REQUIRE:-},
unset STERNA_REQUIRE STERNA_HOST_FAULTS STERNA_DEVICE STERNA_DEVICE_MEMORY STERNA_POLICY STERNA_PAGE_TABLE STERNA_VULKAN_TEST \
    STERNA_VULKAN_VALIDATION VK_DRIVER_FILES VK_ICD_FILENAMES VK_LAYER_PATH
# Neither the drivers' caches nor ours come from another driver's run, or leave anything in the user's.
export STERNA_PIPELINE_CACHE=$folder/cache MESA_SHADER_CACHE_DIR=$folder/cache

skip() {
    case $required in *,$1,*) echo "STERNA_REQUIRE names $1: $2" >&2; exit 1 ;; esac
    echo "SKIP $1: $2"
}

# Where a driver's description is; nothing where there is none.
description() {
    case $1 in
    lavapipe) ls /usr/share/vulkan/icd.d/lvp_icd*.json 2>/dev/null | sed -n 1p ;;
    plain) ls "$folder/plain/lavapipe.json" 2>/dev/null ;;
    swiftshader) ls "$folder/swiftshader/swiftshader.json" 2>/dev/null ;;
    *) echo "no driver $1" >&2; exit 2 ;;
    esac
}
# Fetches what is not there; what apt says is shown where it cannot.
fetch() {
    if [ $as_is = yes ] || [ "$1" = lavapipe ] || [ -n "$(description "$1" || true)" ]; then return; fi
    local script=tools/swiftshader.sh
    if [ "$1" = plain ]; then script=tools/lavapipe-plain.sh; fi
    timeout 300 "$script" "$folder/$1" >"$folder/log" 2>&1 || { sed 's/^/    /' "$folder/log"; rm -rf "${folder:?}/$1"; }
}
# What a driver's tests must not leave out.
features() {
    case $1 in
    lavapipe) echo vulkan,mmu,sparse,fixed,imported ;;
    plain) echo vulkan,mmu,fixed,imported ;;
    *) echo vulkan,mmu,fixed ;;
    esac
}

# The programs, by package and name.
cargo test --locked --workspace --no-run --message-format=json 2>"$folder/log" >"$folder/built" || { cat "$folder/log" >&2; exit 1; }
program() {
    sed -n "/#${1%/*}@/s/.*\"name\":\"${1#*/}\",.*\"test\":true.*\"executable\":\"\\([^\"]*\\)\".*/\\1/p" "$folder/built" | sed -n 1p
}
suite=(sterna-vulkan/conformance sterna-vulkan/parts)
programs=(sterna/vulkan)

# run DRIVER WHAT LIMIT PROGRAM [NAME=VALUE...]
run() {
    local driver=$1 what=$2 limit=$3 name=$4 begin=$SECONDS path icd
    shift 4
    path=$(program "$name")
    [ -x "$path" ] || { echo "cargo built no test $name" >&2; exit 1; }
    icd=$(description "$driver")
    if ! env "VK_DRIVER_FILES=$icd" "VK_ICD_FILENAMES=$icd" "$@" timeout --kill-after=10 "$limit" "$path" --nocapture \
        >"$folder/log" 2>&1 </dev/null; then
        tail -n 40 "$folder/log" >&2
        echo "FAILED: $name, $driver, $what" >&2
        exit 1
    fi
    printf '%-12s %-20s %-26s %s, %s s\n' "$driver" "$what" "$name" \
        "$(sed -n 's/^test result: ok. \([0-9]* passed\).*/\1/p' "$folder/log" | sed -n 1p)" $((SECONDS - begin))
    sed -n 's/^.*\(SKIP .*\)$/\1/p' "$folder/log" | cut -c1-110 | sort | uniq -c | sed 's/^ *\([0-9]*\) /        \1 × /'
}

mechanisms=(signal)
if [ "$(id -u)" = 0 ]; then mechanisms=(transparent signal); fi
for driver in "${drivers[@]}"; do
    fetch "$driver"
    if [ -z "$(description "$driver" || true)" ]; then
        skip "$driver" 'the driver is neither installed nor fetched'
        continue
    fi
    printf -- '-- %s\n' "$driver"
    require=STERNA_REQUIRE=$(features "$driver")
    for name in "${suite[@]}"; do run "$driver" '' 300 "$name" "$require"; done
    for mechanism in "${mechanisms[@]}"; do
        for name in "${programs[@]}"; do run "$driver" "$mechanism" 300 "$name" "$require,$mechanism" "STERNA_HOST_FAULTS=$mechanism"; done
    done
done

# The newer layer comes with SwiftShader. Its checks across submits and of what shaders access are off unless asked for.
for layer in distribution newer; do
    settings=()
    if [ $layer = newer ]; then
        fetch swiftshader
        settings=("VK_LAYER_PATH=$folder/swiftshader" VK_LAYER_SYNCVAL_SHADER_ACCESSES_HEURISTIC=1)
        [ -f "$folder/swiftshader/VkLayer_khronos_validation.json" ] || { skip layers 'the newer layer is not there'; continue; }
    elif ! ls /usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json >/dev/null 2>&1; then
        skip layers "the distribution's layer (Debian: vulkan-validationlayers) is not installed"
        continue
    fi
    printf -- '-- validation, %s layer\n' $layer
    for driver in "${drivers[@]}"; do
        [ -n "$(description "$driver" || true)" ] || continue
        known=$(sed -n "s/^\\(any\\|$driver\\) $layer \\([^ ]*\\) .*/\\2/p" tools/known-validation | paste -sd,)
        [ -z "$known" ] || printf 'known, and let pass on %s: %s\n' "$driver" "$known"
        for name in "${suite[@]}" "${programs[@]}"; do
            run "$driver" "$layer layer" 300 "$name" "STERNA_REQUIRE=$(features "$driver")" "STERNA_VULKAN_VALIDATION=1${known:+,$known}" "${settings[@]}"
        done
    done
done
rm -f "$folder/log" "$folder/built"
