#!/usr/bin/env bash
# Figures of a card, from the repository's top folder:
#
#   benchmarks/gpu/card.sh pack            where the package index is: puts into .gpu/wheels what a card's machine may lack
#   benchmarks/gpu/card.sh check [FILE …]  where the card is: writes FILE (gpu.json) and prints its tables; less than eight minutes
#
# The machine with the card needs torch and transformers, which brings numpy, safetensors and rich. PYTHON is the interpreter (python3),
# CARD_PYTHON the version it has on the machine with the card (3.12). What comes after FILE is for `python -m benchmarks.gpu check`.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
case ${1:-} in
  pack)
    # Without their dependencies: each is named here, so that the folder stays at a few megabytes.
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -c constraints.txt \
      --python-version "${CARD_PYTHON:-3.12}" --implementation cp --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
      --dest .gpu/wheels pydantic pydantic-core annotated-types typing-inspection typing-extensions ruamel.yaml
    ls -l .gpu/wheels
    ;;
  check)
    if ! "$python" -c "import pydantic, ruamel.yaml" 2>/dev/null; then
      "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --upgrade --target .gpu/site .gpu/wheels/*.whl
      export PYTHONPATH=".gpu/site${PYTHONPATH:+:$PYTHONPATH}"
    fi
    # The report is written after every measurement, so the limit takes nothing away but the one that hangs.
    file=${2:-gpu.json}
    shift $(($# > 2 ? 2 : $#))
    PYTHONUNBUFFERED=1 timeout 540 "$python" -m benchmarks.gpu check --out "$file" "$@"
    ;;
  *)
    sed -n 2,8p "$0"
    exit 2
    ;;
esac
