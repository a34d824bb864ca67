# Run, or sourced by reproduce.sh and test.sh: make .venv in the repository, or reuse it if nothing it depends on has changed.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export HF_HUB_DISABLE_TELEMETRY=1 PIP_DISABLE_PIP_VERSION_CHECK=1 TOKENIZERS_PARALLELISM=false

stamp=$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)
if [ ! -x .venv/bin/rsdbench ] || [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
    echo "setting up .venv"
    if [ ! -x .venv/bin/python ]; then
        # a python without ensurepip (Debian's, without python3-venv) makes the folder, and its own pip fills it
        python3 -m venv .venv 2>/dev/null ||
            { python3 -m venv --clear --without-pip .venv && python3 -m pip --python .venv/bin/python install -q pip; }
    fi
    # torch first and pinned: asked for as a range, a newer and far larger build may be taken
    .venv/bin/python -m pip install -q "$(grep '^torch==' constraints.txt)"
    .venv/bin/python -m pip install -q -c constraints.txt -e '.[test]'
    echo "$stamp" > .venv/stamp
fi
