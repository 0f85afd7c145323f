// y = x·wᵀ for few rows of x; reading w is what takes the time: 16 bytes a thread at once.
// LANES neighbouring threads share four rows of w; a workgroup makes ROWS outputs of one row of x.
// Twin: cpu/linear.rs, `linear`.
struct Params { n: u32, out: u32, k4: u32, unused: u32 } // k4: columns of x and w, in fours

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<uniform> params: Params;

const WG: u32 = 64u;
const LANES: u32 = 16u;
const ROWS: u32 = WG / LANES * 4u;
var<workgroup> sh_sum: array<vec4<f32>, WG>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let blocks = (params.out + ROWS - 1u) / ROWS;
    let block = group.y * groups.x + group.x;
    let row = min(block / blocks, params.n - 1u);
    let first = block % blocks * ROWS; // of the outputs
    let last = params.out - 1u;
    let own = first + local.x / LANES * 4u;
    let at0 = min(own, last) * params.k4;
    let at1 = min(own + 1u, last) * params.k4;
    let at2 = min(own + 2u, last) * params.k4;
    let at3 = min(own + 3u, last) * params.k4;
    var sums = vec4<f32>();
    for (var k = local.x % LANES; k < params.k4; k += LANES) {
        let four = x[row * params.k4 + k];
        sums += vec4<f32>(dot(w[at0 + k], four), dot(w[at1 + k], four), dot(w[at2 + k], four), dot(w[at3 + k], four));
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
