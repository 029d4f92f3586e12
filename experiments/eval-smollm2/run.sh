#!/usr/bin/env bash
# SmolLM2-135M-Instruct on four suites, few samples: about half an hour on two cores. FOLDER holds the suites' files.
#     make smollm2 && bash experiments/eval-smollm2/run.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
data=$1
evaluate() { .venv/bin/gopd eval models/smollm2 --data "$data" --to experiments/eval-smollm2 --tasks "$@"; }
evaluate gsm8k --limit 200 --n 2 --max-tokens 256
evaluate math500 --limit 50 --n 2 --max-tokens 512
evaluate humaneval+ --n 2 --max-tokens 384
evaluate aime24 --n 2 --max-tokens 512
