"""The language model: loading, hidden states, the sliced head, teachers' weights."""
