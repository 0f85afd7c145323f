// y = norm(x)·[w0; w1; w2]ᵀ for a few rows of x: RMS-norm and up to three products in one. Weights are f32, or f16 two a
// word (`half`). As decode_norm_linear.wgsl where a subgroup has eight lanes: they are a workgroup, make four outputs of one
// row, all of one matrix, and need no barrier. Twin: cpu/decode.rs, `decode_norm_linear`.
struct Params {
    rows: u32, k8: u32, // of x; columns of x and the weights, in eights
    out0: u32, out1: u32, out2: u32, // rows of the weights, multiples of four
    half: u32,
    eps: f32,
    width: u32, first: u32, // of one matrix: numbers in a row of y, and where in it the outputs begin
    unused0: u32, unused1: u32, unused2: u32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> norm: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> w0: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> w1: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> w2: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
@group(0) @binding(6) var<uniform> params: Params;

const LANES: u32 = 8u;
const OUTPUTS: u32 = 4u;

fn dot_f16(eight: vec4<u32>, low: vec4<f32>, high: vec4<f32>) -> f32 {
    return dot(vec4<f32>(unpack2x16float(eight.x), unpack2x16float(eight.y)), low)
        + dot(vec4<f32>(unpack2x16float(eight.z), unpack2x16float(eight.w)), high);
}

fn dot_f32(four: vec4<u32>, more: vec4<u32>, low: vec4<f32>, high: vec4<f32>) -> f32 {
    return dot(bitcast<vec4<f32>>(four), low) + dot(bitcast<vec4<f32>>(more), high);
}

// Eight columns of four rows from `row` on.
fn product0(row: u32, k: u32, low: vec4<f32>, high: vec4<f32>) -> vec4<f32> {
    let at = row * params.k8 + k;
    let s = params.k8;
    if (params.half == 1u) {
        return vec4<f32>(dot_f16(w0[at], low, high), dot_f16(w0[at + s], low, high), dot_f16(w0[at + 2u * s], low, high), dot_f16(w0[at + 3u * s], low, high));
    }
    let a = 2u * at;
    return vec4<f32>(
        dot_f32(w0[a], w0[a + 1u], low, high), dot_f32(w0[a + 2u * s], w0[a + 2u * s + 1u], low, high),
        dot_f32(w0[a + 4u * s], w0[a + 4u * s + 1u], low, high), dot_f32(w0[a + 6u * s], w0[a + 6u * s + 1u], low, high),
    );
}

fn product1(row: u32, k: u32, low: vec4<f32>, high: vec4<f32>) -> vec4<f32> {
    let at = row * params.k8 + k;
    let s = params.k8;
    if (params.half == 1u) {
        return vec4<f32>(dot_f16(w1[at], low, high), dot_f16(w1[at + s], low, high), dot_f16(w1[at + 2u * s], low, high), dot_f16(w1[at + 3u * s], low, high));
    }
    let a = 2u * at;
    return vec4<f32>(
        dot_f32(w1[a], w1[a + 1u], low, high), dot_f32(w1[a + 2u * s], w1[a + 2u * s + 1u], low, high),
        dot_f32(w1[a + 4u * s], w1[a + 4u * s + 1u], low, high), dot_f32(w1[a + 6u * s], w1[a + 6u * s + 1u], low, high),
    );
}

fn product2(row: u32, k: u32, low: vec4<f32>, high: vec4<f32>) -> vec4<f32> {
    let at = row * params.k8 + k;
    let s = params.k8;
    if (params.half == 1u) {
        return vec4<f32>(dot_f16(w2[at], low, high), dot_f16(w2[at + s], low, high), dot_f16(w2[at + 2u * s], low, high), dot_f16(w2[at + 3u * s], low, high));
    }
    let a = 2u * at;
    return vec4<f32>(
        dot_f32(w2[a], w2[a + 1u], low, high), dot_f32(w2[a + 2u * s], w2[a + 2u * s + 1u], low, high),
        dot_f32(w2[a + 4u * s], w2[a + 4u * s + 1u], low, high), dot_f32(w2[a + 6u * s], w2[a + 6u * s + 1u], low, high),
    );
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let outputs = params.out0 + params.out1 + params.out2;
    let blocks = outputs / OUTPUTS;
    let block = group.y * groups.x + group.x;
    let row = min(block / blocks, params.rows - 1u);
    let own = block % blocks * OUTPUTS; // of the matrices one after the other
    let second = params.out0 + params.out1;
    var sums = vec4<f32>();
    var squares = 0.0;
    for (var k = lane; k < params.k8; k += LANES) {
        var low = x[(row * params.k8 + k) * 2u];
        var high = x[(row * params.k8 + k) * 2u + 1u];
        squares += dot(low, low) + dot(high, high);
        low *= norm[k * 2u];
        high *= norm[k * 2u + 1u];
        if (own < params.out0) {
            sums += product0(own, k, low, high);
        } else if (own < second) {
            sums += product1(own - params.out0, k, low, high);
        } else {
            sums += product2(own - second, k, low, high);
        }
    }
    let all = subgroupAdd(sums);
    let total = subgroupAdd(squares);
    if (block >= blocks * params.rows || lane >= OUTPUTS) {
        return;
    }
    let i = own + lane;
    var at = row * params.width + params.first + i;
    if (params.out1 > 0u) {
        if (i < params.out0) {
            at = row * params.out0 + i;
        } else if (i < second) {
            at = params.rows * params.out0 + row * params.out1 + i - params.out0;
        } else {
            at = params.rows * second + row * params.out2 + i - second;
        }
    }
    y[at] = all[lane] / sqrt(total / f32(8u * params.k8) + params.eps);
}
