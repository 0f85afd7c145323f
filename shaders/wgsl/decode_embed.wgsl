// x = the table's rows of the newest tokens. The table is f32, or f16 two a word (`half`); tokens outside of this block of
// rows are left to the others. A thread makes eight numbers. Twin: cpu/decode.rs, `decode_embed`.
struct Params { rows: u32, d8: u32, half: u32, first: u32, count: u32, unused0: u32, unused1: u32, unused2: u32 } // rows of the table: first .. first + count
struct Row { token: u32, column: u32, start: u32, step: u32 }

@group(0) @binding(0) var<storage, read> rows: array<Row>;
@group(0) @binding(1) var<storage, read> table: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = (group.y * groups.x + group.x) * 64u + thread;
    if (i >= params.rows * params.d8) {
        return;
    }
    let token = rows[i / params.d8].token;
    if (token < params.first || token - params.first >= params.count) {
        return;
    }
    let at = (token - params.first) * params.d8 + i % params.d8;
    if (params.half == 1u) {
        let eight = table[at];
        x[2u * i] = vec4<f32>(unpack2x16float(eight.x), unpack2x16float(eight.y));
        x[2u * i + 1u] = vec4<f32>(unpack2x16float(eight.z), unpack2x16float(eight.w));
    } else {
        x[2u * i] = bitcast<vec4<f32>>(table[2u * at]);
        x[2u * i + 1u] = bitcast<vec4<f32>>(table[2u * at + 1u]);
    }
}
