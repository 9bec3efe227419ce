# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hypervisor hosts to test on: containers with systemd and sshd, each with a network of its own, on this machine.

Usage: fleet.py up DIRECTORY [--hosts N] [--show PATH ...]
       fleet.py cut DIRECTORY HOST
       fleet.py restore DIRECTORY HOST
       fleet.py down DIRECTORY

DIRECTORY caches the hosts' file system and holds what differs between them. ``up`` prints an inventory's hosts as JSON,
by name: the options that ssh needs. ``--show`` makes a directory of this machine visible, read-only, at the same path, or
at another after a colon. ``cut`` ends a host as a power cut does, ``restore`` starts it again.

Each host is a systemd-nspawn container over an overlay of one tree of the distribution's packages. Its network
namespace is made beforehand, so that it stays over a reboot of the host, and is joined to a bridge; what a kernel forgets
in a reboot is cleared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = (
    "dbus,iproute2,kmod,netbase,nftables,openssh-server,procps,python3,python3-requests-unixsocket,qemu-system-x86,qemu-utils,"
    "systemd,systemd-sysv"
)
# Another one for a second fleet, in a network namespace of its own.
PREFIX = os.environ.get("FLEET_PREFIX", "fleet")
# Of RFC 2544, for tests of networks: no real host has these addresses. Those for documentation may be a package proxy's.
NETWORK = "198.18.0"
# What a reboot clears in a host's network namespace: the rules, the TAPs, and what was set of eth0.
FORGET = """\
nft flush ruleset
ip -oneline link show type tun | sed 's/^[0-9]*: \\([^:@]*\\).*/\\1/' | xargs --no-run-if-empty -n1 ip link delete
sysctl --quiet --write net.ipv4.conf.eth0.forwarding=0
"""
CGROUPS = Path("/sys/fs/cgroup")
START_SECONDS = 180

# nspawn mounts the cgroup v1 controllers read-only. systemd then takes them for missing and ignores MemoryMax and its
# like without a word.
INIT = """\
#!/bin/sh
for controller in /sys/fs/cgroup/*/; do mount -o remount,rw,bind "$controller" || true; done
exec /lib/systemd/systemd
"""
# With a server that does not answer, each connection would wait for the name of its peer.
RESOLV_CONF = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"


def run(*argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command quietly; show what it printed where it failed."""
    done = subprocess.run(argv, text=True, capture_output=True, check=False)
    if check and done.returncode != 0:
        raise SystemExit(f"{' '.join(argv)} failed with {done.returncode}: {done.stderr or done.stdout}")
    return done


def build_tree(directory: Path) -> Path:
    """Return the tree that all hosts share; make it unless it is there."""
    tree = directory / "tree"
    if not tree.exists():
        unfinished = directory / "tree.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
        options = ["--variant=minbase", '--aptopt=APT::Install-Recommends "false"', f"--include={PACKAGES}"]
        run("mmdebstrap", "--quiet", *options, suite, str(unfinished))
        unfinished.rename(tree)
    return tree


def cgroup_directories(host: str) -> list[Path]:
    """Return the host's cgroup in each hierarchy that there is."""
    mounted = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(fields[1], f"{PREFIX}-{host}") for fields in mounted if fields[2] in ("cgroup", "cgroup2")]


def make_cgroups(host: str) -> list[Path]:
    """Make a cgroup for the host in each hierarchy, so that what it limits and counts is its own."""
    made = cgroup_directories(host)
    for path in made:
        path.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (path / setting).exists():
                (path / setting).write_text((path.parent / setting).read_text())
    return made


def kill_cgroups(host: str) -> None:
    """Kill all that runs in the host's cgroups and remove them. A container's systemd outlives its nspawn."""
    deadline = time.monotonic() + 20
    for path in cgroup_directories(host):
        while path.exists() and time.monotonic() < deadline:
            for procs in path.rglob("cgroup.procs"):
                with contextlib.suppress(OSError):
                    for pid in procs.read_text().split():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(int(pid), signal.SIGKILL)
            for below in sorted((entry for entry in path.rglob("*") if entry.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    below.rmdir()
            with contextlib.suppress(OSError):
                path.rmdir()
            time.sleep(0.05)


def make_network(hosts: list[str]) -> None:
    """Make a bridge in a namespace of its own, and join each host's namespace and this one to it."""
    bridge = f"{PREFIX}-br"
    run("ip", "netns", "add", bridge)
    run("ip", "-n", bridge, "link", "add", "br0", "type", "bridge")
    run("ip", "-n", bridge, "link", "set", "br0", "up")
    run("ip", "link", "add", PREFIX, "type", "veth", "peer", "name", "controller", "netns", bridge)
    run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", PREFIX)
    run("ip", "link", "set", PREFIX, "up")
    run("ip", "-n", bridge, "link", "set", "controller", "master", "br0", "up")
    for number, host in enumerate(hosts, start=1):
        namespace = f"{PREFIX}-{host}"
        run("ip", "netns", "add", namespace)
        run("ip", "-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", host, "netns", bridge)
        run("ip", "-n", bridge, "link", "set", host, "master", "br0", "up")
        run("ip", "-n", namespace, "addr", "add", f"{NETWORK}.{10 + number}/24", "dev", "eth0")
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        run("ip", "-n", namespace, "link", "set", "eth0", "up")
        run("ip", "-n", namespace, "route", "add", "default", "via", f"{NETWORK}.1")


def make_devices(home: Path, root: Path) -> list[tuple[str, str]]:
    """Make the host's devices, with the modes that udev gives them, and return their names here and on the host."""
    run("chroot", str(root), "groupadd", "--force", "--system", "kvm")  # on a host, udev's package makes it
    groups = dict(line.split(":")[0:3:2] for line in (root / "etc/group").read_text().splitlines())
    for name, number, mode, group in (("kvm", 232, 0o660, "kvm"), ("tun", 200, 0o666, "root")):
        (home / name).unlink(missing_ok=True)
        os.mknod(home / name, stat.S_IFCHR, os.makedev(10, number))
        os.chown(home / name, 0, int(groups[group]))
        (home / name).chmod(mode)
    return [("kvm", "kvm"), ("tun", "net/tun")]


def start(directory: Path, tree: Path, host: str, show: list[str]) -> None:
    """Mount the host's file system and run it, again and again as long as it ends in order to reboot."""
    home = directory / "hosts" / host
    for part in ("upper", "work", "root"):
        (home / part).mkdir(parents=True, exist_ok=True)
    layers = f"lowerdir={tree},upperdir={home}/upper,workdir={home}/work"
    root = home / "root"
    if not os.path.ismount(root):
        run("mount", "-t", "overlay", PREFIX, "-o", layers, str(root))
    (root / "etc/hostname").write_text(f"{host}\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text(RESOLV_CONF)
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    shutil.copy(directory / "key.pub", root / "root/.ssh/authorized_keys")
    (root / "sbin/fleet-init").write_text(INIT)
    (root / "sbin/fleet-init").chmod(0o755)

    devices = make_devices(home, root)
    nspawn = ["systemd-nspawn", "--quiet", f"--directory={root}", f"--machine={host}", "--register=no", "--keep-unit"]
    nspawn += ["--kill-signal=SIGRTMIN+3", "--capability=CAP_NET_ADMIN", "--resolv-conf=off", "--timezone=off"]
    nspawn += [f"--network-namespace-path=/run/netns/{PREFIX}-{host}", "--link-journal=no", "--console=pipe"]
    # What nspawn keeps from its containers unless it is told otherwise, and Cloud Hypervisor uses.
    calls = "landlock_add_rule landlock_create_ruleset landlock_restrict_self @io-event"
    nspawn += [f"--system-call-filter={calls} io_uring_enter io_uring_register io_uring_setup"]
    nspawn += [f"--bind={home}/{name}:/dev/{device}" for name, device in devices]
    nspawn += [*(f"--bind-ro={path}" for path in show), "/sbin/fleet-init"]
    # nsenter: CAP_NET_ADMIN is given only within the namespace that nspawn itself is in. 133: the host reboots.
    script = 'for procs in $CGROUPS; do echo $$ >"$procs"; done; '
    script += 'while :; do "$@"; [ $? = 133 ] || exit; eval "$FORGET"; done'
    subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{PREFIX}-{host}", "/bin/sh", "-c", script, "fleet", *nspawn],
        stdin=subprocess.DEVNULL,
        stdout=(home / "console.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={
            **os.environ,
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
            "FORGET": FORGET,
            "CGROUPS": " ".join(str(path / "cgroup.procs") for path in make_cgroups(host)),
        },
    )


def wait_for_ssh(directory: Path, host: str, address: str) -> None:
    """Wait until the host's sshd lets us in; show its console where it does not."""
    ssh = ["ssh", "-i", str(directory / "key"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    deadline = time.monotonic() + START_SECONDS
    while run(*ssh, "-o", "ConnectTimeout=1", "-o", "BatchMode=yes", f"root@{address}", "true", check=False).returncode:
        if time.monotonic() > deadline:
            console = (directory / "hosts" / host / "console.log").read_text(errors="replace")
            raise SystemExit(f"{host} does not answer over ssh within {START_SECONDS} seconds; its console:\n{console}")
        time.sleep(0.2)


def up(directory: Path, hosts: list[str], show: list[str]) -> dict[str, dict[str, str]]:
    """Make the hosts, after removing what an earlier fleet left; return the inventory's hosts."""
    down(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tree = build_tree(directory)
    if not (directory / "key").exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / "key"))
    (directory / "show.json").write_text(json.dumps(show))
    make_network(hosts)
    for host in hosts:
        start(directory, tree, host, show)
    inventory = {}
    for number, host in enumerate(hosts, start=1):
        address = f"{NETWORK}.{10 + number}"
        wait_for_ssh(directory, host, address)
        inventory[host] = {
            "ansible_host": address,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(directory / "key"),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
    return inventory


def cut(host: str) -> None:
    """End a host, with no chance to write or tell anything."""
    kill_cgroups(host)
    run("nsenter", f"--net=/run/netns/{PREFIX}-{host}", "/bin/sh", "-c", FORGET)


def restore(directory: Path, host: str) -> None:
    """Start a host that was cut, from what it had written."""
    start(directory, directory / "tree", host, json.loads((directory / "show.json").read_text()))
    wait_for_ssh(directory, host, f"{NETWORK}.{10 + int(host[1:])}")


def down(directory: Path) -> None:
    """Remove the hosts and all they wrote; the shared tree and the key stay."""
    homes = directory / "hosts"
    for home in sorted(homes.iterdir()) if homes.exists() else []:
        kill_cgroups(home.name)
        while os.path.ismount(home / "root"):
            run("umount", "--lazy", str(home / "root"))
        shutil.rmtree(home)
    namespaces = json.loads(run("ip", "-json", "netns", "list").stdout or "[]")
    for namespace in namespaces:
        if namespace["name"].startswith(f"{PREFIX}-"):
            run("ip", "netns", "delete", namespace["name"])
    run("ip", "link", "delete", PREFIX, check=False)


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("action", choices=["up", "cut", "restore", "down"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("host", nargs="?")
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--show", action="append", default=[])
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    if arguments.action == "down":
        down(directory)
        return
    if arguments.action in ("cut", "restore"):
        if arguments.host is None:
            parser.error(f"{arguments.action} which host?")
        cut(arguments.host)
        if arguments.action == "restore":
            restore(directory, arguments.host)
        return
    names = [f"h{number}" for number in range(1, arguments.hosts + 1)]
    json.dump(up(directory, names, arguments.show), sys.stdout, indent=2)


if __name__ == "__main__":
    main()
