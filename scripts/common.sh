# Sourced by the scripts beside it: a virtual environment in .venv with pinned versions.

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "$candidate"
            return
        fi
    done
    echo "pixelrt needs Python 3.11 or later; set PYTHON to one" >&2
    return 1
}

# install EXTRAS: the package in editable form with its extras, quietly unless it fails
install() {
    local python log
    python=$(find_python)
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    log=$(mktemp)
    echo "installing pixelrt[$1] into .venv (versions of constraints.txt)"
    if ! .venv/bin/python -m pip install --disable-pip-version-check \
        -c constraints.txt -e ".[$1]" >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}
