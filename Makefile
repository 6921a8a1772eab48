# Every target sets itself up in .venv; `make help` lists them.
PYTHON ?= python3
CONFIG ?= configs/tiny_cpu.yaml
RUN ?= runs/tiny_cpu
DEMO := runs/distill_demo
CO := runs/codecode_demo
ARGS ?=
BIN := .venv/bin
LAUNCH := PATH="$(CURDIR)/$(BIN):$$PATH:$(CURDIR)/.venv/sky/bin" $(BIN)/python -m launch
# A word for the shell, whatever it holds.
word_of = '$(subst ','\'',$(1))'
CONFIG_WORD = $(call word_of,$(CONFIG))
# Settings of the launchers, all explained by `python -m launch.tpu --help`; $(call on,SPOT,--spot) is the option if SPOT is one of YES.
YES := 1 yes true on Yes True On YES TRUE ON
NO := 0 no false off No False Off NO FALSE OFF
SWITCHES := SPOT SKIP_PLAN DETACH QUEUED XPK DRY_RUN
on = $(if $(filter $(YES),$($(1))),$(2))
with = $(if $($(1)),$(call word_of,$(2)=$($(1))))
CLOUD = $(call with,TPU,--tpu) $(call with,JOB,--name) $(call on,SPOT,--spot) \
	$(if $(filter train serve,$*),$(call on,SKIP_PLAN,--skip-plan)) \
	$(call on,DRY_RUN,--dry-run)
TUNNEL = $(if $(filter serve,$*),$(call with,PORT,--port))
FOLLOWED = $(call with,RESTARTS,--restarts) $(if $(filter-out $(YES) $(NO),$(DELETE)),$(call with,DELETE,--delete),$(call on,DELETE,--delete=success)) $(TUNNEL)

# What each target reads of the command line, its prerequisites too; eval-tpu what is read on a TPU and what eval reads, and eval-tpu-down the same, so
# that it can be asked for as it was started. What else is given there is refused, as it would be ignored without a word.
ON_CLOUD := TPU JOB SPOT DRY_RUN
READS.tpu := $(ON_CLOUD) RESTARTS DELETE QUEUED WAIT_MIN
READS.gke := $(ON_CLOUD) RESTARTS DELETE XPK DETACH
READS.sky := $(ON_CLOUD)
READS.slurm := JOB DRY_RUN NODES GPUS RESTARTS DETACH
READS.train := RUN CONFIG ARGS
READS.train-local-multihost := RUN CONFIG ARGS DRY_RUN
READS.reproduce := SIZE MODEL LARGE PAIRS BENCHMARKS MINUTES ARGS
READS.distill-demo := DEMO JUDGES CONFIG ARGS
READS.codecode-demo := CO CONFIG ARGS
$(foreach target,plan test test-slow test-heavy,$(eval READS.$(target) := ARGS))
reads_job = $(if $2,ARGS $(READS.$2) $(if $(filter train teacher,$1),CONFIG) $(if $(filter serve,$1),PORT) $(if $(filter slurm,$2),,$(if $(filter train serve,$1),SKIP_PLAN)))
reads = $(or $(READS.$1),$(call reads_job,$(word 1,$(subst -, ,$1)),$(word 2,$(subst -, ,$1))))
READ := $(sort $(foreach goal,$(MAKECMDGOALS),$(call reads,$(goal))))
IGNORED := $(filter-out $(READ) PYTHON BIN LAUNCH SHELL MAKEFLAGS,$(foreach name,$(.VARIABLES),$(if $(filter command line,$(origin $(name))),$(name))))
# What the launchers read of the environment; a key must not stand on a command line, which all users of a machine see.
EXPORTED := $(filter LPO_% HF_% JAX_% XLA_% %_API_KEY %_TOKEN,$(IGNORED))
$(if $(EXPORTED),$(error make $(or $(MAKECMDGOALS),help): $(EXPORTED) is read from the environment and not from make's command line$(if $(filter %_KEY %_TOKEN,$(EXPORTED)), (all users of this machine see that)): export $(EXPORTED:%=%=...) first))
$(if $(IGNORED),$(error make $(or $(MAKECMDGOALS),help) would ignore $(IGNORED), which it doesn't read: leave it out. It reads $(or $(READ),no settings)))
# Before anything is installed.
$(foreach name,$(filter $(SWITCHES),$(READ)),$(if $(filter-out $(YES) $(NO),$($(name))),$(error $(name)='$($(name))': give 1 or 0)))
# These name what is made and deleted, in which make and the shell take a blank for the end.
$(foreach name,RUN CO DEMO,$(if $(filter-out 1,$(words $($(name)))),$(error $(name)='$($(name))': give a path of one word, without blanks)))

.DEFAULT_GOAL := help
.PHONY: help train train-local-multihost reproduce distill-demo codecode-demo plan docs test test-slow test-heavy lint clean

help: ## this list
	@awk -F ':.*## ' '{sub(/^#: /, "")} /^[a-z-]+:.*## / {printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lpo-jax needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install -r requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

# Semgrep pins other versions of what TensorFlow needs, so it gets an environment of its own, where judges/semgrep.py looks for it, with Meta's detector
# (codeshield, MIT), whose rules judges/codeshield.py reads there.
.venv/installed-judges: .venv/installed requirements-semgrep.txt
	$(PYTHON) -m venv .venv/semgrep
	.venv/semgrep/bin/pip install --quiet -r requirements-semgrep.txt
	touch $@

.venv/installed-dev: .venv/installed .venv/installed-judges requirements-dev.txt
	$(BIN)/pip install -r requirements-dev.txt
	touch $@

BUILD = $(BIN)/lpo-data build data_pipeline/seed/pairs.jsonl --train-tokenizer 1024 --row-tokens 1024 --heldout 0.2 --out $(RUN)_data --force

$(RUN)_data/manifest.json: .venv/installed data_pipeline/seed/pairs.jsonl
	$(BUILD)

train: $(RUN)_data/manifest.json ## the main job on the embedded default: build, SFT, LPO, report (CPU, minutes)
	$(BIN)/lpo train $(CONFIG_WORD) $(ARGS)

# The TPU's own library, and its compiler, which `lpo plan` runs anywhere.
.venv/installed-tpu: .venv/installed
	$(BIN)/pip install --quiet --editable '.[tpu]'
	touch $@

# What can run elsewhere, and where: make WHAT-WHERE, e.g. `make eval-tpu`. A config is given as CONFIG, all else as ARGS.
JOBS := train eval serve generate teacher export
SKY_JOBS := $(filter-out serve,$(JOBS))
JOB_ARGS = $* $(if $(filter train teacher,$*),$(CONFIG_WORD)) $(ARGS)
# A dry run needs our own package, and installs, builds and plans nothing else.
unless_dry = $(if $(call on,DRY_RUN,1),,$(1))
PLANNED := .venv/installed $(if $(call on,SKIP_PLAN,1),,$(call unless_dry,.venv/installed-tpu))

.PHONY: $(foreach job,$(JOBS),$(job)-tpu $(job)-tpu-down $(job)-gke $(job)-gke-down $(job)-slurm) $(SKY_JOBS:%=%-sky)

#: train-tpu: ## the same job on a Cloud TPU, all of it from a laptop: TPU=v5e:4x4 SPOT=1 DELETE=1 DRY_RUN=1 ...; on a TPU host it just runs
#: eval-tpu: ## judge a model there: ARGS="--benchmark NAME --data FILE --completions runs/NAME -o evals/NAME"
#: serve-tpu: ## answer OpenAI's API there, at http://127.0.0.1:8000 here (PORT=...): ARGS="--model runs/NAME"; LPO_API_KEY is its key
#: generate-tpu: ## and teacher-tpu, export-tpu: the other commands of lpo there; ARGS are the command's own
#: train-tpu-down: ## delete that TPU: CONFIG=... ARGS=... as it was started, or JOB=...; eval-tpu-down, serve-tpu-down, ... too
train-tpu serve-tpu train-gke serve-gke train-sky: $(PLANNED)

$(JOBS:%=%-tpu): %-tpu: .venv/installed
	$(LAUNCH).tpu $(CLOUD) $(FOLLOWED) $(call on,QUEUED,--queued) $(call with,WAIT_MIN,--wait-min) $(JOB_ARGS)

$(JOBS:%=%-tpu-down): %-tpu-down: .venv/installed
	$(LAUNCH).tpu --down $(CLOUD) $(if $(JOB),,$(JOB_ARGS))

#: train-gke: ## and eval-gke, serve-gke, ...: all of that on a GKE cluster, as a JobSet (XPK=1: made by XPK; DETACH=1: don't follow)
#: train-gke-down: ## delete that JobSet, as train-tpu-down does
$(JOBS:%=%-gke): %-gke: .venv/installed
	$(LAUNCH).gke $(CLOUD) $(FOLLOWED) $(call on,XPK,--xpk) $(call on,DETACH,--detach) $(JOB_ARGS)

$(JOBS:%=%-gke-down): %-gke-down: .venv/installed
	$(LAUNCH).gke --down $(CLOUD) $(call on,XPK,--xpk) $(if $(JOB),,$(JOB_ARGS))

#: train-slurm: ## and eval-slurm, serve-slurm, ...: the same on SLURM, from a login node: NODES=2 GPUS=8 CONFIG=... ARGS="key=value ..."
$(JOBS:%=%-slurm): %-slurm: .venv/installed
	$(if $(GPUS),$(call unless_dry,$(BIN)/pip install --quiet --editable '.[cuda]'))
	$(LAUNCH).slurm $(call with,NODES,--nodes) $(call with,GPUS,--gpus) $(call with,JOB,--name) $(call with,RESTARTS,--restarts) $(TUNNEL) \
		$(call on,DETACH,--detach) $(call on,DRY_RUN,--dry-run) $(JOB_ARGS)

# SkyPilot pins other versions of what lpo serve needs.
.venv/installed-sky: .venv/installed
	$(PYTHON) -m venv .venv/sky
	.venv/sky/bin/pip install --quiet -r requirements-sky.txt
	touch $@

#: train-sky: ## and eval-sky, ...: as one of SkyPilot's managed jobs: any zone, recovery, no laptop needed: SPOT=1 CONFIG=... ARGS="key=value ..."
$(SKY_JOBS:%=%-sky): %-sky: .venv/installed $(call unless_dry,.venv/installed-sky)
	$(LAUNCH).sky $(CLOUD) $(JOB_ARGS)

# Eight devices want eight rows a step; the default has one.
REHEARSAL = $(if $(filter configs/tiny_cpu.yaml,$(CONFIG)),run_dir=$(RUN)_multihost stages.sft.batch_rows=8 stages.lpo.batch_rows=8 eval_rows=8)

train-local-multihost: .venv/installed $(call unless_dry,$(RUN)_data/manifest.json) ## the main job in two processes of four fake devices, as two hosts would
	$(call on,DRY_RUN,@[ $(RUN)_data/manifest.json -nt data_pipeline/seed/pairs.jsonl ] || printf '+ %s\n' $(call word_of,$(BUILD)))
	$(LAUNCH).local $(call on,DRY_RUN,--dry-run --built=$(RUN)_data) train $(CONFIG_WORD) $(REHEARSAL) $(ARGS)

# MODEL: a Hugging Face directory or a hub id; PAIRS: SecCodePLT+'s rows; BENCHMARKS: a directory of other benchmarks' files; LARGE: a larger model, to be steered. smoke needs none of them.
SIZE ?= smoke

reproduce: .venv/installed $(if $(filter smoke,$(SIZE)),,.venv/installed-judges) ## the papers' claims, re-run (docs/reproduce.md): SIZE=smoke, or small MODEL=DIR PAIRS=FILE BENCHMARKS=DIR MINUTES=120; it goes on where it was stopped
	$(BIN)/python -m reproduce run $(SIZE) $(call with,MODEL,--model) $(call with,PAIRS,--pairs) $(call with,BENCHMARKS,--benchmarks) $(call with,LARGE,--large) $(call with,MINUTES,--minutes) $(ARGS)

JUDGES ?= bandit semgrep

distill-demo: .venv/installed .venv/installed-judges ## distil, build and train offline: a local server, failing now and then, answers from the shipped pairs
	rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(BIN)/python -m demos.standin data_pipeline/seed/pairs.jsonl --faults 0.2 --port-file $(DEMO)/port & server=$$!; \
	trap "kill $$server" EXIT; set -e; while [ ! -e $(DEMO)/port ]; do kill -0 $$server; sleep 0.2; done; \
	OPENAI_API_KEY=none $(BIN)/lpo-data distill --out $(DEMO)/job --model standin -n 200 --judges $(JUDGES) --timeout 2 --backoff 0.1 --tries 20 \
		--base-url http://127.0.0.1:$$(cat $(DEMO)/port)/v1; \
	$(BIN)/lpo-data stats $(DEMO)/job --html $(DEMO)/stats.html; \
	$(BIN)/lpo-data build $(DEMO)/job/data/train.jsonl --train-tokenizer 1024 --row-tokens 1024 --heldout 0.1 --out $(DEMO)/shards; \
	$(BIN)/lpo train $(CONFIG_WORD) run_dir=$(DEMO)/run data.path=$(DEMO)/shards stages.sft.epochs=null stages.sft.steps=20 stages.lpo.epochs=null stages.lpo.steps=10 eval_every_steps=0 checkpoint_every_steps=5 $(ARGS)

CO_RUN = eval_every_steps=0 checkpoint_every_steps=1000 $(ARGS)
CO_STAGE = optim: {lr: $(1), warmup_ratio: 0.1, final_lr_ratio: 0.1, b2: 0.95}, batch_rows: 4, epochs: $(2)
CO_SFT = stages={sft: {objective: {name: sft}, $(call CO_STAGE,5e-3,16)}}
CO_KD = stages={kd: {objective: {name: kd, kl: {direction: forward, weight: 0.5, teacher: $(CO)/teacher}}, $(call CO_STAGE,1e-2,8)}}
CO_SECURITY = stages={security: {objective: {name: security, kl: {direction: reverse, weight: 1}}, $(call CO_STAGE,5e-3,6)}}
CO_GENERATE = $(BIN)/lpo generate $(CO)/prompts.jsonl --max-new-tokens 40 --temperature 0.4 --rows 32

codecode-demo: .venv/installed ## CoSec+ from end to end on tiny models: a target, kd, security, co-decoding, and who decided which token (CPU, minutes)
	rm -rf $(CO)
	$(BIN)/python -m demos.codecode prepare $(CO)
	$(BIN)/lpo-data build $(CO)/code.jsonl --train-tokenizer 1024 --row-tokens 512 --out $(CO)/code
	$(BIN)/lpo-data build $(CO)/pairs.jsonl --tokenizer $(CO)/code/tokenizer --row-tokens 512 --heldout 0.2 --balance-cwe 4 --out $(CO)/pairs
	$(BIN)/lpo train $(CONFIG_WORD) run_dir=$(CO)/target data.path=$(CO)/code model.new.d_model=128 model.new.n_heads=4 model.new.n_kv_heads=4 \
		model.new.d_mlp=256 '$(CO_SFT)' best_metric=unchanged_nll $(CO_RUN)
	$(BIN)/lpo export $(CO)/target $(CO)/teacher
	$(BIN)/lpo train $(CONFIG_WORD) run_dir=$(CO)/base data.path=$(CO)/code '$(CO_KD)' best_metric=unchanged_nll $(CO_RUN)
	$(BIN)/lpo export $(CO)/base $(CO)/student
	$(BIN)/lpo train $(CONFIG_WORD) run_dir=$(CO)/security data.path=$(CO)/pairs model.new=null model.path=$(CO)/student model.lora.rank=8 \
		model.lora.alpha=16 '$(CO_SECURITY)' $(CO_RUN)
	$(CO_GENERATE) -o $(CO)/target.jsonl --model $(CO)/target
	$(CO_GENERATE) -o $(CO)/security.jsonl --model $(CO)/security
	$(CO_GENERATE) -o $(CO)/together.jsonl --model $(CO)/target --security $(CO)/security --html $(CO)/together.html
	$(BIN)/python -m demos.codecode count $(CO)

plan: .venv/installed-dev ## compile every config of configs/pods/ for its TPU slice (no TPU needed; minutes each) and write docs/plans.md
	$(BIN)/lpo plan configs/pods/*.yaml --stage lpo --tries 0 --table docs/plans.md $(ARGS)

.venv/installed-docs: .venv/installed requirements-docs.txt
	$(BIN)/pip install --quiet -r requirements-docs.txt
	touch $@

docs: .venv/installed-docs ## the documentation's site in build/site, strictly: a link to nowhere is an error
	JAX_PLATFORMS=cpu NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

test: .venv/installed-dev ## the default test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not heavy' $(ARGS)

test-slow: .venv/installed-dev ## the tests that take long, and further examples
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(ARGS)

test-heavy: .venv/installed-dev ## the tests that take minutes each: plans of pods, thousands of samples
	$(BIN)/python -m pytest -m heavy $(ARGS)

lint: .venv/installed-dev ## ruff, mypy, who may import whom, and shellcheck
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/shellcheck launch/*.sh launch/*.sbatch benchmarks/*.sh .ci/run

clean: ## remove the virtual environment and caches; runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
