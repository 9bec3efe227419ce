# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The devices of a VM as data: disks, NICs, and what else sits on its PCI buses.

Facts from the API documents of the releases v43.0 to v53.0 and, where a document is silent or lags behind, from
vmm/src/vm_config.rs of the release. Since v52.0 most devices share PciDeviceCommonConfig.
"""

from __future__ import annotations

from .vm_rates import RATE_LIMIT
from .vm_schema import FIRST_RELEASE, OLDEST, Property, Version

# Queues of a virtio device have at most 2^15 entries (virtio 1.2, 2.7).
_QUEUE = 1 << 15
_COMMON: Version = (52, 0)


def pci(
    what: str, position: str | None = None, *, iommu: Version | None = OLDEST, common: Version = OLDEST
) -> tuple[Property, ...]:
    """Return what every PCI device has: its name, its place, and whether it is behind the virtual IOMMU.

    ``position`` is the default of the name before its position in a list. ``iommu`` and ``common`` are the first releases
    in which this kind of device has the properties; None is none.
    """
    default = f"The default is C({position}) and its position." if position else "The VMM gives it one."
    places = (
        Property("id", "id", "str", f"The {what}'s name in the VMM. {default}", since=common, own=position is None),
        Property(
            "pci_segment", "pci_segment", "int", "The PCI segment that it is on.", most=0xFFFF, since=common, default=0
        ),
        Property(
            "pci_device_id",
            "pci_device_id",
            "int",
            "Its place on the PCI bus.",
            least=1,
            most=31,
            since=max(common, _COMMON),
            own=True,
        ),
    )
    if iommu is None:
        return places
    behind = Property("iommu", "iommu", "bool", "Whether it is behind the virtual IOMMU.", since=iommu, default=False)
    return (*places, behind)


_QUEUE_AFFINITY = (
    Property("queue_index", "queue_index", "int", "The queue's number.", required=True, most=0xFFFF),
    Property("host_cpus", "host_cpus", "int", "The host's CPUs that may serve it.", many=True, required=True),
)

IMAGE_TYPES = {"raw": "Raw", "qcow2": "Qcow2", "vhd": "FixedVhd", "vhdx": "Vhdx"}
DISK = (
    Property(
        "id", "id", "str", "The disk's name in the VMM. The default is C(disk) and its position.", added=FIRST_RELEASE
    ),
    *pci("disk", "disk")[1:],
    Property("path", "path", "path", "The image's path.", added=FIRST_RELEASE),
    Property(
        "image_type",
        "image_type",
        "choice",
        "The image's format, which is never guessed from the content, since that is the guest's to write. The default is "
        "V(qcow2), V(vhd) or V(vhdx) for a name that ends so, else V(raw). Releases before v50.1 cannot be told, and do guess.",
        choices=IMAGE_TYPES,
        since=(50, 1),
        default="Unknown",
        own=True,
        implied=True,
        added=FIRST_RELEASE,
    ),
    Property(
        "size",
        None,
        "size",
        "How large the guest is to see the disk. One that is smaller is grown, while the VM runs, which needs Cloud "
        "Hypervisor v50.0 or later for V(raw) and v51.0 or later for V(qcow2), and cannot be done to an image that is based on "
        "another. One that is larger is refused, since what is at its end would be lost.",
    ),
    Property(
        "readonly",
        "readonly",
        "bool",
        "Whether the guest can only read it.",
        default=False,
        added=FIRST_RELEASE,
    ),
    Property(
        "backing_files",
        "backing_files",
        "bool",
        "Whether a V(qcow2) image may name another file that it is based on. Releases before v50.1 always follow it.",
        since=(50, 1),
        default=False,
        implied=True,
        added=FIRST_RELEASE,
    ),
    Property(
        "serial",
        "serial",
        "str",
        "What the guest sees as the disk's serial, at most 20 bytes.",
        added=FIRST_RELEASE,
    ),
    Property("direct", "direct", "bool", "Whether the host's page cache is left out (O_DIRECT).", default=False),
    Property(
        "sparse",
        "sparse",
        "bool",
        "Whether what the guest discards is given back to the host. The default is V(true).",
        since=(51, 0),
        default=True,
    ),
    Property(
        "num_queues",
        "num_queues",
        "int",
        "How many queues, at most one for each vCPU. The default is V(1).",
        least=1,
        most=0xFFFF,
        default=1,
    ),
    Property(
        "queue_size",
        "queue_size",
        "int",
        "How many entries a queue has, a power of 2. The default is V(128).",
        least=1,
        most=_QUEUE,
        default=128,
    ),
    Property(
        "queue_affinity",
        "queue_affinity",
        "dict",
        "On which of the host's CPUs the queues are served.",
        many=True,
        fields=_QUEUE_AFFINITY,
    ),
    RATE_LIMIT,
    Property("rate_limit_group", "rate_limit_group", "str", "One of O(rate_limit_groups), whose limits it shares."),
    Property(
        "disable_io_uring",
        "disable_io_uring",
        "bool",
        "Whether io_uring is not used where the host has it.",
        default=False,
    ),
    Property(
        "disable_aio", "disable_aio", "bool", "Whether Linux AIO is not used where the host has it.", default=False
    ),
    Property(
        "lock_granularity",
        "lock_granularity",
        "choice",
        "What of the image the VMM locks. The default is V(byte_range).",
        choices={"byte_range": "ByteRange", "full": "Full"},
        since=_COMMON,
        default="ByteRange",
    ),
    Property(
        "vhost_socket",
        "vhost_socket",
        "path",
        "The socket of a vhost-user backend that serves the disk, instead of O(disks[].path).",
    ),
    Property(None, "vhost_user", "bool", default=False),
)

NET = (
    Property(
        "id", "id", "str", "The NIC's name in the VMM. The default is C(net) and its position.", added=FIRST_RELEASE
    ),
    *pci("NIC", "net")[1:],
    Property("tap", "tap", "str", "The TAP's name. It is made unless it is there.", added=FIRST_RELEASE),
    Property("mac", "mac", "mac", "The guest's MAC.", own=True, added=FIRST_RELEASE),
    Property("host_address", None, "str", "The host's IPv4 address on the TAP.", added=FIRST_RELEASE),
    Property("prefix", None, "int", "The length of its prefix.", added=FIRST_RELEASE),
    Property("host_address6", None, "str", "The host's IPv6 address on the TAP.", added=FIRST_RELEASE),
    Property("prefix6", None, "int", "The length of its prefix.", added=FIRST_RELEASE),
    Property("host_mac", "host_mac", "mac", "The host's MAC on the TAP.", own=True),
    Property(
        "mtu",
        "mtu",
        "int",
        "The MTU of guest and TAP, at least 1280. A guest that runs learns of another when it boots.",
        least=1280,
        most=0xFFFF,
    ),
    Property(
        "num_queues",
        "num_queues",
        "int",
        "How many queues, two for each vCPU that is to send and receive. The default is V(2).",
        least=2,
        most=0xFFFF,
        default=2,
    ),
    Property(
        "queue_size",
        "queue_size",
        "int",
        "How many entries a queue has, a power of 2. The default is V(256).",
        least=1,
        most=_QUEUE,
        default=256,
    ),
    RATE_LIMIT,
    Property(
        "offload_tso",
        "offload_tso",
        "bool",
        "Whether the guest may leave TCP segmentation to the host. The default is V(true).",
        default=True,
    ),
    Property(
        "offload_ufo",
        "offload_ufo",
        "bool",
        "Whether the guest may leave UDP fragmentation to the host. The default is V(true).",
        default=True,
    ),
    Property(
        "offload_csum",
        "offload_csum",
        "bool",
        "Whether the guest may leave checksums to the host. The default is V(true).",
        default=True,
    ),
    Property(
        "vhost_socket",
        "vhost_socket",
        "path",
        "The socket of a vhost-user backend that serves the NIC, instead of O(nets[].tap).",
    ),
    Property(
        "vhost_mode",
        "vhost_mode",
        "choice",
        "Which side of O(nets[].vhost_socket) the VMM is. The default is V(client).",
        choices={"client": "Client", "server": "Server"},
        default="Client",
    ),
    Property(None, "vhost_user", "bool", default=False),
)

FS = (
    Property("tag", "tag", "str", "The name by which the guest mounts it.", required=True),
    Property("socket", "socket", "path", "The socket of the virtiofsd that serves it.", required=True),
    Property(
        "num_queues", "num_queues", "int", "How many queues. The default is V(1).", least=1, most=0xFFFF, default=1
    ),
    Property(
        "queue_size",
        "queue_size",
        "int",
        "How many entries a queue has. The default is V(1024).",
        least=1,
        most=_QUEUE,
        default=1024,
    ),
    *pci("file system", "fs", iommu=None),
)
PMEM = (
    Property("file", "file", "path", "The file that is the memory.", required=True),
    Property("size", "size", "size", "Its size, a multiple of 2MiB. The default is the file's."),
    Property(
        "discard_writes",
        "discard_writes",
        "bool",
        "Whether what the guest writes never reaches the file.",
        default=False,
    ),
    *pci("memory", "pmem"),
)
DEVICE = (
    Property("path", "path", "path", "The device's directory below C(/sys/bus/pci/devices).", required=True),
    *pci("device", "device"),
    Property(
        "x_nv_gpudirect_clique",
        "x_nv_gpudirect_clique",
        "int",
        "The clique of NVIDIA GPUs that may reach each other's memory.",
        most=0xFF,
    ),
    Property(
        "x_exclude_mmap_bars",
        "x_exclude_mmap_bars",
        "int",
        "The BARs that are not mapped into the guest.",
        many=True,
        since=_COMMON,
    ),
)
USER_DEVICE = (
    Property("socket", "socket", "path", "The socket of the process that is the device.", required=True),
    *pci("device", "user_device", iommu=None),
)
VDPA = (
    Property("path", "path", "path", "The device, such as C(/dev/vhost-vdpa-0).", required=True),
    Property(
        "num_queues", "num_queues", "int", "How many queues. The default is V(1).", least=1, most=0xFFFF, default=1
    ),
    *pci("device", "vdpa"),
)
GENERIC = (
    Property("socket", "socket", "path", "The socket of the vhost-user backend.", required=True),
    Property(
        "device_type",
        "device_type",
        "int",
        "The device's virtio id, as in virtio 1.2, section 5.",
        required=True,
        least=1,
        most=0xFFFFFFFF,
    ),
    Property(
        "queue_sizes",
        "queue_sizes",
        "int",
        "How many entries each queue has.",
        many=True,
        required=True,
        least=1,
        most=_QUEUE,
    ),
    *pci("device", "generic_vhost_user", iommu=None),
)
VSOCK = (
    Property("cid", "cid", "int", "The guest's context id, at least 3.", most=0xFFFFFFFF, added=FIRST_RELEASE),
    Property(None, "socket", "path"),
    *pci("device"),
)
