// dx = r·(dy·w − x·r²·mean(dy·w·x)); sixteen threads a row, which stride over its vectors of four columns.
// d is a multiple of 4. Twin: cpu/rms_norm.rs, `rms_norm_dx`.
struct Params { rows: u32, d: u32, unused0: u32, unused1: u32 }

@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(5) var<uniform> params: Params;

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
            sum += dot(dy[base + i] * w[i], x[base + i]);
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
    let r = scales[row];
    let mean = total / f32(params.d) * r * r;
    for (var i = lane; i < d; i += LANES) {
        dx[base + i] = r * (dy[base + i] * w[i] - x[base + i] * mean);
    }
}
