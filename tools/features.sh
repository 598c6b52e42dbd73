#!/usr/bin/env bash
# Checks that each feature of each published package compiles alone, and that the package compiles with none of them.
#
#   tools/features.sh [PACKAGE ...]  all packages, or those named
set -euo pipefail
cd "$(dirname "$0")/.."

# The names in the section [features] of a manifest, but for the default.
features() { sed -n '/^\[features\]/,/^\[/s/^\([a-z][a-z0-9_-]*\) *=.*/\1/p' "$1" | grep -vx default || true; }

checked=0
for manifest in backends/*/Cargo.toml kernels/Cargo.toml runtime/Cargo.toml; do
    package=$(sed -n 's/^name = "\(.*\)"/\1/p' "$manifest" | head -n 1)
    case " ${*:-$package} " in *" $package "*) ;; *) continue ;; esac
    for feature in '' $(features "$manifest"); do
        printf -- '-- %s, %s\n' "$package" "${feature:-no feature}"
        cargo check -q --locked -p "$package" --no-default-features ${feature:+--features "$feature"}
        checked=$((checked + 1))
    done
done
[ "$checked" -gt 0 ] || { echo "there is no package ${*:-}" >&2; exit 1; }
echo "$checked sets of features compile"
