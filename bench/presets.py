"""Shapes of the models that are measured, as smolforge's presets have them."""

PRESETS = {
    "smollm2-135m": dict(hidden=576, intermediate=1536, layers=30, heads=9, kv_heads=3, vocab=49152, theta=100000.0),
    "nano": dict(hidden=128, intermediate=384, layers=4, heads=4, kv_heads=2, vocab=4096, theta=10000.0),
}
