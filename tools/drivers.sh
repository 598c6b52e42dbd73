#!/usr/bin/env bash
# The tests that use Vulkan, over every software driver, with the mechanisms for host faults that this user may have; then again under
# the validation layers. Each test takes all page tables that its driver has, and says which it leaves out.
#
#   tools/drivers.sh [--as-is] [--tests | --validation] FOLDER [DRIVER...]
#
# Drivers are lavapipe (which tools/lavapipe.sh installs), plain (tools/lavapipe-plain.sh) and swiftshader (tools/swiftshader.sh); by
# default all. The latter two, and the newer layer, are put into FOLDER if they are not there yet, unless --as-is is said. --tests leaves
# out the layers, --validation the rest.
#
# A driver or layer that cannot be had is skipped aloud, unless STERNA_REQUIRE names it (`layers` for both layers). Prints one line a
# run: what passed, how long it took, and what was left out.
set -euo pipefail
cd "$(dirname "$0")/.."
as_is=no tests=yes validation=yes
while [ $# -gt 0 ]; do
    case $1 in
    --as-is) as_is=yes ;;
    --tests) validation=no ;;
    --validation) tests=no ;;
    *) break ;;
    esac
    shift
done
[ $# -ge 1 ] || { sed -n '5,9p' "$0" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
drivers=("$@")
[ $# -gt 0 ] || drivers=(lavapipe plain swiftshader)
required=,${STERNA_REQUIRE:-},
unset STERNA_REQUIRE STERNA_HOST_FAULTS STERNA_DEVICE STERNA_DEVICE_MEMORY STERNA_POLICY STERNA_PAGE_TABLE STERNA_VULKAN_TEST \
    STERNA_VULKAN_VALIDATION VK_DRIVER_FILES VK_ICD_FILENAMES VK_LAYER_PATH
# Devices of other kinds are the same with every driver.
export STERNA_HMM_KIND=Vulkan
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

cargo test --locked --workspace --no-run --message-format=json 2>"$folder/log" >"$folder/built" || { cat "$folder/log" >&2; exit 1; }
# The test programs of a package, by name, and where one is.
names() { sed -n "/#$1@/s/.*\"kind\":\[\"test\"\].*\"name\":\"\([^\"]*\)\",\"src_path\".*/$1\/\1/p" "$folder/built"; }
program() {
    sed -n "/#${1%/*}@/s/.*\"name\":\"${1#*/}\",.*\"test\":true.*\"executable\":\"\([^\"]*\)\".*/\1/p" "$folder/built" | sed -n 1p
}
# What does not depend on the mechanism, and what does. Behind a name, the tests that are wanted of it.
mapfile -t once < <(names sterna-vulkan)
[ ${#once[@]} -ge 2 ] || { echo 'no test programs were found' >&2; exit 1; }
once+=(sterna/failing_calls)
each=(sterna/vulkan 'sterna/random_ops on_vulkan' 'sterna/hmm conformance' 'sterna/torture nothing_is_lost_on_vulkan')

# run DRIVER WHAT LIMIT 'PROGRAM [TEST]' [NAME=VALUE...]
run() {
    local driver=$1 what=$2 limit=$3 name=${4% *} wanted=() begin=$SECONDS path icd
    if [ "$name" != "$4" ]; then wanted=("${4#* }"); fi
    shift 4
    path=$(program "$name")
    [ -x "$path" ] || { echo "cargo built no test $name" >&2; exit 1; }
    icd=$(description "$driver")
    if ! env "VK_DRIVER_FILES=$icd" "VK_ICD_FILENAMES=$icd" "$@" timeout --kill-after=10 "$limit" "$path" "${wanted[@]}" --nocapture \
        >"$folder/log" 2>&1 </dev/null; then
        tail -n 40 "$folder/log" >&2
        echo "FAILED: $name, $driver, $what" >&2
        exit 1
    fi
    printf '%-12s %-20s %-28s %s, %s s\n' "$driver" "$what" "$name" \
        "$(sed -n 's/^test result: ok. \([0-9]* passed\).*/\1/p' "$folder/log" | sed -n '$p')" $((SECONDS - begin))
    sed -n 's/^.*\(SKIP .*\)$/\1/p' "$folder/log" | cut -c1-90 | sort | uniq -c | sed 's/^ *\([0-9]*\) /        \1 × /'
}

mechanisms=(signal)
if [ "$(id -u)" = 0 ]; then mechanisms=(transparent signal); fi
there=()
for driver in "${drivers[@]}"; do
    fetch "$driver"
    if [ -n "$(description "$driver" || true)" ]; then there+=("$driver"); else skip "$driver" 'the driver is neither installed nor fetched'; fi
done
for driver in "${there[@]}"; do
    [ $tests = yes ] || break
    printf -- '-- %s\n' "$driver"
    require=STERNA_REQUIRE=$(features "$driver")
    for name in "${once[@]}"; do run "$driver" '' 300 "$name" "$require"; done
    for mechanism in "${mechanisms[@]}"; do
        for name in "${each[@]}"; do run "$driver" "$mechanism" 300 "$name" "$require,$mechanism" "STERNA_HOST_FAULTS=$mechanism"; done
    done
done

# The newer layer comes with SwiftShader. Its checks across submits and of what shaders access are off unless asked for.
for layer in distribution newer; do
    [ $validation = yes ] || break
    settings=(PROPTEST_CASES=20 STERNA_HOST_FAULTS=signal)
    if [ $layer = newer ]; then
        fetch swiftshader
        settings+=("VK_LAYER_PATH=$folder/swiftshader" VK_LAYER_SYNCVAL_SHADER_ACCESSES_HEURISTIC=1)
        [ -f "$folder/swiftshader/VkLayer_khronos_validation.json" ] || { skip layers 'the newer layer is not there'; continue; }
    elif ! ls /usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json >/dev/null 2>&1; then
        skip layers "the distribution's layer (Debian: vulkan-validationlayers) is not installed"
        continue
    fi
    printf -- '-- validation, %s layer\n' $layer
    for driver in "${there[@]}"; do
        known=$(sed -n "s/^\\(any\\|$driver\\) $layer \\([^ ]*\\) .*/\\2/p" tools/known-validation | paste -sd,)
        [ -z "$known" ] || printf 'known, and let pass on %s: %s\n' "$driver" "$known"
        for name in "${once[@]}" "${each[@]}"; do
            # A layer makes calls several times dearer: what takes minutes is checked on one driver, with the layer that sees more.
            case $name in sterna/failing_calls | sterna/hmm* | sterna/torture*)
                [ "$layer $driver" = 'newer lavapipe' ] || continue
                if [ "$name" = sterna/failing_calls ]; then name='sterna/failing_calls losses'; fi
                ;;
            esac
            run "$driver" "$layer layer" 400 "$name" "STERNA_REQUIRE=$(features "$driver")" "STERNA_VULKAN_VALIDATION=1${known:+,$known}" "${settings[@]}"
        done
    done
done
rm -f "$folder/log" "$folder/built"
