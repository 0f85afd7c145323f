// y = x · r · w with r = 1/√(mean(x²) + eps); sixteen threads a row, which stride over its vectors of four columns.
// d is a multiple of 4. Twin: cpu/rms_norm.rs, `rms_norm`.
struct Params { rows: u32, d: u32, eps: f32, unused: u32 }

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;
@group(0) @binding(4) var<uniform> params: Params;

const WG: u32 = 64u;
const LANES: u32 = 16u; // threads of a row
var<workgroup> sh_sum: array<f32, WG>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = (group.y * groups.x + group.x) * (WG / LANES) + local / LANES;
    let lane = local % LANES;
    let d = params.d / 4u;
    let base = row * d;
    var sum = 0.0;
    if (row < params.rows) {
        for (var i = lane; i < d; i += LANES) {
            sum += dot(x[base + i], x[base + i]);
        }
    }
    sh_sum[local] = sum;
    workgroupBarrier();
    if (row >= params.rows) {
        return;
    }
    var total = 0.0;
    for (var i = 0u; i < LANES; i += 1u) {
        total += sh_sum[local - lane + i];
    }
    let r = 1.0 / sqrt(total / f32(params.d) + params.eps);
    if (lane == 0u) {
        scales[row] = r;
    }
    for (var i = lane; i < d; i += LANES) {
        y[base + i] = x[base + i] * r * w[i];
    }
}
