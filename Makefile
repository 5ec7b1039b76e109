# Everything a developer runs. Each target installs what it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-cluster test-jobs test-nets test-rest test-registry broker prometheus postgresql lint types bench sbom clean

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

setup: .venv/installed  ## install the project and its tools into .venv, at the versions of constraints.txt

demo: setup  ## draw a lake, train both stages, audit an archive, write a report
	$(BIN)/python examples/demo.py

broker:  ## the MQTT broker that tests of alerts publish to; where Debian's is not to be had they are skipped, and say so
	PATH=$$PATH:/usr/sbin command -v mosquitto >/dev/null || (apt-get update && apt-get install -y --no-install-recommends mosquitto) || true

prometheus:  ## what alert rules are tested by, and what the local stack runs; where it is not to be had those tests are skipped, and say so
	command -v promtool >/dev/null || (apt-get update && apt-get install -y --no-install-recommends prometheus) || true

postgresql:  ## the database server that a sweep is kept in by a test; where Debian's is not to be had it is skipped, and says so
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || (apt-get update && apt-get install -y --no-install-recommends postgresql) || true

test: setup broker prometheus postgresql  ## the whole test suite, real Ray included: in five parts, three at a time, each tells at its end
	$(MAKE) --jobs=3 --keep-going --output-sync test-cluster test-jobs test-nets test-rest test-registry

# Ray waits as much as it works, and what it leaves of two cores is room for other tests. A new test is in just one part.
# With a thread each, the parts do not wait for one another's.
NETS := tests/pipeline tests/reproduce tests/sbdd tests/serving
test-cluster test-jobs test-nets test-rest test-registry: export OMP_NUM_THREADS = 1

test-cluster: setup
	$(BIN)/python -m pytest -m ray tests/cluster

test-jobs: setup
	$(BIN)/python -m pytest -m ray --ignore=tests/cluster

test-nets: setup
	$(BIN)/python -m pytest -m "not ray" $(NETS)

test-rest: setup
	$(BIN)/python -m pytest -m "not ray" $(NETS:%=--ignore=%) --ignore=tests/registry

test-registry: setup
	$(BIN)/python -m pytest -m "not ray" tests/registry

lint: setup types  ## style, types and the walls between packages; a cache would miss what a new module changes elsewhere
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	PYTHONPATH=. $(BIN)/lint-imports

types: setup
	$(BIN)/mypy

bench: setup  ## the long studies behind the figures, hours of them; needs the shared data
	$(BIN)/python benchmarks/sbdd.py
	$(BIN)/python benchmarks/neu_boxes.py
	$(BIN)/python benchmarks/runtimes.py
	$(BIN)/python benchmarks/int8_ap.py
	$(BIN)/python benchmarks/sbad_gzsl.py
	$(BIN)/python benchmarks/sbad_lots.py
	$(BIN)/python benchmarks/sbad_gallery.py --out runs/gallery
	$(BIN)/python benchmarks/router_backbones.py
	$(BIN)/python benchmarks/router_latency.py
	$(BIN)/python benchmarks/enrolment.py --seeds 2
	$(BIN)/python benchmarks/sbad_read_out.py
	$(BIN)/python benchmarks/sweep.py
	for study in cells parts length time yardsticks; do $(BIN)/python benchmarks/sbad_paper.py $$study || exit 1; done
	$(BIN)/python benchmarks/first_slice.py
	$(BIN)/python benchmarks/audit_efficiency.py
	$(BIN)/python benchmarks/audit_faults.py
	$(BIN)/python benchmarks/audit_faults.py --store
	$(BIN)/python benchmarks/audit_hostile.py
	$(BIN)/python benchmarks/audit_listing.py
	$(BIN)/python benchmarks/report_scale.py
	$(BIN)/python benchmarks/audit_s3.py
	for study in same hostile faults load latency; do $(BIN)/python benchmarks/serve_$$study.py || exit 1; done
	$(BIN)/python benchmarks/train_cluster.py
	$(BIN)/python benchmarks/train_wide.py
	$(BIN)/python benchmarks/watch_kills.py
	$(BIN)/python benchmarks/log_crash.py
	$(BIN)/python benchmarks/page_latency.py
	$(BIN)/python benchmarks/audit_scale.py 1000 10000 100000 1000000 --plot
	$(BIN)/python benchmarks/alert_delivery.py
	$(BIN)/python benchmarks/write_figures.py

sbom: setup  ## what .venv is made of, as CycloneDX, in sbom.json; the tool has an environment of its own and is not in it
	test -x .venv-sbom/bin/cyclonedx-py || $(PYTHON) -m venv .venv-sbom
	.venv-sbom/bin/pip install --quiet --disable-pip-version-check -c constraints.txt cyclonedx-bom
	.venv-sbom/bin/cyclonedx-py environment --output-reproducible --output-format JSON --output-file sbom.json $(BIN)/python

clean:
	rm -rf .venv .venv-sbom runs demo sbom.json
