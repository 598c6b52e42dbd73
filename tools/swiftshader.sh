#!/usr/bin/env bash
# Puts SwiftShader, a second software Vulkan driver, and a newer Khronos validation layer into a folder; installs nothing. Both come
# with Debian 12's package chromium-common, which apt downloads; the mirror is the one that apt uses already.
#
#   tools/swiftshader.sh FOLDER
#
# Prints what to set to use them.
set -euo pipefail
[ $# = 1 ] || { sed -n '5p' "$0" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# apt may download as another user, who has to reach the folder.
chmod 777 "$work"
(cd "$work" && apt-get download chromium-common)
dpkg-deb -x "$work"/chromium-common_*.deb "$work/all"

driver=$(find "$work/all" -name libvk_swiftshader.so)
layer=$(find "$work/all" -name 'libVkLayer_khronos_validation.so')
[ -f "$driver" ] || { echo 'the package has no SwiftShader' >&2; exit 1; }
cp "$driver" "$folder/"
cat >"$folder/swiftshader.json" <<END
{ "file_format_version": "1.0.0", "ICD": { "library_path": "$folder/libvk_swiftshader.so", "api_version": "1.3.0" } }
END
echo "SwiftShader:            export VK_DRIVER_FILES=$folder/swiftshader.json VK_ICD_FILENAMES=$folder/swiftshader.json"

if [ -f "$layer" ]; then
    cp "$layer" "$folder/"
    # The package has no description of it; the version is only what the loader compares.
    cat >"$folder/VkLayer_khronos_validation.json" <<END
{
    "file_format_version": "1.2.0",
    "layer": {
        "name": "VK_LAYER_KHRONOS_validation",
        "type": "GLOBAL",
        "library_path": "$folder/libVkLayer_khronos_validation.so",
        "api_version": "1.4.300",
        "implementation_version": "1",
        "description": "Khronos Validation Layer",
        "instance_extensions": [
            { "name": "VK_EXT_debug_report", "spec_version": "9" },
            { "name": "VK_EXT_debug_utils", "spec_version": "1" },
            { "name": "VK_EXT_validation_features", "spec_version": "2" }
        ]
    }
}
END
    echo "newer validation layer: export VK_LAYER_PATH=$folder"
else
    echo 'the package has no validation layer' >&2
fi
