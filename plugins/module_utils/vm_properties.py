# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A whole VM as data: every option of ch_vm that sets something of the VmConfig, and what is left out.

Facts from the API documents of the releases v43.0 to v53.0 and, where a document is silent or lags behind, from
vmm/src/vm_config.rs of the release.
"""

from __future__ import annotations

from .vm_devices import DEVICE, DISK, FS, GENERIC, NET, PMEM, USER_DEVICE, VDPA, VSOCK, pci
from .vm_machine import CPUS, MEMORY, NUMA, PAYLOAD, PLATFORM
from .vm_rates import RATE_LIMIT
from .vm_schema import FIRST_RELEASE, Property


def _port(default: str, *modes: str) -> tuple[Property, ...]:
    """Return where a port may lead, ``default`` where the VMM is told nothing; the file of a pty is not asked for."""
    names = {"file": "File", "pty": "Pty", "socket": "Socket", "null": "Null", "off": "Off"}
    return (
        Property(
            "mode",
            "mode",
            "choice",
            "Where it leads.",
            choices={mode: names[mode] for mode in modes},
            default=default,
            added=FIRST_RELEASE,
        ),
        Property("file", "file", "path", "The file, for V(file).", added=FIRST_RELEASE),
    )


VM = (
    Property("cpus", "cpus", "dict", "The vCPUs.", fields=CPUS, added=FIRST_RELEASE),
    Property("memory", "memory", "dict", "The memory.", fields=MEMORY, added=FIRST_RELEASE),
    Property(
        "payload",
        "payload",
        "dict",
        "What the VM boots, either a kernel, a firmware or an IGVM file.",
        fields=PAYLOAD,
        added=FIRST_RELEASE,
    ),
    Property(
        "rate_limit_groups",
        "rate_limit_groups",
        "dict",
        "Limits that several disks share, whose O(disks[].rate_limit_group) names one.",
        many=True,
        fields=(Property("id", "id", "str", "The group's name.", required=True), RATE_LIMIT),
    ),
    Property(
        "disks",
        "disks",
        "dict",
        "The disks, in the order in which the guest sees them; M(microvm.cloud_hypervisor.ch_disks) returns them. The first "
        "is taken for the root disk, which a VM that runs keeps.",
        many=True,
        fields=DISK,
        added=FIRST_RELEASE,
    ),
    Property("nets", "net", "dict", "The NICs.", many=True, fields=NET, added=FIRST_RELEASE),
    Property(
        "fs",
        "fs",
        "dict",
        "Directories of the host, served by a virtiofsd for each, which listens before the VM starts or gets the device; one "
        "that ends with its VMM is started again before the VM is. Need shared memory.",
        many=True,
        fields=FS,
    ),
    Property(
        "pmem", "pmem", "dict", "Files of the host that the guest sees as persistent memory.", many=True, fields=PMEM
    ),
    Property("devices", "devices", "dict", "PCI devices of the host, passed on by VFIO.", many=True, fields=DEVICE),
    Property(
        "user_devices",
        "user_devices",
        "dict",
        "PCI devices that are processes, by vfio-user. Need shared memory.",
        many=True,
        fields=USER_DEVICE,
    ),
    Property("vdpa", "vdpa", "dict", "vDPA devices of the host.", many=True, fields=VDPA),
    Property(
        "generic_vhost_user",
        "generic_vhost_user",
        "dict",
        "Other virtio devices, served by a vhost-user backend each. Need shared memory.",
        many=True,
        fields=GENERIC,
        since=(52, 0),
        # The document's name; the VMM itself drops it silently.
        aliases=("generic-vhost-user",),
    ),
    Property(
        "serial",
        "serial",
        "dict",
        "The serial port. The default of O(serial.mode) is V(file), and that of O(serial.file) is C(serial.log) in the VM's "
        "directory. What the guest has written before somebody attaches, V(socket) keeps from Cloud Hypervisor v53.0 on; "
        "V(pty) before v50.0 shows it once a key was pressed.",
        fields=(*_port("Null", "file", "pty", "socket", "null", "off"), Property(None, "socket", "path")),
        added=FIRST_RELEASE,
    ),
    Property(
        "console",
        "console",
        "dict",
        "The virtio console. The default of O(console.mode) is V(off).",
        fields=(*_port("Tty", "file", "pty", "null", "off"), *pci("console", common=(52, 0))),
        added=FIRST_RELEASE,
    ),
    Property(
        "debug_console",
        "debug_console",
        "dict",
        "The port that firmware writes its messages to. It is off by default.",
        fields=(
            *_port("Off", "file", "pty", "null", "off"),
            Property(
                "iobase",
                "iobase",
                "int",
                "Its I/O port. The default is V(233), which is 0xe9.",
                most=0xFFFF,
                default=0xE9,
            ),
        ),
    ),
    Property(
        "vsock",
        "vsock",
        "dict",
        "A socket between host and guest without a network. The host's side is C(vsock.sock) in the run directory.",
        fields=VSOCK,
        added=FIRST_RELEASE,
    ),
    Property(
        "rng",
        "rng",
        "dict",
        "Where the guest's entropy comes from.",
        fields=(
            Property(
                "src",
                "src",
                "path",
                "The file. The default is V(/dev/urandom).",
                default="/dev/urandom",
                added=FIRST_RELEASE,
            ),
            *pci("device", common=(52, 0)),
        ),
        added=FIRST_RELEASE,
    ),
    Property(
        "rtc",
        "rtc",
        "dict",
        "A clock that follows the host's, as a virtio device.",
        fields=pci("clock"),
        presence=True,
        since=(53, 0),
    ),
    Property(
        "balloon",
        "balloon",
        "dict",
        "A device through which the host takes memory back.",
        fields=(
            Property(
                "size",
                "size",
                "size",
                "How much is taken back. It can be changed while the VM runs. The default is V(0).",
            ),
            Property(
                "deflate_on_oom",
                "deflate_on_oom",
                "bool",
                "Whether a guest that is short of memory gets it again.",
                default=False,
            ),
            Property(
                "free_page_reporting",
                "free_page_reporting",
                "bool",
                "Whether the guest says which pages it does not use.",
                default=False,
            ),
            *pci("device", iommu=(53, 0), common=(53, 0)),
        ),
    ),
    Property(
        "watchdog",
        "watchdog",
        "bool",
        "Whether the VM has a watchdog that resets it. The default is V(false).",
        default=False,
        added=FIRST_RELEASE,
    ),
    Property(
        "pvpanic", "pvpanic", "bool", "Whether the guest can tell the VMM that its kernel panicked.", default=False
    ),
    Property(
        "tpm",
        "tpm",
        "dict",
        "A TPM.",
        fields=(Property("socket", "socket", "path", "The socket of the swtpm that is the TPM.", required=True),),
    ),
    Property(
        "iommu",
        "iommu",
        "bool",
        "Whether there is a virtual IOMMU; one for a device behind it is there anyway.",
        default=False,
        own=True,
    ),
    Property("numa", "numa", "dict", "The guest's NUMA nodes.", many=True, fields=NUMA),
    Property(
        "pci_segments",
        "pci_segments",
        "dict",
        "How PCI segments share the address space.",
        many=True,
        fields=(
            Property("pci_segment", "pci_segment", "int", "The segment's number.", required=True, most=0xFFFF),
            Property(
                "mmio32_aperture_weight",
                "mmio32_aperture_weight",
                "int",
                "Its share below 4 GiB. The default is V(1).",
                least=1,
                most=0xFFFFFFFF,
                default=1,
            ),
            Property(
                "mmio64_aperture_weight",
                "mmio64_aperture_weight",
                "int",
                "Its share above. The default is V(1).",
                least=1,
                most=0xFFFFFFFF,
                default=1,
            ),
        ),
    ),
    Property(
        "platform",
        "platform",
        "dict",
        "What the guest's machine is, and what it reads about it in DMI.",
        fields=PLATFORM,
        added=FIRST_RELEASE,
    ),
    Property(
        "sgx_epc",
        "sgx_epc",
        "dict",
        "Memory of the host's SGX enclaves.",
        many=True,
        until=(47, 0),
        fields=(
            Property("id", "id", "str", "The section's name.", required=True),
            Property("size", "size", "size", "How much.", required=True),
            Property(
                "prefault", "prefault", "bool", "Whether the host gives all of it when the VM boots.", default=False
            ),
        ),
    ),
    Property(
        "landlock_enable",
        "landlock_enable",
        "bool",
        "Whether the VMM may open only the files that its VM names, by Landlock. One that is a unit does so where the "
        "kernel can, unless this is V(false).",
        default=False,
        own=True,
    ),
    Property(
        "landlock_rules",
        "landlock_rules",
        "dict",
        "Files and directories that it may open beside, such as those of devices that come later.",
        many=True,
        fields=(
            Property("path", "path", "path", "The file or directory.", required=True),
            Property("access", "access", "str", "V(r) to read, V(rw) to write as well.", required=True),
        ),
        own=True,
    ),
)

# Properties of a VmConfig, in the documents or in the source, that are no options, and why.
LEFT_OUT = {
    "net.ip": "the TAP is made and gets its address (nets.host_address) before the VMM runs, which needs no capability then",
    "net.mask": "as net.ip: nets.prefix is its place",
    "serial.iommu": "a serial port is no PCI device: the documents up to v51.2 take it for a console, the VMM ignores it",
    "console.socket": "the VMM listens on a socket for the serial port only",
    "platform.iommu_address_width": "the documents' name up to v52.0, which the VMM drops silently; its own is iommu_address_width_bits",
    "generic-vhost-user.queue_size": "v52.0's document, which the VMM does not follow: it is queue_sizes there, too",
    "generic-vhost-user.virtio_id": "v52.0's document, which the VMM does not follow: it is device_type there, too",
    "net.fds": "the VMM takes descriptors over a socket of its own, in its own format; a TAP by name does the same here",
    "devices.fd": "as net.fds",
    "platform.iommufd_fd": "as net.fds",
    "payload.fw_cfg_config": "in no release's binaries: it is behind a build feature (fw_cfg)",
    "ivshmem": "in no release's binaries: it is behind a build feature (ivshmem)",
    "pvmemcontrol": "in no release's binaries: it is behind a build feature (pvmemcontrol)",
    "gdb": "a debugger's stop before the first instruction, behind a build feature (guest_debug)",
}
