#!/usr/bin/env bash
# Puts the lavapipe of plain Debian 12 (Mesa 22.3, without sparse buffers) into a folder, beside the newer one that may be installed;
# installs nothing itself. Needs LLVM's library and the others that Mesa is linked to: it says which packages are missing.
#
#   tools/lavapipe-plain.sh FOLDER
#
# Prints what to set to use it.
set -euo pipefail
[ $# = 1 ] || { sed -n '5p' "$0" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# apt may download as another user, who has to reach the folder.
chmod 777 "$work"
version=$(apt-cache madison mesa-vulkan-drivers | awk '$3 !~ /bpo/ { print $3; exit }')
[ -n "$version" ] || { echo 'apt knows no mesa-vulkan-drivers of plain Debian 12: run apt-get update' >&2; exit 1; }
(cd "$work" && apt-get download "mesa-vulkan-drivers=$version")
dpkg-deb -x "$work"/mesa-vulkan-drivers_*.deb "$work/all"
cp "$(find "$work/all" -name libvulkan_lvp.so)" "$folder/"
cat >"$folder/lavapipe.json" <<END
{ "file_format_version": "1.0.0", "ICD": { "library_path": "$folder/libvulkan_lvp.so", "api_version": "1.3.230" } }
END
missing=$(ldd "$folder/libvulkan_lvp.so" | sed -n 's/^[[:space:]]*\(.*\) => not found$/\1/p')
if [ -n "$missing" ]; then
    echo "libraries that are missing: $missing; apt-get install -y --no-install-recommends mesa-vulkan-drivers brings them" >&2
    exit 1
fi
echo "lavapipe $version: export VK_DRIVER_FILES=$folder/lavapipe.json VK_ICD_FILENAMES=$folder/lavapipe.json"
