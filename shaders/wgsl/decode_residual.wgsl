// x ← x + y·wᵀ for a few rows. Weights are f32, or f16 two a word (`half`). LANES neighbouring threads share four rows of w;
// a workgroup makes OUTPUTS outputs of one row. Twin: cpu/decode.rs, `decode_residual`.
struct Params { rows: u32, k8: u32, out: u32, half: u32 } // k8: columns of y and w, in eights

@group(0) @binding(0) var<storage, read> y: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<uniform> params: Params;

const WG: u32 = 64u;
const LANES: u32 = 16u;
const OUTPUTS: u32 = WG / LANES * 4u;
var<workgroup> sh_sum: array<vec4<f32>, WG>;

fn product(at: u32, low: vec4<f32>, high: vec4<f32>) -> f32 {
    if (params.half == 1u) {
        let eight = w[at];
        return dot(vec4<f32>(unpack2x16float(eight.x), unpack2x16float(eight.y)), low)
            + dot(vec4<f32>(unpack2x16float(eight.z), unpack2x16float(eight.w)), high);
    }
    return dot(bitcast<vec4<f32>>(w[2u * at]), low) + dot(bitcast<vec4<f32>>(w[2u * at + 1u]), high);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let blocks = (params.out + OUTPUTS - 1u) / OUTPUTS;
    let block = group.y * groups.x + group.x;
    let row = min(block / blocks, params.rows - 1u);
    let first = block % blocks * OUTPUTS;
    let last = params.out - 1u;
    let own = first + thread / LANES * 4u;
    let at0 = min(own, last) * params.k8;
    let at1 = min(own + 1u, last) * params.k8;
    let at2 = min(own + 2u, last) * params.k8;
    let at3 = min(own + 3u, last) * params.k8;
    var sums = vec4<f32>();
    for (var k = thread % LANES; k < params.k8; k += LANES) {
        let low = y[(row * params.k8 + k) * 2u];
        let high = y[(row * params.k8 + k) * 2u + 1u];
        sums += vec4<f32>(product(at0 + k, low, high), product(at1 + k, low, high), product(at2 + k, low, high), product(at3 + k, low, high));
    }
    sh_sum[thread] = sums;
    workgroupBarrier();
    if (block >= blocks * params.rows || thread >= OUTPUTS || first + thread >= params.out) {
        return;
    }
    var sum = 0.0;
    for (var lane = 0u; lane < LANES; lane += 1u) {
        sum += sh_sum[thread / 4u * LANES + lane][thread % 4u];
    }
    x[row * params.out + first + thread] += sum;
}
