#!/bin/sh
# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Install the Debian or Ubuntu packages that the file $1 lists, one a line, and that are not installed yet.
set -eu

missing=$(sed '/^#/d' "$1" | while read -r package; do
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || printf ' %s' "$package"
done)
[ -n "$missing" ] || exit 0

echo "installing from the distribution:$missing"
if [ "$(id -u)" != 0 ]; then
    echo "this needs root: sudo make ..." >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
# $missing is a list of package names.
# shellcheck disable=SC2086
apt-get install --quiet=2 --yes --no-install-recommends $missing
