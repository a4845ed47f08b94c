#!/bin/sh
# Removes what package installation leaves behind and what differs from run to run. Argument: the root folder (none inside a build).
set -eu
cd "${1:-}/"
find var/log -type f -delete
find tmp var/tmp -mindepth 1 -delete
rm -rf var/cache/apt/*.bin var/cache/apt/archives/*.deb var/cache/apt/archives/lock var/cache/ldconfig/* var/cache/debconf/*-old \
    var/lib/dpkg/*-old var/lib/apt/lists/*
