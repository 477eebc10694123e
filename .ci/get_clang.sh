#!/usr/bin/env bash
# Bring a clang that compiles for AMD GPUs into .tools/bin: clang++, llvm-objdump, llvm-readelf, clang-offload-bundler.
# Links to the one of ROCm or of the machine when it is new enough; else unpacks Debian's, without root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=22
oldest=20 # the first to know gfx950
tools=(clang++ llvm-objdump llvm-readelf clang-offload-bundler)

die() { printf 'make tools: %s\n' "$*" >&2; exit 3; }

# Print the tools' paths when a folder (or PATH, with a suffix) has them all and they are new enough.
complete() {
    local suffix=$1 tool found=()
    for tool in "${tools[@]}" ld.lld; do found+=("$(command -v "$tool$suffix")") || return 1; done
    [ "$("${found[0]}" -dumpversion | cut -d. -f1)" -ge $oldest ] || return 1
    printf '%s\n' "${found[@]:0:${#tools[@]}}"
}

on_machine() {
    local suffix
    PATH=${ROCM_PATH:-/opt/rocm}/llvm/bin complete "" && return
    for suffix in "-$version" -21 -20 ""; do complete "$suffix" && return; done
    return 1
}

mkdir -p .tools
new=$(mktemp -d .tools/new.XXXXXX)
trap 'rm -rf "$new"' EXIT
mkdir "$new/bin"
if paths=$(on_machine); then
    i=0
    for path in $paths; do ln -s "$path" "$new/bin/${tools[i++]}"; done
else
    .ci/apt_unpack.sh "$new/llvm" "clang-$version" "lld-$version" "llvm-$version" "clang-tools-$version" ||
        die "no clang $oldest or newer with lld, and Debian's clang-$version could not be fetched; install either"
    rm -rf "$new/llvm/usr/share" "$new/llvm/usr/lib/llvm-$version/bin/llvm-exegesis"
    for tool in "${tools[@]}"; do
        cat > "$new/bin/$tool" << EOF
#!/bin/sh
root=\$(dirname "\$(dirname "\$(readlink -f "\$0")")")/llvm
export LD_LIBRARY_PATH="\$root/usr/lib/x86_64-linux-gnu:\$root/lib/x86_64-linux-gnu\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
export PATH="\$root/usr/lib/llvm-$version/bin:\$PATH"
exec "\$root/usr/lib/llvm-$version/bin/$tool" "\$@"
EOF
        chmod +x "$new/bin/$tool"
    done
fi

# It is worth something only when it compiles.
echo 'extern "C" __attribute__((global)) void k(float* p) { *p = 1.0f; }' > "$new/probe.hip"
"$new/bin/clang++" -x hip --cuda-device-only --no-gpu-bundle-output -nogpuinc -nogpulib -mcode-object-version=5 \
    --offload-arch=gfx950 "$new/probe.hip" -o "$new/probe.co" || die "$new/bin/clang++ does not compile for gfx950"
"$new/bin/llvm-objdump" -d "$new/probe.co" | grep s_endpgm > /dev/null || die "llvm-objdump does not read gfx950 code"
rm "$new"/probe.*

rm -rf .tools/bin .tools/llvm
[ ! -d "$new/llvm" ] || mv "$new/llvm" .tools/llvm
mv "$new/bin" .tools/bin
echo "make tools: $(.tools/bin/clang++ --version | head -1)"
touch .tools/.stamp
