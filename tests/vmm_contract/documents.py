# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The API documents of Cloud Hypervisor's releases, and what does not fit them."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from openapi_schema_validator import OAS30Validator

DEFAULT_DIRECTORY = Path(__file__).parents[3] / "shared" / "openapi"
VERSIONS = ("v43.0", "v48.0", "v53.0")


def directory() -> Path:
    """Return where the documents are; not every checkout has them."""
    return Path(os.environ.get("MICROVM_OPENAPI_DIR") or DEFAULT_DIRECTORY)


def available(*versions: str) -> bool:
    """Whether the documents of these releases are there, of VERSIONS where none is named."""
    return all((directory() / f"cloud-hypervisor-{version}.yaml").exists() for version in versions or VERSIONS)


@dataclass(frozen=True)
class Misfit:
    """What does not fit: ``undocumented`` is ``Schema.property`` where a property is in no document, else None."""

    message: str
    undocumented: str | None = None


class Document:
    """One release's document. A property that it does not have is a misfit, though OpenAPI allows it by default."""

    def __init__(self, version: str) -> None:
        text = (directory() / f"cloud-hypervisor-{version}.yaml").read_text()
        self._document: dict[str, Any] = yaml.safe_load(text)
        self._components = copy.deepcopy(self._document["components"])
        for name, schema in self._components["schemas"].items():
            schema["title"] = name
            if "properties" in schema:
                schema.setdefault("additionalProperties", False)

    @property
    def schemas(self) -> dict[str, Any]:
        """The schemas by their names."""
        return dict(self._components["schemas"])

    def _operation(self, method: str, call: str) -> dict[str, Any] | None:
        return self._document["paths"].get(f"/{call}", {}).get(method.lower())

    def calls(self) -> set[str]:
        """Return the names of all calls, such as ``vm.info``."""
        return {path.removeprefix("/") for path in self._document["paths"]}

    def request(self, method: str, call: str, body: Any) -> Iterator[Misfit]:
        """Say what is wrong with a request; ``body`` is None where there is none."""
        operation = self._operation(method, call)
        if operation is None:
            yield Misfit(f"{method} {call} is not in the document", undocumented=call)
        elif "requestBody" not in operation:
            if body is not None:
                yield Misfit(f"{call} takes no body")
        else:
            yield from self._fits(operation["requestBody"], body)

    def answer(self, method: str, call: str, status: int, body: Any) -> Iterator[Misfit]:
        """Say what is wrong with the answer to a call that went well."""
        operation = self._operation(method, call) or {"responses": {}}
        answers = {int(code): answer for code, answer in operation["responses"].items()}
        if status not in answers:
            yield Misfit(f"{call} answers {status}", undocumented=f"{call}:{status}")
        elif "content" in answers[status]:
            yield from self._fits(answers[status], body)
        elif body is not None:
            yield Misfit(f"{call} answers a body with {status}")

    def _fits(self, content: dict[str, Any], body: Any) -> Iterator[Misfit]:
        schema = content["content"]["application/json"]["schema"]
        validator = OAS30Validator({"allOf": [schema], "components": self._components})
        for error in validator.iter_errors(body):
            if error.validator == "additionalProperties" and error.validator_value is False:
                for extra in sorted(error.instance.keys() - error.schema["properties"].keys()):
                    name = f"{error.schema.get('title', '?')}.{extra}"
                    yield Misfit(f"{name} is not in the document", undocumented=name)
            else:
                yield Misfit(f"{error.json_path}: {error.message}")


@functools.cache
def document(version: str) -> Document:
    """Return one release's document."""
    return Document(version)
