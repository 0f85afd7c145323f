"""Shapes of the models that are measured, as smolforge's presets have them; weights have a deviation of hidden ** -0.5."""

PRESETS = {
    "smollm2-135m": dict(hidden=576, intermediate=1536, layers=30, heads=9, kv_heads=3, vocab=49152, theta=100000.0),
    "nano": dict(hidden=128, intermediate=352, layers=4, heads=4, kv_heads=2, vocab=4096, theta=10000.0),
    "micro": dict(hidden=320, intermediate=864, layers=8, heads=10, kv_heads=5, vocab=4096, theta=10000.0),
}
EPS = 1e-5
