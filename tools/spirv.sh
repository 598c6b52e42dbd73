#!/usr/bin/env bash
# The compiled kernels: every .comp of the repository has its .spv beside it, and tools/spirv.manifest says which source each was
# made from.
#
#   tools/spirv.sh build    compiles all and writes the manifest; needs glslc (Debian: glslc)
#   tools/spirv.sh check    compares with the manifest; with the same glslc also compiles again and compares byte for byte, and
#                           with spirv-val (Debian: spirv-tools) validates
#
# Another glslc makes other bytes, so the manifest names the one that was used.
set -euo pipefail
cd "$(dirname "$0")/.."

manifest=tools/spirv.manifest
includes=(backends/hal/glsl kernels/glsl)
target=vulkan1.2

sources() { git ls-files --cached --others --exclude-standard '*.comp' | LC_ALL=C sort; }
compiler() { glslc --version 2>/dev/null | tr '\n' ' ' | sed 's/ *$//'; }
# A source whose first line is `// target: vulkan1.0` is compiled for that.
target_of() { sed -n '1s,^// target: ,,p' "$1" | grep . || echo $target; }
compile() { glslc --target-env="$(target_of "$1")" -O -Werror "${includes[@]/#/-I}" "$1" -o "$2"; }
hash() { sha256sum "$1" | cut -d' ' -f1; }
# The line of a source: the hash of it with all that it may include, the hash of what was made of it, its name.
line() { printf '%s %s %s\n' "$(cat backends/hal/glsl/*.glsl kernels/glsl/*.glsl "$1" | sha256sum | cut -d' ' -f1)" "$(hash "${1%.comp}.spv")" "$1"; }

case ${1:-} in
build)
    command -v glslc >/dev/null || { echo 'glslc is not installed (Debian: apt-get install glslc)' >&2; exit 1; }
    sources | while read -r source; do compile "$source" "${source%.comp}.spv"; done
    { echo "# $(compiler)"; sources | while read -r source; do line "$source"; done; } >$manifest
    echo "$(sources | wc -l) kernels compiled"
    ;;
check)
    made=$(mktemp -d)
    trap 'rm -rf "$made"' EXIT
    sources | while read -r source; do line "$source"; done >"$made/lines"
    tail -n +2 $manifest | diff - "$made/lines" >"$made/difference" || {
        cat "$made/difference" >&2
        echo 'compiled kernels do not match their sources: run tools/spirv.sh build' >&2
        exit 1
    }
    echo "$(sources | wc -l) compiled kernels match the manifest"
    if [ "$(head -1 $manifest)" = "# $(compiler)" ]; then
        sources | while read -r source; do
            compile "$source" "$made/kernel.spv"
            cmp "$made/kernel.spv" "${source%.comp}.spv" || { echo "$source compiles to other bytes" >&2; exit 1; }
        done
        echo 'compiled again, byte for byte the same'
    else
        echo "SKIP compiling again: needs $(head -1 $manifest | cut -c3-)"
    fi
    if command -v spirv-val >/dev/null; then
        sources | while read -r source; do spirv-val --target-env "$(target_of "$source")" "${source%.comp}.spv"; done
        echo 'all valid'
    else
        echo 'SKIP validation: spirv-val is not installed'
    fi
    ;;
*)
    sed -n '2,10p' "$0" >&2
    exit 2
    ;;
esac
