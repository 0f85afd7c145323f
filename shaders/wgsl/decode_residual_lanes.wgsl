// x ← x + y·wᵀ for a few rows. As decode_residual.wgsl where a subgroup has eight lanes: they are a workgroup, make four
// outputs of one row, and need no barrier. Twin: cpu/decode.rs, `decode_residual`.
struct Params { rows: u32, k8: u32, out: u32, half: u32 } // k8: columns of y and w, in eights

@group(0) @binding(0) var<storage, read> y: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<uniform> params: Params;

const LANES: u32 = 8u;
const OUTPUTS: u32 = 4u;

fn product(at: u32, low: vec4<f32>, high: vec4<f32>) -> f32 {
    if (params.half == 1u) {
        let eight = w[at];
        return dot(vec4<f32>(unpack2x16float(eight.x), unpack2x16float(eight.y)), low)
            + dot(vec4<f32>(unpack2x16float(eight.z), unpack2x16float(eight.w)), high);
    }
    return dot(bitcast<vec4<f32>>(w[2u * at]), low) + dot(bitcast<vec4<f32>>(w[2u * at + 1u]), high);
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let blocks = params.out / OUTPUTS;
    let block = group.y * groups.x + group.x;
    let row = min(block / blocks, params.rows - 1u);
    let first = block % blocks * OUTPUTS;
    let at = first * params.k8;
    let s = params.k8;
    var sums = vec4<f32>();
    for (var k = lane; k < params.k8; k += LANES) {
        let low = y[(row * params.k8 + k) * 2u];
        let high = y[(row * params.k8 + k) * 2u + 1u];
        sums += vec4<f32>(product(at + k, low, high), product(at + s + k, low, high), product(at + 2u * s + k, low, high), product(at + 3u * s + k, low, high));
    }
    let all = subgroupAdd(sums);
    if (block < blocks * params.rows && lane < OUTPUTS) {
        x[row * params.out + first + lane] += all[lane];
    }
}
