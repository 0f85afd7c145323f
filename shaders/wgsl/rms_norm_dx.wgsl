// dx = r·(dy·w − x·r²·mean(dy·w·x)); one workgroup a row, threads stride over the columns.
// Twin: cpu/rms_norm.rs, `rms_norm_dx`.
struct Params { rows: u32, d: u32, unused0: u32, unused1: u32 }

@group(0) @binding(0) var<storage, read> dy: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<f32>;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;
@group(0) @binding(5) var<uniform> params: Params;

const WG: u32 = 64u;
var<workgroup> sh_sum: array<f32, WG>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let row = group.y * groups.x + group.x;
    let base = row * params.d;
    var sum = 0.0;
    if (row < params.rows) {
        for (var i = local.x; i < params.d; i += WG) {
            sum += dy[base + i] * w[i] * x[base + i];
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
    let r = scales[row];
    let mean = sh_sum[0] / f32(params.d) * r * r;
    for (var i = local.x; i < params.d; i += WG) {
        dx[base + i] = r * (dy[base + i] * w[i] - x[base + i] * mean);
    }
}
