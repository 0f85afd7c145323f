// h = silu(norm(x)·gateᵀ) · (norm(x)·upᵀ) for a few rows of x. As decode_gate_up.wgsl where a subgroup has eight lanes: they
// are a workgroup, make four outputs of one row, and need no barrier. Twin: cpu/decode.rs, `decode_gate_up`.
struct Params { rows: u32, k8: u32, out: u32, half: u32, eps: f32, unused0: u32, unused1: u32, unused2: u32 } // k8: columns of x and the weights, in eights

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> norm: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> gate: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> up: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> h: array<f32>;
@group(0) @binding(5) var<uniform> params: Params;

const LANES: u32 = 8u;
const OUTPUTS: u32 = 4u;

fn dot_f16(eight: vec4<u32>, low: vec4<f32>, high: vec4<f32>) -> f32 {
    return dot(vec4<f32>(unpack2x16float(eight.x), unpack2x16float(eight.y)), low)
        + dot(vec4<f32>(unpack2x16float(eight.z), unpack2x16float(eight.w)), high);
}

fn dot_f32(four: vec4<u32>, more: vec4<u32>, low: vec4<f32>, high: vec4<f32>) -> f32 {
    return dot(bitcast<vec4<f32>>(four), low) + dot(bitcast<vec4<f32>>(more), high);
}


// Eight columns of four rows of a weight from vector `at` on.
fn of_gate(at: u32, low: vec4<f32>, high: vec4<f32>) -> vec4<f32> {
    let s = params.k8;
    if (params.half == 1u) {
        return vec4<f32>(dot_f16(gate[at], low, high), dot_f16(gate[at + s], low, high), dot_f16(gate[at + 2u * s], low, high), dot_f16(gate[at + 3u * s], low, high));
    }
    let a = 2u * at;
    return vec4<f32>(
        dot_f32(gate[a], gate[a + 1u], low, high), dot_f32(gate[a + 2u * s], gate[a + 2u * s + 1u], low, high),
        dot_f32(gate[a + 4u * s], gate[a + 4u * s + 1u], low, high), dot_f32(gate[a + 6u * s], gate[a + 6u * s + 1u], low, high),
    );
}

fn of_up(at: u32, low: vec4<f32>, high: vec4<f32>) -> vec4<f32> {
    let s = params.k8;
    if (params.half == 1u) {
        return vec4<f32>(dot_f16(up[at], low, high), dot_f16(up[at + s], low, high), dot_f16(up[at + 2u * s], low, high), dot_f16(up[at + 3u * s], low, high));
    }
    let a = 2u * at;
    return vec4<f32>(
        dot_f32(up[a], up[a + 1u], low, high), dot_f32(up[a + 2u * s], up[a + 2u * s + 1u], low, high),
        dot_f32(up[a + 4u * s], up[a + 4u * s + 1u], low, high), dot_f32(up[a + 6u * s], up[a + 6u * s + 1u], low, high),
    );
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let blocks = params.out / OUTPUTS;
    let block = group.y * groups.x + group.x;
    let row = min(block / blocks, params.rows - 1u);
    let first = block % blocks * OUTPUTS;
    var gates = vec4<f32>();
    var ups = vec4<f32>();
    var squares = 0.0;
    for (var k = lane; k < params.k8; k += LANES) {
        var low = x[(row * params.k8 + k) * 2u];
        var high = x[(row * params.k8 + k) * 2u + 1u];
        squares += dot(low, low) + dot(high, high);
        low *= norm[k * 2u];
        high *= norm[k * 2u + 1u];
        gates += of_gate(first * params.k8 + k, low, high);
        ups += of_up(first * params.k8 + k, low, high);
    }
    let scale = 1.0 / sqrt(subgroupAdd(squares) / f32(8u * params.k8) + params.eps);
    let g = subgroupAdd(gates) * scale;
    let u = subgroupAdd(ups) * scale;
    if (block < blocks * params.rows && lane < OUTPUTS) {
        h[row * params.out + first + lane] = g[lane] / (1.0 + exp(-g[lane])) * u[lane];
    }
}
