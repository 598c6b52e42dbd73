#!/usr/bin/env bash
# Checks what a machine cannot run: that the library compiles for other targets, says in one line where it does not, resolves and
# compiles with the oldest dependencies that it names, and that its packages are whole.
#
#   tools/targets.sh [PART ...]  checks aarch64, musl, elsewhere, oldest, packages, or those named; what is missing for a part is
#                                said aloud, and STERNA_REQUIRE=targets makes that a failure
#   tools/targets.sh install     as root on Debian 12: a compiler with its sources and the library for aarch64, from the distribution
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/targets

skip() {
    case ",${STERNA_REQUIRE:-}," in
    *,targets,*) printf 'FAILED: %s\n' "$1" >&2; exit 1 ;;
    esac
    printf 'SKIP: %s\n' "$1"
}

if [ "${1:-}" = install ]; then
    [ "$(id -u)" = 0 ] || { echo 'packages are installed by root' >&2; exit 1; }
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release 2>/dev/null || true)
    [ "$codename" = bookworm ] && command -v apt-get >/dev/null || { echo "this is no Debian 12 (${codename:-unknown})" >&2; exit 1; }
    export DEBIAN_FRONTEND=noninteractive
    dpkg --add-architecture arm64
    apt-get update -q
    apt-get install -y -q --no-install-recommends rustc-web cargo-web rust-web-src libstd-rust-web-dev:arm64
    exit
fi

# A compiler that has the library for a target, or the sources of the library: the one in use, else the system's own, if that is as
# new as the manifest asks.
oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
serves() { command -v "$1" >/dev/null && printf '%s\n' "$oldest" "$("$1" --version | cut -d' ' -f2)" | sort -CV; }
library() { "$1" --print target-libdir --target "$2" 2>/dev/null; }
sources() { printf '%s/lib/rustlib/src/rust/library' "$("$1" --print sysroot)"; }

# Nothing that is built here runs for long: procedural macros and a library made from its sources need no optimisation.
quickly=(--config profile.dev.debug=0)
for setting in opt-level=0 debug-assertions=false overflow-checks=false; do quickly+=(--config "profile.dev.package.\"*\".$setting"); done

# Checks the packages that follow for a target; its messages go to standard error. 3: there is no library for it.
check() {
    local triple=$1 compiler
    shift
    for compiler in rustc /usr/bin/rustc; do
        serves "$compiler" || continue
        local cargo=cargo build=()
        [ "$compiler" = rustc ] || cargo=/usr/bin/cargo
        if ! ls "$(library "$compiler" "$triple")"/libcore-*.rlib >/dev/null 2>&1; then
            [ -d "$(sources "$compiler")" ] || continue
            build=(env RUSTC_BOOTSTRAP=1)
        fi
        RUSTC=$compiler CARGO_TARGET_DIR=$target "${build[@]}" "$cargo" check -q --locked "${quickly[@]}" \
            ${build:+-Zbuild-std=std,panic_abort} --target "$triple" "$@"
        return
    done
    return 3
}

all='aarch64 musl elsewhere oldest packages'
parts=" ${*:-$all} "
for part in $parts; do
    case " $all " in *" $part "*) ;; *) echo "there is no part $part: $all, or install" >&2; exit 1 ;; esac
done
wanted() { case $parts in *" $1 "*) ;; *) return 1 ;; esac; }
# Says what begins, and how long all of it has taken until now.
begin=$SECONDS
part() { printf -- '-- %s  [%d s]\n' "$1" $((SECONDS - begin)); }

# Whether cargo failed for want of the registry, which what is built for the first time takes.
unreachable() { grep -Eq 'failed to (download|fetch|query)|offline' <<<"$1"; }
# Checks a target; `said` and `status` are what came of it. Says what is missing.
said=
status=0
try() {
    part "$1"
    status=0
    said=$(check "$@" 2>&1) || status=$?
    if [ "$status" = 3 ]; then
        skip "there is neither a library for $1 nor the sources of one (tools/targets.sh install)"
    elif [ "$status" != 0 ] && unreachable "$said"; then
        status=3
        skip "the registry is not to be reached: $(tail -n 1 <<<"$said")"
    fi
}
compiles() {
    try "$1" -p sterna --all-features
    [ -z "$said" ] || printf '%s\n' "$said" >&2
    case $status in
    0) echo compiles ;;
    3) ;;
    *) exit 1 ;;
    esac
}
if wanted aarch64; then compiles aarch64-unknown-linux-gnu; fi
if wanted musl; then compiles x86_64-unknown-linux-musl; fi

# Where it does not run, one line says so and no other error hides it.
if wanted elsewhere; then
    # This one's library takes no tool of the system's to be made.
    triple=x86_64-pc-windows-msvc
    try "$triple" -p sterna
    case $status in
    0) echo "FAILED: it compiles for $triple" >&2; exit 1 ;;
    3) ;;
    *)
        errors=$(grep '^error' <<<"$said" | grep -vc '^error: could not compile' || true)
        if [ "$errors" != 1 ] || ! grep -q '^error: sterna runs on Linux' <<<"$said"; then
            printf '%s\nFAILED: %s errors for %s instead of the one that says why\n' "$said" "$errors" "$triple" >&2
            exit 1
        fi
        grep '^error: sterna runs on Linux' <<<"$said"
        ;;
    esac
fi

if wanted oldest; then
    part 'the oldest dependencies that are named'
    old=$target/oldest
    rm -rf "$old"
    mkdir -p "$old"
    # The files as they are, of those that git knows.
    git ls-files -z | tar --null -T - -cf - | tar -xf - -C "$old"
    rm "$old/Cargo.lock"
    if ! said=$(cd "$old" && RUSTC_BOOTSTRAP=1 cargo -q -Z direct-minimal-versions generate-lockfile 2>&1 && cargo -q fetch --locked 2>&1); then
        unreachable "$said" || { printf '%s\n' "$said" >&2; exit 1; }
        skip "the registry is not to be reached: $(tail -n 1 <<<"$said")"
    else
        # The directory of builds is this tree's, so that what does not change is built once.
        (cd "$old" && CARGO_TARGET_DIR=$target cargo check -q --locked "${quickly[@]}" -p sterna --all-features)
        echo compiles
    fi
fi

if wanted packages; then
    part packages
    for package in sterna sterna-hal sterna-host sterna-cpu sterna-vulkan sterna-kernels; do
        list=$(cargo package --list --allow-dirty -p "$package")
        for file in LICENSE-MIT LICENSE-APACHE README.md; do
            grep -qx "$file" <<<"$list" || { echo "FAILED: the package $package has no $file" >&2; exit 1; }
        done
        printf '%s: %s files, with README and licences\n' "$package" "$(wc -l <<<"$list")"
    done
fi
