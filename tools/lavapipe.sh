#!/usr/bin/env bash
# Sets up the software Vulkan driver that the tests use on Debian 12: lavapipe of the backports, the loader, the validation layer,
# and what compiles and validates kernels. Distribution packages only; the mirror is the one that apt uses already. As root.
set -euo pipefail

[ "$(id -u)" = 0 ] || { echo 'packages are installed by root' >&2; exit 1; }
codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release 2>/dev/null || true)
[ "$codename" = bookworm ] && command -v apt-get >/dev/null || { echo "this is no Debian 12 (${codename:-unknown})" >&2; exit 1; }

# What apt has been told, in whichever of its formats: suite and address.
known() { apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages'; }
if ! known | grep -q '^bookworm-backports '; then
    mirror=$(known | sed -n 's/^bookworm //p' | sed -n 1p)
    [ -n "$mirror" ] || { echo 'apt knows no mirror of bookworm' >&2; exit 1; }
    printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\nSigned-By: %s\n' "$mirror" \
        /usr/share/keyrings/debian-archive-keyring.gpg >/etc/apt/sources.list.d/zz-backports.sources
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends -t bookworm-backports mesa-vulkan-drivers
apt-get install -y --no-install-recommends libvulkan1 vulkan-validationlayers vulkan-tools glslc spirv-tools
vulkaninfo --summary | sed -n '/^Devices:/,$p'
