// A block of logits to its gradient, in place: scale·(exp(logit − largest)/sum − [the column is the target's]), zeros
// where the target is below 0; largest and sum as `cross_entropy` left them (states: xy). One workgroup a row, threads
// stride over the columns. Twin: cpu/cross_entropy.rs, `cross_entropy_dlogits`.
struct Params { rows: u32, columns: u32, first_column: u32, first_row: u32, scale: f32, unused0: u32, unused1: u32, unused2: u32 }

@group(0) @binding(0) var<storage, read_write> logits: array<f32>;
@group(0) @binding(1) var<storage, read> targets: array<i32>;
@group(0) @binding(2) var<storage, read> states: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> params: Params;

const WG: u32 = 256u;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = group.y * groups.x + group.x;
    if (row >= params.rows) {
        return;
    }
    let at = params.first_row + row;
    let column = u32(targets[at]) - params.first_column; // below the first it wraps: beyond the last
    let scale = select(0.0, params.scale, targets[at] >= 0);
    let largest = states[at].x;
    let factor = scale / states[at].y;
    let base = row * params.columns;
    for (var i = local; i < params.columns; i += WG) {
        logits[base + i] = exp(logits[base + i] - largest) * factor - select(0.0, scale, i == column);
    }
}
