// y = x·wᵀ for few rows of x; w holds two f16 a word and is what takes the time, so it is read 16 bytes a thread.
// LANES neighbouring threads share four rows of w; a workgroup makes ROWS outputs of one row of x.
// Twin: cpu/linear_f16.rs, `linear_f16`.
struct Params { n: u32, out: u32, k8: u32, unused: u32 } // k8: columns of x and w, in eights

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<uniform> params: Params;

const WG: u32 = 64u;
const LANES: u32 = 16u;
const ROWS: u32 = WG / LANES * 4u;
var<workgroup> sh_sum: array<vec4<f32>, WG>;

fn product(at: u32, low: vec4<f32>, high: vec4<f32>) -> f32 {
    let eight = w[at];
    return dot(vec4<f32>(unpack2x16float(eight.x), unpack2x16float(eight.y)), low)
        + dot(vec4<f32>(unpack2x16float(eight.z), unpack2x16float(eight.w)), high);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let blocks = (params.out + ROWS - 1u) / ROWS;
    let block = group.y * groups.x + group.x;
    let row = min(block / blocks, params.n - 1u);
    let first = block % blocks * ROWS; // of the outputs
    let last = params.out - 1u;
    let own = first + local.x / LANES * 4u;
    let at0 = min(own, last) * params.k8;
    let at1 = min(own + 1u, last) * params.k8;
    let at2 = min(own + 2u, last) * params.k8;
    let at3 = min(own + 3u, last) * params.k8;
    var sums = vec4<f32>();
    for (var k = local.x % LANES; k < params.k8; k += LANES) {
        let low = x[(row * params.k8 + k) * 2u];
        let high = x[(row * params.k8 + k) * 2u + 1u];
        sums += vec4<f32>(product(at0 + k, low, high), product(at1 + k, low, high), product(at2 + k, low, high), product(at3 + k, low, high));
    }
    sh_sum[local.x] = sums;
    workgroupBarrier();
    if (block >= blocks * params.n || local.x >= ROWS || first + local.x >= params.out) {
        return;
    }
    var sum = 0.0;
    for (var lane = 0u; lane < LANES; lane += 1u) {
        sum += sh_sum[local.x / 4u * LANES + lane][local.x % 4u];
    }
    y[row * params.out + first + local.x] = sum;
}
