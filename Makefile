# Every target runs in .venv, which tools/env.py makes when missing. PYTHON=python3.12 picks the
# Python to make it from, ARGS="..." is handed on: make demo ARGS="--concept cat".
PYTHON ?= python3
RUN = $(PYTHON) tools/env.py

.DEFAULT_GOAL := help
.PHONY: help env demo test test-slow lint format docs world sprites quality crisp zoo bench bench-engine bench-quick

help: ## list the targets
	@grep -E '^[a-z-]+: ## ' $(MAKEFILE_LIST) | sed 's/: ## /\t/' | expand -t 12

env: ## make .venv, or bring it up to date
	@$(RUN)

demo: ## forget a concept on the demo model, and show it
	$(RUN) -m trust_engine demo $(ARGS)

test: ## run the fast tests
	$(RUN) -m pytest $(ARGS)

test-slow: ## run all tests
	$(RUN) -m pytest --run-slow $(ARGS)

lint: ## check style, format and types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

format: ## repair style and format
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

world: ## train the demo model (resumes where it stopped)
	$(RUN) -m bench.world $(ARGS)

sprites: ## render the art of Emoji World anew (needs npm)
	$(RUN) -m bench.world.sprites $(ARGS)

quality: ## measure the demo model
	$(RUN) -m bench.world.quality $(ARGS)

docs: ## build the docs as a site in out/site
	$(RUN) -m sphinx -q -W --keep-going -b html docs out/site

crisp: ## measure how crisp the demo model draws
	$(RUN) -m bench.world.crisp $(ARGS)

zoo: ## train the zoo (resumes; ARGS="train sd2" for one, "sd2" to unpack one)
	$(RUN) -m bench.zoo $(if $(ARGS),$(ARGS),train all)

bench: ## measure TRUST beside other methods: four concepts, three seeds
	$(RUN) -m bench.rivals $(ARGS)

bench-engine: ## measure every kind of concept with the default settings, three seeds
	$(RUN) -m bench.engine kinds $(ARGS)

bench-quick: ## measure TRUST beside other methods: one concept, one seed
	$(RUN) -m bench.rivals --quick $(ARGS)
