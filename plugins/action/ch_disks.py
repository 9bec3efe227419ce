# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import requested
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils.local_files import LocalFile, walk

MODULE = "microvm.cloud_hypervisor.ch_disks"


class ActionModule(ActionBase):
    """Tells the module what the controller's files hold, and sends the contents that it then says it misses."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module, and once more where it misses contents."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        try:
            vms = {source: vm for vm, source in self._sources(arguments)}
            sources = {source: self._read(vm, source) for source, vm in vms.items()}
            manifests = {
                source: {path: [file.sha256, file.size] for path, file in files.items()}
                for source, files in sources.items()
            }
            result = self._run_module({**arguments, "_manifests": manifests}, task_vars)
            missing = set(result.pop("missing", ()))
            if missing:
                files = {file.sha256: file.path for found in sources.values() for file in found.values()}
                archive = self._send({digest: files[digest] for digest in missing})
                result = self._run_module({**arguments, "_manifests": manifests, "_contents": archive}, task_vars)
            return result
        finally:
            self._loader.cleanup_all_tmp_files()
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _run_module(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars)
        return result

    @staticmethod
    def _sources(arguments: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield the controller's paths in the options, each with the name of a VM that asks for it."""
        try:
            items = requested(arguments)
            services = [(vm["name"], vm.get("service") or {}) for vm in items if vm.get("state") != "absent"]
            here = [(name, it) for name, it in services if not boolean(it.get("remote_src") or False)]
        except (MicrovmError, AttributeError, TypeError):
            # The module says what is wrong with these options.
            return
        for name, service in here:
            for option in ("binary", "keystore"):
                if service.get(option):
                    yield str(name), str(service[option])

    def _read(self, vm: str, source: str) -> dict[str, LocalFile]:
        try:
            found = Path(self._find_needle("files", source))
            return walk(found, lambda path: Path(self._loader.get_real_file(str(path))))
        except (AnsibleError, OSError, ValueError) as error:
            raise AnsibleActionFail(f"VM '{vm}', option 'service': {error}") from error

    def _send(self, files: dict[str, Path]) -> str:
        """Send files in one archive, each under its digest, and return the archive's path on the host."""
        if self._connection._shell.tmpdir is None:
            self._make_tmp_path()
        with tempfile.NamedTemporaryFile(suffix=".tar") as local:
            with tarfile.open(fileobj=local, mode="w") as tar:
                for digest, path in files.items():
                    tar.add(path, arcname=digest, recursive=False)
            local.flush()
            target = self._connection._shell.join_path(self._connection._shell.tmpdir, "contents.tar")
            sent = str(self._transfer_file(local.name, target))
        self._fixup_perms2((self._connection._shell.tmpdir, sent))
        return sent
