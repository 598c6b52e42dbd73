#!/usr/bin/env bash
# Every compiled kernel is compiled further, to the code of real GPUs, without having one: Mesa's driver for AMD GPUs makes pipelines
# for the family that RADV_FORCE_FAMILY names and runs none.
#
#   tools/radv.sh [FAMILY...]    by default one of each generation of instructions: vega10, navi21, navi31
#
# Prints instructions, registers and bytes of each, which depend on the driver's version only. Says so and ends well where the driver
# is not installed (Debian: mesa-vulkan-drivers) or has no such device; STERNA_REQUIRE=radv makes that a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
    case ",${STERNA_REQUIRE:-}," in *,radv,*) echo "STERNA_REQUIRE names radv: $1" >&2; exit 1 ;; esac
    echo "SKIP kernels on real GPUs: $1"
    exit 0
}

driver=
for file in /usr/share/vulkan/icd.d/radeon_icd*.json /etc/vulkan/icd.d/radeon_icd*.json; do
    if [ -f "$file" ]; then driver=$file; fi
done
[ -n "$driver" ] || skip 'the driver RADV (Debian: mesa-vulkan-drivers) is not installed'
if [ $# -gt 0 ]; then families=("$@"); else families=(vega10 navi21 navi31); fi

mapfile -t modules < <(git ls-files --cached --others --exclude-standard '*.spv' | grep -v '^fuzz/' | LC_ALL=C sort)
[ ${#modules[@]} -gt 0 ] || { echo 'no compiled kernels' >&2; exit 1; }
cargo build --quiet -p sterna-vulkan --example compile
program=${CARGO_TARGET_DIR:-target}/debug/examples/compile
compile() { RADV_FORCE_FAMILY=$1 VK_DRIVER_FILES=$driver VK_ICD_FILENAMES=$driver "$program" "${@:2}"; }

compile "${families[0]}" >/dev/null 2>&1 || skip "$driver makes no device for ${families[0]} (Mesa with a null device is needed)"
for family in "${families[@]}"; do compile "$family" "${modules[@]}"; done
