"""Random JSON texts, for Hypothesis: numbers in every spelling, strings of every character, nesting."""

import json

from hypothesis import strategies as st

numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)
scalars = numbers | st.text(st.characters(exclude_categories=["Cs"])).map(lambda text: json.dumps(text, ensure_ascii=False))
texts = st.recursive(
    scalars | st.sampled_from(["null", "true", "false"]),
    lambda inner: (
        st.lists(inner).map(lambda parts: f"[{','.join(parts)}]")
        | st.lists(inner).map(lambda parts: "{%s}" % ",".join(f'"{at}":{part}' for at, part in enumerate(parts)))
    ),
    max_leaves=20,
)
