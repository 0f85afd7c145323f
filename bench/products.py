"""How fast the kernels of matrix products are on a graphics device, beside a shader that multiplies and adds in registers alone.

    bench/products.sh [--kernels lanes|tile] [--tokens 512,128] [--rounds 5]

Reads shaders/wgsl as the program does, runs every product and the register-only shader in turns, and checks each product against
NumPy. The share is the median over the rounds of a product's rate over the register-only shader's in the same round.
"""

import argparse
import statistics
import sys
import time

import numpy as np
import peers
from peers import ROOT, Skipped

# Inputs and outputs of the linear layers of SmolLM2-135M: queries and outputs, keys and values, gate and up, down.
LAYERS = [(576, 576), (576, 192), (576, 1536), (1536, 576)]
WGSL = ROOT / "shaders" / "wgsl"
CHAINS, TURNS = 16, 512
TILE = {"lanes": 32, "tile": 64}
SECS = 0.1  # that a measurement takes at least

REGISTERS = """
@group(0) @binding(0) var<storage, read_write> out: array<vec4<f32>>;
@compute @workgroup_size(8)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let a = vec4<f32>(0.999, 0.998, 0.997, 0.996);
    let b = vec4<f32>(f32(id.x) * 1e-6);
%s
    for (var i = 0u; i < %du; i += 1u) {
%s
    }
    out[id.x] = %s;
}
"""


def registers():
    """Independent chains of multiply-adds, several of each in a turn."""
    names = [f"c{i}" for i in range(CHAINS)]
    begin = "\n".join(f"    var {name} = b;" for name in names)
    turn = "\n".join(f"        {name} = fma({name}, a, b);" for _ in range(8) for name in names)
    return REGISTERS % (begin, TURNS, turn, " + ".join(names))


class Kernel:
    """A shader with its buffers."""

    def __init__(self, gpu, source, arrays, params, groups, flop):
        import wgpu
        self.gpu, self.groups, self.flop = gpu, groups, flop
        source = source.replace("var<storage, read>", "var<storage, read_write>")
        usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC
        self.buffers = [gpu.create_buffer_with_data(data=np.ascontiguousarray(array), usage=usage) for array in arrays]
        bound = list(self.buffers)
        if params is not None:
            bound.append(gpu.create_buffer_with_data(data=np.array(params, np.uint32), usage=wgpu.BufferUsage.UNIFORM))
        module = gpu.create_shader_module(code=source)
        self.pipeline = gpu.create_compute_pipeline(layout="auto", compute={"module": module, "entry_point": "main"})
        entries = [{"binding": i, "resource": {"buffer": buffer, "offset": 0, "size": buffer.size}} for i, buffer in enumerate(bound)]
        self.bindings = gpu.create_bind_group(layout=self.pipeline.get_bind_group_layout(0), entries=entries)
        self.run(1)
        started = time.perf_counter()
        self.run(1)
        self.times = max(1, int(SECS / (time.perf_counter() - started)))

    def run(self, times):
        encoder = self.gpu.create_command_encoder()
        work = encoder.begin_compute_pass()
        work.set_pipeline(self.pipeline)
        work.set_bind_group(0, self.bindings)
        for _ in range(times):
            work.dispatch_workgroups(*self.groups)
        work.end()
        self.gpu.queue.submit([encoder.finish()])
        self.gpu.queue.read_buffer(self.buffers[-1], 0, 4)

    def rate(self):
        """10⁹ operations a second."""
        started = time.perf_counter()
        self.run(self.times)
        return self.times * self.flop / (time.perf_counter() - started) / 1e9

    def result(self, shape):
        return np.frombuffer(self.gpu.queue.read_buffer(self.buffers[-1]), np.float32).reshape(shape)


def packed(array):
    return np.ascontiguousarray(array.astype(np.float16)).view(np.uint32)


def products(gpu, kernels, n, inner, out):
    """The products of a layer of `out` outputs for `n` tokens: names and kernels, each checked."""
    random = np.random.default_rng(1)
    x, w, dy = (random.standard_normal(shape).astype(np.float32) for shape in [(n, inner), (out, inner), (n, out)])
    half = w.astype(np.float16).astype(np.float32)
    tile, suffix = TILE[kernels], "_lanes" if kernels == "lanes" else ""
    wide = 4 if kernels == "lanes" else 8  # columns that linear_f16_dx counts as one
    dx16 = [n, out // 4 if kernels == "lanes" else out, inner // wide, 0]
    rows = [
        ("forward", "linear", [x, w], (n, out), [n, out, inner // 4, 0], x @ w.T),
        ("dx", "linear_dx", [dy, w], (n, inner), [n, out // 4, inner // 4, 0], dy @ w),
        ("dw", "linear_dw", [dy, x], (out, inner), [n, out // 4, inner // 4, 0, 0, 0, 0, 0], dy.T @ x),
        ("forward, f16 weights", "linear_f16", [x, packed(w)], (n, out), [n, out, inner // 4, 0], x @ half.T),
        ("dx, f16 weights", "linear_f16_dx", [dy, packed(w)], (n, inner), dx16, dy @ half),
    ]
    for what, name, inputs, shape, params, expected in rows:
        groups = -(-shape[0] // tile) * -(-shape[1] // tile)
        source = (WGSL / f"{name}{suffix}.wgsl").read_text()
        kernel = Kernel(gpu, source, [*inputs, np.zeros(shape, np.float32)], params, (groups, 1, 1), 2 * n * inner * out)
        error = np.square(kernel.result(shape) - expected).sum() / np.square(expected).sum()
        if not error <= 1e-7:
            sys.exit(f"products.py: {name}{suffix} computes something else: NMSE {error:.1e}")
        yield f"{what:<21}{n:>5} x {inner:>4} -> {out:>4}", kernel


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", choices=TILE, default="lanes")
    parser.add_argument("--tokens", default="512,128")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    try:
        if not peers.installed("wgpu"):
            peers.install([sys.executable, "-m", "pip", "install", "-q", "wgpu"], "wgpu")
    except Skipped as reason:
        sys.exit(f"products.py: {reason}")
    import wgpu
    adapter = wgpu.gpu.request_adapter_sync(power_preference="high-performance")
    features = [feature for feature in ["subgroup"] if feature in adapter.features]
    gpu = adapter.request_device_sync(required_features=features)
    threads = 1 << 14
    peak = Kernel(gpu, registers(), [np.zeros((threads, 4), np.float32)], None, (threads // 8, 1, 1), threads * 4 * 2 * CHAINS * 8 * TURNS)
    kernels = [kernel for n in options.tokens.split(",") for layer in LAYERS
               for kernel in products(gpu, options.kernels, int(n), *layer)]
    rates = {name: [] for name, _ in kernels}
    peaks, shares = [], {name: [] for name, _ in kernels}
    for _ in range(options.rounds):
        for name, kernel in kernels:
            peaks.append(peak.rate())
            rates[name].append(kernel.rate())
            shares[name].append(rates[name][-1] / peaks[-1])
    print(f"{adapter.info['device']}, {options.kernels}; GFLOP/s, and share of the register-only shader's {statistics.median(peaks):.0f}")
    for name in rates:
        print(f"{name}   {statistics.median(rates[name]):6.1f}   {100 * statistics.median(shares[name]):3.0f} %")


if __name__ == "__main__":
    main()
