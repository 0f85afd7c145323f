// h = silu(norm(x)·gateᵀ) · (norm(x)·upᵀ) for a few rows of x. Weights are f32, or f16 two a word (`half`). LANES
// neighbouring threads share two rows of each matrix; a workgroup makes OUTPUTS outputs of one row of x.
// Twin: cpu/decode.rs, `decode_gate_up`.
struct Params { rows: u32, k8: u32, out: u32, half: u32, eps: f32, unused0: u32, unused1: u32, unused2: u32 } // k8: columns of x and the weights, in eights

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> norm: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> gate: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> up: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> h: array<f32>;
@group(0) @binding(5) var<uniform> params: Params;

const WG: u32 = 64u;
const LANES: u32 = 16u;
const OUTPUTS: u32 = WG / LANES * 2u;
var<workgroup> sh_sum: array<vec4<f32>, WG>; // two of gate, two of up
var<workgroup> sh_squares: array<f32, LANES>;

fn dot_f16(eight: vec4<u32>, low: vec4<f32>, high: vec4<f32>) -> f32 {
    return dot(vec4<f32>(unpack2x16float(eight.x), unpack2x16float(eight.y)), low)
        + dot(vec4<f32>(unpack2x16float(eight.z), unpack2x16float(eight.w)), high);
}

fn dot_f32(four: vec4<u32>, more: vec4<u32>, low: vec4<f32>, high: vec4<f32>) -> f32 {
    return dot(bitcast<vec4<f32>>(four), low) + dot(bitcast<vec4<f32>>(more), high);
}


@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let blocks = (params.out + OUTPUTS - 1u) / OUTPUTS;
    let block = group.y * groups.x + group.x;
    let row = min(block / blocks, params.rows - 1u);
    let first = block % blocks * OUTPUTS;
    let at0 = min(first + thread / LANES * 2u, params.out - 1u) * params.k8;
    let at1 = min(first + thread / LANES * 2u + 1u, params.out - 1u) * params.k8;
    var sums = vec4<f32>();
    var squares = 0.0;
    for (var k = thread % LANES; k < params.k8; k += LANES) {
        var low = x[(row * params.k8 + k) * 2u];
        var high = x[(row * params.k8 + k) * 2u + 1u];
        squares += dot(low, low) + dot(high, high);
        low *= norm[k * 2u];
        high *= norm[k * 2u + 1u];
        if (params.half == 1u) {
            sums += vec4<f32>(dot_f16(gate[at0 + k], low, high), dot_f16(gate[at1 + k], low, high), dot_f16(up[at0 + k], low, high), dot_f16(up[at1 + k], low, high));
        } else {
            let a = 2u * (at0 + k);
            let b = 2u * (at1 + k);
            sums += vec4<f32>(dot_f32(gate[a], gate[a + 1u], low, high), dot_f32(gate[b], gate[b + 1u], low, high), dot_f32(up[a], up[a + 1u], low, high), dot_f32(up[b], up[b + 1u], low, high));
        }
    }
    sh_sum[thread] = sums;
    if (thread < LANES) {
        sh_squares[thread] = squares;
    }
    workgroupBarrier();
    if (block >= blocks * params.rows || thread >= OUTPUTS || first + thread >= params.out) {
        return;
    }
    var sum = vec2<f32>();
    var total = 0.0;
    for (var lane = 0u; lane < LANES; lane += 1u) {
        let four = sh_sum[thread / 2u * LANES + lane];
        sum += vec2<f32>(four[thread % 2u], four[2u + thread % 2u]);
        total += sh_squares[lane];
    }
    sum /= sqrt(total / f32(8u * params.k8) + params.eps);
    h[row * params.out + first + thread] = sum.x / (1.0 + exp(-sum.x)) * sum.y;
}
