#!/usr/bin/env bash
# Sets up the software Vulkan driver that the tests use on Debian 12: lavapipe of the backports, the loader, the validation layer,
# and what compiles and validates kernels. Distribution packages only; the mirror is the one that apt uses already. As root.
set -euo pipefail

sources=/etc/apt/sources.list.d/debian.sources
backports=/etc/apt/sources.list.d/zz-backports.sources
if [ -f "$sources" ] && ! grep -qs bookworm-backports /etc/apt/sources.list.d/*.sources; then
    # The first paragraph, for another suite.
    awk 'BEGIN { RS = ""; ORS = "\n" } NR == 1 { gsub(/(^|\n)Suites:[^\n]*/, "\nSuites: bookworm-backports"); sub(/^\n/, ""); print }' \
        "$sources" >"$backports"
fi
apt-get update
apt-get install -y --no-install-recommends -t bookworm-backports mesa-vulkan-drivers
apt-get install -y --no-install-recommends libvulkan1 vulkan-validationlayers vulkan-tools glslc spirv-tools
vulkaninfo --summary | sed -n '/^Devices:/,$p'
