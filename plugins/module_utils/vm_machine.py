# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The machine of a VM as data: vCPUs, memory, NUMA, what it boots and what it says of itself.

Facts from the API documents of the releases v43.0 to v53.0 and, where a document is silent or lags behind, from
vmm/src/vm_config.rs of the release.
"""

from __future__ import annotations

from .vm_schema import FIRST_RELEASE, Property

_U16, _U32 = 0xFFFF, 0xFFFFFFFF
# Numbers of vCPUs are u8 before v48.0.
_WIDER = ((48, 0), 0xFF)

CPUS = (
    Property(
        "boot",
        "boot_vcpus",
        "int",
        "How many the VM has. The default is V(1).",
        least=1,
        most=_U32,
        wider=_WIDER,
        added=FIRST_RELEASE,
    ),
    Property(
        "max",
        "max_vcpus",
        "int",
        "How many it can be given while it runs. The default is O(cpus.boot).",
        least=1,
        most=_U32,
        wider=_WIDER,
        added=FIRST_RELEASE,
    ),
    Property(
        "topology",
        "topology",
        "dict",
        "What the guest sees of their arrangement; the product is O(cpus.max).",
        fields=tuple(
            Property(name, name, "int", f"How many {what}.", required=True, least=1, most=_U16, wider=_WIDER)
            for name, what in (
                ("threads_per_core", "threads a core has"),
                ("cores_per_die", "cores a die has"),
                ("dies_per_package", "dies a package has"),
                ("packages", "packages there are"),
            )
        ),
    ),
    Property(
        "affinity",
        "affinity",
        "dict",
        "On which of the host's CPUs vCPUs may run.",
        many=True,
        fields=(
            Property("vcpu", "vcpu", "int", "The vCPU's number.", required=True, most=_U32, wider=_WIDER),
            Property("host_cpus", "host_cpus", "int", "The host's CPUs.", many=True, required=True),
        ),
    ),
    Property(
        "features",
        "features",
        "dict",
        "What the guest's CPUs can do beyond the usual.",
        fields=(Property("amx", "amx", "bool", "Whether they have Intel's AMX.", default=False),),
    ),
    Property(
        "kvm_hyperv", "kvm_hyperv", "bool", "Whether KVM looks like Hyper-V, which Windows guests need.", default=False
    ),
    Property(
        "max_phys_bits",
        "max_phys_bits",
        "int",
        "How many bits a physical address has at most. The default is V(46).",
        least=1,
        most=64,
        default=46,
    ),
    Property(
        "nested",
        "nested",
        "bool",
        "Whether the guest may run VMs of its own. The default is V(true).",
        since=(50, 0),
        default=True,
    ),
    Property(
        "core_scheduling",
        "core_scheduling",
        "choice",
        "What may run on a core beside a vCPU. With V(vm), the default, only vCPUs of the same VM, with V(vcpu) nothing, "
        "with V(off) everything.",
        choices={"vm": "Vm", "vcpu": "Vcpu", "off": "Off"},
        since=(52, 0),
        default="Vm",
    ),
    Property(
        "profile",
        "profile",
        "choice",
        "The CPU that the guest sees. V(host), the default, is the host's.",
        choices={"host": "Host"},
        since=(53, 0),
        default="Host",
    ),
)

_PAGES = (
    Property(
        "shared",
        "shared",
        "bool",
        "Whether it is shared with other processes, which vhost-user devices need.",
        default=False,
        added=FIRST_RELEASE,
    ),
    Property("hugepages", "hugepages", "bool", "Whether it is in huge pages.", default=False, added=FIRST_RELEASE),
    Property(
        "hugepage_size",
        "hugepage_size",
        "size",
        "How large the huge pages are, such as V(1GiB). The default is the host's.",
    ),
    Property("prefault", "prefault", "bool", "Whether the host gives all of it when the VM boots.", default=False),
    Property(
        "reserve",
        "reserve",
        "bool",
        "Whether the boot fails where the host could not give all of it.",
        since=(53, 0),
        default=False,
    ),
)
_MERGEABLE = "Whether the host's kernel may merge pages that are alike."
_ZONE = (
    Property("id", "id", "str", "The zone's name.", required=True),
    Property(
        "size",
        "size",
        "size",
        "How much memory it has. While the VM runs, it can be up to O(memory.zones[].hotplug_size) more.",
        required=True,
    ),
    Property(
        "hotplug_size", "hotplug_size", "size", "How much more it can be given while the VM runs. Needs V(virtio_mem)."
    ),
    Property("hotplugged_size", "hotplugged_size", "size", "How much of that it has from the boot on."),
    Property("file", "file", "path", "The file that is the memory."),
    Property("host_numa_node", "host_numa_node", "int", "The host's NUMA node that gives it.", most=_U32),
    *_PAGES,
    Property("mergeable", "mergeable", "bool", _MERGEABLE, since=(52, 0), default=False),
)
MEMORY = (
    Property(
        "size",
        "size",
        "size",
        "How much the VM has. The default is V(512MiB), or nothing where there are O(memory.zones).",
        added=FIRST_RELEASE,
    ),
    Property(
        "hotplug_size", "hotplug_size", "size", "How much more it can be given while it runs.", added=FIRST_RELEASE
    ),
    Property(
        "hotplugged_size", "hotplugged_size", "size", "How much of that it has from the boot on, with V(virtio_mem)."
    ),
    Property(
        "hotplug_method",
        "hotplug_method",
        "choice",
        "How it is given more. With V(acpi), the default, in steps of 128MiB and for good; with V(virtio_mem) it can be "
        "taken back.",
        choices={"acpi": "Acpi", "virtio_mem": "VirtioMem"},
        default="Acpi",
    ),
    *_PAGES,
    Property("mergeable", "mergeable", "bool", _MERGEABLE, default=False, added=FIRST_RELEASE),
    Property(
        "thp", "thp", "bool", "Whether transparent huge pages are asked for. The default is V(true).", default=True
    ),
    Property(
        "zones",
        "zones",
        "dict",
        "Parts of the memory, each with a host's NUMA node or file of its own.",
        many=True,
        fields=_ZONE,
    ),
)

PAYLOAD = (
    Property("kernel", "kernel", "path", "The kernel's path.", added=FIRST_RELEASE),
    Property("initramfs", "initramfs", "path", "The initramfs' path.", added=FIRST_RELEASE),
    Property("cmdline", "cmdline", "str", "The kernel's command line.", added=FIRST_RELEASE),
    Property(
        "firmware",
        "firmware",
        "path",
        "The path of a firmware that finds the kernel on the first disk.",
        added=FIRST_RELEASE,
    ),
    Property("igvm", "igvm", "path", "The path of an IGVM file, for a VMM that was built with that."),
    Property(
        "host_data",
        "host_data",
        "str",
        "What goes into the attestation report of an SEV-SNP guest, 64 hexadecimal digits.",
    ),
)

NUMA = (
    Property("guest_numa_id", "guest_numa_id", "int", "The node's number.", required=True, most=_U32),
    Property("cpus", "cpus", "int", "The vCPUs on it.", many=True, wider=_WIDER),
    Property(
        "distances",
        "distances",
        "dict",
        "How far other nodes are.",
        many=True,
        fields=(
            Property("destination", "destination", "int", "The other node's number.", required=True, most=_U32),
            Property("distance", "distance", "int", "Its distance, as ACPI's SLIT has it.", required=True, most=0xFF),
        ),
    ),
    Property("memory_zones", "memory_zones", "str", "Which of O(memory.zones) are its memory.", many=True),
    Property("pci_segments", "pci_segments", "int", "The PCI segments on it.", many=True),
    Property("device_id", "device_id", "str", "A device that is a node without vCPUs and memory.", since=(51, 0)),
    Property("sgx_epc_sections", "sgx_epc_sections", "str", "Which of O(sgx_epc) are on it.", many=True, until=(47, 0)),
)

PLATFORM = (
    Property(
        "serial_number",
        "serial_number",
        "str",
        "The machine's serial number.",
        aliases=("system_serial_number",),
        added=FIRST_RELEASE,
    ),
    Property("uuid", "uuid", "str", "The machine's UUID.", aliases=("system_uuid",), added=FIRST_RELEASE),
    Property("oem_strings", "oem_strings", "str", "Strings for the guest to read.", many=True, added=FIRST_RELEASE),
    Property("manufacturer", "system_manufacturer", "str", "The machine's manufacturer.", since=(53, 0)),
    Property("product_name", "system_product_name", "str", "The machine's product name.", since=(53, 0)),
    Property("version", "system_version", "str", "The machine's version.", since=(53, 0)),
    Property("family", "system_family", "str", "The machine's family.", since=(53, 0)),
    Property("sku_number", "system_sku_number", "str", "The machine's SKU number.", since=(53, 0)),
    Property("chassis_asset_tag", "chassis_asset_tag", "str", "The chassis' asset tag.", since=(53, 0)),
    Property(
        "num_pci_segments",
        "num_pci_segments",
        "int",
        "How many PCI segments there are. The default is V(1).",
        least=1,
        most=96,
        default=1,
    ),
    Property("iommu_segments", "iommu_segments", "int", "The PCI segments behind the virtual IOMMU.", many=True),
    Property(
        "iommu_address_width_bits",
        "iommu_address_width_bits",
        "int",
        "How wide the virtual IOMMU's addresses are. The default is V(64).",
        least=1,
        most=64,
        since=(44, 0),
        default=64,
    ),
    Property(
        "tdx",
        "tdx",
        "bool",
        "Whether the guest is an Intel TDX one, for a VMM that was built with that.",
        default=False,
    ),
    Property(
        "sev_snp",
        "sev_snp",
        "bool",
        "Whether the guest is an AMD SEV-SNP one, for a VMM that was built with that.",
        default=False,
    ),
    Property(
        "iommufd", "iommufd", "bool", "Whether VFIO devices go through C(/dev/iommu).", since=(52, 0), default=False
    ),
    Property(
        "vfio_p2p_dma",
        "vfio_p2p_dma",
        "bool",
        "Whether VFIO devices may reach each other's memory. The default is V(true).",
        since=(52, 0),
        default=True,
    ),
)
