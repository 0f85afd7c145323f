// What the loss needs of a block of logits: per row the largest, the sum of exp(logit − largest) and the logit at the
// target, joined with those of the blocks before (states: xyz); nll = log(sum) + (largest − at_target) and hits = 1 where
// nothing is larger than the target, both 0 where the target is below 0. The last block leaves the true ones.
// One workgroup a row of logits, threads stride over the columns. Twin: cpu/cross_entropy.rs, `cross_entropy`.
struct Params { rows: u32, columns: u32, first_column: u32, first_row: u32 }

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> targets: array<i32>;
@group(0) @binding(2) var<storage, read_write> states: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> nll: array<f32>;
@group(0) @binding(4) var<storage, read_write> hits: array<f32>;
@group(0) @binding(5) var<uniform> params: Params;

const WG: u32 = 256u;
const FEW: u32 = 16u;
const NONE: f32 = -1e30;
var<workgroup> sh_part: array<vec2<f32>, WG>;

// Of two sets of logits to that of both: the largest, and the sum of exp(logit − largest).
fn joined(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let largest = max(a.x, b.x);
    return vec2<f32>(largest, a.y * exp(a.x - largest) + b.y * exp(b.x - largest));
}

fn logit(base: u32, column: u32) -> f32 {
    return select(NONE, logits[base + min(column, params.columns - 1u)], column < params.columns);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = group.y * groups.x + group.x;
    let base = row * params.columns;
    var part = vec2<f32>(NONE, 0.0);
    if (row < params.rows) {
        for (var i = local; i < params.columns; i += 4u * WG) {
            let x = vec4<f32>(logit(base, i), logit(base, i + WG), logit(base, i + 2u * WG), logit(base, i + 3u * WG));
            let largest = max(max(x.x, x.y), max(x.z, x.w));
            part = joined(part, vec2<f32>(largest, dot(exp(x - largest), vec4<f32>(1.0))));
        }
    }
    sh_part[local] = part;
    workgroupBarrier();
    if (local < FEW) {
        for (var i = local + FEW; i < WG; i += FEW) {
            part = joined(part, sh_part[i]);
        }
    }
    workgroupBarrier();
    sh_part[local] = part;
    workgroupBarrier();
    if (local > 0u || row >= params.rows) {
        return;
    }
    for (var i = 1u; i < FEW; i += 1u) {
        part = joined(part, sh_part[i]);
    }
    let at = params.first_row + row;
    var at_target = NONE;
    if (params.first_column > 0u) {
        part = joined(part, states[at].xy);
        at_target = states[at].z;
    }
    let column = u32(targets[at]) - params.first_column; // below the first it wraps: beyond the last
    if (column < params.columns) {
        at_target = logits[base + column];
    }
    states[at] = vec4<f32>(part, at_target, 0.0);
    let used = targets[at] >= 0;
    nll[at] = select(0.0, log(part.y) + (part.x - at_target), used);
    hits[at] = select(0.0, 1.0, used && at_target >= part.x);
}
