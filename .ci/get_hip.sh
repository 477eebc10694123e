#!/usr/bin/env bash
# Bring Debian's HIP into .tools/hip: the runtime, its headers and ROCm's device libraries, 6 MB to download.
# The tests build with these headers as hipcc does, and load what they built beside this runtime. Nothing else needs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
packages=(
    libamdhip64-5 libamdhip64-dev rocm-device-libs
    libhsa-runtime64-1 libhsakmt1 libdrm2 libdrm-amdgpu1 libnuma1
)
mkdir -p .tools
new=$(mktemp -d .tools/new.XXXXXX)
trap 'rm -rf "$new"' EXIT
if ! .ci/apt_unpack.sh --alone "$new" "${packages[@]}" 2> "$new.log"; then
    # Only tests of the ROCm path need it: they say so when they skip.
    echo "make tools: no HIP of Debian: $(tail -1 "$new.log")" >&2
    rm -f "$new.log"
    exit 0
fi
rm -rf "$new.log" "$new/usr/share" .tools/hip
mv "$new" .tools/hip
echo "make tools: HIP $(sed -n 's/#define HIP_VERSION_\(MAJOR\|MINOR\|PATCH\) //p' .tools/hip/usr/include/hip/hip_version.h | paste -sd.)"
