#!/bin/sh
# Has pip install or download torch, always one of the builds of a list of digests. For a CPU it is the build for
# CPUs from its makers' index; only where that cannot be had, what pip's own index offers, which is CUDA's build on
# most machines (some 5 GB more). For a GPU it is never the build for CPUs.
#
#   infra/images/torch.sh DIGESTS cpu|cuda PYTHON -m pip install|download [OPTION...]
#
#   MODELSERVE_TORCH_INDEX     index of the builds for CPUs; empty: pip's own settings alone
#   MODELSERVE_TORCH_FALLBACK  false: fail rather than take another build
set -eu
digests=$1 device=$2
shift 2
index=${MODELSERVE_TORCH_INDEX-https://download.pytorch.org/whl/cpu}
fallback=${MODELSERVE_TORCH_FALLBACK-true}

asked=$(mktemp)
trap 'rm -f "$asked" "$asked.said"' EXIT
# A version without a label also means its builds with one (`2.13.0+cpu`), unless it is meant to the letter.
fetch() {
    edit=$1
    shift
    sed "s/^torch==\([0-9.]*\)/$edit/" "$digests" > "$asked"
    "$@" --quiet --disable-pip-version-check --no-deps --require-hashes --requirement "$asked" 2> "$asked.said"
}

if [ "$device" = cuda ]; then
    fetch 'torch===\1' "$@" || { cat "$asked.said" >&2; exit 1; }
    exit
fi
if [ -n "$index" ]; then
    # Quick to give up: most machines that cannot reach it never will.
    fetch 'torch==\1+cpu' "$@" --index-url "$index" --timeout 10 --retries 1 && exit
    case $fallback in
        false | False | FALSE | 0 | no | off)
            echo "ERROR: MODELSERVE_TORCH_FALLBACK allows no build of torch but the one for CPUs from $index;" \
                "pip says: $(grep -m 1 '^ERROR' "$asked.said" || tail -n 1 "$asked.said")" >&2
            exit 1
            ;;
    esac
fi
fetch 'torch==\1' "$@" || { cat "$asked.said" >&2; exit 1; }
