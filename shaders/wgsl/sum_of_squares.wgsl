// part = Σ x² over a share of one of seven buffers, so that many are summed by few launches. Workgroups below ends[0]
// share the first buffer, those below ends[1] the second, and so on; ends[7] is where the parts of this launch begin.
// Threads stride over vectors of four elements; lens are multiples of 4. Twin: cpu/sum_of_squares.rs, `sum_of_squares`.
struct Params { ends: array<vec4<u32>, 2>, lens: array<vec4<u32>, 2> }

@group(0) @binding(0) var<storage, read> x0: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> x1: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x2: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> x3: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> x4: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> x5: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> x6: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> part: array<f32>;
@group(0) @binding(8) var<uniform> params: Params;

const WG: u32 = 64u;
const FEW: u32 = 16u;
var<workgroup> sh_sum: array<f32, WG>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    var which = 0u;
    var first = 0u;
    for (var i = 0u; i < 6u; i += 1u) {
        let end = params.ends[i / 4u][i % 4u];
        if (group.x >= end) {
            which = i + 1u;
            first = end;
        }
    }
    let at = (group.x - first) * WG + local;
    let stride = (params.ends[which / 4u][which % 4u] - first) * WG;
    let count = params.lens[which / 4u][which % 4u] / 4u;
    var sum = 0.0;
    switch (which) {
        case 0u: { for (var i = at; i < count; i += stride) { sum += dot(x0[i], x0[i]); } }
        case 1u: { for (var i = at; i < count; i += stride) { sum += dot(x1[i], x1[i]); } }
        case 2u: { for (var i = at; i < count; i += stride) { sum += dot(x2[i], x2[i]); } }
        case 3u: { for (var i = at; i < count; i += stride) { sum += dot(x3[i], x3[i]); } }
        case 4u: { for (var i = at; i < count; i += stride) { sum += dot(x4[i], x4[i]); } }
        case 5u: { for (var i = at; i < count; i += stride) { sum += dot(x5[i], x5[i]); } }
        default: { for (var i = at; i < count; i += stride) { sum += dot(x6[i], x6[i]); } }
    }
    sh_sum[local] = sum;
    workgroupBarrier();
    sum = 0.0;
    if (local < FEW) {
        for (var i = local; i < WG; i += FEW) {
            sum += sh_sum[i];
        }
    }
    workgroupBarrier();
    sh_sum[local] = sum;
    workgroupBarrier();
    if (local > 0u) {
        return;
    }
    sum = 0.0;
    for (var i = 0u; i < FEW; i += 1u) {
        sum += sh_sum[i];
    }
    part[params.ends[1].w + group.x] = sum;
}
