# make demo    two guests on this machine, their services answering, and nothing left behind
# make test    every gate and every test
# make bench   the benchmarks: tables to read, no part of the tests
#
# Each installs what it needs: the packages of tests/support/packages.txt from the distribution, and
# tests/requirements.txt into a virtual environment under .cache/. They need root (TAPs, nftables, namespaces).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The distribution's Python: its version is the one that ansible-test is told of.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
CACHE := $(CURDIR)/.cache
VENV := $(CACHE)/venv
# A checkout must lie at .../ansible_collections/NAMESPACE/NAME for Ansible to find it, so the tools get a copy there.
COLLECTIONS := $(CACHE)/collections
COLLECTION := $(COLLECTIONS)/ansible_collections/microvm/cloud_hypervisor

export PATH := $(VENV)/bin:$(PATH)
export ANSIBLE_COLLECTIONS_PATH := $(COLLECTIONS)
export PYTHONPATH := $(COLLECTIONS)
export MYPYPATH := $(COLLECTIONS)
export MICROVM_CACHE := $(CACHE)
export MICROVM_CHECKOUT := $(COLLECTION)
export MICROVM_OPENAPI_DIR ?= $(abspath $(CURDIR)/../shared/openapi)

PYTHON_VERSION = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ANSIBLE_TEST = cd $(COLLECTION) && ansible-test
# The real VMM where it boots Linux, else the stand-in; says which on standard error.
CHOOSE_VMM = python $(COLLECTION)/tests/support/choose_vmm.py $(CACHE)/small_guest
# A test that hangs fails, and the run goes on.
PYTEST = cd $(COLLECTION) && python -m pytest -p no:cacheprovider -ra --timeout=600

.PHONY: help
help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

# ---- What everything needs ----

.PHONY: setup copy guest cloud-guest python-guest vmm
setup: $(VENV)/.done
	@[ "$$(id -u)" = 0 ] || { echo "this needs root, for TAPs, nftables and network namespaces: sudo make ..." >&2; exit 1; }

$(VENV)/.done: tests/requirements.txt tests/support/packages.txt tests/support/install_packages.sh tests/support/ansible_test_pip.py
	sh tests/support/install_packages.sh tests/support/packages.txt
	$(PYTHON) -m venv --clear $(VENV)
	pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	python tests/support/ansible_test_pip.py
	touch $@

copy: setup
	@rm -rf $(COLLECTION) && mkdir -p $(COLLECTION)
	@git ls-files -z --cached --others --exclude-standard --deduplicate \
	  | rsync -a --from0 --files-from=- --ignore-missing-args ./ $(COLLECTION)/
	@# Without a repository of its own the copy would be an ignored part of this one, and ansible-test would test nothing.
	@git -C $(COLLECTION) init --quiet

guest: copy
	python tests/support/small_guest/build.py $(CACHE)/small_guest

cloud-guest: copy
	python tests/support/cloud_guest/build.py $(CACHE)/cloud_guest

python-guest: guest
	python tests/support/python_guest/build.py $(CACHE)/small_guest $(CACHE)/python_guest

# ---- The demo ----

.PHONY: demo
demo: guest
	cd $(COLLECTION)/examples/demo && MICROVM_VMM=$$($(CHOOSE_VMM)) ansible-playbook site.yml

# ---- The gates ----

.PHONY: lint sanity docs package
lint: copy
	cd $(COLLECTION) && ruff check . && ruff format --check .
	cd $(COLLECTION) && mypy --config-file pyproject.toml $(addprefix -p ansible_collections.microvm.cloud_hypervisor.plugins.,module_utils plugin_utils)
	cd $(COLLECTION) && yamllint --strict .
	cd $(COLLECTION) && reuse lint --quiet || { cd $(COLLECTION) && reuse lint; }
	cd $(COLLECTION) && ansible-lint --profile production --offline --strict

sanity: lint
	$(ANSIBLE_TEST) sanity --local --python $(PYTHON_VERSION)

docs: copy
	cd $(COLLECTION) && antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs=all .
	cd $(COLLECTION) && antsibull-changelog lint
	@rm -rf $(CACHE)/docs && mkdir -p $(CACHE)/docs/rst && chmod og-w $(CACHE)/docs $(CACHE)/docs/rst
	antsibull-docs sphinx-init --use-current --fail-on-error --dest-dir $(CACHE)/docs microvm.cloud_hypervisor >/dev/null
	cd $(CACHE)/docs && antsibull-docs --config-file antsibull-docs.cfg collection --use-current --fail-on-error \
	  --cleanup everything --dest-dir rst microvm.cloud_hypervisor
	@# The labels of other people's docsites would have to be fetched, and Ansible's own variables are on theirs.
	cd $(CACHE)/docs && sphinx-build -M html rst build -c . -W --keep-going --quiet \
	  -D extensions=sphinx_antsibull_ext -D suppress_warnings=ref.ref,ref.envvar

# What Galaxy does with an upload. It wants other releases of its libraries than the gates, so it has an environment of its own.
IMPORTER := $(CACHE)/importer
$(IMPORTER)/.done: tests/requirements-importer.txt
	$(PYTHON) -m venv --clear $(IMPORTER)
	$(IMPORTER)/bin/pip install --quiet --disable-pip-version-check -r tests/requirements-importer.txt
	touch $@

package: copy $(IMPORTER)/.done
	@rm -rf $(CACHE)/dist
	ansible-galaxy collection build --output-path $(CACHE)/dist $(COLLECTION)
	cd $(CACHE)/dist && PATH=$(IMPORTER)/bin:$$PATH GALAXY_IMPORTER_CONFIG=$(COLLECTION)/tests/galaxy_importer.cfg \
	  python -m galaxy_importer.main *.tar.gz >importer.log 2>&1 || { cat importer.log; exit 1; }
	@! grep -E '^(WARNING|ERROR)' $(CACHE)/dist/importer.log

# ---- The tests ----

.PHONY: units test-vmm system hosts connections integration molecule test
units: copy
	$(ANSIBLE_TEST) units --local --python $(PYTHON_VERSION)

test-vmm: copy
	$(PYTEST) tests/vmm_contract

system: guest cloud-guest
	$(PYTEST) tests/cloud_init tests/fat32 tests/disks tests/firewall tests/lifecycle tests/fleet

# One of these at a time: the fleet's names are global.
hosts: copy
	$(PYTEST) tests/hosts

# A guest has a vsock where cargo can build its device; else the serial port is tested alone, and the run says so.
VHOST_DEVICE_VSOCK := $(CACHE)/cargo/bin/vhost-device-vsock
connections: python-guest
	if command -v cargo >/dev/null; then [ -x $(VHOST_DEVICE_VSOCK) ] || \
	  cargo install --quiet --locked --root $(CACHE)/cargo --version 0.3.0 vhost-device-vsock || true; fi
	if [ -x $(VHOST_DEVICE_VSOCK) ]; then export QEMU_VMM_VSOCK=$(VHOST_DEVICE_VSOCK); fi && $(PYTEST) tests/connections

integration: copy
	$(ANSIBLE_TEST) integration --local --python $(PYTHON_VERSION)

molecule: guest cloud-guest
	@# A run that was cut short is remembered, and its preparation would be skipped.
	cd $(COLLECTION) && for scenario in extensions/molecule/*/; do molecule reset -s $$(basename $$scenario); done
	cd $(COLLECTION) && MICROVM_VMM=$$($(CHOOSE_VMM)) molecule test --all
	@# The example as it is, with a guest that is here.
	cp $(COLLECTION)/tests/support/molecule_example.yml $(COLLECTION)/examples/molecule/molecule/default/inventory/tests.yml
	cd $(COLLECTION)/examples/molecule && molecule reset && MICROVM_VMM=$$($(CHOOSE_VMM)) molecule test

test: lint sanity docs package units test-vmm system connections hosts integration molecule

# ---- The benchmarks ----

.PHONY: bench
bench: guest
	cd $(COLLECTION) && for benchmark in tests/benchmarks/[a-z]*.py; do python $$benchmark; done

.PHONY: clean
clean:
	rm -rf $(CACHE)
