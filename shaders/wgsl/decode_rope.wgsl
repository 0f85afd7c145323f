// Turns the queries and keys of one new token a row by its position, the queries in place, the keys into the cache, and copies
// the values there. A thread turns two numbers of a head against each other. Twin: cpu/decode.rs, `decode_rope`.
struct Params { rows: u32, heads: u32, groups: u32, half: u32, capacity: u32, unused0: u32, unused1: u32, unused2: u32 } // half: of a head's numbers
struct Row { token: u32, column: u32, start: u32, step: u32 } // column of the cache for the new token; where its text begins

@group(0) @binding(0) var<storage, read_write> qkv: array<f32>; // [rows, heads·e], then keys [rows, groups·e], then values
@group(0) @binding(1) var<storage, read> cosines: array<f32>; // [positions, e/2]
@group(0) @binding(2) var<storage, read> sines: array<f32>;
@group(0) @binding(3) var<storage, read> rows: array<Row>;
@group(0) @binding(4) var<storage, read_write> keys: array<f32>; // [rows, capacity, groups·e]
@group(0) @binding(5) var<storage, read_write> values: array<f32>;
@group(0) @binding(6) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = (group.y * groups.x + group.x) * 64u + thread;
    let per_row = (params.heads + params.groups) * params.half;
    if (i >= params.rows * per_row) {
        return;
    }
    let row = i / per_row;
    let head = i % per_row / params.half; // of the queries, then of the keys
    let j = i % params.half;
    let e = 2u * params.half;
    let angle = (rows[row].column - rows[row].start) * params.half + j;
    let c = cosines[angle];
    let s = sines[angle];
    if (head < params.heads) {
        let at = (row * params.heads + head) * e + j;
        let low = qkv[at];
        let high = qkv[at + params.half];
        qkv[at] = low * c - high * s;
        qkv[at + params.half] = high * c + low * s;
        return;
    }
    let width = params.groups * e;
    let within = (head - params.heads) * e + j;
    let from_key = params.rows * params.heads * e + row * width + within;
    let to = (row * params.capacity + rows[row].column) * width + within;
    let low = qkv[from_key];
    let high = qkv[from_key + params.half];
    keys[to] = low * c - high * s;
    keys[to + params.half] = high * c + low * s;
    let from_value = from_key + params.rows * width;
    values[to] = qkv[from_value];
    values[to + params.half] = qkv[from_value + params.half];
}
