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
    export DEBIAN_FRONTEND=noninteractive
    dpkg --add-architecture arm64
    apt-get update -q
    apt-get install -y -q --no-install-recommends rustc-web cargo-web rust-web-src libstd-rust-web-dev:arm64
    exit
fi

# A compiler that has the library for a target, or the sources of the library: the one in use, else the system's own.
library() { "$1" --print target-libdir --target "$2" 2>/dev/null; }
sources() { printf '%s/lib/rustlib/src/rust/library' "$("$1" --print sysroot)"; }

# Checks the packages that follow for a target; its messages go to standard error. 3: there is no library for it.
check() {
    local triple=$1 compiler
    shift
    for compiler in rustc /usr/bin/rustc; do
        command -v "$compiler" >/dev/null || continue
        local cargo=cargo build=()
        [ "$compiler" = rustc ] || cargo=/usr/bin/cargo
        if ! ls "$(library "$compiler" "$triple")"/libcore-*.rlib >/dev/null 2>&1; then
            [ -d "$(sources "$compiler")" ] || continue
            build=(-Zbuild-std=std,panic_abort)
        fi
        RUSTC_BOOTSTRAP=1 RUSTC=$compiler CARGO_TARGET_DIR=$target "$cargo" check -q --locked "${build[@]}" --target "$triple" "$@"
        return
    done
    return 3
}

parts=" ${*:-aarch64 musl elsewhere oldest packages} "
wanted() { case $parts in *" $1 "*) ;; *) return 1 ;; esac; }

triples=()
if wanted aarch64; then triples+=(aarch64-unknown-linux-gnu); fi
if wanted musl; then triples+=(x86_64-unknown-linux-musl); fi
for triple in "${triples[@]}"; do
    printf -- '-- %s\n' "$triple"
    status=0
    check "$triple" -p sterna --all-features || status=$?
    case $status in
    0) echo compiles ;;
    3) skip "there is neither a library for $triple nor the sources of one (tools/targets.sh install)" ;;
    *) exit 1 ;;
    esac
done

# Where it does not run, one line says so and no other error hides it.
if wanted elsewhere; then
triple=x86_64-pc-windows-gnu
printf -- '-- %s\n' "$triple"
status=0
said=$(check "$triple" -p sterna 2>&1) || status=$?
case $status in
0) echo "FAILED: it compiles for $triple" >&2; exit 1 ;;
3) skip "there is neither a library for $triple nor the sources of one" ;;
*)
    errors=$(grep -c '^error: [^c]' <<<"$said" || true)
    if [ "$errors" != 1 ] || ! grep -q '^error: sterna runs on Linux' <<<"$said"; then
        printf '%s\nFAILED: %s errors for %s instead of the one that says why\n' "$said" "$errors" "$triple" >&2
        exit 1
    fi
    grep '^error: sterna runs on Linux' <<<"$said"
    ;;
esac
fi

if wanted oldest; then
echo '-- the oldest dependencies that are named'
old=$target/oldest
rm -rf "$old"
mkdir -p "$old"
git ls-files -z | tar --null -T - -cf - | tar -xf - -C "$old"
rm "$old/Cargo.lock"
# The directory of builds is this tree's, so that what does not change is built once.
(
    cd "$old"
    RUSTC_BOOTSTRAP=1 cargo -q -Z direct-minimal-versions generate-lockfile
    CARGO_TARGET_DIR=$target cargo check -q --locked -p sterna --all-features
)
echo compiles
fi

if wanted packages; then
echo '-- packages'
for package in sterna sterna-hal sterna-host sterna-cpu sterna-vulkan sterna-kernels; do
    list=$(cargo package --list --allow-dirty -p "$package")
    for file in LICENSE-MIT LICENSE-APACHE README.md; do
        grep -qx "$file" <<<"$list" || { echo "FAILED: the package $package has no $file" >&2; exit 1; }
    done
    printf '%s: %s files, with README and licences\n' "$package" "$(wc -l <<<"$list")"
done
fi
