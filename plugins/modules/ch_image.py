#!/usr/bin/python
# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ch_image
short_description: Fetch images, kernels and firmware for VMs
version_added: 0.1.0
description:
  - Brings the files that VMs begin with into the host's cache, where they are named by their digests.
  - A download goes on where a broken connection left it, and takes its name only when its checksum is right.
  - A disk may be compressed with gzip, bzip2, xz or zstd; the last takes the command C(zstd) on the host.
  - A qcow2 image is converted to a sparse raw one, once, and grown.
author:
  - The microvm.cloud_hypervisor developers (@microvm)
extends_documentation_fragment:
  - microvm.cloud_hypervisor.bulk.attributes
options:
  name: &name
    description: What you call the image; VMs name it so.
    type: str
  state: &state
    description:
      - Whether the image is in the cache. The default is V(present).
      - With V(absent) its files go, but for those that another image has too. A disk that a VM's overlay is based on is not
        removed.
    type: str
    choices: [present, absent]
  disk: &disk
    description:
      - The disk, as a raw or qcow2 image. One that names a backing file or an external data file is refused, before any
        tool opens it, and so is any other format that is known, such as VMDK, VHDX or VDI.
      - Without any of O(disk), O(kernel), O(initramfs) and O(firmware), the image is the Ubuntu 24.04 server cloud image
        with its unpacked kernel and initrd.
    type: dict
    suboptions: &source
      src:
        description:
          - An C(http), C(https) or C(file) URL, or an absolute path on the host.
          - An C(https) URL that redirects to plain C(http) is refused, with a checksum too.
        type: str
        required: true
      checksum:
        description:
          - C(sha256:) and either 64 hexadecimal digits or the C(https) URL, or path, of a list such as C(SHA256SUMS). It is
            that of the file as it is fetched, before it is decompressed or converted.
          - It must be given for C(http), and for a server that does not say how long the file is.
          - Without one for C(https), what comes the first time is kept and not asked for again. Where it is lost from the
            cache, what the server has by then is taken. To have what is newer earlier, set O(state=absent) first.
        type: str
  kernel: &kernel
    description: The kernel.
    type: dict
    suboptions: *source
  initramfs: &initramfs
    description: The initramfs.
    type: dict
    suboptions: *source
  firmware: &firmware
    description: The firmware, instead of kernel and initramfs.
    type: dict
    suboptions: *source
  size: &size
    description:
      - The disk's size, at least the image's own. The default is V(20GiB), or the image's size where that is larger.
    type: str
  timeout: &timeout
    description: For how many seconds a server may say nothing. The default is V(30).
    type: int
  offline: &offline
    description:
      - What is done where nobody answers at the URL of a list of checksums, which is asked for by each run, so that a
        newer image is noticed. The default, V(false), is to fail.
      - With V(true), the digest that was listed the last time counts, and the task warns of it. An image that is in the cache
        then needs no network. Whoever can cut a host off can so have it stay with an image that has been replaced.
      - An answer that is not right, such as another server's certificate or a list without the file, fails in either case.
    type: bool
    version_added: 0.3.0
  images:
    description: A list of images, each with the options of this module; what is given beside it is each item's default.
    type: list
    elements: dict
    suboptions:
      name: *name
      state: *state
      disk: *disk
      kernel: *kernel
      initramfs: *initramfs
      firmware: *firmware
      size: *size
      timeout: *timeout
      offline: *offline
  state_dir:
    description: The directory that holds the cache, C(images).
    type: path
    default: /var/lib/microvm
seealso:
  - module: microvm.cloud_hypervisor.ch_disks
"""

EXAMPLES = r"""
- name: The default image, Ubuntu 24.04
  microvm.cloud_hypervisor.ch_image:
    name: ubuntu-24.04
  register: fetched

- name: An image of your own
  microvm.cloud_hypervisor.ch_image:
    name: appliance
    disk:
      src: https://images.example.com/appliance.qcow2
      checksum: sha256:https://images.example.com/SHA256SUMS
    firmware:
      src: /usr/share/cloud-hypervisor/CLOUDHV.fd
    size: 40GiB

- name: Two images in one call
  microvm.cloud_hypervisor.ch_image:
    images:
      - name: ubuntu-24.04
      - name: old
        state: absent
"""

RETURN = r"""
images:
  description:
    - The files of each image, by its name; null for those that it does not have.
    - C(stale) says which lists of checksums were not reached, by O(offline).
  returned: always
  type: dict
  sample:
    ubuntu-24.04:
      changed: true
      actions: [fetched disk from https://cloud-images.ubuntu.com/...]
      disk: /var/lib/microvm/images/sha256-5c2f...-21474836480.raw
      kernel: /var/lib/microvm/images/sha256-1d0a...
      initramfs: /var/lib/microvm/images/sha256-9b33...
      firmware: null
      digests:
        disk: 5c2f...
        kernel: 1d0a...
        initramfs: 9b33...
      stale: []
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import image_cache
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome, report, requested
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner

SOURCE = {"type": "dict", "options": {"src": {"type": "str", "required": True}, "checksum": {"type": "str"}}}
IMAGE_OPTIONS = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"]},
    "disk": SOURCE,
    "kernel": SOURCE,
    "initramfs": SOURCE,
    "firmware": SOURCE,
    "size": {"type": "str"},
    "timeout": {"type": "int"},
    "offline": {"type": "bool"},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **IMAGE_OPTIONS,
            "images": {"type": "list", "elements": "dict", "options": IMAGE_OPTIONS},
            "state_dir": {"type": "path", "default": "/var/lib/microvm"},
        },
        supports_check_mode=True,
    )
    try:
        outcomes = image_cache.ensure(
            requested(module.params, shared=["state_dir"], key="images"),
            state_dir=Path(module.params["state_dir"]),
            runner=HostRunner(),
            check_mode=module.check_mode,
        )
    except MicrovmError as error:
        module.fail_json(msg=str(error))
    for name, outcome in outcomes.items():
        if isinstance(outcome, Outcome):
            for words in outcome.facts.get("stale", ()):
                module.warn(f"image '{name}': {words}")
    module.exit_json(**report(outcomes, key="images"))


if __name__ == "__main__":
    main()
