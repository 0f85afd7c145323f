// y = x · r · w with r = 1/√(mean(x²) + eps); one workgroup a row, threads stride over the columns.
// Twin: cpu/rms_norm.rs, `rms_norm`.
struct Params { rows: u32, d: u32, eps: f32, unused: u32 }

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;
@group(0) @binding(4) var<uniform> params: Params;

const WG: u32 = 64u;
var<workgroup> sh_sum: array<f32, WG>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let row = group.y * groups.x + group.x;
    let base = row * params.d;
    var sum = 0.0;
    if (row < params.rows) {
        for (var i = local.x; i < params.d; i += WG) {
            sum += x[base + i] * x[base + i];
        }
    }
    sh_sum[local.x] = sum;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half >>= 1u) {
        if (local.x < half) {
            sh_sum[local.x] += sh_sum[local.x + half];
        }
        workgroupBarrier();
    }
    if (row >= params.rows) {
        return;
    }
    let r = 1.0 / sqrt(sh_sum[0] / f32(params.d) + params.eps);
    if (local.x == 0u) {
        scales[row] = r;
    }
    for (var i = local.x; i < params.d; i += WG) {
        y[base + i] = x[base + i] * r * w[i];
    }
}
