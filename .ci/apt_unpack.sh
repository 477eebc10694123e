#!/usr/bin/env bash
# Download Debian packages and unpack them into a folder. Needs no root and installs nothing.
#
#   .ci/apt_unpack.sh [--alone] FOLDER PACKAGE...
#
# What they depend on comes too, as far as this machine lacks it; with --alone it does not.
set -euo pipefail
alone=
[ "$1" != --alone ] || { alone=yes && shift; }
folder=$1
shift
command -v apt-get > /dev/null && command -v dpkg > /dev/null || { echo "apt-get and dpkg are not here" >&2; exit 3; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
options=(-q -o APT::Sandbox::User= -o Debug::NoLocking=1 -o APT::Install-Recommends=false)

# Names of the packages that an installation would add, one a line; upgrades, which show the old version in [], are left out.
missing() { apt-get "${options[@]}" --simulate install "$@" | sed -n 's/^Inst \([^ ]*\) (.*/\1/p'; }

# All or nothing: into a folder of its own.
download() {
    mkdir -p "$work/deb"
    rm -f "$work"/deb/*
    local names=
    [ -n "$alone" ] || names=$(missing "$@") || return 1
    (cd "$work/deb" && apt-get "${options[@]}" download $(printf '%s\n' "$@" $names | sort -u) > "$work/log" 2>&1)
}

if ! download "$@" 2> /dev/null; then
    # The machine's package lists are absent or out of date: fetch private ones.
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    options+=(-o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache")
    apt-get "${options[@]}" update > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 3; }
    download "$@" || { cat "$work/log" >&2; exit 3; }
fi
mkdir -p "$folder"
for deb in "$work"/deb/*.deb; do dpkg -x "$deb" "$folder"; done
