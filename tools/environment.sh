# Sourced by the scripts beside it: makes the virtual environment .venv of the checkout and
# installs the package into it, editable.
#
#   prepare_environment [EXTRAS]     EXTRAS is empty or such as "test"
#
# PYTHON names the interpreter for a new environment (3.10 or newer; default python3). Nothing is
# installed again while setup.py, the extras and the interpreter stay as they were.

prepare_environment() {
    local extras="${1:-}"
    local marker=".venv/installed-${extras:-base}"
    local wanted
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        echo "== Making the virtual environment $PWD/.venv"
        "${PYTHON:-python3}" -m venv .venv
    fi
    wanted="$(.venv/bin/python - "$extras" <<'PYTHON_CODE'
import hashlib, pathlib, sys

if sys.version_info < (3, 10):
    sys.exit(f"detr_kit needs Python 3.10 or newer, .venv has {sys.version.split()[0]}")
print(hashlib.sha256(pathlib.Path("setup.py").read_bytes()).hexdigest(), sys.version, sys.argv[1])
PYTHON_CODE
)"
    if [[ ! -f "$marker" || "$(cat "$marker")" != "$wanted" ]]; then
        echo "== Installing detr_kit${extras:+ with [$extras]} into .venv (minutes, the first time)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            --editable ".${extras:+[$extras]}"
        echo "$wanted" >"$marker"
    fi
    export PATH="$PWD/.venv/bin:$PATH"
}
